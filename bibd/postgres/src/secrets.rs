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
    admin: Secret,
    /// What the superuser's password is about to become; until that is settled either may be the one that works.
    admin_next: Option<Secret>,
    roles: BTreeMap<GroupRole, RoleSecret>,
}

/// A password and when it was made.
pub(crate) struct Secret {
    pub(crate) password: SecretString,
    /// Seconds since 1970; unknown in documents of releases that did not rotate.
    pub(crate) since_s: Option<i64>,
}

/// The password in use of one group's pair.
pub(crate) struct RoleSecret {
    pub(crate) active: Letter,
    pub(crate) secret: Secret,
    /// What the idle login is about to be given: the intent of a rotation, which is there before the server hears of it.
    pub(crate) next: Option<Secret>,
}

/// A string of the document, wiped when dropped.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Wiped(String);

impl Wiped {
    pub(crate) fn of(secret: &SecretString) -> Self {
        Self(secret.expose_secret().to_owned())
    }

    pub(crate) fn to_secret(&self) -> SecretString {
        SecretString::from(self.0.as_str())
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The document as it is written. What came with rotation is optional, so that the form is still the first one.
#[derive(Serialize, Deserialize)]
struct Document {
    format: String,
    admin: Wiped,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    admin_since_s: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    admin_next: Option<NextDocument>,
    roles: BTreeMap<String, RoleDocument>,
}

#[derive(Serialize, Deserialize)]
struct RoleDocument {
    active: Letter,
    password: Wiped,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since_s: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<NextDocument>,
}

#[derive(Serialize, Deserialize)]
struct NextDocument {
    password: Wiped,
    since_s: Option<i64>,
}

impl NextDocument {
    fn of(secret: &Secret) -> Self {
        Self { password: Wiped::of(&secret.password), since_s: secret.since_s }
    }

    fn to_secret(&self) -> Secret {
        Secret { password: self.password.to_secret(), since_s: self.since_s }
    }
}

impl Secret {
    fn new(random: &Randomness, since_s: Option<i64>) -> Self {
        Self { password: random.password(), since_s }
    }
}

impl RoleSecret {
    fn new(random: &Randomness) -> Self {
        Self { active: Letter::A, secret: Secret::new(random, None), next: None }
    }
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
            let secret = Secret { password: role.password.to_secret(), since_s: role.since_s };
            let next = role.next.as_ref().map(NextDocument::to_secret);
            roles.insert(group, RoleSecret { active: role.active, secret, next });
        }
        let admin = Secret { password: document.admin.to_secret(), since_s: document.admin_since_s };
        let admin_next = document.admin_next.as_ref().map(NextDocument::to_secret);
        Ok(Some(Self { admin, admin_next, roles }))
    }

    /// Those of an attempt that was interrupted, else new ones: durable before any server hears of them.
    ///
    /// # Errors
    /// [`Error::SecretStore`] and others of [`read`](Self::read).
    pub(crate) fn first(store: &dyn SecretStore, random: &Randomness) -> Result<Self, Error> {
        if let Some(secrets) = Self::read(store)? {
            return Ok(secrets);
        }
        let secrets = Self::generate(random);
        secrets.write(store)?;
        Ok(secrets)
    }

    /// A new document: a superuser's password and one for every group role.
    pub(crate) fn generate(random: &Randomness) -> Self {
        let roles = GroupRole::ALL.into_iter().map(|group| (group, RoleSecret::new(random))).collect();
        Self { admin: Secret::new(random, None), admin_next: None, roles }
    }

    /// Adds what a newer release knows and the document lacks. Says whether anything was added.
    pub(crate) fn complete(&mut self, random: &Randomness) -> bool {
        let before = self.roles.len();
        for group in GroupRole::ALL {
            self.roles.entry(group).or_insert_with(|| RoleSecret::new(random));
        }
        self.roles.len() != before
    }

    /// Dates passwords whose age is not known: they are at least as old as this. Says whether there were any.
    pub(crate) fn date(&mut self, now_s: i64) -> bool {
        let all = self.roles.values_mut().map(|role| &mut role.secret).chain([&mut self.admin]);
        let undated: Vec<_> = all.filter(|secret| secret.since_s.is_none()).collect();
        let any = !undated.is_empty();
        undated.into_iter().for_each(|secret| secret.since_s = Some(now_s));
        any
    }

    /// Makes the next password of a group's pair, unless one was made already that never came into use.
    pub(crate) fn plan(&mut self, group: GroupRole, random: &Randomness, now_s: i64) {
        if let Some(role) = self.roles.get_mut(&group) {
            role.next.get_or_insert_with(|| Secret::new(random, Some(now_s)));
        }
    }

    /// The same for the superuser.
    pub(crate) fn plan_admin(&mut self, random: &Randomness, now_s: i64) {
        self.admin_next.get_or_insert_with(|| Secret::new(random, Some(now_s)));
    }

    /// What is planned: each group with the login and the password to come.
    pub(crate) fn planned(&self) -> Vec<(GroupRole, Letter, SecretString)> {
        let next = |(group, role): (&GroupRole, &RoleSecret)| {
            role.next.as_ref().map(|next| (*group, role.active.other(), next.password.clone()))
        };
        self.roles.iter().filter_map(next).collect()
    }

    /// Makes the planned logins those in use. Says whether any was planned.
    pub(crate) fn promote(&mut self) -> bool {
        let mut any = false;
        for role in self.roles.values_mut() {
            if let Some(next) = role.next.take() {
                (role.active, role.secret, any) = (role.active.other(), next, true);
            }
        }
        any
    }

    /// Makes the superuser's planned password the one in use: only once the server has it. Says whether one was planned.
    pub(crate) fn promote_admin(&mut self) -> bool {
        let Some(next) = self.admin_next.take() else { return false };
        self.admin = next;
        true
    }

    /// Seals the document into `store`.
    ///
    /// # Errors
    /// [`Error::SecretStore`].
    pub(crate) fn write(&self, store: &dyn SecretStore) -> Result<(), Error> {
        let role = |(group, role): (&GroupRole, &RoleSecret)| {
            let document = RoleDocument {
                active: role.active,
                password: Wiped::of(&role.secret.password),
                since_s: role.secret.since_s,
                next: role.next.as_ref().map(NextDocument::of),
            };
            (group.short().to_owned(), document)
        };
        let document = Document {
            format: FORMAT.to_owned(),
            admin: Wiped::of(&self.admin.password),
            admin_since_s: self.admin.since_s,
            admin_next: self.admin_next.as_ref().map(NextDocument::of),
            roles: self.roles.iter().map(role).collect(),
        };
        let text = serde_json::to_string(&document).expect("a document of strings serialises");
        store.write(DOCUMENT_NAME, &SecretString::from(text))?;
        Ok(())
    }

    /// Every password, those to come too.
    pub(crate) fn passwords(&self) -> Vec<&SecretString> {
        let roles = self.roles.values().flat_map(|role| [Some(&role.secret), role.next.as_ref()]);
        let all = [Some(&self.admin), self.admin_next.as_ref()].into_iter().chain(roles);
        all.flatten().map(|secret| &secret.password).collect()
    }

    /// The bootstrap superuser's password.
    pub(crate) fn admin(&self) -> &SecretString {
        &self.admin.password
    }

    /// When it was made, in seconds since 1970.
    pub(crate) fn admin_since_s(&self) -> Option<i64> {
        self.admin.since_s
    }

    /// The password that the superuser is being given, which may work already.
    pub(crate) fn admin_next(&self) -> Option<&SecretString> {
        self.admin_next.as_ref().map(|next| &next.password)
    }

    /// The password in use of `group`.
    ///
    /// # Errors
    /// [`Error::SecretsIncomplete`] when the document predates the role and [`Self::complete`] was not called.
    pub(crate) fn role(&self, group: GroupRole) -> Result<&RoleSecret, Error> {
        self.roles.get(&group).ok_or(Error::SecretsIncomplete { group: group.name() })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use rand::SeedableRng as _;

    use super::*;

    #[derive(Default)]
    struct Memory(Mutex<Option<String>>);

    impl SecretStore for Memory {
        fn read(&self, _: &str) -> Result<Option<SecretString>, SecretStoreError> {
            Ok(self.0.lock().unwrap().clone().map(SecretString::from))
        }

        fn write(&self, _: &str, secret: &SecretString) -> Result<(), SecretStoreError> {
            *self.0.lock().unwrap() = Some(secret.expose_secret().to_owned());
            Ok(())
        }
    }

    #[test]
    fn a_plan_survives_and_becomes_what_is_in_use() {
        let random = Randomness::new(rand::rngs::StdRng::seed_from_u64(7));
        let (store, mut secrets) = (Memory::default(), DbSecrets::generate(&random));
        assert!(secrets.date(100) && !secrets.date(200), "dated once");
        secrets.plan(GroupRole::Seal, &random, 300);
        secrets.plan_admin(&random, 300);
        secrets.write(&store).unwrap();
        let mut again = DbSecrets::read(&store).unwrap().unwrap();
        let (group, letter, password) = again.planned().pop().unwrap();
        assert_eq!((group, letter), (GroupRole::Seal, Letter::B));
        // Planned once: what the server may have been told already is not made anew.
        again.plan(GroupRole::Seal, &random, 400);
        assert_eq!(again.planned().pop().unwrap().2.expose_secret(), password.expose_secret());
        let admin = again.admin_next().unwrap().expose_secret().to_owned();
        assert_ne!(again.admin().expose_secret(), admin);
        assert!(again.promote() && !again.promote() && again.promote_admin() && !again.promote_admin());
        let seal = again.role(GroupRole::Seal).unwrap();
        assert_eq!((seal.active, seal.secret.since_s), (Letter::B, Some(300)));
        assert_eq!(seal.secret.password.expose_secret(), password.expose_secret());
        assert_eq!((again.admin().expose_secret(), again.admin_since_s()), (admin.as_str(), Some(300)));
        assert_eq!(again.role(GroupRole::Audit).unwrap().secret.since_s, Some(100));
    }

    #[test]
    fn reads_the_document_of_a_release_that_did_not_rotate() {
        let text = r#"{"format":"bib-db-secrets/1","admin":"x","roles":{"seal":{"active":"b","password":"y"}}}"#;
        let store = Memory(Mutex::new(Some(text.to_owned())));
        let mut secrets = DbSecrets::read(&store).unwrap().unwrap();
        assert_eq!((secrets.role(GroupRole::Seal).unwrap().active, secrets.admin_since_s()), (Letter::B, None));
        assert!(secrets.planned().is_empty() && secrets.date(5));
        secrets.write(&store).unwrap();
        assert_eq!(DbSecrets::read(&store).unwrap().unwrap().admin_since_s(), Some(5));
    }
}
