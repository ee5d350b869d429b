//! The credentials of a store: read from a text, kept from every log, handed to the signer.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use bib_identity::file::{self, FileError};
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use secrecy::{ExposeSecret as _, SecretString};

/// The longest text with credentials, bytes.
pub const MAX_TEXT_BYTES: u64 = 16 * 1024;
/// What they are called, as in `~/.aws/credentials`; in capitals they are variables.
const NAMES: [&str; 3] = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"];

/// A key of a store.
#[derive(Clone)]
pub struct AccessKey {
    /// Its public name.
    pub id: String,
    secret: SecretString,
    token: Option<SecretString>,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why a text is no key. It never quotes the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A line is missing.
    #[error("it has no `{0}`")]
    Missing(&'static str),
    /// Two lines say two things.
    #[error("`{0}` stands in it twice")]
    Twice(&'static str),
    /// No key has such characters.
    #[error("`{0}` is empty, too long or has blanks in it")]
    Malformed(&'static str),
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("the node has no credentials for the store")]
    None,
    #[error("the credentials cannot be read: {0}")]
    File(#[source] FileError),
    #[error("`{path}` holds no credentials: {source}")]
    Key { path: PathBuf, source: KeyError },
}

impl AccessKey {
    /// Reads what stands in `~/.aws/credentials` (of several sections the first), or lines like `AWS_ACCESS_KEY_ID=…`.
    ///
    /// # Errors
    /// [`KeyError`], which names what is missing and quotes nothing.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut found: [Option<&str>; 3] = [None; 3];
        let mut sections = 0;
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
            sections += usize::from(line.starts_with('['));
            let Some((name, value)) = line.split_once('=') else { continue };
            let name = name.trim().trim_start_matches("export ").trim_start();
            let known = NAMES.iter().position(|known| known.eq_ignore_ascii_case(name));
            let Some(at) = known.filter(|_| sections <= 1) else { continue };
            if found[at].replace(value.trim().trim_matches('"')).is_some() {
                return Err(KeyError::Twice(NAMES[at]));
            }
        }
        Self::of(|at| found[at].map(str::to_owned))
    }

    /// Those of the environment, `AWS_ACCESS_KEY_ID` and so on.
    ///
    /// # Errors
    /// As [`AccessKey::parse`].
    pub fn from_environment() -> Result<Self, KeyError> {
        Self::of(|at| std::env::var(NAMES[at].to_ascii_uppercase()).ok())
    }

    fn of(mut value: impl FnMut(usize) -> Option<String>) -> Result<Self, KeyError> {
        let mut checked = |at: usize| match value(at) {
            Some(text) if text.is_empty() || text.len() > 8192 || !text.bytes().all(|b| b.is_ascii_graphic()) => {
                Err(KeyError::Malformed(NAMES[at]))
            }
            other => Ok(other),
        };
        let id = checked(0)?.ok_or(KeyError::Missing(NAMES[0]))?;
        let secret = checked(1)?.ok_or(KeyError::Missing(NAMES[1]))?;
        Ok(Self { id, secret: secret.into(), token: checked(2)?.map(SecretString::from) })
    }

    /// As [`AccessKey::parse`] reads it, for a sealed file.
    #[must_use]
    pub fn to_text(&self) -> SecretString {
        let mut text = format!("{}={}\n{}={}\n", NAMES[0], self.id, NAMES[1], self.secret.expose_secret());
        if let Some(token) = &self.token {
            text.push_str(&format!("{}={}\n", NAMES[2], token.expose_secret()));
        }
        text.into()
    }
}

/// Where the key of a store is. Cheap to clone; a new key counts from the next request.
#[derive(Debug, Clone)]
pub enum Keys {
    /// A file, read each time.
    File(PathBuf),
    /// In memory, when there is one.
    Held(Arc<RwLock<Option<AccessKey>>>),
}

impl Keys {
    /// In memory.
    #[must_use]
    pub fn held(key: Option<AccessKey>) -> Self {
        Self::Held(Arc::new(RwLock::new(key)))
    }

    /// From now on this one. What is read from a file stays so.
    pub fn replace(&self, key: AccessKey) {
        if let Self::Held(held) = self {
            *held.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
        }
    }

    fn current(&self) -> Result<AccessKey, Unusable> {
        match self {
            Self::File(path) => {
                let bytes = file::read_private(path, MAX_TEXT_BYTES).map_err(Unusable::File)?;
                let text = String::from_utf8_lossy(&bytes);
                AccessKey::parse(&text).map_err(|source| Unusable::Key { path: path.clone(), source })
            }
            Self::Held(held) => held.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Unusable::None),
        }
    }
}

#[async_trait]
impl CredentialProvider for Keys {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let unusable = |source: Unusable| object_store::Error::Generic { store: "S3", source: Box::new(source) };
        let key = self.current().map_err(unusable)?;
        let open = |secret: &SecretString| secret.expose_secret().to_owned();
        let (secret_key, token) = (open(&key.secret), key.token.as_ref().map(open));
        Ok(Arc::new(AwsCredential { key_id: key.id, secret_key, token }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# of the lab\n[default]\naws_access_key_id = AKIA7\naws_secret_access_key = s3cr/et+=\n\n\
                        [other]\naws_access_key_id = OTHER\n";

    #[test]
    fn keys_are_read_as_everybody_writes_them_and_come_back_sealed_as_they_were() {
        let key = AccessKey::parse(FILE).unwrap();
        assert_eq!((key.id.as_str(), key.secret.expose_secret()), ("AKIA7", "s3cr/et+="));
        let lines = "export AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=\"b\"\nAWS_SESSION_TOKEN=c\n";
        let key = AccessKey::parse(lines).unwrap();
        let again = AccessKey::parse(key.to_text().expose_secret()).unwrap();
        assert_eq!((again.id.as_str(), again.secret.expose_secret()), ("a", "b"));
        assert_eq!(again.token.as_ref().map(SecretString::expose_secret), Some("c"));
    }

    #[test]
    fn what_is_no_key_is_named_and_not_quoted() {
        let said = |text: &str| AccessKey::parse(text).unwrap_err().to_string();
        assert_eq!(said("hush"), "it has no `aws_access_key_id`");
        assert_eq!(said("aws_access_key_id=a"), "it has no `aws_secret_access_key`");
        assert_eq!(said("aws_access_key_id=a\naws_access_key_id=b"), "`aws_access_key_id` stands in it twice");
        let blank = said("aws_access_key_id=a\naws_secret_access_key=hu sh");
        assert!(blank.contains("blanks") && !blank.contains("hu"), "{blank}");
    }

    #[test]
    fn no_secret_is_printed() {
        let keys = Keys::held(Some(AccessKey::parse(FILE).unwrap()));
        let printed = format!("{keys:?}");
        assert!(printed.contains("AKIA7") && !printed.contains("s3cr"), "{printed}");
    }
}
