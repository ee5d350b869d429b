//! `bib dataset prove`.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use clap::Args;

use super::check_version_reference;
use crate::commands::cert::refuse_existing;
use crate::commands::done::Done;
use crate::context::Context;
use crate::errors::{Failure, Result};
use crate::output::Output;

/// Writes what a stranger needs to check a version, as a tar file
///
/// Statement, signature, allowed_signers, records, pages, the audit entry with its proof; `docs/verify.md` says how they
/// are checked. `bib dataset prove topic/name > bundle.tar`
#[derive(Debug, Args)]
pub(crate) struct Prove {
    /// topic/name[@VERSION]
    reference: String,
    /// The file; standard output when missing
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Prove {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        check_version_reference(&self.reference)?;
        let Some(path) = self.out else {
            context
                .output
                .refuse_terminal("a tar file", &format!("bib dataset prove {} > bundle.tar", self.reference))?;
            let client = context.client().await?;
            bib_client::write_proof(&client, &self.reference, Piped(&context.output)).await?;
            return context.output.flush();
        };
        refuse_existing(&path)?;
        let failed = |error: std::io::Error| Failure::file("write", &path, &error);
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
        // Complete or not there: half a proof proves nothing.
        let file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
        let client = context.client().await?;
        let mut to = BufWriter::new(file);
        bib_client::write_proof(&client, &self.reference, &mut to).await?;
        let file = to.into_inner().map_err(|error| failed(error.into_error()))?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist_noclobber(&path).map_err(|error| failed(error.error))?;
        context.output.one(&Done::new("written", path.display().to_string()))
    }
}

/// The output as a writer of bytes.
struct Piped<'a>(&'a Output);

impl Write for Piped<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write_bytes(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
