//! The configuration of what follows the audit log: export to log collectors.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Audit, Size, Span};

/// The most sinks: each reads the log by itself.
pub const MAX_SINKS: usize = 8;

/// A place that every sealed entry is sent to, in order, at least once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sink {
    /// Under this name the node remembers how far the sink has come: lower-case letters, digits and `-`, at most 32.
    pub name: String,
    /// What it is.
    pub to: Target,
    /// How details of entries are sent. What `omit` never sent need not be erased elsewhere.
    #[serde(default)]
    pub details: Details,
    /// Where a sink that the node does not know yet begins.
    #[serde(default)]
    pub start: Start,
    /// How many entries the sink may be behind before the node says that its health is degraded. Nothing is dropped.
    #[serde(default = "max_behind")]
    pub max_behind: u64,
    /// Bytes sent at once, about.
    #[serde(default = "batch_bytes")]
    pub batch_bytes: Size,
    /// How long connecting, sending a batch and its answer may each take.
    #[serde(default = "timeout")]
    pub timeout: Span,
    /// The longest pause between two attempts when the sink does not take entries.
    #[serde(default = "max_pause")]
    pub max_pause: Span,
}

const fn max_behind() -> u64 {
    1_000_000
}

const fn batch_bytes() -> Size {
    Size(1 << 20)
}

const fn timeout() -> Span {
    Span(Duration::from_secs(30))
}

const fn max_pause() -> Span {
    Span(Duration::from_secs(60))
}

/// How details are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Details {
    /// A text that holds JSON: an index with fixed types takes any.
    #[default]
    Text,
    /// JSON.
    Object,
    /// Not at all.
    Omit,
}

/// Where a new sink begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// With the first entry of the log.
    #[default]
    Beginning,
    /// With the next entry that is sealed.
    Now,
}

/// What a sink is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A file of JSON lines.
    File(FileTarget),
    /// Syslog (RFC 5424) over TLS (RFC 5425).
    Syslog(SyslogTarget),
    /// Elasticsearch or OpenSearch, through `_bulk`.
    Elastic(ElasticTarget),
    /// Splunk's HTTP Event Collector.
    Splunk(SplunkTarget),
}

/// A file of JSON lines. Each line is on disk before the node goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileTarget {
    /// The file. Its directory must exist.
    pub path: PathBuf,
    /// Past this size the file is set aside as `PATH.1`, older ones as `PATH.2` and so on.
    #[serde(default = "rotate_bytes")]
    pub rotate_bytes: Size,
    /// How many files set aside are kept. `0` keeps all.
    #[serde(default = "keep")]
    pub keep: u32,
}

const fn rotate_bytes() -> Size {
    Size(100 << 20)
}

const fn keep() -> u32 {
    10
}

/// A syslog receiver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SyslogTarget {
    /// Host and port: `logs.example.org:6514`.
    pub address: String,
    /// How the receiver is known.
    #[serde(default)]
    pub tls: TlsTrust,
    /// The syslog facility, 0 to 23; 13 is "log audit".
    #[serde(default = "facility")]
    pub facility: u8,
    /// The longest message that the receiver takes whole. Larger entries are sent without details, or reduced.
    #[serde(default = "max_message_bytes")]
    pub max_message_bytes: Size,
    /// Syslog has no acknowledgements: the node ends the connection every few seconds and goes on only when the
    /// receiver has answered the `close_notify`, which says that it has read everything. Without this an entry counts
    /// as sent when the system took it.
    #[serde(default = "confirm")]
    pub confirm: bool,
}

const fn facility() -> u8 {
    bibd_audit::siem::FACILITY_AUDIT
}

const fn max_message_bytes() -> Size {
    Size(8 << 10)
}

const fn confirm() -> bool {
    true
}

/// An Elasticsearch or OpenSearch cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ElasticTarget {
    /// Where it is, such as `https://elastic.example.org:9200`; no user or password in it.
    pub url: String,
    /// The index or data stream.
    #[serde(default = "elastic_index")]
    pub index: String,
    /// How the node shows who it is.
    #[serde(default)]
    pub login: HttpLogin,
    /// How the cluster is known.
    #[serde(default)]
    pub tls: TlsTrust,
}

fn elastic_index() -> String {
    "bib-audit".to_owned()
}

/// A Splunk HTTP Event Collector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SplunkTarget {
    /// Where it is, such as `https://splunk.example.org:8088`.
    pub url: String,
    /// The collector's token.
    pub token: Secret,
    /// The index, when it is not the token's.
    #[serde(default)]
    pub index: Option<String>,
    /// The source type.
    #[serde(default = "source_type")]
    pub source_type: String,
    /// How the collector is known.
    #[serde(default)]
    pub tls: TlsTrust,
}

fn source_type() -> String {
    "bib:audit".to_owned()
}

/// How the node shows who it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum HttpLogin {
    /// Not at all, or by its certificate.
    #[default]
    None,
    /// `Authorization: ApiKey ...`.
    ApiKey(Secret),
    /// `Authorization: Bearer ...`.
    Bearer(Secret),
    /// Name and password.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: Secret,
    },
}

/// Where a secret is. It never stands in the configuration itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Secret {
    /// A file that only its owner may read (0600).
    File(PathBuf),
    /// The name of a sealed secret of the node: `bibd secret set NAME`.
    Sealed(String),
}

/// How a receiver is known, and the node to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct TlsTrust {
    /// Certificates (PEM) of the authorities that the receiver's certificate may be from. Default: the machine's.
    pub ca_file: Option<PathBuf>,
    /// The name in the receiver's certificate. Default: the host.
    pub server_name: Option<String>,
    /// The node's certificate for the receiver, with its chain (PEM).
    pub certificate_file: Option<PathBuf>,
    /// Its key (PEM), a file that only its owner may read.
    pub key_file: Option<PathBuf>,
}

/// How long entries stay in the database. Whole months leave it, oldest first; their seals stay, so that the chain
/// still verifies, and what they said goes into archives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// A month leaves when its last day is so long ago, at least 1d. `null` keeps everything in the database.
    pub keep: Option<Span>,
    /// Where archives lie, a compressed file for each month. Default: `audit-archive` in the data directory.
    pub archive: Option<PathBuf>,
    /// Write no archives: what the entries said is gone for good, and so are the proofs of versions of that time.
    pub discard: bool,
    /// Let a month go that a sink of the export does not have yet.
    pub drop_unexported: bool,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            keep: Some(Span(Duration::from_secs(90 * 86_400))),
            archive: None,
            discard: false,
            drop_unexported: false,
        }
    }
}

/// Something wrong with an item of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// The list.
    pub(super) key: &'static str,
    /// Which item, from 0.
    pub(super) item: usize,
    /// What is wrong.
    pub(super) message: String,
    /// What would be right.
    pub(super) hint: String,
}

/// What types alone cannot say.
pub(super) fn check(audit: &Audit) -> Vec<Finding> {
    let mut found = check_sinks(&audit.export);
    found.extend(super::alerts::check(&audit.alerts));
    found
}

fn check_sinks(sinks: &[Sink]) -> Vec<Finding> {
    let mut found = Vec::new();
    for (item, sink) in sinks.iter().enumerate() {
        let mut refuse = |message: &str, hint: &str| {
            let message = format!("sink `{}`: {message}", sink.name);
            found.push(Finding { key: "audit.export", item, message, hint: hint.to_owned() });
        };
        if item == MAX_SINKS {
            refuse(&format!("there are more than {MAX_SINKS}"), "let one collector feed others");
        }
        if !is_name(&sink.name) {
            refuse("the name is not 1 to 32 lower-case letters, digits and `-`", "call it by what it is: `splunk`");
        }
        if sinks[..item].iter().any(|other| other.name == sink.name) {
            refuse("the name stands twice", "a name is where the node remembers how far a sink has come");
        }
        if !((16 << 10)..=(16 << 20)).contains(&sink.batch_bytes.0) {
            refuse("batch_bytes must be 16KiB to 16MiB", "1MiB is usual");
        }
        if !(1..=600).contains(&sink.timeout.0.as_secs()) {
            refuse("timeout must be 1s to 10m", "30s is usual");
        }
        if !(1..=3_600).contains(&sink.max_pause.0.as_secs()) {
            refuse("max_pause must be 1s to 1h", "60s is usual");
        }
        for (message, hint) in check_target(&sink.to) {
            refuse(&message, hint);
        }
    }
    found
}

pub(super) fn is_name(name: &str) -> bool {
    matches!(name.len(), 1..=32) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn check_target(target: &Target) -> Vec<(String, &'static str)> {
    let mut found = Vec::new();
    match target {
        Target::File(file) => {
            if !file.path.is_absolute() || file.path.file_name().is_none() {
                found.push(("path must be absolute and name a file".to_owned(), "such as /var/log/bibd/audit.jsonl"));
            }
            if file.rotate_bytes.0 < (64 << 10) {
                found.push(("rotate_bytes must be at least 64KiB".to_owned(), "100MiB is usual"));
            }
        }
        Target::Syslog(syslog) => {
            let port = syslog.address.rsplit_once(':').map(|(host, port)| (host.is_empty(), port.parse::<u16>()));
            if !matches!(port, Some((false, Ok(1..)))) {
                found.push((format!("address `{}` is not HOST:PORT", syslog.address), "such as logs.example.org:6514"));
            }
            if syslog.facility > 23 {
                found.push(("facility must be 0 to 23".to_owned(), "13 is `log audit`"));
            }
            if !((2 << 10)..=(1 << 20)).contains(&syslog.max_message_bytes.0) {
                let hint = "every receiver takes 2KiB (RFC 5425), most take 8KiB";
                found.push(("max_message_bytes must be 2KiB to 1MiB".to_owned(), hint));
            }
            found.extend(check_tls(&syslog.tls));
        }
        Target::Elastic(elastic) => {
            found.extend(check_url(&elastic.url));
            let is_index = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
            if elastic.index.is_empty() || !elastic.index.chars().all(is_index) {
                found.push((format!("index `{}` is not a name of an index", elastic.index), "such as `bib-audit`"));
            }
            if let HttpLogin::ApiKey(secret) | HttpLogin::Bearer(secret) | HttpLogin::Basic { password: secret, .. } =
                &elastic.login
            {
                found.extend(check_secret(secret));
            }
            found.extend(check_tls(&elastic.tls));
        }
        Target::Splunk(splunk) => {
            found.extend(check_url(&splunk.url));
            found.extend(check_secret(&splunk.token));
            found.extend(check_tls(&splunk.tls));
        }
    }
    found
}

/// A base address: `https`, or `http` to this machine alone, since secrets travel there.
pub(crate) fn check_url(text: &str) -> Option<(String, &'static str)> {
    let bad = |why: &str, hint| Some((format!("url {why}"), hint));
    let Ok(url) = text.parse::<http::Uri>() else { return bad("is not one", "such as https://siem.example.org:8088") };
    let host = url.host().unwrap_or_default();
    let is_here = host.eq_ignore_ascii_case("localhost")
        || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return bad(
            "holds a user",
            "name the secret with `login` or `token`: it does not belong into the configuration",
        );
    }
    match url.scheme_str() {
        _ if host.is_empty() => bad("names no host", "such as https://siem.example.org:8088"),
        Some("https") => None,
        Some("http") if is_here => None,
        Some("http") => bad("goes out in clear", "use https: entries and tokens could be read on the way"),
        _ => bad("is not https", "such as https://siem.example.org:8088"),
    }
}

pub(super) fn check_secret(secret: &Secret) -> Option<(String, &'static str)> {
    match secret {
        Secret::File(path) if !path.is_absolute() => {
            Some(("the file of a secret must have an absolute path".to_owned(), "such as /etc/bibd/hec.token"))
        }
        Secret::Sealed(name) if !is_secret_name(name) => Some((
            format!("`{name}` is not the name of a sealed secret"),
            "lower-case letters, digits and `-`, at most 48",
        )),
        _ => None,
    }
}

/// Whether a sealed secret that a person sets may have this name.
#[must_use]
pub fn is_secret_name(name: &str) -> bool {
    matches!(name.len(), 1..=48) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

pub(super) fn check_tls(tls: &TlsTrust) -> Option<(String, &'static str)> {
    (tls.certificate_file.is_some() != tls.key_file.is_some())
        .then(|| ("certificate_file and key_file belong together".to_owned(), "name both, or neither"))
}
