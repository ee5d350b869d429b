//! `bib connect`: trust a node and make it the default.

use bib_client::{Client, Target};
use clap::Args;

use crate::context::Context;
use crate::discover::discover;
use crate::errors::{Failure, Result};
use crate::output::record;
use crate::trusting::FirstUseArgs;

/// Trusts a node and makes it the default; `--local` goes back to the node of this machine
#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// HOST:PORT, unix:/path/to/bibd.sock, an alias or a peer id
    #[arg(required_unless_present_any = ["local", "discover"])]
    address: Option<String>,
    /// Your own name for the node
    #[arg(long, value_name = "NAME")]
    alias: Option<String>,
    /// Forget the default: commands then mean the node of this machine
    #[arg(long, conflicts_with_all = ["address", "alias"])]
    local: bool,
    /// Only list the nodes that tell the local network of themselves; takes two seconds
    #[arg(long, conflicts_with_all = ["address", "alias", "local"])]
    discover: bool,
    #[command(flatten)]
    first_use: FirstUseArgs,
}

record! {
    /// A node that answered.
    NodeRow { node: String = Text, address: String = Text, version: String = Text, ca_fingerprint: String = Text, logged_in: bool = Text, default: bool = Text }
}

impl Connect {
    /// Runs the command.
    pub(crate) async fn run(self, mut context: Context) -> Result<()> {
        if self.discover {
            let mut list = context.output.list();
            for node in discover().await? {
                list.push(&node)?;
            }
            return list.finish("no node tells the local network of itself").map(|_| ());
        }
        let Some(address) = &self.address else {
            context.config.store("connection.default_node", "")?;
            context.output.note("commands now mean the node of this machine");
            return Ok(());
        };
        let target = context.parse_target(address)?;
        let client = context.client_of(target.clone(), &self.first_use).await?;
        let node = greet(&client).await?;
        if let Some(alias) = &self.alias {
            check_alias(alias)?;
            context.config.store(&format!("connection.aliases.{alias}"), &target.address())?;
        }
        context.config.store("connection.default_node", self.alias.as_ref().unwrap_or(&target.address()))?;
        context.output.one(&NodeRow { default: true, ..node })?;
        if matches!(target, Target::Tls { .. }) && !client.is_logged_in() {
            context.output.note("next: bib login");
        }
        Ok(())
    }
}

/// An alias must not be read as an address.
pub(crate) fn check_alias(alias: &str) -> Result<()> {
    match bib_core::name::Segment::new(alias) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::usage(format!("`{alias}` is no alias: {error}"))
            .with_hint("lower-case letters, digits, `.`, `_` and `-`, such as lab")),
    }
}

/// The first call: reaches the node, and with it checks or pins its CA.
pub(crate) async fn greet(client: &Client) -> Result<NodeRow> {
    let info = client.health().node_info().await?;
    Ok(NodeRow {
        node: info.peer_id,
        address: client.target().address(),
        version: info.version,
        ca_fingerprint: info.ca_fingerprint,
        logged_in: client.is_logged_in(),
        default: false,
    })
}
