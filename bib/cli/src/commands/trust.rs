//! `bib trust`: which nodes are trusted. All but looking at a node's CA works without one.

use bib_client::Target;
use bib_core::PeerId;
use bib_identity::trust::Pin;
use clap::{Args, Subcommand};

use super::connect::check_alias;
use crate::context::Context;
use crate::errors::{Exit, Failure, Result};
use crate::output::record;
use crate::trusting::{FirstUseArgs, Shown, look, parse_fingerprint};

/// Which nodes are trusted.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Trusts a node: by address, which asks it; or by peer id and fingerprint, which asks nobody
    Add(Add),
    /// The nodes that are trusted
    List,
    /// Forgets a node
    Remove {
        /// Peer id, alias or address
        #[arg(id = "trusted", value_name = "NODE")]
        node: String,
    },
    /// Trusts what a known node shows now, after its CA has changed
    Replace(Replace),
}

/// Trusts a node.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// HOST:PORT or a peer id
    #[arg(id = "trusted", value_name = "NODE")]
    node: String,
    /// Where a node that is named by peer id is reached
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Your own name for it
    #[arg(long, value_name = "NAME")]
    alias: Option<String>,
    #[command(flatten)]
    first_use: FirstUseArgs,
}

/// Trusts what a known node shows now.
#[derive(Debug, Args)]
pub(crate) struct Replace {
    /// Peer id, alias or address
    #[arg(id = "trusted", value_name = "NODE")]
    node: String,
    /// The new CA key's SHA-256 fingerprint: then the node is not asked and no question is put
    #[arg(long, value_name = "SHA256", value_parser = parse_fingerprint)]
    fingerprint: Option<bib_identity::Fingerprint>,
}

record! {
    /// A trusted node.
    TrustRow {
        node: String = Text listed, alias: Option<String> = Text listed, addresses: Vec<String> = Many listed,
        ca_fingerprint: String = Hash listed, first_seen: String = Time, last_seen: Option<String> = Time listed,
    }
}

impl Command {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Add(add) => add.run(context).await,
            Self::List => {
                let mut list = context.output.list();
                for pin in context.trust_store()?.list()? {
                    list.push(&TrustRow::from(pin))?;
                }
                list.finish("no node is trusted yet").map(|_| ())
            }
            Self::Remove { node } => {
                let store = context.trust_store()?;
                let pin = store.find(&node)?.ok_or_else(|| unknown(&node))?;
                context.asker.confirm(&format!("forget node {} (and the log-in there)?", pin.peer_id))?;
                let pin = store.remove(&pin.peer_id.to_string())?;
                forget_login(context, &pin.peer_id)?;
                context.output.one(&TrustRow::from(pin))
            }
            Self::Replace(replace) => replace.run(context).await,
        }
    }
}

impl Add {
    async fn run(self, context: &Context) -> Result<()> {
        if let Some(alias) = &self.alias {
            check_alias(alias)?;
        }
        let shown = match (self.node.parse::<PeerId>(), self.first_use.fingerprint) {
            (Ok(peer_id), Some(ca)) => Shown { peer_id, ca },
            (Ok(_), None) => {
                return Err(Failure::usage("a node named by peer id needs `--fingerprint`")
                    .with_hint("`bibd` prints it at start; or name the node by address"));
            }
            (Err(_), _) => self.ask_node(context).await?,
        };
        let address = match (&self.address, self.node.parse::<PeerId>()) {
            (Some(address), _) => Some(tls_address(context, address)?),
            (None, Ok(_)) => None,
            (None, Err(_)) => Some(tls_address(context, &self.node)?),
        };
        let pin = Pin {
            peer_id: shown.peer_id,
            alias: self.alias,
            addresses: address.into_iter().collect(),
            ca_spki_sha256: shown.ca,
            ca_certificate_pem: None,
            first_seen: context.clock.now(),
            last_seen: None,
        };
        context.trust_store()?.add(&pin)?;
        context.output.one(&TrustRow::from(pin))
    }

    /// Asks the node what it shows, and a flag or the person whether that is right.
    async fn ask_node(&self, context: &Context) -> Result<Shown> {
        let target = context.parse_target(&self.node)?;
        if let Some(pin) = context.pin_of(&target)? {
            return Err(Failure::new(
                Exit::Conflict,
                format!("the node at {target} is trusted already, as {}", pin.peer_id),
            )
            .with_hint("`bib trust replace` changes what is trusted of a node"));
        }
        let shown = look(context, &target).await?;
        match self.first_use.fingerprint {
            Some(expected) if expected != shown.ca => Err(Failure::new(
                Exit::Denied,
                format!("the node at {target} shows the CA key {}, not {expected} as you said", shown.ca),
            )
            .with_code(bib_client::error::code::UNTRUSTED)
            .with_hint("ask the node's administrator for its fingerprint; somebody may be in between")),
            None if !self.first_use.accept_new => {
                context.output.say(&format!(
                    "node            {}\nCA fingerprint  {}",
                    shown.peer_id,
                    shown.ca.grouped()
                ));
                context.asker.confirm("trust this node?").map(|()| shown)
            }
            _ => Ok(shown),
        }
    }
}

impl Replace {
    async fn run(self, context: &Context) -> Result<()> {
        let store = context.trust_store()?;
        let target = context.parse_target(&self.node);
        let old = match store.find(&self.node)? {
            Some(pin) => pin,
            None => match &target {
                Ok(target) => context.pin_of(target)?.ok_or_else(|| unknown(&self.node))?,
                Err(_) => return Err(unknown(&self.node)),
            },
        };
        let shown = match self.fingerprint {
            Some(ca) => Shown { peer_id: old.peer_id, ca },
            None => look(context, &target?).await?,
        };
        if shown == (Shown { peer_id: old.peer_id, ca: old.ca_spki_sha256 }) {
            context.output.note("the node shows what is trusted already; nothing was changed");
            return context.output.one(&TrustRow::from(old));
        }
        if self.fingerprint.is_none() {
            context.output.say(&difference(&old, &shown));
            context.asker.confirm("Has the node's administrator told you of this change?")?;
        }
        let pin = Pin {
            peer_id: shown.peer_id,
            ca_spki_sha256: shown.ca,
            ca_certificate_pem: None,
            last_seen: None,
            ..old.clone()
        };
        if shown.peer_id == old.peer_id {
            store.replace(&pin)?;
        } else {
            store.remove(&old.peer_id.to_string())?;
            store.add(&pin)?;
        }
        // The old CA's certificate is of no use with the new one.
        forget_login(context, &old.peer_id)?;
        context.output.one(&TrustRow::from(pin))
    }
}

fn difference(old: &Pin, shown: &Shown) -> String {
    format!(
        "trusted node            {}\nshown node              {}\ntrusted CA fingerprint  {}\nshown CA fingerprint    {}",
        old.peer_id,
        shown.peer_id,
        old.ca_spki_sha256.grouped(),
        shown.ca.grouped()
    )
}

fn tls_address(context: &Context, text: &str) -> Result<String> {
    match context.parse_target(text)? {
        Target::Tls { host, port, .. } => Ok(Target::Tls { host, port, peer: None }.address()),
        Target::Socket(_) => Err(Failure::usage("on the Unix socket there is nothing to trust")),
    }
}

fn forget_login(context: &Context, node: &PeerId) -> Result<()> {
    let path = context.directories.config.join("credentials").join(format!("{node}.pem"));
    bib_identity::file::remove(&path)?;
    Ok(())
}

fn unknown(node: &str) -> Failure {
    Failure::new(Exit::NotFound, format!("no trusted node is called `{node}`")).with_hint("`bib trust list` shows them")
}

impl From<Pin> for TrustRow {
    fn from(pin: Pin) -> Self {
        Self {
            node: pin.peer_id.to_string(),
            alias: pin.alias,
            addresses: pin.addresses,
            ca_fingerprint: pin.ca_spki_sha256.to_string(),
            first_seen: pin.first_seen.to_string(),
            last_seen: pin.last_seen.map(|time| time.to_string()),
        }
    }
}
