//! The secrets of sinks: read when a connection is made, so that a new one counts without a restart.

use std::path::Path;

use bib_identity::file::{self, FileError};
use bib_identity::sealed::SealError;
use secrecy::{ExposeSecret as _, SecretString};

use super::SendError;
use crate::config::audit::Secret;
use crate::secrets::Secrets;

/// Longer than any token.
const MAX_SECRET_BYTES: u64 = 16 << 10;

/// Reads secrets. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Credentials(Secrets);

/// Under which name the secret that a person calls `name` lies among the node's own.
#[must_use]
pub fn sealed_name(name: &str) -> String {
    format!("own.{name}")
}

impl Credentials {
    /// Over the node's sealed secrets.
    #[must_use]
    pub fn new(secrets: Secrets) -> Self {
        Self(secrets)
    }

    /// The secret, without the line end that editors leave.
    ///
    /// # Errors
    /// When it is not there, open to others, or no single line of text.
    pub async fn read(&self, secret: &Secret) -> Result<SecretString, SendError> {
        let (secrets, secret) = (self.0.clone(), secret.clone());
        blocking(move || match secret {
            Secret::File(path) => one_line(&read_file(&path)?, &path.display().to_string()),
            Secret::Sealed(name) => {
                let found = secrets.directory().and_then(|directory| directory.read(&sealed_name(&name)));
                one_line(found.map_err(|error| unsealed(&name, &error))?.expose_secret(), &name)
            }
        })
        .await
    }
}

/// Runs what reads files on a thread where that may take its time.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SendError> + Send + 'static,
) -> Result<T, SendError> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|error| Err(SendError::passing(format!("the work on files ended early: {error}"))))
}

/// A private file's bytes.
pub(super) fn read_file(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, SendError> {
    file::read_private(path, MAX_SECRET_BYTES).map_err(|error| of_file(&error))
}

/// A file that could not be used, with what to do.
pub(super) fn of_file(error: &FileError) -> SendError {
    let hint = match error {
        FileError::TooOpen { .. } => "chmod 600 the file, and consider who may have read it",
        FileError::Missing { .. } => "check the path in the configuration",
        _ => "see that the daemon's user can read the file",
    };
    SendError::lasting(crate::grpc::error::chain(error), hint)
}

fn unsealed(name: &str, error: &SealError) -> SendError {
    match error {
        SealError::File(FileError::Missing { .. }) => {
            SendError::lasting(format!("there is no sealed secret `{name}`"), "make it: `bibd secret set NAME`")
        }
        other => SendError::lasting(
            format!("the sealed secret `{name}` cannot be opened: {}", crate::grpc::error::chain(other)),
            "make it anew: `bibd secret set NAME`",
        ),
    }
}

fn one_line(bytes: &[u8], name: &str) -> Result<SecretString, SendError> {
    let text = std::str::from_utf8(bytes).ok().map(|text| text.trim_end_matches(['\n', '\r']));
    // It goes into a header: nothing that could end one.
    match text.filter(|text| !text.is_empty() && text.chars().all(|c| !c.is_control())) {
        Some(text) => Ok(SecretString::from(text.to_owned())),
        None => Err(SendError::lasting(format!("`{name}` is not one line of text"), "put the secret alone into it")),
    }
}
