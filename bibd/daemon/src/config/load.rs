//! Makes the effective configuration of defaults, the file, the environment and flags, and says where each value is
//! from. Every problem is collected and named with its place, so that one look at the message is enough.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::locate::{line_of, line_of_item};
use super::{AtRestMode, Backend, Cache, Config, Mode};

/// The prefix of environment variables: `BIBD__GRPC__LISTEN` is `grpc.listen`.
pub const ENVIRONMENT_PREFIX: &str = "BIBD__";

/// Where a value is from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Built in.
    Default,
    /// The configuration file.
    File {
        /// Which.
        path: PathBuf,
        /// Where in it, when that was found.
        line: Option<usize>,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// The command line.
    Flag,
}

impl Origin {
    /// `default`, `file`, `environment` or `flag`.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File { .. } => "file",
            Self::Environment { .. } => "environment",
            Self::Flag => "flag",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line: Some(line) } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Environment { variable } => write!(f, "environment {variable}"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// Something wrong with one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// Which value; empty for the file as a whole.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// The fix, when one can be named.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\n  hint: {hint}"))
    }
}

/// The configuration is not valid: every problem that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is not valid")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n{problem}"))
    }
}

/// What a configuration is made of.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file and its text, when there is one. TOML when its name ends in `.toml`, YAML otherwise.
    pub file: Option<(PathBuf, String)>,
    /// The whole environment; variables without [`ENVIRONMENT_PREFIX`] are left alone.
    pub environment: Vec<(String, String)>,
    /// Values from the command line: dotted key and text.
    pub flags: Vec<(&'static str, String)>,
}

/// One effective value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Dotted key.
    pub key: String,
    /// As text; secrets redacted; empty when not set.
    pub value: String,
    /// Where it is from.
    pub origin: Origin,
}

/// The effective configuration with its origins.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// The configuration file, when there is one.
    pub file: Option<PathBuf>,
    origins: BTreeMap<String, Origin>,
}

impl Loaded {
    /// Where the value of this key is from.
    #[must_use]
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }

    /// Every value in the order of its key.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let tree = tree_of(&self.config);
        let text = |key: &str, value: &Value| match value {
            _ if is_secret(key) && !value.is_null() => "[redacted]".to_owned(),
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        leaves(&tree)
            .into_iter()
            .map(|(key, value)| Entry { value: text(&key, value), origin: self.origin(&key).clone(), key })
            .collect()
    }
}

/// A key whose value is never shown. The address of a webhook is one: whoever has it may post to it.
fn is_secret(key: &str) -> bool {
    ["password", "secret", "token", "passphrase", "private_key", "webhook"].iter().any(|word| key.contains(word))
}

/// Makes the configuration.
///
/// # Errors
/// [`Problems`]: syntax, unknown keys with the nearest known one, wrong types, values out of range, and choices that
/// this version does not have.
pub fn load(sources: &Sources) -> Result<Loaded, Problems> {
    let defaults = tree_of(&Config::default());
    let mut given = Vec::new();
    let mut problems = Vec::new();
    if let Some((path, text)) = &sources.file {
        match parse(path, text) {
            Ok(tree) => {
                let place = |key: &str| Origin::File { path: path.clone(), line: line_of(text, key, is_toml(path)) };
                flatten(&tree, &defaults, "", &place, &mut given, &mut problems);
            }
            Err(problem) => problems.push(problem),
        }
    }
    for (variable, text) in &sources.environment {
        let Some(rest) = variable.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
        let key = rest.to_ascii_lowercase().replace("__", ".");
        let origin = Origin::Environment { variable: variable.clone() };
        if leaf(&defaults, &key).is_some() {
            given.push((key, Value::String(text.clone()), origin));
        } else {
            problems.push(unknown(&key, &defaults, origin));
        }
    }
    given
        .extend(sources.flags.iter().map(|(key, text)| ((*key).to_owned(), Value::String(text.clone()), Origin::Flag)));

    let mut tree = defaults.clone();
    let mut origins = BTreeMap::new();
    for (key, value, origin) in given {
        match fitting(&defaults, &key, &value, &origin) {
            Ok(value) => {
                set(&mut tree, &key, value);
                origins.insert(key, origin);
            }
            Err(message) => problems.push(Problem { origin, key, message, hint: None }),
        }
    }
    let config: Config = match serde_json::from_value(tree) {
        Ok(config) => config,
        Err(error) => {
            let message = error.to_string();
            problems.push(Problem { origin: Origin::Default, key: String::new(), message, hint: None });
            return Err(Problems(problems));
        }
    };
    for (key, message, hint) in check(&config).into_iter().chain(super::kubernetes::check(&config.database)) {
        let origin = origins.get(key).cloned().unwrap_or(Origin::Default);
        problems.push(Problem { origin, key: key.to_owned(), message, hint: Some(hint) });
    }
    for (key, message, hint) in super::tier::check(&config.blobs.tier) {
        let origin = origins.get(&key).cloned().unwrap_or(Origin::Default);
        problems.push(Problem { origin, key, message, hint: Some(hint) });
    }
    for finding in super::audit::check(&config.audit) {
        let origin = origin_of_item(origins.get(finding.key), sources, finding.key, finding.item);
        let (key, message) = (finding.key.to_owned(), finding.message);
        problems.push(Problem { origin, key, message, hint: Some(finding.hint) });
    }
    if problems.is_empty() {
        Ok(Loaded { config, file: sources.file.as_ref().map(|(path, _)| path.clone()), origins })
    } else {
        Err(Problems(problems))
    }
}

/// The place of one item of a list, where it can be found.
fn origin_of_item(origin: Option<&Origin>, sources: &Sources, key: &str, item: usize) -> Origin {
    let mut origin = origin.cloned().unwrap_or(Origin::Default);
    if let (Origin::File { path, line }, Some((_, text))) = (&mut origin, &sources.file) {
        *line = line_of_item(text, key, item, is_toml(path)).or(*line);
    }
    origin
}

fn is_toml(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml"))
}

fn parse(path: &Path, text: &str) -> Result<Value, Problem> {
    let problem = |line, message: String| Problem {
        origin: Origin::File { path: path.to_owned(), line },
        key: String::new(),
        message,
        hint: Some("`bibd config schema` describes the file".to_owned()),
    };
    if is_toml(path) {
        let table = text.parse::<toml::Table>().map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            problem(line, error.message().to_owned())
        })?;
        return serde_json::to_value(table).map_err(|error| problem(None, error.to_string()));
    }
    // Through the YAML value, which refuses a key that stands twice.
    let value: serde_yaml_ng::Value = serde_yaml_ng::from_str(text)
        .map_err(|error| problem(error.location().map(|place| place.line()), error.to_string()))?;
    serde_json::to_value(value).map_err(|error| problem(None, error.to_string()))
}

fn tree_of(config: &Config) -> Value {
    serde_json::to_value(config).expect("a configuration is plain data")
}

/// Every value that is not a section, by dotted key.
fn leaves(tree: &Value) -> Vec<(String, &Value)> {
    fn walk<'t>(prefix: &str, map: &'t Map<String, Value>, found: &mut Vec<(String, &'t Value)>) {
        for (name, value) in map {
            let key = join(prefix, name);
            match value {
                Value::Object(inner) => walk(&key, inner, found),
                other => found.push((key, other)),
            }
        }
    }
    let mut found = Vec::new();
    if let Value::Object(map) = tree {
        walk("", map, &mut found);
    }
    found
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

fn leaf<'t>(tree: &'t Value, key: &str) -> Option<&'t Value> {
    let found = key.split('.').try_fold(tree, |value, name| value.get(name))?;
    (!found.is_object()).then_some(found)
}

fn set(tree: &mut Value, key: &str, value: Value) {
    let pointer = format!("/{}", key.replace('.', "/"));
    if let Some(place) = tree.pointer_mut(&pointer) {
        *place = value;
    }
}

fn flatten(
    tree: &Value,
    defaults: &Value,
    prefix: &str,
    place: &dyn Fn(&str) -> Origin,
    given: &mut Vec<(String, Value, Origin)>,
    problems: &mut Vec<Problem>,
) {
    let Value::Object(map) = tree else {
        if !tree.is_null() {
            let message = "a section with keys was expected".to_owned();
            problems.push(Problem { origin: place(prefix), key: prefix.to_owned(), message, hint: None });
        }
        return;
    };
    for (name, value) in map {
        let key = join(prefix, name);
        let known = if prefix.is_empty() { defaults.get(name) } else { at(defaults, prefix).and_then(|s| s.get(name)) };
        match known {
            None => problems.push(unknown(&key, defaults, place(&key))),
            Some(Value::Object(_)) => flatten(value, defaults, &key, place, given, problems),
            Some(_) => given.push((key.clone(), value.clone(), place(&key))),
        }
    }
}

fn at<'t>(tree: &'t Value, key: &str) -> Option<&'t Value> {
    key.split('.').try_fold(tree, |value, name| value.get(name))
}

/// An unknown key, with the known one that looks most like it.
fn unknown(key: &str, defaults: &Value, origin: Origin) -> Problem {
    let last = key.rsplit('.').next().unwrap_or(key);
    let mut names: Vec<String> = leaves(defaults).into_iter().map(|(key, _)| key).collect();
    let sections: Vec<String> =
        names.iter().filter_map(|name| name.rsplit_once('.').map(|(section, _)| section.to_owned())).collect();
    names.extend(sections);
    let likeness = |name: &str| {
        let own = name.rsplit('.').next().unwrap_or(name);
        let moved = if own == last { 0.95 } else { 0.0 };
        strsim::jaro_winkler(key, name).max(moved)
    };
    let best = names.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).filter(|name| likeness(name) > 0.8);
    Problem {
        origin,
        key: key.to_owned(),
        message: "this key is not known".to_owned(),
        hint: Some(
            best.map_or_else(
                || "`bibd config show` lists every key".to_owned(),
                |name| format!("did you mean `{name}`?"),
            ),
        ),
    }
}

/// The value in the form that the key wants; text from the environment and from flags is read as YAML where the key
/// wants no text, and a single text counts as a list of one.
fn fitting(defaults: &Value, key: &str, value: &Value, origin: &Origin) -> Result<Value, String> {
    let mut forms = Vec::new();
    if let (Some(Value::Array(_)), Value::String(text)) = (leaf(defaults, key), value) {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        forms.push(items.map(|item| Value::String(item.to_owned())).collect());
    }
    forms.push(value.clone());
    if let (Value::String(text), true) = (value, !matches!(origin, Origin::File { .. }))
        && let Ok(read) = serde_yaml_ng::from_str::<Value>(text)
    {
        forms.push(read);
    }
    let mut first = None;
    for form in forms {
        let mut tree = defaults.clone();
        set(&mut tree, key, form.clone());
        match serde_json::from_value::<Config>(tree) {
            Ok(_) => return Ok(form),
            Err(error) => first = Some(error.to_string()),
        }
    }
    Err(first.unwrap_or_else(|| "the value does not fit".to_owned()))
}

type Finding = (&'static str, String, String);

/// What a cache node does not have, so that nobody believes in a backup or an encryption that is not there.
fn check_cache(config: &Config, refuse: &mut impl FnMut(&'static str, &str, &str)) {
    let nothing = "a cache has nothing of its own to keep: only a full node has this";
    for (key, is_set) in [
        ("backup.store", config.backup.store.is_some()),
        ("database.break_glass.enabled", config.database.break_glass.enabled),
        ("encryption.at_rest", config.encryption.at_rest != AtRestMode::Off),
    ] {
        if is_set {
            refuse(key, nothing, "remove it, or set `node.mode: full`");
        }
    }
    let Cache { ttl, max_size } = &config.database.cache;
    if !(60..=30 * 86_400).contains(&ttl.0.as_secs()) {
        refuse("database.cache.ttl", "must be 1m to 30d", "1d is usual");
    }
    if max_size.0 < 16 << 20 {
        refuse("database.cache.max_size", "must be at least 16MiB", "1GiB is usual");
    }
}

/// What types alone cannot say.
fn check(config: &Config) -> Vec<Finding> {
    let mut found: Vec<Finding> = Vec::new();
    let mut refuse = |key, message: &str, hint: &str| found.push((key, message.to_owned(), hint.to_owned()));
    if config.node.mode == Mode::Full && config.database.backend == Backend::Sqlite {
        refuse(
            "database.backend",
            "a full node needs the managed PostgreSQL: SQLite has no roles, so nothing would keep a job or an \
             injected statement away from the catalog and the audit log",
            "remove `database.backend`",
        );
    }
    if config.node.mode == Mode::Selective && config.database.backend == Backend::Postgres {
        let message =
            "`selective` with PostgreSQL is not available in this version: it comes with the network between nodes";
        refuse("node.mode", message, "set it to `full`, or set `database.backend: sqlite` for a cache");
    }
    if config.is_cache() {
        check_cache(config, &mut refuse);
    }
    let container = &config.database.container;
    if container.image.is_empty() {
        refuse("database.container.image", "must name an image", "remove it to use the default");
    }
    let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if container.digest.as_ref().is_some_and(|text| !text.strip_prefix("sha256:").is_some_and(is_digest)) {
        refuse("database.container.digest", "must be `sha256:` and 64 hex digits", "`docker inspect` shows an image's");
    }
    if container.selinux_relabel
        && config.data_dir.as_ref().is_some_and(|path| path.as_os_str().as_encoded_bytes().contains(&b':'))
    {
        let message = "cannot be done: the path of `data_dir` has a colon";
        refuse(
            "database.container.selinux_relabel",
            message,
            "choose a path without one, or label it yourself (chcon)",
        );
    }
    if container.memory.0 < config.database.shared_buffers.0.saturating_add(256 << 20) {
        let message = "must be at least 256MiB more than `database.shared_buffers`";
        refuse("database.container.memory", message, "2GiB is usual");
    }
    for (key, value, least, hint) in [
        ("database.container.pids", u64::from(container.pids), 150, "must be at least 150: there are 100 connections"),
        ("database.container.shm", container.shm.0, 16 << 20, "must be at least 16MiB"),
        ("database.container.tmpfs", container.tmpfs.0, 1 << 20, "must be at least 1MiB"),
        ("database.container.open_files", u64::from(container.open_files), 1024, "must be at least 1024"),
    ] {
        if value < least {
            refuse(key, hint, "remove it to use the default");
        }
    }
    if !(1..=60).contains(&config.backup.archive_timeout.0.as_secs()) {
        refuse("backup.archive_timeout", "must be 1s to 60s", "remove it to use the default");
    }
    let verify_every = config.backup.verify_every.0.as_secs();
    for (key, every) in [("backup.every", config.backup.every), ("backup.logical_every", config.backup.logical_every)] {
        let every = every.0.as_secs();
        if every != 0 && !(3_600..=30 * 86_400).contains(&every) {
            refuse(key, "must be 1h to 30d, or 0s for never", "1d is usual");
        }
    }
    if !(3_600..=90 * 86_400).contains(&verify_every) {
        refuse("backup.verify_every", "must be 1h to 90d", "7d is usual");
    }
    if !(1..=1_000).contains(&config.backup.keep) {
        refuse("backup.keep", "must be 1 to 1000", "7 is usual");
    }
    for (key, message, hint) in super::store::check(config.backup.store.as_ref(), &config.backup.s3) {
        refuse(key, message, hint);
    }
    let grpc = &config.grpc;
    let at_least = (4 << 20)..=(64 << 20);
    if !at_least.contains(&grpc.max_message_bytes.0) {
        refuse("grpc.max_message_bytes", "must be 4MiB to 64MiB: clients count on 4MiB", "set it to 4MiB");
    }
    for (key, window) in
        [("grpc.stream_window", grpc.stream_window), ("grpc.connection_window", grpc.connection_window)]
    {
        if !((64 << 10)..=(1 << 30)).contains(&window.0) {
            refuse(key, "must be 64KiB to 1GiB", "remove it to use the default");
        }
    }
    for (key, count) in [
        ("grpc.max_connections", grpc.max_connections),
        ("grpc.max_connections_per_address", grpc.max_connections_per_address),
        ("grpc.max_streams", grpc.max_streams),
        ("grpc.rate_limit.per_second", grpc.rate_limit.per_second),
        ("database.connections", config.database.connections),
    ] {
        if count == 0 {
            refuse(key, "must be at least 1", "remove it to use the default");
        }
    }
    if grpc.rate_limit.burst < 50 {
        refuse("grpc.rate_limit.burst", "must be at least 50, the cost of the dearest call", "set it to 1000");
    }
    for (key, span) in [
        ("grpc.keepalive_interval", grpc.keepalive_interval),
        ("grpc.keepalive_timeout", grpc.keepalive_timeout),
        ("grpc.handshake_timeout", grpc.handshake_timeout),
        ("grpc.request_timeout", grpc.request_timeout),
        ("grpc.idle_timeout", grpc.idle_timeout),
        ("database.start_timeout", config.database.start_timeout),
        ("database.stop_timeout", config.database.stop_timeout),
        ("database.container.pull_timeout", config.database.container.pull_timeout),
    ] {
        if span.0.as_secs() == 0 {
            refuse(key, "must be at least 1s", "remove it to use the default");
        }
    }
    if config.database.connections > 64 {
        refuse("database.connections", "must be 1 to 64", "16 is enough for thousands of commits a second");
    }
    if !(3_600..=90 * 86_400).contains(&config.database.rotation.every.0.as_secs()) {
        refuse("database.rotation.every", "must be 1h to 90d", "7d is usual");
    }
    super::break_glass::check(&config.database.break_glass, &mut refuse);
    if !(31..=825).contains(&config.tls.server_validity_days) {
        refuse("tls.server_validity_days", "must be 31 to 825", "365 is usual");
    }
    if !(1..=90).contains(&config.tls.client_validity_days) {
        refuse("tls.client_validity_days", "must be 1 to 90", "clients renew by themselves");
    }
    if config.blobs.trash_hours < 24 {
        refuse("blobs.trash_hours", "must be at least 24", "a collection that was a mistake is noticed the next day");
    }
    if config.blobs.in_flight_bytes.0 < (8 << 20) {
        refuse("blobs.in_flight_bytes", "must be at least 8MiB: two chunks", "64MiB is usual");
    }
    if !(1..=3_600).contains(&config.audit.checkpoint_seconds) {
        refuse("audit.checkpoint_seconds", "must be 1 to 3600", "60 is usual");
    }
    let retention = &config.audit.retention;
    if retention.keep.is_some_and(|keep| keep.0.as_secs() < 86_400) {
        refuse("audit.retention.keep", "must be at least 1d", "90d is usual; `null` keeps everything");
    }
    if retention.archive.as_ref().is_some_and(|path| !path.is_absolute()) {
        refuse("audit.retention.archive", "must be an absolute path", "such as /var/lib/bibd/audit-archive");
    }
    let socket = grpc.unix_socket.as_ref().map_or(0, |path| path.as_os_str().len());
    if socket > super::places::MAX_SOCKET_PATH_BYTES {
        refuse("grpc.unix_socket", "the path is longer than 100 bytes", "sockets need short paths: use one below /run");
    }
    found
}
