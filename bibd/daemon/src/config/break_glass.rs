//! Break-glass in the configuration: off unless somebody who may write the file turned it on before the daemon started.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bib_core::access::GlassAccess;
use bib_identity::ssh::PublicKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Size, Span};

/// Opening the database to a person for a while. Takes effect at the next start, and never while the daemon runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BreakGlass {
    /// Whether it can be done at all.
    pub enabled: bool,
    /// The longest a grant may last, 1 minute to 24 hours.
    pub max_duration: Span,
    /// The most that a grant may allow: `readonly`, or `readwrite` for rows outside the audit log.
    pub access: Access,
    /// Whose SSH keys may confirm a grant.
    pub allowed_users: Vec<AllowedUser>,
    /// `paranoid` records answers too, with all data; `statements` records what was asked, values included.
    pub audit_level: AuditLevel,
    /// Where recordings go; best on another disk. Default: `glass` in the data directory.
    pub recordings: Option<PathBuf>,
    /// How large the recording of one session may become; then the session is cut. 1 MiB to 1 TiB.
    pub max_recording: Size,
    /// Whether a grant that has ended must be reviewed before the next one.
    pub require_review: bool,
    /// Who is told.
    pub notification: Notification,
}

/// What a grant may allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Read every table.
    #[default]
    ReadOnly,
    /// Also change rows, but those of the audit log and of break-glass itself.
    ReadWrite,
}

impl From<Access> for GlassAccess {
    fn from(access: Access) -> Self {
        match access {
            Access::ReadOnly => Self::ReadOnly,
            Access::ReadWrite => Self::ReadWrite,
        }
    }
}

/// Somebody whose key confirms a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AllowedUser {
    /// What the audit log calls the key.
    pub name: String,
    /// One line as in `authorized_keys`.
    pub public_key: String,
}

/// How much is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum AuditLevel {
    /// Statements with their values, what became of them, and the rows that were answered.
    #[default]
    Paranoid,
    /// Statements with their values, and what became of them.
    Statements,
}

impl AuditLevel {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Paranoid => "paranoid",
            Self::Statements => "statements",
        }
    }
}

/// Who is told when a grant is opened, used and ended. Printing it does not show the webhook: whoever has such an address may
/// post to it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Notification {
    /// An address that takes a POST of JSON: `https://`, or `http://` on this machine.
    pub webhook: Option<String>,
    /// A mail address. Needs `mail_command`.
    pub email: Option<String>,
    /// The program that sends a mail, with its arguments; it reads the mail from its standard input.
    pub mail_command: Vec<String>,
}

impl fmt::Debug for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notification")
            .field("webhook", &self.webhook.as_ref().map(|_| "[redacted]"))
            .field("email", &self.email)
            .field("mail_command", &self.mail_command)
            .finish()
    }
}

impl Default for BreakGlass {
    fn default() -> Self {
        Self {
            enabled: false,
            max_duration: Span(Duration::from_secs(3_600)),
            access: Access::default(),
            allowed_users: Vec::new(),
            audit_level: AuditLevel::default(),
            recordings: None,
            max_recording: Size(1 << 30),
            require_review: true,
            notification: Notification::default(),
        }
    }
}

/// What types alone cannot say.
pub(super) fn check(config: &BreakGlass, refuse: &mut impl FnMut(&'static str, &str, &str)) {
    if !(60..=86_400).contains(&config.max_duration.0.as_secs()) {
        refuse("database.break_glass.max_duration", "must be 1m to 24h", "1h is usual");
    }
    if !((1 << 20)..=(1 << 40)).contains(&config.max_recording.0) {
        refuse("database.break_glass.max_recording", "must be 1MiB to 1TiB", "1GiB is usual");
    }
    if config.recordings.as_ref().is_some_and(|path| !path.is_absolute()) {
        let hint = "write it from the root of the file system";
        refuse("database.break_glass.recordings", "must be an absolute path", hint);
    }
    const USERS: &str = "database.break_glass.allowed_users";
    for user in &config.allowed_users {
        if user.name.is_empty() || user.name.len() > 128 || user.name.chars().any(char::is_control) {
            refuse(USERS, "a name must be one line of 1 to 128 bytes", "name the person whose key it is");
        }
        if let Err(error) = user.public_key.parse::<PublicKey>() {
            let message = format!("the key of `{}`: {error}", user.name);
            refuse(USERS, &message, "write one line of an OpenSSH .pub file: ssh-ed25519 AAAA...");
        }
    }
    if config.enabled && config.allowed_users.is_empty() {
        refuse(USERS, "nobody could confirm a grant", "name at least one key, or set `enabled` to false");
    }
    let notification = &config.notification;
    if notification.webhook.as_ref().is_some_and(|url| !is_webhook(url)) {
        let message = "must be an https address, or http on 127.0.0.1, [::1] or localhost";
        refuse("database.break_glass.notification.webhook", message, "https://alerts.example.org/bib");
    }
    if notification.email.is_some() == notification.mail_command.is_empty() {
        let message = "`email` and `mail_command` go together";
        refuse("database.break_glass.notification.mail_command", message, "[\"/usr/sbin/sendmail\", \"-t\"] is usual");
    }
    if notification.mail_command.first().is_some_and(|program| !program.starts_with('/')) {
        let message = "the program must be named by its absolute path";
        refuse("database.break_glass.notification.mail_command", message, "/usr/sbin/sendmail is usual");
    }
    let is_address = |text: &String| {
        text.len() <= 254 && text.contains('@') && !text.chars().any(|c| c.is_control() || c.is_whitespace())
    };
    if notification.email.as_ref().is_some_and(|text| !is_address(text)) {
        refuse("database.break_glass.notification.email", "is no mail address", "security@example.org");
    }
}

fn is_webhook(url: &str) -> bool {
    let Ok(uri) = url.parse::<http::Uri>() else { return false };
    match (uri.scheme_str(), uri.host()) {
        (Some("https"), Some(_)) => true,
        (Some("http"), Some(host)) => matches!(host, "127.0.0.1" | "[::1]" | "localhost"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7jJiYqYaUbTnCWuQzYyJ1nAAKZQmGZ0bK5o2hHbUJE";

    fn problems(config: &BreakGlass) -> Vec<&'static str> {
        let mut found = Vec::new();
        check(config, &mut |key, _: &str, _: &str| found.push(key.rsplit('.').next().unwrap()));
        found
    }

    #[test]
    fn what_could_not_work_is_refused_by_name() {
        let user = |key: &str| AllowedUser { name: "ada".to_owned(), public_key: key.to_owned() };
        let good = BreakGlass { enabled: true, allowed_users: vec![user(KEY)], ..BreakGlass::default() };
        assert!(problems(&good).is_empty() && problems(&BreakGlass::default()).is_empty());
        let cases = [
            (BreakGlass { allowed_users: vec![], ..good.clone() }, "allowed_users"),
            (BreakGlass { allowed_users: vec![user("ssh-dss AAAA")], ..good.clone() }, "allowed_users"),
            (BreakGlass { max_duration: Span(Duration::from_secs(90_000)), ..good.clone() }, "max_duration"),
            (BreakGlass { max_recording: Size(5), ..good.clone() }, "max_recording"),
            (BreakGlass { recordings: Some("here".into()), ..good.clone() }, "recordings"),
        ];
        for (config, key) in cases {
            assert_eq!(problems(&config), [key]);
        }
        let told = |notification| problems(&BreakGlass { notification, ..good.clone() });
        for url in ["http://example.org/", "ftp://x/", "https://", "nothing"] {
            assert_eq!(
                told(Notification { webhook: Some(url.to_owned()), ..Default::default() }),
                ["webhook"],
                "{url}"
            );
        }
        for url in ["https://example.org/a?b=c", "http://127.0.0.1:9/", "http://localhost/"] {
            assert!(told(Notification { webhook: Some(url.to_owned()), ..Default::default() }).is_empty(), "{url}");
        }
        let secret = Notification { webhook: Some("https://example.org/T0KEN".to_owned()), ..Default::default() };
        assert!(!format!("{secret:?}").contains("T0KEN"));
        let mail = |email: Option<&str>, command: &[&str]| Notification {
            email: email.map(str::to_owned),
            mail_command: command.iter().map(|text| (*text).to_owned()).collect(),
            webhook: None,
        };
        assert_eq!(told(mail(Some("a@b"), &[])), ["mail_command"]);
        assert_eq!(told(mail(Some("a@b"), &["sendmail"])), ["mail_command"]);
        assert_eq!(told(mail(Some("a\nb@c"), &["/bin/true"])), ["email"]);
        assert!(told(mail(Some("a@b"), &["/bin/true"])).is_empty());
    }
}
