//! The first start: the node enters itself into its catalog, and its owner becomes its first admin.
//!
//! Everything happens in one transaction, so a start that is cut off has done all of it or nothing. A node that has
//! an active admin is left alone; it always keeps one (see `users.rs`).

use std::process::Stdio;
use std::time::Duration;

use bib_core::access::NodeRole;
use bib_core::name::Segment;
use bib_identity::ssh::PublicKey;
use bibd_catalog::users::{self, User, UserState};
use bibd_catalog::{Tx, node};
use serde_json::json;
use uuid::Uuid;

use super::base::Base;
use super::error::ServiceError;
use super::journal::Act;
use super::users::key_row;
use crate::actor::Call;
use crate::errors::ErrorCode;

const COMPONENT: &str = "bootstrap";
/// How long the user database (LDAP and the like) may take to tell a name.
const NAME_DEADLINE: Duration = Duration::from_secs(2);
/// Other users of the owner's name that are stepped around.
const MAX_SAME_NAME: u32 = 100;

/// An operating-system user who becomes an admin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The uid on the socket.
    pub uid: u32,
    /// The account's name, where the system tells one.
    pub account: Option<String>,
}

/// Who owns the daemon: the uid that it runs as and, when that is root, who became root by `sudo`.
pub async fn owners(uid: u32, sudo_uid: Option<u32>) -> Vec<Owner> {
    let mut owners = vec![Owner { uid, account: account_of(uid).await }];
    if let Some(sudo_uid) = sudo_uid.filter(|sudo_uid| uid == 0 && *sudo_uid != 0) {
        owners.push(Owner { uid: sudo_uid, account: account_of(sudo_uid).await });
    }
    owners
}

/// `SUDO_UID`, when it is a uid.
#[must_use]
pub fn sudo_uid() -> Option<u32> {
    std::env::var("SUDO_UID").ok()?.parse().ok()
}

/// What the first start did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bootstrapped {
    /// Names of the admins that were added.
    pub admins: Vec<String>,
    /// Whether `--admin-key` was registered.
    pub key_added: bool,
}

/// Enters the node (each start: its version may be new) and, when nobody administers it yet, its owners as admins.
/// `admin_key` is a line as in `authorized_keys`; it becomes a key of the last owner, who is the person behind `sudo`
/// where there is one.
///
/// # Errors
/// [`ServiceError::Invalid`] when `admin_key` is not a key that BIB takes; [`ServiceError::Conflict`] when the
/// database belongs to another node; otherwise when the database does not answer.
pub async fn bootstrap(
    base: &Base,
    owners: &[Owner],
    admin_key: Option<&str>,
    version: &str,
) -> Result<Bootstrapped, ServiceError> {
    let admin_key: Option<PublicKey> = match admin_key {
        Some(line) => Some(line.parse().map_err(|error| ServiceError::invalid("admin_key", format!("{error}")))?),
        None => None,
    };
    let call = base.internal_call(COMPONENT);
    let mut tx = base.begin(&call, COMPONENT).await?;
    node::put_self(&mut tx, &base.peer, version, base.now()).await?;
    let mut done = Bootstrapped::default();
    // Nobody's id is nil, so this counts every active admin.
    let is_first = users::lock_other_admins(&mut tx, bib_core::UserId::from_uuid(Uuid::nil())).await? == 0;
    if is_first {
        let mut last = None;
        for owner in owners {
            let user = add_owner(base, &mut tx, &call, owner).await?;
            done.admins.push(user.name.clone());
            last = Some(user);
        }
        if let (Some(user), Some(key)) = (last, &admin_key) {
            add_key(base, &mut tx, &call, &user, key).await?;
            done.key_added = true;
        }
    } else if let Some(key) = &admin_key
        && users::find_key(&mut tx, &key.fingerprint()).await?.is_none()
    {
        tracing::warn!(key.fingerprint = %key.fingerprint(), "--admin-key is for the first start and was not registered; `bib user key add` does that");
    }
    let act = Act::new("node.start", base.peer.to_string(), json!({ "version": version, "epoch": base.epoch }));
    let entry = base.journal.add(&mut tx, &call, act).await?;
    base.journal.commit_added(tx, entry, "node.start").await?;
    Ok(done)
}

async fn add_owner(base: &Base, tx: &mut Tx, call: &Call, owner: &Owner) -> Result<User, ServiceError> {
    let wanted = segment_of(owner);
    let user = User {
        id: base.ids.user(),
        name: free_name(tx, &wanted).await?,
        display_name: owner.account.as_deref().map(display_of).unwrap_or_default(),
        orcid: String::new(),
        role: NodeRole::Admin,
        state: UserState::Active,
        created_at: base.now(),
        uids: vec![owner.uid],
    };
    // Nobody administers the node, yet this uid is somebody: only a damaged database says so, and guessing would let
    // in whom somebody else had shut out.
    if users::find_by_uid(tx, owner.uid).await?.is_some() {
        return Err(ServiceError::conflict(
            ErrorCode::UNMET_CONDITION,
            format!("no admin is left, and the operating system user {} is somebody who is none", owner.uid),
            "restore a backup in which the node has an admin",
        ));
    }
    users::insert(tx, &user).await?;
    users::add_uid(tx, user.id, owner.uid, user.created_at).await?;
    let details = json!({ "name": user.name, "role": "admin", "uid": owner.uid, "why": "first start" });
    base.journal.add(tx, call, Act::new("user.add", user.id.to_string(), details)).await?;
    Ok(user)
}

async fn add_key(base: &Base, tx: &mut Tx, call: &Call, user: &User, key: &PublicKey) -> Result<(), ServiceError> {
    users::add_key(tx, &key_row(user.id, key, base.now())).await?;
    let details = json!({ "user": user.id.to_string(), "name": user.name, "why": "--admin-key" });
    base.journal.add(tx, call, Act::new("key.add", key.fingerprint().to_string(), details)).await?;
    Ok(())
}

async fn free_name(tx: &mut Tx, wanted: &str) -> Result<String, ServiceError> {
    for number in 1..=MAX_SAME_NAME {
        let name = if number == 1 { wanted.to_owned() } else { format!("{wanted}-{number}") };
        if users::find_by_name(tx, &name).await?.is_none() {
            return Ok(name);
        }
    }
    Err(ServiceError::already_exists("user", wanted))
}

/// The account's name as a segment: lower case, with `-` for what a name cannot hold.
fn segment_of(owner: &Owner) -> String {
    let fallback = || format!("uid-{}", owner.uid);
    let Some(account) = &owner.account else { return fallback() };
    let plain = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9' | '.' | '_' | '-') => c,
        _ => '-',
    };
    let name: String = account.chars().take(100).map(plain).collect();
    let name = name.trim_matches(['-', '.', '_']);
    if Segment::new(name).is_ok() { name.to_owned() } else { fallback() }
}

fn display_of(account: &str) -> String {
    bib_core::text::scrub(account).chars().take(256).collect()
}

/// The name of an operating-system user: from `/etc/passwd`, then from `getent` (LDAP, systemd-userdb).
async fn account_of(uid: u32) -> Option<String> {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    if let Some(name) = text.lines().find_map(|line| name_in(line, uid)) {
        return Some(name);
    }
    let mut getent = tokio::process::Command::new("getent");
    getent.args(["passwd", &uid.to_string()]).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(NAME_DEADLINE, getent.output()).await.ok()?.ok()?;
    String::from_utf8_lossy(&output.stdout).lines().find_map(|line| name_in(line, uid))
}

fn name_in(line: &str, uid: u32) -> Option<String> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_names_become_segments() {
        for (account, name) in [
            ("ada", "ada"),
            ("Ada.Lovelace", "ada.lovelace"),
            ("UNI\\ada", "uni-ada"),
            ("ada@example.org", "ada-example.org"),
            ("_www", "www"),
            ("Ådä", "d"),
            ("日本", "uid-1000"),
        ] {
            assert_eq!(segment_of(&Owner { uid: 1000, account: Some(account.to_owned()) }), name, "{account}");
        }
        assert_eq!(segment_of(&Owner { uid: 7, account: None }), "uid-7");
    }

    #[test]
    fn reads_the_line_of_that_uid_only() {
        assert_eq!(name_in("ada:x:1000:1000:Ada:/home/ada:/bin/sh", 1000).as_deref(), Some("ada"));
        assert_eq!(name_in("ada:x:1000:1000:Ada:/home/ada:/bin/sh", 100), None);
        assert_eq!(name_in("ada:x", 1000), None);
    }
}
