//! The hardening checklist, C.1 to C.4 of the security design, asked of a running server: `bib admin db audit`; C.5
//! too, where the server runs in a container.
//!
//! Every item is one [`Finding`]. Those of TLS are asked where the server is reached over TCP; on a Unix socket they are
//! in [`NOT_APPLICABLE`] with the reason. It runs as `bibd_monitor`, which reads the system's catalogs and, through two functions owned by the
//! superuser, counts of passwords and of settings. It changes nothing. Rendering is the caller's.

mod facts;
mod privileges;
mod roles;
mod server;
mod tls;

use serde::Serialize;
use sqlx::postgres::PgConnection;

use crate::error::Error;
use crate::version::Version;

pub use facts::Facts;
pub(crate) use facts::passwords_in;
pub use privileges::matrix;

/// One item's verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The item: `C.2-12`.
    pub item: &'static str,
    /// What it asks, in a few words.
    pub title: &'static str,
    /// The verdict.
    #[serde(flatten)]
    pub status: Status,
    /// What was seen.
    pub observed: String,
    /// What should have been seen.
    pub expected: String,
}

/// A verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Pass,
    /// Not as it should be.
    Fail,
    /// Works, and somebody should look.
    Warn,
    /// Cannot apply here.
    NotApplicable {
        /// Why.
        reason: &'static str,
    },
}

/// An item of C.5, as the provisioner found it.
#[derive(Debug, Clone)]
pub struct ContainerItem {
    /// The item: `C.5-47`.
    pub(crate) item: &'static str,
    /// What it asks, in a few words.
    pub(crate) title: &'static str,
    /// What should have been seen.
    pub(crate) expected: &'static str,
    /// What was seen instead; nothing when it is as it should be.
    pub(crate) problems: Vec<String>,
    /// Whether that is a warning and no more.
    pub(crate) warn: bool,
}

/// What the caller knows and this room does not.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// The golden text of [`matrix`], from the migrations' owner. Without it item C.3-24 is a warning.
    pub matrix: Option<String>,
}

/// Items that do not apply to a server on a Unix socket: `(item, title, reason)`.
pub const NOT_APPLICABLE: [(&str, &str, &str); 2] = [
    ("C.2-16", "TLS with client certificates", "there is no TCP and no TLS on a Unix socket; TCP modes have it"),
    ("C.4-45", "every connection uses TLS", "there is no TLS on a Unix socket; TCP modes have it"),
];

/// Asks a running server, as `bibd_monitor`, every item of C.1 to C.4. In the items' order.
///
/// # Errors
/// [`Error::Sql`] when a question cannot be asked: never taken for an answer.
pub async fn audit(monitor: &mut PgConnection, facts: &Facts, expected: &Expected) -> Result<Vec<Finding>, Error> {
    let mut findings = Findings::default();
    let number: String = sqlx::query_scalar("SELECT current_setting('server_version_num')")
        .fetch_one(&mut *monitor)
        .await
        .map_err(Error::sql("ask the server's version"))?;
    let version = Version::from_number(number.parse().unwrap_or_default());
    facts.check(&mut findings);
    server::check(monitor, version, facts, &mut findings).await?;
    roles::check(monitor, version, facts.is_operated, &mut findings).await?;
    privileges::check(monitor, expected, &mut findings).await?;
    for (item, title, reason) in NOT_APPLICABLE.into_iter().filter(|_| facts.config.listening.is_none()) {
        let status = Status::NotApplicable { reason };
        findings.0.push(Finding { item, title, status, observed: String::new(), expected: String::new() });
    }
    let mut all = findings.0;
    all.sort_by_key(|finding| {
        let number = finding.item.rsplit('-').next().unwrap_or_default();
        number.parse::<u32>().unwrap_or_default()
    });
    Ok(all)
}

/// The findings so far. An item may be asked in several parts: it passes when all do, and the rest is collected.
#[derive(Default)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    /// An item that is somebody else's to keep.
    fn leave(&mut self, item: &'static str, title: &'static str, reason: &'static str) {
        let status = Status::NotApplicable { reason };
        self.add(Finding { item, title, status, observed: String::new(), expected: String::new() });
    }

    /// A part of an item: nothing in `problems` means that it is as it should be.
    fn none(&mut self, item: &'static str, title: &'static str, problems: Vec<String>, expected: &str) {
        let observed = if problems.is_empty() { expected.to_owned() } else { problems.join("; ") };
        let status = if problems.is_empty() { Status::Pass } else { Status::Fail };
        self.add(Finding { item, title, status, observed, expected: expected.to_owned() });
    }

    /// A part of an item with a plain answer.
    fn check(&mut self, item: &'static str, title: &'static str, good: bool, observed: String, expected: &str) {
        let status = if good { Status::Pass } else { Status::Fail };
        self.add(Finding { item, title, status, observed, expected: expected.to_owned() });
    }

    fn add(&mut self, finding: Finding) {
        let rank = |status: &Status| match status {
            Status::NotApplicable { .. } | Status::Pass => 0,
            Status::Warn => 1,
            Status::Fail => 2,
        };
        match self.0.iter_mut().find(|known| known.item == finding.item) {
            None => self.0.push(finding),
            Some(known) if rank(&finding.status) == 0 => {
                if rank(&known.status) == 0 {
                    known.expected = format!("{}; {}", known.expected, finding.expected);
                    known.observed = format!("{}; {}", known.observed, finding.observed);
                }
            }
            Some(known) if rank(&known.status) == 0 => *known = finding,
            Some(known) => {
                if rank(&finding.status) > rank(&known.status) {
                    known.status = finding.status;
                }
                known.observed = format!("{}; {}", known.observed, finding.observed);
                known.expected = format!("{}; {}", known.expected, finding.expected);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_part_fails_the_item() {
        let mut findings = Findings::default();
        findings.check("C.1-1", "t", true, "a".into(), "a");
        findings.check("C.1-1", "t", false, "b is wrong".into(), "b");
        findings.check("C.1-1", "t", true, "c".into(), "c");
        assert_eq!(findings.0.len(), 1);
        assert_eq!((findings.0[0].status.clone(), findings.0[0].observed.as_str()), (Status::Fail, "b is wrong"));
    }
}
