//! What a client has from its last log-in: a certificate, its key and a token, one file (0600) for each node.
//!
//! They lie in one file because a certificate of one log-in with the key of another is worth nothing, and a crash
//! between two files would leave just that. The same file serves scripts: see [`crate::token_file`].

use std::path::Path;

use bib_core::{Timestamp, UserId};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use secrecy::ExposeSecret as _;

use crate::certificate::ClientIdentity;
use crate::file::{self, FileError};
use crate::token_file::{self, TokenFile, TokenFileError};

/// Usable credentials: key and certificate belong together and are in date.
#[derive(Debug)]
pub struct ClientCredentials {
    file: Box<TokenFile>,
}

/// What lies in a credentials file.
#[derive(Debug)]
pub enum Loaded {
    /// Nothing: log in.
    Absent,
    /// A certificate whose time is over: it is left out and the client logs in again.
    Expired {
        /// Its last moment.
        not_after: Timestamp,
    },
    /// A certificate whose time has not come: the clock of one side is wrong.
    NotYetValid {
        /// Its first moment.
        not_before: Timestamp,
    },
    /// Credentials to use.
    Valid(ClientCredentials),
}

impl ClientCredentials {
    /// Reads the credentials in `path`, judged at `now`.
    ///
    /// # Errors
    /// [`TokenFileError`] when there is a file that is damaged or open to others.
    pub fn load(path: &Path, now: Timestamp) -> Result<Loaded, TokenFileError> {
        let text = match file::read_private(path, token_file::MAX_BYTES) {
            Ok(text) => text,
            Err(FileError::Missing { .. }) => return Ok(Loaded::Absent),
            Err(error) => return Err(error.into()),
        };
        Ok(Self::judge(TokenFile::parse(&text)?, now))
    }

    /// Credentials from a token file, judged at `now`.
    #[must_use]
    pub fn judge(file: TokenFile, now: Timestamp) -> Loaded {
        let info = file.info();
        if now > info.not_after {
            Loaded::Expired { not_after: info.not_after }
        } else if now < info.not_before {
            Loaded::NotYetValid { not_before: info.not_before }
        } else {
            Loaded::Valid(Self { file: Box::new(file) })
        }
    }

    /// Writes what a log-in returned, in place of what was there.
    ///
    /// # Errors
    /// [`TokenFileError::File`] when the system refuses.
    pub fn store(path: &Path, file: &TokenFile) -> Result<(), TokenFileError> {
        Ok(file::replace_private(path, file.to_text().as_bytes())?)
    }

    /// Who these credentials say one is.
    #[must_use]
    pub fn identity(&self) -> &ClientIdentity {
        self.file.identity()
    }

    /// The user.
    #[must_use]
    pub fn user_id(&self) -> UserId {
        self.file.identity().user_id
    }

    /// The token to send with each call.
    #[must_use]
    pub fn token(&self) -> &secrecy::SecretString {
        self.file.token()
    }

    pub(crate) fn to_rustls(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = PrivatePkcs8KeyDer::from(self.file.key_der().expose_secret().to_vec());
        (CertificateDer::from(self.file.certificate_der().to_vec()), PrivateKeyDer::from(key))
    }
}
