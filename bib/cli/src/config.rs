//! The person's configuration: `config.yaml`, the environment over it, flags over both.
//!
//! Keys are dotted (`connection.default_node`). An unknown key is an error that says what was probably meant. Nothing
//! here is secret; keys and tokens lie in files of their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcetera::BaseStrategy as _;
use serde_yaml_ng::{Mapping, Value};

use crate::errors::{Exit, Failure, Result};
use crate::units::{format_exact, parse_duration};

/// The file's name in the configuration directory.
const FILE_NAME: &str = "config.yaml";
/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 256 * 1024;
/// What environment variables begin with: `BIB__CONNECTION__TIMEOUT`.
const PREFIX: &str = "BIB__";
/// Keys whose last part the person chooses.
const ALIASES: &str = "connection.aliases.";

/// What a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Text,
    Duration,
    Attempts,
    List,
    Switch,
}

/// Every fixed key, its default and what it is for.
const KEYS: &[(&str, Takes, &str, &str)] = &[
    ("connection.default_node", Takes::Text, "", "the node that is meant when `--node` names none"),
    ("connection.timeout", Takes::Duration, "30s", "how long a call may take"),
    ("connection.connect_timeout", Takes::Duration, "10s", "how long getting a connection may take"),
    ("connection.retry_attempts", Takes::Attempts, "3", "how often a connection or a reading call is tried, 1 to 100"),
    ("connection.favourites", Takes::List, "", "nodes to fall back on when no node runs on this machine"),
    ("connection.tls.skip_verify", Takes::Switch, "false", "DANGEROUS: believe whoever answers"),
    ("connection.tls.ca_file", Takes::Text, "", "the CA certificate (PEM) of nodes that are not trusted yet"),
    ("connection.tls.cert_file", Takes::Text, "", "the client certificate (PEM) in place of a log-in"),
    ("connection.tls.key_file", Takes::Text, "", "its key and token (PEM, 0600)"),
    ("identity.key", Takes::Text, "", "the SSH key to log in and sign with"),
    ("identity.name", Takes::Text, "", "your name as it stands in versions that you publish"),
];

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    /// Nobody said otherwise.
    Default,
    /// `config.yaml`.
    File,
    /// A variable.
    Environment,
}

/// A value with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Dotted.
    pub(crate) key: String,
    /// As text; lists are joined by commas.
    pub(crate) value: String,
    /// Where it came from.
    pub(crate) origin: Origin,
    /// What it is for.
    pub(crate) about: &'static str,
}

/// The effective configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    path: PathBuf,
    settings: BTreeMap<String, (String, Origin)>,
}

/// Where things lie.
#[derive(Debug, Clone)]
pub(crate) struct Directories {
    /// Configuration, trust and credentials.
    pub(crate) config: PathBuf,
    /// What may be deleted at any time.
    pub(crate) cache: PathBuf,
}

impl Directories {
    /// `--config-dir`, or the XDG directories. With `--config-dir` the cache lies inside it, so that nothing is shared.
    ///
    /// # Errors
    /// When there is no home directory.
    pub(crate) fn find(config_dir: Option<&Path>) -> Result<Self> {
        if let Some(dir) = config_dir {
            let config = std::path::absolute(dir).map_err(|error| Failure::file("find", dir, &error))?;
            return Ok(Self { cache: config.join("cache"), config });
        }
        let xdg = etcetera::base_strategy::Xdg::new().map_err(|_| {
            Failure::usage("there is no home directory").with_hint("set HOME, or name a directory with `--config-dir`")
        })?;
        Ok(Self { config: xdg.config_dir().join("bib"), cache: xdg.cache_dir().join("bib") })
    }
}

impl Config {
    /// Reads `<dir>/config.yaml`, which may be missing, and the variables of the environment.
    ///
    /// # Errors
    /// Exit 2 for an unknown key or a value of the wrong kind, naming file or variable.
    pub(crate) fn load(dir: &Path, variables: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let path = dir.join(FILE_NAME);
        let mut config = Self { path, settings: BTreeMap::new() };
        for (key, value) in config.read_file()? {
            config.set_checked(&key, value, Origin::File).map_err(|why| {
                Failure::usage(format!("`{}`: {why}", config.path.display()))
                    .with_hint("`bib config list` shows the keys")
            })?;
        }
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            let key = rest.split("__").map(str::to_lowercase).collect::<Vec<_>>().join(".");
            config
                .set_checked(&key, value, Origin::Environment)
                .map_err(|why| Failure::usage(format!("the variable {name}: {why}")))?;
        }
        Ok(config)
    }

    /// The file that [`Config::store`] writes.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A fixed key's value; empty when nobody set it and it has no default.
    pub(crate) fn text(&self, key: &str) -> &str {
        let default = || KEYS.iter().find(|(name, ..)| *name == key).map_or("", |(_, _, default, _)| default);
        self.settings.get(key).map_or_else(default, |(value, _)| value.as_str())
    }

    /// A text that is set and not empty.
    pub(crate) fn given(&self, key: &str) -> Option<&str> {
        Some(self.text(key)).filter(|text| !text.is_empty())
    }

    /// A duration. Values were checked when they were read.
    pub(crate) fn duration(&self, key: &str) -> Duration {
        parse_duration(self.text(key)).unwrap_or(Duration::from_secs(30))
    }

    /// How often a connection is tried.
    pub(crate) fn retry_attempts(&self) -> u32 {
        self.text("connection.retry_attempts").parse().unwrap_or(3)
    }

    /// Whether something is switched on. Values were checked when they were read.
    pub(crate) fn is_on(&self, key: &str) -> bool {
        self.text(key) == "true"
    }

    /// Nodes to fall back on.
    pub(crate) fn favourites(&self) -> Vec<String> {
        items(self.text("connection.favourites")).map(str::to_owned).collect()
    }

    /// The person's own names for addresses.
    pub(crate) fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings.iter().filter_map(|(key, (value, _))| Some((key.strip_prefix(ALIASES)?, value.as_str())))
    }

    /// Every key with its value and origin.
    pub(crate) fn list(&self) -> Vec<Setting> {
        let fixed = KEYS.iter().map(|(key, _, default, about)| {
            let (value, origin) =
                self.settings.get(*key).cloned().unwrap_or_else(|| ((*default).to_owned(), Origin::Default));
            Setting { key: (*key).to_owned(), value, origin, about }
        });
        let aliases = self.settings.iter().filter(|(key, _)| key.starts_with(ALIASES)).map(|(key, (value, origin))| {
            Setting { key: key.clone(), value: value.clone(), origin: *origin, about: "an alias of an address" }
        });
        fixed.chain(aliases).collect()
    }

    /// One key.
    ///
    /// # Errors
    /// Exit 3 when there is no such key.
    pub(crate) fn get(&self, key: &str) -> Result<Setting> {
        let found = self.list().into_iter().find(|setting| setting.key == key);
        found.ok_or_else(|| Failure::new(Exit::NotFound, unknown(key)).with_hint("`bib config list` shows the keys"))
    }

    /// Writes one key into the file; an empty value takes it out. Comments in the file are not kept.
    ///
    /// # Errors
    /// Exit 2 for an unknown key or a wrong value; when the file cannot be written.
    pub(crate) fn store(&mut self, key: &str, value: &str) -> Result<()> {
        let takes = takes(key).ok_or_else(|| Failure::usage(unknown(key)))?;
        let value = if value.is_empty() {
            String::new()
        } else {
            check(takes, value).map_err(|why| Failure::usage(format!("{key}: {why}")))?
        };
        let mut root = self.read_mapping()?;
        // An alias may have dots in its name.
        let levels = if key.starts_with(ALIASES) { 3 } else { usize::MAX };
        let mut parts: Vec<&str> = key.splitn(levels, '.').collect();
        let last = parts.pop().unwrap_or(key);
        let mut place = &mut root;
        for part in parts {
            let entry = place.entry(Value::from(part)).or_insert_with(|| Value::Mapping(Mapping::new()));
            place = entry
                .as_mapping_mut()
                .ok_or_else(|| Failure::usage(format!("`{part}` in `{}` is no mapping", self.path.display())))?;
        }
        if value.is_empty() {
            place.remove(last);
            self.settings.remove(key);
        } else {
            let stored = match takes {
                Takes::List => Value::Sequence(items(&value).map(Value::from).collect()),
                Takes::Switch => Value::from(value == "true"),
                Takes::Attempts => value.parse::<u64>().map_or_else(|_| Value::from(value.as_str()), Value::from),
                _ => Value::from(value.as_str()),
            };
            place.insert(Value::from(last), stored);
            self.settings.insert(key.to_owned(), (value, Origin::File));
        }
        let text = serde_yaml_ng::to_string(&root).map_err(|error| Failure::file("write", &self.path, &error))?;
        if let Some(dir) = self.path.parent().filter(|dir| !dir.exists()) {
            bib_identity::file::ensure_private_dir(dir)?;
        }
        bib_identity::file::replace_private(&self.path, text.as_bytes())?;
        Ok(())
    }

    fn set_checked(&mut self, key: &str, value: String, origin: Origin) -> Result<(), String> {
        let takes = takes(key).ok_or_else(|| unknown(key))?;
        let value = check(takes, &value).map_err(|why| format!("{key}: {why}"))?;
        self.settings.insert(key.to_owned(), (value, origin));
        Ok(())
    }

    fn read_mapping(&self) -> Result<Mapping> {
        let bytes = match bib_identity::file::read_public(&self.path, MAX_FILE_BYTES) {
            Ok(bytes) => bytes,
            Err(bib_identity::FileError::Missing { .. } | bib_identity::FileError::Empty { .. }) => {
                return Ok(Mapping::new());
            }
            Err(error) => return Err(error.into()),
        };
        let root: Option<Mapping> = serde_yaml_ng::from_slice(&bytes)
            .map_err(|error| Failure::usage(format!("`{}` is no configuration: {error}", self.path.display())))?;
        Ok(root.unwrap_or_default())
    }

    fn read_file(&self) -> Result<Vec<(String, String)>> {
        let mut flat = Vec::new();
        flatten("", &Value::Mapping(self.read_mapping()?), &mut flat);
        Ok(flat)
    }
}

fn flatten(at: &str, value: &Value, flat: &mut Vec<(String, String)>) {
    match value {
        Value::Mapping(mapping) => {
            for (key, value) in mapping {
                let key = scalar(key);
                flatten(&if at.is_empty() { key } else { format!("{at}.{key}") }, value, flat);
            }
        }
        Value::Sequence(items) => {
            flat.push((at.to_owned(), items.iter().map(scalar).collect::<Vec<_>>().join(",")));
        }
        Value::Null => {}
        other => flat.push((at.to_owned(), scalar(other))),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(yes) => yes.to_string(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

fn takes(key: &str) -> Option<Takes> {
    let is_alias = key.strip_prefix(ALIASES).is_some_and(|name| !name.is_empty());
    KEYS.iter().find(|(name, ..)| *name == key).map(|(_, takes, ..)| *takes).or(is_alias.then_some(Takes::Text))
}

fn check(takes: Takes, value: &str) -> Result<String, String> {
    let value = value.trim();
    if value.chars().any(char::is_control) {
        return Err("control characters are not taken".to_owned());
    }
    match takes {
        Takes::Text => Ok(value.to_owned()),
        Takes::Duration => match parse_duration(value)? {
            Duration::ZERO => Err("must be longer than nothing".to_owned()),
            duration => Ok(format_exact(duration)),
        },
        Takes::Attempts => match value.parse::<u32>() {
            Ok(1..=100) => Ok(value.to_owned()),
            _ => Err(format!("`{value}` is no number from 1 to 100")),
        },
        Takes::Switch => match value {
            "true" | "false" => Ok(value.to_owned()),
            _ => Err(format!("`{value}` is neither true nor false")),
        },
        Takes::List => Ok(items(value).collect::<Vec<_>>().join(",")),
    }
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn unknown(key: &str) -> String {
    let nearest = nearest(key, KEYS.iter().map(|(name, ..)| *name));
    nearest.map_or_else(
        || format!("there is no key `{key}`"),
        |near| format!("there is no key `{key}`; did you mean `{near}`?"),
    )
}

/// The candidate that comes near enough to have been meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    candidates
        .map(|candidate| (strsim::jaro_winkler(&word, &candidate.to_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(yaml: &str, variables: &[(&str, &str)]) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), yaml).unwrap();
        Config::load(dir.path(), variables.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())))
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
        let yaml = "connection:\n  timeout: 5s\n  retry_attempts: 7\n  aliases:\n    lab: lab.example.org:4000\n";
        let config =
            load(yaml, &[("BIB__CONNECTION__TIMEOUT", "2m"), ("BIB__IDENTITY__NAME", "Ada"), ("HOME", "/x")]).unwrap();
        assert_eq!(config.duration("connection.timeout"), Duration::from_secs(120));
        assert_eq!(config.get("connection.timeout").unwrap().origin, Origin::Environment);
        assert_eq!(
            (config.retry_attempts(), config.get("connection.retry_attempts").unwrap().origin),
            (7, Origin::File)
        );
        assert_eq!(config.duration("connection.connect_timeout"), Duration::from_secs(10));
        assert_eq!(config.get("connection.connect_timeout").unwrap().origin, Origin::Default);
        assert_eq!(config.given("identity.name"), Some("Ada"));
        assert_eq!(config.aliases().collect::<Vec<_>>(), [("lab", "lab.example.org:4000")]);
    }

    #[test]
    fn unknown_keys_and_wrong_values_say_what_to_do() {
        let failure = load("connection:\n  time_out: 5s\n", &[]).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.message().contains("did you mean `connection.timeout`"), "{}", failure.message());
        for yaml in
            ["connection:\n  timeout: soon\n", "connection:\n  retry_attempts: 0\n", "- a\n", "connection: [a\n"]
        {
            assert_eq!(load(yaml, &[]).unwrap_err().exit(), Exit::Usage, "{yaml}");
        }
        let failure = load("", &[("BIB__CONNECTION__RETRY_ATTEMPTS", "many")]).unwrap_err();
        assert!(failure.message().contains("BIB__CONNECTION__RETRY_ATTEMPTS"), "{}", failure.message());
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::load(dir.path(), []).unwrap();
        config.store("connection.default_node", "lab").unwrap();
        config.store("connection.favourites", "a:1, b:2").unwrap();
        config.store("connection.aliases.lab.east", "lab.example.org:4000").unwrap();
        config.store("connection.retry_attempts", "5").unwrap();
        assert_eq!(config.store("connection.defaultnode", "x").unwrap_err().exit(), Exit::Usage);
        let back = Config::load(dir.path(), []).unwrap();
        assert_eq!(back.text("connection.default_node"), "lab");
        assert_eq!(back.favourites(), ["a:1", "b:2"]);
        assert_eq!(back.aliases().collect::<Vec<_>>(), [("lab.east", "lab.example.org:4000")]);
        assert_eq!(back.retry_attempts(), 5);
        let mut config = back;
        config.store("connection.default_node", "").unwrap();
        assert_eq!(Config::load(dir.path(), []).unwrap().given("connection.default_node"), None);
    }
}
