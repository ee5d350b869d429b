//! `bib dataset withdraw`.

use clap::Args;

use super::check_version_reference;
use super::versions::VersionRow;
use crate::context::Context;
use crate::errors::{Failure, Result};

/// Takes a version's bytes back, with a reason that stays
///
/// They go from this node at once and from others that obey within a day. What it was, and why it went, stays for all
/// who could see it.
#[derive(Debug, Args)]
pub(crate) struct Withdraw {
    /// topic/name@VERSION
    reference: String,
    /// Why; stays
    #[arg(long)]
    reason: String,
    /// Only show what would go
    #[arg(long)]
    dry_run: bool,
}

impl Withdraw {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let reference = check_version_reference(&self.reference)?;
        if reference.version.is_none() {
            return Err(Failure::usage("which version is withdrawn must be said")
                .with_hint(format!("write {}@VERSION; `@latest` is one", self.reference)));
        }
        let datasets = context.client().await?.datasets();
        let version = datasets.version(&self.reference).await?;
        if self.dry_run {
            context.output.note("this version would be withdrawn");
            return context.output.one(&VersionRow::from(version));
        }
        let short = version.version.get(..12).unwrap_or(&version.version).to_owned();
        context.asker.confirm(&format!("withdraw {}@{short}? its bytes cannot be brought back", version.dataset))?;
        // By hash: what `latest` or a tag means may have moved since it was shown.
        let exact = format!("{}@{}", version.dataset, version.version);
        context.output.one(&VersionRow::from(datasets.withdraw(&exact, &self.reason).await?))
    }
}
