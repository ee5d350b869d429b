//! `bib admin metrics`: the node's metrics.

use clap::Args;

use crate::context::Context;
use crate::errors::Result;

/// Prints the node's metrics in Prometheus' text format, whatever `-o` says
#[derive(Debug, Args)]
pub(crate) struct Metrics {}

impl Metrics {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        context.output.text(&context.client().await?.admin().metrics().await?)
    }
}
