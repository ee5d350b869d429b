//! `bib admin`: running the node. For admins.

mod alerts;
mod audit;
mod backup;
mod break_glass;
mod config;
mod credentials;
mod database;
mod logs;
mod metrics;
mod recovery;
mod shutdown;
mod storage;

#[cfg(test)]
pub(crate) mod rows {
    //! The records of these commands, for the test that compares them with `docs/cli.md`.
    pub(crate) use super::alerts::{AlertRow, AlertRuleRow};
    pub(crate) use super::audit::{EntryRow, SinkRow, VerdictRow};
    pub(crate) use super::backup::{BackupRow, CheckedRow};
    pub(crate) use super::break_glass::{GlassSessionRow, GlassStatusRow, GrantRow};
    pub(crate) use super::config::ConfigRow;
    pub(crate) use super::credentials::CredentialsRow;
    pub(crate) use super::database::{FindingRow, MoveRow, RemovedRow, RoleRow, RotationRow, UpgradeRow};
    pub(crate) use super::logs::LogRow;
    pub(crate) use super::recovery::{RecoveryRow, SheetRow};
    pub(crate) use super::storage::{CollectRow, MovedRow, ScrubRow, StatusRow};
}

use clap::Subcommand;

use crate::context::Context;
use crate::errors::Result;
use crate::output::Format;

/// Running the node.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The audit log: who did what, and whether it is untouched
    #[command(subcommand)]
    Audit(audit::Command),
    /// Backups of the node
    #[command(subcommand)]
    Backup(backup::Command),
    /// The database opened to a person for a while, recorded
    #[command(subcommand)]
    BreakGlass(break_glass::Command),
    /// The node's configuration
    #[command(subcommand)]
    Config(config::Command),
    /// The managed PostgreSQL
    #[command(subcommand)]
    Db(database::Command),
    Logs(logs::Logs),
    Metrics(metrics::Metrics),
    /// The recovery keys
    #[command(subcommand)]
    Recovery(recovery::Command),
    /// The stored chunks
    #[command(subcommand)]
    Storage(storage::Command),
    Shutdown(shutdown::Shutdown),
}

impl Command {
    /// Whether the command prints in a format of its own.
    pub(crate) fn knows(&self, format: Format) -> bool {
        match self {
            Self::BreakGlass(command) => command.knows(format),
            Self::Db(database::Command::Audit) => format == Format::Markdown,
            _ => false,
        }
    }

    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Audit(command) => command.run(context).await,
            Self::Backup(command) => command.run(context).await,
            Self::BreakGlass(command) => command.run(context).await,
            Self::Config(command) => command.run(context).await,
            Self::Db(command) => command.run(context).await,
            Self::Logs(command) => command.run(context).await,
            Self::Metrics(command) => command.run(context).await,
            Self::Recovery(command) => command.run(context).await,
            Self::Storage(command) => command.run(context).await,
            Self::Shutdown(command) => command.run(context).await,
        }
    }
}
