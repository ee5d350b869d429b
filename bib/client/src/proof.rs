//! A version's proof as a tar file: statement, signature, records, pages, audit entry, everything a stranger needs.

use std::io::{self, Write};

use bib_core::path::EntryPath;
use bib_proto::v1 as pb;
use futures::StreamExt as _;

use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};

/// The largest file of a proof, in bytes: a page has at most 3 MiB.
const MAX_FILE_BYTES: usize = 64 * 1024 * 1024;

/// A proof that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// Files in it.
    pub files: u64,
    /// Their bytes in sum.
    pub bytes: u64,
}

/// Writes the proof of the version that `reference` names to `out`, as an uncompressed tar file. Equal proofs are equal
/// files: nothing in it depends on who asked, or when.
///
/// ```no_run
/// # async fn example(client: bib_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let file = std::fs::File::create("bundle.tar")?;
/// let proof = bib_client::write_proof(&client, "climate/hourly@latest", &file).await?;
/// assert!(proof.files > 0);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Whatever the node says, or the writer.
pub async fn write_proof(client: &Client, reference: &str, out: impl Write) -> Result<Proof> {
    let mut answers = client.datasets().prove(reference).await?;
    let mut archive = tar::Builder::new(out);
    let mut proof = Proof { files: 0, bytes: 0 };
    let mut open: Option<(String, Vec<u8>)> = None;
    while let Some(piece) = answers.next().await {
        let pb::ProveVersionResponse { name, data, last } = piece?;
        let (name, bytes) = match open.take() {
            Some((open_name, mut bytes)) if open_name == name => {
                bytes.extend_from_slice(&data);
                (name, bytes)
            }
            None => (name, data.to_vec()),
            Some(_) => return Err(Error::bad_answer("a file of the proof ends too early")),
        };
        if bytes.len() > MAX_FILE_BYTES {
            return Err(Error::bad_answer("a file of the proof is too large"));
        }
        if last {
            append(&mut archive, &name, &bytes)?;
            proof.files += 1;
            proof.bytes += bytes.len() as u64;
        } else {
            open = Some((name, bytes));
        }
    }
    if open.is_some() || proof.files == 0 {
        return Err(Error::bad_answer("the proof ends too early"));
    }
    archive.finish().map_err(failed)?;
    Ok(proof)
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> Result<()> {
    let name = EntryPath::new(name).map_err(|error| Error::bad_answer(format!("a file of the proof: {error}")))?;
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, name.as_str(), bytes).map_err(failed)
}

fn failed(error: io::Error) -> Error {
    Error::new(ErrorKind::Local, "the proof cannot be written").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_files_make_equal_archives_and_bad_names_are_refused() {
        let archive = || {
            let mut out = Vec::new();
            let mut archive = tar::Builder::new(&mut out);
            append(&mut archive, "pages/a", b"x").unwrap();
            archive.finish().unwrap();
            drop(archive);
            out
        };
        assert_eq!(archive(), archive());
        for name in ["../a", "/etc/passwd", "a/../../b", ""] {
            assert!(append(&mut tar::Builder::new(Vec::new()), name, b"x").is_err(), "{name}");
        }
    }
}
