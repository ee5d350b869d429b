//! Certificates and a password where one of PostgreSQL's programs reads them: in files, as long as it runs.

use std::path::{Path, PathBuf};

use secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use super::{CA_FILE, Endpoint};
use crate::account::Account;
use crate::error::Error;
use crate::file;
use crate::role::Login;

const CERTIFICATE: &str = "client.crt";
const KEY: &str = "client.key";
const PASSWORD: &str = "pgpass";

/// A private directory that is removed with this. Neither arguments nor the environment of the program hold a secret.
#[derive(Debug)]
pub struct ToolFiles {
    directory: PathBuf,
    connection: String,
}

impl ToolFiles {
    /// Makes `directory`, for `account` alone, with what `login` shows to the server. What a former run left there is
    /// replaced.
    ///
    /// # Errors
    /// [`Error::Io`]; as [`Authority::client`](super::Authority::client).
    pub fn write(directory: PathBuf, endpoint: &Endpoint, login: &Login, account: Account) -> Result<Self, Error> {
        let client = endpoint.authority().client(&login.user)?;
        remove(&directory)?;
        file::ensure_dir(&directory, account.uid, account.gid, 0o700)?;
        // Generated passwords have nothing that this format would take for itself.
        let password = Zeroizing::new(format!("*:*:*:{}:{}\n", login.user, login.password.expose_secret()));
        let files = [
            (CA_FILE, client.ca.as_str()),
            (CERTIFICATE, client.certificate.as_str()),
            (KEY, client.key.expose_secret()),
            (PASSWORD, password.as_str()),
        ];
        // From here on dropping it removes what there is.
        let this = Self { connection: connection(&directory, endpoint, login), directory };
        for (name, text) in files {
            file::write_new(&this.directory.join(name), text.as_bytes(), Some(account))?;
        }
        Ok(this)
    }

    /// What the program is told with `--dbname`: places, and no secret.
    pub fn connection(&self) -> &str {
        &self.connection
    }

    /// The file with the password.
    pub fn password(&self) -> PathBuf {
        self.directory.join(PASSWORD)
    }
}

impl Drop for ToolFiles {
    fn drop(&mut self) {
        // The directory is private, and the next run replaces what could not be removed.
        let _ = remove(&self.directory);
    }
}

fn remove(directory: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", directory)(error)),
        _ => Ok(()),
    }
}

/// As libpq reads it.
fn connection(directory: &Path, endpoint: &Endpoint, login: &Login) -> String {
    let file = |name| directory.join(name).display().to_string();
    [
        ("host", endpoint.host().to_owned()),
        ("port", endpoint.port().to_string()),
        ("user", login.user.clone()),
        ("passfile", file(PASSWORD)),
        ("sslmode", "verify-full".to_owned()),
        ("ssl_min_protocol_version", "TLSv1.3".to_owned()),
        ("sslrootcert", file(CA_FILE)),
        ("sslcert", file(CERTIFICATE)),
        ("sslkey", file(KEY)),
        ("channel_binding", "require".to_owned()),
        ("gssencmode", "disable".to_owned()),
    ]
    .map(|(name, value)| format!("{name}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'")))
    .join(" ")
}
