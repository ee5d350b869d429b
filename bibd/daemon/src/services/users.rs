//! The people and programs of this node: added, changed, suspended, removed, and their keys.
//!
//! The node always keeps an active admin: whatever takes one away first locks all of them. Nobody suspends or removes
//! themself. Whatever a user or a key had opened ends when it goes.

mod keys;
mod preferences;

use bib_core::access::{NodeRole, Verb};
use bib_core::metadata::Orcid;
use bib_core::name::Segment;
use bib_core::{KeyFingerprint, UserId};
use bib_identity::ssh::PublicKey;
use bibd_catalog::users::{self, User, UserChange, UserKey, UserState};
use bibd_catalog::{Error as CatalogError, Session, Tx, access};
use serde_json::{Value, json};
use uuid::Uuid;

use super::accounts::{Accounts, COMPONENT, line, need_full_scope};
use super::base::allow_node;
use super::error::ServiceError;
use super::journal::Act;
use crate::actor::Call;
use crate::errors::ErrorCode;

pub use keys::AddedKey;
pub(crate) use keys::parse_fingerprint;
pub(super) use keys::{key_row, parse_key};
pub use preferences::{Preferences, Theme};

/// The longest display name, in characters.
const MAX_DISPLAY_CHARS: usize = 256;
/// The longest reason, in characters.
pub(super) const MAX_REASON_CHARS: usize = 512;
/// The longest text that is searched for, in characters.
const MAX_SEARCH_CHARS: usize = 128;
/// Keys that a new user may come with.
const MAX_NEW_KEYS: usize = 32;

/// A user with the keys they have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The user.
    pub user: User,
    /// Keys, oldest first.
    pub keys: Vec<UserKey>,
}

/// A user to be added.
#[derive(Debug, Clone, Default)]
pub struct NewUser {
    /// A segment.
    pub name: String,
    /// For people.
    pub display_name: String,
    /// Or empty.
    pub orcid: String,
    /// `None` is a reader.
    pub role: Option<NodeRole>,
    /// Lines as in `authorized_keys`.
    pub public_keys: Vec<String>,
    /// Who this is on the socket.
    pub uid: Option<u32>,
}

/// What changes about a user; `None` stays.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// For people.
    pub display_name: Option<String>,
    /// Empty for none.
    pub orcid: Option<String>,
    /// Role on the node.
    pub role: Option<NodeRole>,
}

/// The use cases about users.
#[derive(Debug, Clone)]
pub struct Users {
    accounts: Accounts,
}

impl Users {
    /// Users of these accounts.
    #[must_use]
    pub fn new(accounts: Accounts) -> Self {
        Self { accounts }
    }

    /// Adds a user.
    ///
    /// # Errors
    /// Denied for who is no admin; invalid fields; a name, key or uid that is somebody's already.
    pub async fn create(&self, call: &Call, new: NewUser) -> Result<Profile, ServiceError> {
        allow_node(call, Verb::UserManage)?;
        let base = &self.accounts.base;
        let now = base.now();
        Segment::new(&new.name).map_err(|error| ServiceError::invalid("name", error.to_string()))?;
        if new.public_keys.len() > MAX_NEW_KEYS {
            return Err(ServiceError::invalid("public_keys", format!("at most {MAX_NEW_KEYS} keys are allowed")));
        }
        let keys: Vec<PublicKey> =
            new.public_keys.iter().map(|key| parse_key("public_keys", key)).collect::<Result<_, _>>()?;
        let user = User {
            id: base.ids.user(),
            name: new.name,
            display_name: line("display_name", &new.display_name, MAX_DISPLAY_CHARS)?,
            orcid: orcid(&new.orcid)?,
            role: new.role.unwrap_or(NodeRole::Reader),
            state: UserState::Active,
            created_at: now,
            uids: new.uid.into_iter().collect(),
        };
        let mut tx = base.begin(call, COMPONENT).await?;
        users::insert(&mut tx, &user).await.map_err(|error| taken(error, &user.name))?;
        for key in &keys {
            users::add_key(&mut tx, &key_row(user.id, key, now)).await.map_err(|error| taken_key(error, key))?;
        }
        if let Some(uid) = new.uid {
            users::add_uid(&mut tx, user.id, uid, now).await.map_err(|error| taken_uid(error, uid))?;
        }
        let profile = profile(&mut tx, user).await?;
        let prints: Vec<String> = profile.keys.iter().map(|key| key.fingerprint.to_string()).collect();
        let User { id, name, role, uids, .. } = &profile.user;
        let details = json!({ "name": name, "role": role.as_str(), "keys": prints, "uids": uids });
        self.accounts.commit(tx, call, Act::new("user.add", id.to_string(), details)).await?;
        Ok(profile)
    }

    /// A user by id, name or key fingerprint: oneself, or for an admin anybody.
    ///
    /// # Errors
    /// Denied for who is no admin and asks for somebody else, whether there is such a user or not.
    pub async fn get(&self, call: &Call, name: &str) -> Result<Profile, ServiceError> {
        allow_node(call, Verb::SelfManage)?;
        let mut session = self.accounts.base.db.read().await?;
        let found = find(&mut session, name).await?;
        if found.as_ref().is_none_or(|user| user.id != call.actor.user) {
            allow_node(call, Verb::UserRead)?;
        }
        let user = found.ok_or_else(|| ServiceError::not_found("user", shown(name)))?;
        profile(&mut session, user).await
    }

    /// A page of users by name; with a text, those in whose name, display name, ORCID or key comment it occurs.
    ///
    /// # Errors
    /// Denied for who is no admin.
    pub async fn list(&self, call: &Call, text: &str, after: &str, limit: u32) -> Result<Vec<Profile>, ServiceError> {
        allow_node(call, Verb::UserRead)?;
        let text = line("text", text, MAX_SEARCH_CHARS)?;
        let mut session = self.accounts.base.db.read().await?;
        let found = users::list(&mut session, after, &text, limit).await?;
        let ids: Vec<UserId> = found.iter().map(|user| user.id).collect();
        let keys = users::list_keys(&mut session, &ids, false).await?;
        let of = |user: User| {
            let keys = keys.iter().filter(|key| key.user == user.id).cloned().collect();
            Profile { user, keys }
        };
        Ok(found.into_iter().map(of).collect())
    }

    /// Changes a user: oneself without the role, or for an admin anybody.
    ///
    /// # Errors
    /// Denied; invalid fields; the last admin, who stays one.
    pub async fn update(&self, call: &Call, name: &str, change: Change) -> Result<Profile, ServiceError> {
        allow_node(call, Verb::SelfManage)?;
        let mut tx = self.accounts.base.begin(call, COMPONENT).await?;
        let admins = lock_admins(&mut tx).await?;
        let user = self.load_for(call, &mut tx, name, change.role.is_some()).await?;
        if change.role.is_some_and(|role| role != NodeRole::Admin) {
            keep_an_admin(&user, admins, "demoted")?;
        }
        let role = change.role.filter(|role| *role != user.role);
        let change = UserChange {
            display_name: change.display_name.map(|text| line("display_name", &text, MAX_DISPLAY_CHARS)).transpose()?,
            orcid: change.orcid.map(|text| orcid(&text)).transpose()?,
            role,
            state: None,
        };
        users::update(&mut tx, user.id, &change, self.accounts.base.now()).await?;
        let mut details = json!({ "name": user.name, "display_name": change.display_name, "orcid": change.orcid });
        let action = match role {
            Some(role) => {
                details["role"] = json!({ "before": user.role.as_str(), "after": role.as_str() });
                "user.role"
            }
            None => "user.update",
        };
        let profile = reload(&mut tx, user.id).await?;
        let done = self.accounts.commit(tx, call, Act::new(action, user.id.to_string(), without_nulls(details))).await;
        // Also when the seal was late: the act stands then, and cutting too much harms nobody.
        if role.is_some() {
            self.accounts.cut(call, &user);
        }
        done.map(|()| profile)
    }

    /// Suspends a user: ends sessions, tokens and certificates, and refuses new ones until resumed.
    ///
    /// # Errors
    /// Denied for who is no admin; oneself; the last admin; a user who is suspended already.
    pub async fn suspend(&self, call: &Call, name: &str, reason: &str) -> Result<Profile, ServiceError> {
        allow_node(call, Verb::UserManage)?;
        let reason = line("reason", reason, MAX_REASON_CHARS)?;
        let now = self.accounts.base.now();
        let mut tx = self.accounts.base.begin(call, COMPONENT).await?;
        let admins = lock_admins(&mut tx).await?;
        let user = load(&mut tx, name).await?;
        not_oneself(call, &user, "suspend")?;
        if user.state == UserState::Suspended {
            return Err(unmet(format!("the user `{}` is suspended already", user.name), "`bib user resume` ends it"));
        }
        keep_an_admin(&user, admins, "suspended")?;
        set_state(&mut tx, user.id, UserState::Suspended, now).await?;
        let serials = access::revoke_user(&mut tx, user.id, "user suspended", now).await?;
        let profile = reload(&mut tx, user.id).await?;
        let details = json!({ "name": user.name, "reason": reason, "certificates": serials.len() });
        let act = Act::new("user.suspend", user.id.to_string(), details);
        let done = self.accounts.commit_revoking(tx, call, act, &serials).await;
        self.accounts.cut(call, &user);
        done.map(|()| profile)
    }

    /// Lets a suspended user in again, who then logs in anew.
    ///
    /// # Errors
    /// Denied for who is no admin; a user who is not suspended.
    pub async fn resume(&self, call: &Call, name: &str) -> Result<Profile, ServiceError> {
        allow_node(call, Verb::UserManage)?;
        let mut tx = self.accounts.base.begin(call, COMPONENT).await?;
        let user = load(&mut tx, name).await?;
        if user.state != UserState::Suspended {
            return Err(unmet(format!("the user `{}` is not suspended", user.name), "`bib user show` tells the state"));
        }
        set_state(&mut tx, user.id, UserState::Active, self.accounts.base.now()).await?;
        let profile = reload(&mut tx, user.id).await?;
        let act = Act::new("user.resume", user.id.to_string(), json!({ "name": user.name }));
        self.accounts.commit(tx, call, act).await?;
        Ok(profile)
    }

    /// Removes a user for good: keys, uids, sessions, tokens and certificates end; the name becomes free; acts and
    /// versions stay.
    ///
    /// # Errors
    /// Denied for who is no admin; oneself; the last admin.
    pub async fn remove(&self, call: &Call, name: &str) -> Result<(), ServiceError> {
        allow_node(call, Verb::UserManage)?;
        let now = self.accounts.base.now();
        let mut tx = self.accounts.base.begin(call, COMPONENT).await?;
        let admins = lock_admins(&mut tx).await?;
        let user = load(&mut tx, name).await?;
        not_oneself(call, &user, "remove")?;
        keep_an_admin(&user, admins, "removed")?;
        let keys = users::list_keys(&mut tx, &[user.id], false).await?;
        set_state(&mut tx, user.id, UserState::Removed, now).await?;
        users::remove_keys(&mut tx, user.id, now).await?;
        users::remove_uids(&mut tx, user.id).await?;
        let serials = access::revoke_user(&mut tx, user.id, "user removed", now).await?;
        let prints: Vec<String> = keys.iter().map(|key| key.fingerprint.to_string()).collect();
        let details = json!({ "name": user.name, "keys": prints, "uids": user.uids, "certificates": serials.len() });
        let act = Act::new("user.remove", user.id.to_string(), details);
        let done = self.accounts.commit_revoking(tx, call, act, &serials).await;
        self.accounts.cut(call, &user);
        done
    }

    /// The user to be changed: oneself (with a full scope), or for an admin anybody. `only_admin` when the change is
    /// not for oneself to make.
    async fn load_for(&self, call: &Call, tx: &mut Tx, name: &str, only_admin: bool) -> Result<User, ServiceError> {
        let found = find(tx, name).await?;
        let is_self = found.as_ref().is_some_and(|user| user.id == call.actor.user);
        if is_self && !only_admin {
            need_full_scope(call)?;
        } else {
            allow_node(call, Verb::UserManage)?;
        }
        found.ok_or_else(|| ServiceError::not_found("user", shown(name)))
    }
}

/// A user by id, name or key fingerprint, unless removed.
async fn find(session: &mut impl Session, name: &str) -> Result<Option<User>, ServiceError> {
    if let Ok(key) = name.parse::<KeyFingerprint>() {
        return Ok(users::find_by_key(session, &key).await?);
    }
    // A name may look like an id; the name counts, as it is unique among users.
    if Segment::new(name).is_ok()
        && let Some(user) = users::find_by_name(session, name).await?
    {
        return Ok(Some(user));
    }
    match Uuid::try_parse(name) {
        Ok(id) => {
            let user = users::find(session, UserId::from_uuid(id)).await?;
            Ok(user.filter(|user| user.state != UserState::Removed))
        }
        Err(_) => Ok(None),
    }
}

async fn load(tx: &mut Tx, name: &str) -> Result<User, ServiceError> {
    find(tx, name).await?.ok_or_else(|| ServiceError::not_found("user", shown(name)))
}

async fn reload(tx: &mut Tx, id: UserId) -> Result<Profile, ServiceError> {
    let user = users::find(tx, id).await?.ok_or_else(|| ServiceError::internal("a user vanished in a transaction"))?;
    profile(tx, user).await
}

async fn profile(session: &mut impl Session, user: User) -> Result<Profile, ServiceError> {
    let keys = users::list_keys(session, &[user.id], false).await?;
    Ok(Profile { user, keys })
}

/// How many active admins there are; they stay so until the transaction ends.
async fn lock_admins(tx: &mut Tx) -> Result<usize, ServiceError> {
    // Nobody's id is nil. All are locked in one order, so that two who demote each other wait instead of colliding.
    Ok(users::lock_other_admins(tx, UserId::from_uuid(Uuid::nil())).await?)
}

fn keep_an_admin(user: &User, admins: usize, what: &str) -> Result<(), ServiceError> {
    let is_one = user.role == NodeRole::Admin && user.state == UserState::Active;
    if is_one && admins <= 1 {
        return Err(unmet(
            format!("`{}` is the last active admin and cannot be {what}", user.name),
            "make somebody else an admin first: `bib user add --role admin`",
        ));
    }
    Ok(())
}

fn not_oneself(call: &Call, user: &User, what: &str) -> Result<(), ServiceError> {
    if user.id == call.actor.user {
        return Err(unmet(format!("you cannot {what} yourself"), "ask another admin to do it"));
    }
    Ok(())
}

async fn set_state(tx: &mut Tx, id: UserId, state: UserState, now: bib_core::Timestamp) -> Result<(), ServiceError> {
    let change = UserChange { state: Some(state), ..UserChange::default() };
    Ok(users::update(tx, id, &change, now).await?)
}

fn orcid(text: &str) -> Result<String, ServiceError> {
    if text.trim().is_empty() {
        return Ok(String::new());
    }
    let orcid = Orcid::from_any(text).map_err(|error| ServiceError::invalid("orcid", error.to_string()))?;
    Ok(orcid.as_str().to_owned())
}

fn unmet(sentence: String, hint: &str) -> ServiceError {
    ServiceError::conflict(ErrorCode::UNMET_CONDITION, sentence, hint)
}

fn taken(error: CatalogError, name: &str) -> ServiceError {
    if error.is_conflict_on("users_name") { ServiceError::already_exists("user", name) } else { error.into() }
}

fn taken_key(error: CatalogError, key: &PublicKey) -> ServiceError {
    if error.is_conflict_on("user_keys_active") {
        return ServiceError::conflict(
            ErrorCode::ALREADY_EXISTS,
            format!("the key {} is registered already", key.fingerprint()),
            "a key is one person's; make another with `ssh-keygen -t ed25519`",
        );
    }
    error.into()
}

fn taken_uid(error: CatalogError, uid: u32) -> ServiceError {
    if error.is_conflict_on("user_uids_pkey") {
        return ServiceError::conflict(
            ErrorCode::ALREADY_EXISTS,
            format!("the operating system user {uid} is somebody on this node already"),
            "`bib user list` shows who",
        );
    }
    error.into()
}

/// What an error shows of a name from outside.
fn shown(name: &str) -> String {
    let clipped: String = name.chars().take(80).collect();
    bib_core::text::scrub(&clipped).into_owned()
}

/// Details of the audit log say what changed, not what did not.
fn without_nulls(mut details: Value) -> Value {
    if let Value::Object(map) = &mut details {
        map.retain(|_, value| !value.is_null());
    }
    details
}
