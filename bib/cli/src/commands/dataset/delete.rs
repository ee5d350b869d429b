//! `bib dataset delete`.

use clap::Args;

use super::check_version_reference;
use super::list::DatasetRow;
use crate::context::Context;
use crate::errors::{Failure, Result};
use crate::output::record;

/// Deletes a dataset that no other node has, and frees its name
///
/// What others have is withdrawn instead.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// topic/name
    dataset: String,
    /// Only show what would go
    #[arg(long)]
    dry_run: bool,
}

record! {
    /// A dataset that was deleted.
    DeletedRow { dataset: String = Text, versions: u64 = Text }
}

impl Delete {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        if check_version_reference(&self.dataset)?.version.is_some() {
            return Err(
                Failure::usage("a dataset is deleted whole").with_hint("`bib dataset withdraw` takes one version back")
            );
        }
        let datasets = context.client().await?.datasets();
        let dataset = datasets.get(&self.dataset).await?;
        if self.dry_run {
            context.output.note("this dataset would be deleted");
            return context.output.one(&DatasetRow::from(dataset));
        }
        let question =
            format!("delete `{}` with its {} versions? this cannot be taken back", dataset.name, dataset.versions);
        context.asker.confirm(&question)?;
        let answer = datasets.delete(&dataset.dataset_id).await?;
        context.output.one(&DeletedRow { dataset: dataset.name, versions: answer.versions })
    }
}
