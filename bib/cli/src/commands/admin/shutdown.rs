//! `bib admin shutdown`: stops the node.

use std::time::Duration;

use clap::Args;

use crate::commands::done::Done;
use crate::context::Context;
use crate::errors::Result;
use crate::units::parse_duration;

/// Stops the node after giving running calls some time
#[derive(Debug, Args)]
pub(crate) struct Shutdown {
    /// How long running calls are given
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = parse_duration)]
    drain: Duration,
}

impl Shutdown {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let client = context.client().await?;
        context.asker.confirm(&format!("stop the node at {}?", client.target()))?;
        // 0 would mean the daemon's usual time.
        let seconds = u32::try_from(self.drain.as_secs().max(1)).unwrap_or(u32::MAX);
        client.admin().shutdown(seconds).await?;
        context.output.one(&Done::new("stopping", client.target().address()))
    }
}
