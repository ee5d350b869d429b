//! The node's sealed secrets, as the parts of the daemon that need one see them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bib_identity::sealed::SealError;
use bib_identity::{NodeKey, Recipient, SealedDir};
use bibd_postgres::{SecretStore, SecretStoreError};
use secrecy::{ExposeSecret as _, SecretSlice, SecretString};

/// `secrets/*.age`, sealed to the node's key and to the recovery key once there is one. Cheap to clone.
#[derive(Clone)]
pub struct Secrets {
    directory: PathBuf,
    key: Arc<NodeKey>,
    recovery: Arc<RwLock<Vec<Recipient>>>,
    /// Whoever writes. Sealing anew reads and writes: what was written in between would be undone by it.
    writing: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Secrets {
    /// The secrets in `directory`; what is written is also sealed to `recovery`.
    #[must_use]
    pub fn new(directory: &Path, key: Arc<NodeKey>, recovery: Vec<Recipient>) -> Self {
        Self {
            directory: directory.to_owned(),
            key,
            recovery: Arc::new(RwLock::new(recovery)),
            writing: Arc::default(),
        }
    }

    /// From now on what is written is also sealed to these. Call [`Secrets::reseal`] for what is there already.
    pub fn set_recovery(&self, recovery: Vec<Recipient>) {
        *self.recovery.write().unwrap_or_else(PoisonError::into_inner) = recovery;
    }

    /// The directory, for `bib-identity`.
    ///
    /// # Errors
    /// When others may enter the directory or it cannot be made.
    pub fn directory(&self) -> Result<SealedDir<'_>, SealError> {
        let recovery = self.recovery.read().unwrap_or_else(PoisonError::into_inner).clone();
        SealedDir::open(&self.directory, &self.key, recovery)
    }

    /// Seals every secret anew, to the key and to the recovery key of now.
    ///
    /// # Errors
    /// With the first secret that cannot be opened or written; those before it are sealed anew already.
    pub fn reseal(&self) -> Result<usize, SealError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = self.directory()?;
        let mut count = 0;
        for entry in std::fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".age")) else { continue };
            directory.write(name, &directory.read(name)?)?;
            count += 1;
        }
        Ok(count)
    }
}

fn failed(name: &str, act: &str, source: SealError) -> SecretStoreError {
    SecretStoreError { message: format!("{act} secrets/{name}.age"), source: Some(Box::new(source)) }
}

impl SecretStore for Secrets {
    fn read(&self, name: &str) -> Result<Option<SecretString>, SecretStoreError> {
        let found = self.directory().and_then(|directory| directory.find(name)).map_err(|e| failed(name, "open", e))?;
        let Some(bytes) = found else { return Ok(None) };
        let text = std::str::from_utf8(bytes.expose_secret()).map_err(|_| failed(name, "read", SealError::Damaged))?;
        Ok(Some(SecretString::from(text.to_owned())))
    }

    fn write(&self, name: &str, secret: &SecretString) -> Result<(), SecretStoreError> {
        let bytes = SecretSlice::from(secret.expose_secret().as_bytes().to_vec());
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.directory().and_then(|directory| directory.write(name, &bytes)).map_err(|e| failed(name, "seal", e))
    }
}
