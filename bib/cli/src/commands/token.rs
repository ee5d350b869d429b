//! `bib token`: tokens for scripts. A token file holds a key, its certificate and the token; without any of them it is
//! of no use.

use std::path::PathBuf;
use std::time::Duration;

use bib_client::pb;
use bib_identity::pem;
use bib_identity::request::CertificateRequest;
use bib_identity::token_file::TokenFile;
use clap::{Args, Subcommand};
use secrecy::SecretString;

use super::cert::refuse_existing;
use super::done::Done;
use crate::context::Context;
use crate::errors::{Failure, Result};
use crate::output::record;
use crate::units::parse_duration;

/// Tokens for scripts.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a token file (0600) for `--token-file`
    Create(Create),
    /// Your tokens
    List,
    /// Revokes a token and its certificate
    Revoke {
        /// The token's id
        token: String,
    },
}

/// Makes a token file.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// What the token is called in lists
    #[arg(long)]
    name: String,
    /// read, publish, admin, or topic:NAME:read|write; never more than you may
    #[arg(long = "scope", required = true, value_name = "SCOPE")]
    scopes: Vec<String>,
    /// How long it counts, at most 90d
    #[arg(long, default_value = "30d", value_name = "DURATION", value_parser = parse_duration)]
    expires: Duration,
    /// The file; NAME.token when missing
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

record! {
    /// A token file that was written.
    CreatedRow { token_id: String = Text, name: String = Text, scopes: Vec<String> = Many, expires_at: String = Time, file: String = Text }
}

record! {
    /// A token of the node's list.
    TokenRow {
        token_id: String = Text listed, name: String = Text listed, scopes: Vec<String> = Many listed, revoked: bool = Text listed,
        created_at: String = Time, expires_at: String = Time listed, last_used_at: Option<String> = Time listed, user_id: String = Text,
        certificate_serial: String = Text,
    }
}

impl Command {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Create(create) => create.run(context).await,
            Self::List => {
                let rows = context.client().await?.auth().tokens();
                context.output.list().drain(rows, TokenRow::from, "no tokens").await.map(|_| ())
            }
            Self::Revoke { token } => {
                context.asker.confirm(&format!("revoke the token {token}? this cannot be taken back"))?;
                context.client().await?.auth().revoke_token(&token).await?;
                context.output.one(&Done::new("revoked", token))
            }
        }
    }
}

impl Create {
    async fn run(self, context: &Context) -> Result<()> {
        let path = match self.out {
            Some(path) => path,
            None => {
                bib_core::name::Segment::new(&self.name)
                    .map_err(|error| Failure::usage(error.to_string()).with_hint("or name the file with `--out`"))?;
                PathBuf::from(format!("{}.token", self.name))
            }
        };
        refuse_existing(&path)?;
        let client = context.client().await?;
        let request =
            CertificateRequest::generate().map_err(|error| Failure::failed(format!("make a key: {error}")))?;
        let answer = client
            .auth()
            .create_token(pb::CreateTokenRequest {
                name: self.name.clone(),
                scopes: self.scopes.clone(),
                expires_in_seconds: self.expires.as_secs(),
                csr: request.der.clone().into(),
            })
            .await?;
        let unusable =
            |error: &dyn std::fmt::Display| Failure::failed(format!("the node's answer is no token: {error}"));
        let certificate =
            pem::decode_one(answer.certificate_pem.as_bytes(), pem::CERTIFICATE).map_err(|error| unusable(&error))?;
        let file = TokenFile::new(&request.key_pem, &certificate, SecretString::from(answer.token))
            .map_err(|error| unusable(&error))?;
        file.create(&path).map_err(|error| Failure::failed(error.to_string()).with_hint_of(error.hint()))?;
        context.output.one(&CreatedRow {
            token_id: answer.token_id,
            name: self.name,
            scopes: self.scopes,
            expires_at: answer.expires_at,
            file: path.display().to_string(),
        })
    }
}

impl From<pb::Token> for TokenRow {
    fn from(token: pb::Token) -> Self {
        Self {
            token_id: token.token_id,
            name: token.name,
            scopes: token.scopes,
            revoked: token.revoked,
            created_at: token.created_at,
            expires_at: token.expires_at,
            last_used_at: token.last_used_at,
            user_id: token.user_id,
            certificate_serial: token.certificate_serial,
        }
    }
}
