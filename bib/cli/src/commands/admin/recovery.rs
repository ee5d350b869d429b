//! `bib admin recovery`: the keys that outlive the node.

use std::path::PathBuf;

use bib_client::pb;
use clap::{Args, Subcommand};

use crate::commands::cert::refuse_existing;
use crate::context::Context;
use crate::errors::Result;
use crate::output::record;

/// The recovery keys.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes the recovery keys, once, and gives you their sheet; the node keeps the public halves alone
    Export(Export),
}

/// Makes the recovery keys.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The file for the sheet (0600), to print and to delete; standard output when missing
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace keys that were made before; backups sealed to the old ones still need them
    #[arg(long)]
    replace: bool,
}

record! {
    /// The public halves, and where the sheet went.
    RecoveryRow { sheet: String = Text, age_recipient: String = Text, ed25519_fingerprint: String = Text }
}

impl Command {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let Self::Export(export) = self;
        if let Some(path) = &export.out {
            refuse_existing(path)?;
        }
        if export.replace {
            context.asker.confirm("replace the recovery keys? the old sheet then opens old backups only")?;
        }
        let request = pb::ExportRecoveryRequest { replace: export.replace };
        let answer = context.client().await?.admin().export_recovery(request).await?;
        let Some(path) = export.out else {
            // The one moment at which the sheet exists: printed as it is, whatever `-o` says.
            context.output.text(&answer.sheet)?;
            context.output.note("print this sheet and keep it away from the node; it is not kept there");
            return Ok(());
        };
        bib_identity::file::create_private(&path, answer.sheet.as_bytes())?;
        context.output.note("print the sheet, keep it away from the node, and delete the file");
        context.output.one(&RecoveryRow {
            sheet: path.display().to_string(),
            age_recipient: answer.age_recipient,
            ed25519_fingerprint: answer.ed25519_fingerprint,
        })
    }
}
