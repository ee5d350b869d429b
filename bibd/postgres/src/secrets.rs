//! The database's secrets: one JSON document, `db`, that the daemon seals to the node's identity.
//!
//! Owns the document's form and the rule that it is never made anew over a server that exists. The passwords in it
//! never leave this process: the server is given SCRAM verifiers.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

use crate::error::Error;
use crate::random::Randomness;
use crate::role::{GroupRole, Letter};

/// The name under which the document is kept in the [`SecretStore`].
pub const DOCUMENT_NAME: &str = "db";
const FORMAT: &str = "bib-db-secrets/1";

/// Why a secret store failed. The text must name the file and never its content.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SecretStoreError {
    /// What failed, in one lower-case sentence.
    pub message: String,
    /// What caused it.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Where sealed secrets live. The daemon implements it over `bib-identity`'s `SealedDir`.
pub trait SecretStore: Send + Sync {
    /// Opens the secret `name`; `None` when there is none.
    ///
    /// # Errors
    /// When it exists and cannot be read or opened: never reported as absent.
    fn read(&self, name: &str) -> Result<Option<SecretString>, SecretStoreError>;

    /// Seals `secret` as `name`, replacing it. Returns only after it is durable (file and directory fsynced).
    ///
    /// # Errors
    /// When it could not be made durable; the former secret must then be unharmed.
    fn write(&self, name: &str, secret: &SecretString) -> Result<(), SecretStoreError>;
}

/// The opened document. Wiped when dropped.
pub(crate) struct DbSecrets {
    admin: SecretString,
    roles: BTreeMap<GroupRole, RoleSecret>,
}

/// The password in use of one group's pair.
pub(crate) struct RoleSecret {
    pub(crate) active: Letter,
    pub(crate) password: SecretString,
}

/// A string of the document, wiped when dropped.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Wiped(String);

impl Wiped {
    fn of(secret: &SecretString) -> Self {
        Self(secret.expose_secret().to_owned())
    }

    fn to_secret(&self) -> SecretString {
        SecretString::from(self.0.as_str())
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The document as it is written.
#[derive(Serialize, Deserialize)]
struct Document {
    format: String,
    admin: Wiped,
    roles: BTreeMap<String, RoleDocument>,
}

#[derive(Serialize, Deserialize)]
struct RoleDocument {
    active: Letter,
    password: Wiped,
}

impl DbSecrets {
    /// Opens the document; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::SecretStore`], [`Error::SecretsDamaged`].
    pub(crate) fn read(store: &dyn SecretStore) -> Result<Option<Self>, Error> {
        let Some(text) = store.read(DOCUMENT_NAME)? else { return Ok(None) };
        // serde_json's message names a line and a column, and may quote an unexpected value: keep only the place.
        let document: Document = serde_json::from_str(text.expose_secret())
            .map_err(|error| Error::SecretsDamaged { line: error.line(), column: error.column() })?;
        if document.format != FORMAT {
            return Err(Error::SecretsUnknownFormat);
        }
        let mut roles = BTreeMap::new();
        for (name, role) in document.roles {
            let group = GroupRole::parse(&name).ok_or(Error::SecretsUnknownFormat)?;
            roles.insert(group, RoleSecret { active: role.active, password: role.password.to_secret() });
        }
        Ok(Some(Self { admin: document.admin.to_secret(), roles }))
    }

    /// A new document: a superuser's password and one for every group role.
    pub(crate) fn generate(random: &Randomness) -> Self {
        let roles = GroupRole::ALL
            .into_iter()
            .map(|group| (group, RoleSecret { active: Letter::A, password: random.password() }))
            .collect();
        Self { admin: random.password(), roles }
    }

    /// Adds what a newer release knows and the document lacks. Says whether anything was added.
    pub(crate) fn complete(&mut self, random: &Randomness) -> bool {
        let before = self.roles.len();
        for group in GroupRole::ALL {
            self.roles.entry(group).or_insert_with(|| RoleSecret { active: Letter::A, password: random.password() });
        }
        self.roles.len() != before
    }

    /// Seals the document into `store`.
    ///
    /// # Errors
    /// [`Error::SecretStore`].
    pub(crate) fn write(&self, store: &dyn SecretStore) -> Result<(), Error> {
        let document = Document {
            format: FORMAT.to_owned(),
            admin: Wiped::of(&self.admin),
            roles: self
                .roles
                .iter()
                .map(|(group, role)| {
                    (
                        group.short().to_owned(),
                        RoleDocument { active: role.active, password: Wiped::of(&role.password) },
                    )
                })
                .collect(),
        };
        let text = serde_json::to_string(&document).expect("a document of strings serialises");
        store.write(DOCUMENT_NAME, &SecretString::from(text))?;
        Ok(())
    }

    /// The bootstrap superuser's password.
    pub(crate) fn admin(&self) -> &SecretString {
        &self.admin
    }

    /// The password in use of `group`.
    ///
    /// # Errors
    /// [`Error::SecretsIncomplete`] when the document predates the role and [`Self::complete`] was not called.
    pub(crate) fn role(&self, group: GroupRole) -> Result<&RoleSecret, Error> {
        self.roles.get(&group).ok_or(Error::SecretsIncomplete { group: group.name() })
    }
}
