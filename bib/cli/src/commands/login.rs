//! `bib login`, `bib logout`, `bib whoami`.

use bib_client::{Client, LoggedIn, pb};
use clap::Args;

use crate::context::Context;
use crate::errors::Result;
use crate::output::record;
use crate::trusting::FirstUseArgs;

/// Logs in with an SSH key
///
/// The key is that of `--key`, one of your agent's, or `~/.ssh/id_ed25519`. The certificate is kept for 90 days and
/// renewed by itself.
#[derive(Debug, Args)]
pub(crate) struct Login {
    #[command(flatten)]
    first_use: FirstUseArgs,
}

/// Ends the session and forgets its certificate and token here
#[derive(Debug, Args)]
pub(crate) struct Logout {}

/// Shows who the node takes you for, by which way, with which rights
#[derive(Debug, Args)]
pub(crate) struct Whoami {}

record! {
    /// A log-in that succeeded.
    LoginRow { user: String = Text, user_id: String = Text, role: String = Text, node: String = Text, session: String = Text, expires_at: String = Time }
}

record! {
    /// Who the caller is.
    WhoRow {
        user: String = Text, user_id: String = Text, role: String = Text, via: String = Text, uid: Option<u32> = Text,
        key: Option<String> = Text, session: Option<String> = Text, certificate_expires_at: Option<String> = Time,
        scopes: Vec<String> = Many, keys: Vec<String> = Many,
    }
}

impl Login {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let client = context.client_of(context.target()?, &self.first_use).await?;
        let session = sign_in(context, &client).await?;
        context.output.one(&LoginRow {
            user: session.name,
            user_id: session.user_id,
            role: role_name(session.role).to_owned(),
            node: session.node.to_string(),
            session: session.session_id,
            expires_at: session.expires_at,
        })
    }
}

impl Logout {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let client = context.client().await?;
        if client.is_local() {
            context.output.note("on the Unix socket nobody is logged in; there is nothing to end");
            return Ok(());
        }
        client.logout().await?;
        context.output.one(&super::done::Done::new("logged-out", client.target().address()))
    }
}

impl Whoami {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let client = context.client().await?;
        context.output.one(&WhoRow::from(client.auth().who_am_i().await?))
    }
}

/// Logs in with the key that flags, agent or files offer.
pub(crate) async fn sign_in(context: &Context, client: &Client) -> Result<LoggedIn> {
    if client.is_local() {
        // The client says why nobody logs in there, before any passphrase is asked for.
        let nobody = bib_client::Error::new(bib_client::ErrorKind::Invalid, "on the Unix socket nobody logs in")
            .with_hint("the node knows you by your operating system user; `bib whoami` shows as whom");
        return Err(nobody.into());
    }
    let keys = context.keys();
    let key = tokio::task::spawn_blocking(move || keys.required())
        .await
        .map_err(|error| crate::errors::Failure::failed(format!("look for keys: {error}")))??;
    Ok(client.login(key).await?)
}

/// A role as people write it.
pub(crate) const fn role_name(role: pb::NodeRole) -> &'static str {
    match role {
        pb::NodeRole::Admin => "admin",
        pb::NodeRole::Writer => "writer",
        pb::NodeRole::Reader => "reader",
        pb::NodeRole::Unspecified => "none",
    }
}

impl From<pb::WhoAmIResponse> for WhoRow {
    fn from(who: pb::WhoAmIResponse) -> Self {
        let user = who.user.unwrap_or_default();
        Self {
            role: role_name(user.role()).to_owned(),
            user: user.name,
            user_id: user.user_id,
            via: who.via,
            uid: who.uid,
            key: who.key_fingerprint,
            session: who.session_id,
            certificate_expires_at: who.certificate_expires_at,
            scopes: who.scopes,
            keys: who.keys,
        }
    }
}
