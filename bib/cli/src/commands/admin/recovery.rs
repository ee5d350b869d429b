//! `bib admin recovery`: the keys that outlive the node.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use bib_client::pb;
use bib_core::signature::Purpose;
use bib_identity::recovery::RecoverySheet;
use clap::{Args, Subcommand};
use secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use crate::commands::cert::refuse_existing;
use crate::context::Context;
use crate::errors::{Exit, Failure, Result};
use crate::output::record;

/// The recovery keys.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes the recovery keys, once, and gives you their sheet; the node keeps the public halves alone
    Export(Export),
    /// Checks that a sheet is this node's and was read rightly; its secrets stay on this machine
    Verify(Verify),
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

/// Checks a sheet.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The sheet as it was printed or typed in again; `-` reads standard input
    #[arg(value_name = "FILE")]
    sheet: PathBuf,
}

/// The longest text that is read as a sheet, bytes.
const MAX_SHEET_BYTES: u64 = 16 * 1024;

record! {
    /// A sheet that is the node's.
    SheetRow { sheet: String = Text, node: String = Text, created: String = Text, age_recipient: String = Text, ed25519_fingerprint: String = Text }
}

record! {
    /// The public halves, and where the sheet went.
    RecoveryRow { sheet: String = Text, age_recipient: String = Text, ed25519_fingerprint: String = Text }
}

impl Command {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Export(export) => export.run(context).await,
            Self::Verify(verify) => verify.run(context).await,
        }
    }
}

impl Export {
    async fn run(self, context: &Context) -> Result<()> {
        let export = self;
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

impl Verify {
    async fn run(self, context: &Context) -> Result<()> {
        let text = read_sheet(&self.sheet)?;
        let parsed = RecoverySheet::parse(&text)
            .map_err(|error| Failure::usage(error.to_string()).with_hint(error.hint().unwrap_or_default()))?;
        let public = parsed.sheet.public();
        let client = context.client().await?;
        let question = client.admin().challenge_recovery().await?;
        let node = parsed.peer_id.to_string();
        if node != question.peer_id {
            let message = format!("the sheet is that of {node}, this node is {}", question.peer_id);
            return Err(Failure::new(Exit::Conflict, message)
                .with_hint("find the sheet of this node, or name the other with --node"));
        }
        if public.age_recipient != question.age_recipient {
            let message = format!("this sheet of {} was replaced: the node seals to another now", parsed.created);
            let hint = "keep it for the backups of its time, and find the newest sheet";
            return Err(Failure::new(Exit::Conflict, message).with_hint(hint));
        }
        let opened = parsed.sheet.open(&question.sealed).map_err(|error| Failure::failed(error.to_string()))?;
        let opened = opened.expose_secret().to_vec();
        let signature = parsed.sheet.sign(Purpose::Recovery, &opened).to_vec();
        client
            .admin()
            .verify_recovery(pb::VerifyRecoveryRequest { opened: opened.into(), signature: signature.into() })
            .await?;
        context.output.one(&SheetRow {
            sheet: self.sheet.display().to_string(),
            node,
            created: parsed.created.to_string(),
            age_recipient: public.age_recipient,
            ed25519_fingerprint: question.ed25519_fingerprint,
        })
    }
}

fn read_sheet(path: &Path) -> Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    let read = match path.to_str() {
        Some("-") => std::io::stdin().lock().take(MAX_SHEET_BYTES).read_to_string(&mut text),
        _ => File::open(path).and_then(|file| file.take(MAX_SHEET_BYTES).read_to_string(&mut text)),
    };
    read.map_err(|error| Failure::file("read", path, &error))?;
    Ok(text)
}
