//! The database's own certificate authority, over its sealed document.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use secrecy::{ExposeSecret as _, SecretString};

use super::document::Document;
use super::{CA_FILE, CERTIFICATE_FILE, Clock, KEY_FILE};
use crate::account::Account;
use crate::error::Error;
use crate::file;
use crate::random::Randomness;
use crate::secrets::SecretStore;

/// Makes and renews the certificates of one database. Cheap to clone; printing it shows nothing.
///
/// Unlike a password, what is lost here can be made anew: the server is given other files at its next start.
#[derive(Clone)]
pub struct Authority(Arc<Inner>);

struct Inner {
    store: Arc<dyn SecretStore>,
    random: Randomness,
    clock: Clock,
    /// As it was last read or written: opening the store takes its time.
    opened: Mutex<Option<Arc<Document>>>,
}

/// The server's files.
pub struct ServerFiles {
    /// [`CA_FILE`]: PEM.
    pub ca: String,
    /// [`CERTIFICATE_FILE`]: PEM.
    pub certificate: String,
    /// [`KEY_FILE`]: PKCS#8 PEM.
    pub key: SecretString,
}

/// What a client shows and trusts.
pub struct Client {
    /// Authorities that the server's certificate may be of: PEM.
    pub ca: String,
    /// Its certificate, whose name is the role: PEM.
    pub certificate: String,
    /// Its key: PKCS#8 PEM.
    pub key: SecretString,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// The authority whose document is in `store`; reads nothing yet.
    pub fn new(store: Arc<dyn SecretStore>, random: Randomness, clock: Clock) -> Self {
        Self(Arc::new(Inner { store, random, clock, opened: Mutex::default() }))
    }

    /// Makes what is not there and renews what is due: the authority, and a server's certificate with these names.
    /// What comes is durable before it is returned. Idempotent. It blocks for the disk.
    ///
    /// # Errors
    /// [`Error::SecretStore`], [`Error::CertificatesDamaged`], [`Error::BadServerName`], [`Error::Certificate`].
    pub fn ensure(&self, names: &[String]) -> Result<ServerFiles, Error> {
        let mut opened = self.lock();
        let mut document = Document::read(self.0.store.as_ref())?.unwrap_or_else(Document::empty);
        if document.renew(names, self.0.clock.now_s(), &self.0.random)? {
            document.write(self.0.store.as_ref())?;
        }
        let files = files_of(&document)?;
        *opened = Some(Arc::new(document));
        Ok(files)
    }

    /// The certificate and key with which servers that follow this one log in as `role`: kept, and renewed where it is
    /// due. What comes is durable before it is returned. It blocks for the disk.
    ///
    /// # Errors
    /// [`Error::CertificatesMissing`] before [`ensure`](Self::ensure); as there.
    pub(crate) fn ensure_replica(&self, role: &str) -> Result<Client, Error> {
        let mut opened = self.lock();
        let mut document = Document::read(self.0.store.as_ref())?.ok_or(Error::CertificatesMissing)?;
        if document.renew_replica(role, self.0.clock.now_s(), &self.0.random)? {
            document.write(self.0.store.as_ref())?;
        }
        let pair = document.replica().ok_or(Error::CertificatesMissing)?;
        let ca = document.trusted();
        *opened = Some(Arc::new(document));
        Ok(Client { ca, certificate: pair.certificate, key: pair.key })
    }

    /// A new certificate and key for the login role `role`, for [`CLIENT_DAYS`](super::CLIENT_DAYS) days, or
    /// [`PASSING_DAYS`](super::PASSING_DAYS) where the role itself passes. Kept nowhere.
    ///
    /// # Errors
    /// [`Error::CertificatesMissing`] before [`ensure`](Self::ensure); as there.
    pub fn client(&self, role: &str) -> Result<Client, Error> {
        let document = self.document()?;
        let pair = document.client(role, self.0.clock.now_s(), &self.0.random)?;
        Ok(Client { ca: document.trusted(), certificate: pair.certificate, key: pair.key })
    }

    /// The server's files as they were last made.
    ///
    /// # Errors
    /// As [`client`](Self::client).
    pub fn server_files(&self) -> Result<ServerFiles, Error> {
        files_of(&*self.document()?)
    }

    fn document(&self) -> Result<Arc<Document>, Error> {
        let mut opened = self.lock();
        if let Some(document) = opened.as_ref() {
            return Ok(document.clone());
        }
        let document = Arc::new(Document::read(self.0.store.as_ref())?.ok_or(Error::CertificatesMissing)?);
        *opened = Some(document.clone());
        Ok(document)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Document>>> {
        // A panic while it is held leaves what was there.
        self.0.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn files_of(document: &Document) -> Result<ServerFiles, Error> {
    let server = document.server().ok_or(Error::CertificatesMissing)?;
    Ok(ServerFiles { ca: document.trusted(), certificate: server.certificate, key: server.key })
}

impl ServerFiles {
    /// Makes the files in `directory` say this, for the server's user alone. Says whether any said something else: then
    /// a server that runs is to read them again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn write(&self, directory: &Path, account: Account) -> Result<bool, Error> {
        file::ensure_dir(directory, account.uid, account.gid, 0o700)?;
        let mut changed = false;
        // The key first: a server that reads in between finds a pair that does not fit, and keeps the former one.
        for (name, text) in
            [(KEY_FILE, self.key.expose_secret()), (CERTIFICATE_FILE, &self.certificate), (CA_FILE, &self.ca)]
        {
            let path = directory.join(name);
            if !std::fs::read(&path).is_ok_and(|bytes| bytes == text.as_bytes()) {
                file::replace(&path, text.as_bytes(), Some(account))?;
                changed = true;
            }
        }
        Ok(changed)
    }
}
