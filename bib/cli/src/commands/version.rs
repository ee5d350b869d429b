//! `bib version`: the versions of `bib` and of the node.

use std::time::Duration;

use bib_client::Client;
use clap::Args;

use crate::context::Context;
use crate::errors::Result;
use crate::output::record;

/// How long the node may take to say its version: the command works without one.
const PATIENCE: Duration = Duration::from_secs(2);

/// Shows the versions of `bib` and, when one answers, of the node
#[derive(Debug, Args)]
pub(crate) struct Version {}

record! {
    /// Two versions.
    VersionRow { bib: String = Text, node: Option<String> = Text, node_id: Option<String> = Text }
}

impl Version {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let node = tokio::time::timeout(PATIENCE, ask(context)).await.ok().flatten();
        let (node_id, node) = node.unzip();
        context.output.one(&VersionRow { bib: env!("CARGO_PKG_VERSION").to_owned(), node, node_id })
    }
}

/// The node's id and version, if it is there and known; whatever keeps it from answering is `bib status`' to say.
async fn ask(context: &Context) -> Option<(String, String)> {
    let target = context.target().ok()?;
    let client = Client::connect(target.clone(), context.options(&target).ok()?).ok()?;
    let info = client.health().node_info().await.ok()?;
    Some((info.peer_id, info.version))
}
