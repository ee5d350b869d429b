//! The operating system's user that the server runs as.
//!
//! PostgreSQL refuses to run as root, and should not be the daemon's user when that is root. Only root can choose;
//! anybody else runs the server as themselves. Reads `/etc/passwd`, then asks `getent` (LDAP, systemd-userdb).

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::error::Error;
use crate::settings::RunAs;

/// A user and its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// User id of the server's process and files.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
    /// Whether that is another user than the daemon's.
    pub switch: bool,
}

/// Users tried in this order when root did not choose.
const USUAL: [&str; 2] = ["bibd", "postgres"];

impl Account {
    /// Chooses: the configuration, else the owner of an existing `data` directory, else `bibd`, else `postgres`.
    ///
    /// # Errors
    /// [`Error::NoAccount`], [`Error::BadAccount`].
    pub async fn choose(run_as: Option<&RunAs>, data: &Path) -> Result<Self, Error> {
        let own = rustix::process::geteuid().as_raw();
        let own_group = rustix::process::getegid().as_raw();
        let configured =
            match run_as {
                None => None,
                Some(RunAs::Ids { uid, gid }) => Some((*uid, *gid)),
                Some(RunAs::User(name)) => Some(find_user(name).await.ok_or_else(|| Error::BadAccount {
                    user: name.clone(),
                    reason: "there is no such user".to_owned(),
                })?),
            };
        let named = || match run_as {
            Some(RunAs::User(name)) => name.clone(),
            _ => configured.map_or_else(String::new, |(uid, _)| uid.to_string()),
        };
        if own != 0 {
            return match configured {
                Some((uid, _)) if uid != own => {
                    Err(Error::BadAccount { user: named(), reason: "only root can run it as another user".to_owned() })
                }
                _ => Ok(Self { uid: own, gid: own_group, switch: false }),
            };
        }
        let (uid, gid) = match configured {
            Some((0, _)) => {
                return Err(Error::BadAccount { user: named(), reason: "PostgreSQL does not run as root".to_owned() });
            }
            Some(ids) => ids,
            None => match owner(data) {
                Some(ids) => ids,
                None => find_usual().await.ok_or(Error::NoAccount)?,
            },
        };
        Ok(Self { uid, gid, switch: true })
    }
}

async fn find_usual() -> Option<(u32, u32)> {
    for name in USUAL {
        if let Some(ids) = find_user(name).await.filter(|(uid, _)| *uid != 0) {
            return Some(ids);
        }
    }
    None
}

/// The owner of an existing directory, unless that is root.
fn owner(data: &Path) -> Option<(u32, u32)> {
    let meta = std::fs::symlink_metadata(data).ok()?;
    (meta.is_dir() && meta.uid() != 0).then(|| (meta.uid(), meta.gid()))
}

async fn find_user(name: &str) -> Option<(u32, u32)> {
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    if let Some(ids) = text.lines().find_map(|line| parse_passwd(line, name)) {
        return Some(ids);
    }
    let mut getent = tokio::process::Command::new("getent");
    getent.args(["passwd", "--", name]).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(std::time::Duration::from_secs(5), getent.output()).await.ok()?.ok()?;
    String::from_utf8_lossy(&output.stdout).lines().find_map(|line| parse_passwd(line, name))
}

fn parse_passwd(line: &str, name: &str) -> Option<(u32, u32)> {
    let fields: Vec<&str> = line.split(':').collect();
    if fields.first() != Some(&name) {
        return None;
    }
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_passwd_lines_of_that_user_only() {
        let line = "postgres:x:101:104:PostgreSQL:/var/lib/postgresql:/bin/bash";
        assert_eq!(parse_passwd(line, "postgres"), Some((101, 104)));
        assert_eq!(parse_passwd(line, "post"), None);
        assert_eq!(parse_passwd("postgres:x", "postgres"), None);
    }

    #[tokio::test]
    async fn never_chooses_root() {
        let here = tempfile::tempdir().unwrap();
        let root = RunAs::Ids { uid: 0, gid: 0 };
        assert!(matches!(Account::choose(Some(&root), here.path()).await, Err(Error::BadAccount { .. })));
        let nobody = RunAs::User("no-such-user-here".to_owned());
        assert!(matches!(Account::choose(Some(&nobody), here.path()).await, Err(Error::BadAccount { .. })));
        if let Ok(account) = Account::choose(None, here.path()).await {
            assert_ne!(account.uid, 0);
        }
    }
}
