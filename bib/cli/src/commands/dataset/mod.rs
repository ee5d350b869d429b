//! `bib dataset`: datasets, their versions, files and tags.

mod citable;
mod cite;
mod delete;
mod download;
mod files;
pub(crate) mod license;
mod list;
mod prove;
mod publish;
mod show;
mod tag;
mod verify;
mod versions;
mod withdraw;

#[cfg(test)]
pub(crate) mod rows {
    //! The records of these commands, for the test that compares them with `docs/cli.md`.
    pub(crate) use super::delete::DeletedRow;
    pub(crate) use super::download::DownloadRow;
    pub(crate) use super::files::FileRow;
    pub(crate) use super::list::DatasetRow;
    pub(crate) use super::publish::PublishRow;
    pub(crate) use super::show::ShowRow;
    pub(crate) use super::tag::TagRow;
    pub(crate) use super::verify::{NodeVerdictRow, VerdictRow};
    pub(crate) use super::versions::VersionRow;
}

use bib_core::name::Reference;
use clap::Subcommand;

use crate::context::Context;
use crate::errors::{Failure, Result};
use crate::output::Format;

/// Datasets and their versions. A reference is `topic/name`, `topic/name@VERSION` with a tag, `latest` or at least
/// eight hex digits.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(visible_alias = "upload")]
    Publish(publish::Publish),
    List(list::List),
    #[command(visible_alias = "get")]
    Show(show::Show),
    Versions(versions::Versions),
    Files(files::Files),
    Tag(tag::Tag),
    Download(download::Download),
    Verify(verify::Verify),
    Prove(prove::Prove),
    Withdraw(withdraw::Withdraw),
    Delete(delete::Delete),
    Cite(cite::Cite),
}

impl Command {
    /// Whether the command prints in a format of its own.
    pub(crate) fn knows(&self, format: Format) -> bool {
        let exports = [Format::Datacite, Format::RoCrate, Format::Croissant, Format::SchemaOrg];
        matches!(self, Self::Show(_)) && exports.contains(&format)
    }

    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Publish(command) => command.run(context).await,
            Self::List(command) => command.run(context).await,
            Self::Show(command) => command.run(context).await,
            Self::Versions(command) => command.run(context).await,
            Self::Files(command) => command.run(context).await,
            Self::Tag(command) => command.run(context).await,
            Self::Download(command) => command.run(context).await,
            Self::Verify(command) => command.run(context).await,
            Self::Prove(command) => command.run(context).await,
            Self::Withdraw(command) => command.run(context).await,
            Self::Delete(command) => command.run(context).await,
            Self::Cite(command) => command.run(context).await,
        }
    }
}

/// Checks a reference before anything is sent, so that what is wrong with it is said here.
///
/// # Errors
/// Exit 2 with what is wrong.
pub(crate) fn check_reference(text: &str) -> Result<Reference> {
    text.parse().map_err(|error: bib_core::name::ReferenceError| {
        Failure::usage(error.to_string()).with_hint("write topic/name, or topic/name@VERSION")
    })
}

/// A reference without a path: the whole version.
pub(crate) fn check_version_reference(text: &str) -> Result<Reference> {
    let reference = check_reference(text)?;
    match &reference.path {
        Some(path) => Err(Failure::usage(format!("`{text}` names the file `{path}`, and a version is wanted"))),
        None => Ok(reference),
    }
}
