//! The effective configuration, and the few settings that change while the node runs.
//!
//! A changed setting is a row of the catalog that wins over file, environment and flags until it is changed again; it
//! is taken up at once and at each start. Which keys can change is a closed list: those that need no restart.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bib_core::access::Verb;
use bibd_catalog::node;
use serde_json::{Value, json};

use super::base::{Base, allow_node};
use super::error::ServiceError;
use super::journal::Act;
use crate::actor::Call;
use crate::config::{Config, Loaded, MUTABLE, Sources, load};
use crate::errors::ErrorCode;
use crate::foundation::Foundation;
use crate::grpc::stack::RateLimiter;
use crate::logging::Logs;

/// Settings of the configuration stand beside others in their table.
const PREFIX: &str = "config.";

/// The longest value of a setting, in bytes.
const MAX_VALUE_BYTES: usize = 1024;

/// One effective value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Dotted key.
    pub key: String,
    /// As text; secrets redacted; empty when not set.
    pub value: String,
    /// `default`, `file`, `environment`, `flag` or `setting`.
    pub origin: &'static str,
    /// Whether [`Configuration::set`] takes it.
    pub is_mutable: bool,
}

/// The use cases of the configuration. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Configuration {
    base: Base,
    loaded: Arc<Loaded>,
    logs: Logs,
    limiter: RateLimiter,
    /// What was changed, by key: text as `bib admin config set` takes it.
    settings: Arc<RwLock<BTreeMap<&'static str, String>>>,
}

impl Configuration {
    /// Takes up the settings that were changed in earlier runs. One that this version does not accept any more is
    /// logged and left out: it must not keep the node from starting.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn start(foundation: &Foundation, base: Base) -> Result<Self, ServiceError> {
        let configuration = Self {
            loaded: Arc::clone(&foundation.loaded),
            logs: foundation.logs.clone(),
            limiter: foundation.limiter.clone(),
            settings: Arc::default(),
            base,
        };
        let mut session = configuration.base.db.read().await?;
        for (name, value) in node::settings(&mut session).await? {
            let Some(key) = name.strip_prefix(PREFIX) else { continue };
            let text = value.as_str().unwrap_or_default().to_owned();
            match mutable(key).and_then(|key| parse(key, &text).map(|parsed| (key, parsed))) {
                Ok((key, parsed)) => {
                    if !configuration.take_up(key, &parsed) {
                        tracing::warn!(key, "a changed setting cannot take effect in this process");
                    }
                    configuration.remember(key, text);
                }
                Err(error) => tracing::warn!(key, reason = %error, "a changed setting is not acceptable any more"),
            }
        }
        Ok(configuration)
    }

    /// Every value with its origin.
    ///
    /// # Errors
    /// When the caller may not read the configuration.
    pub fn get(&self, call: &Call) -> Result<Vec<Effective>, ServiceError> {
        allow_node(call, Verb::ConfigRead)?;
        let settings = self.settings.read().unwrap_or_else(PoisonError::into_inner);
        let effective = |entry: load::Entry| {
            let set = settings.get(entry.key.as_str());
            Effective {
                value: set.cloned().unwrap_or(entry.value),
                origin: if set.is_some() { "setting" } else { entry.origin.word() },
                is_mutable: MUTABLE.contains(&entry.key.as_str()),
                key: entry.key,
            }
        };
        Ok(self.loaded.entries().into_iter().map(effective).collect())
    }

    /// Changes a setting: now, and for later starts.
    ///
    /// # Errors
    /// When the caller may not, the key cannot change without a restart, or the value is none for it.
    pub async fn set(&self, call: &Call, key: &str, value: &str) -> Result<(), ServiceError> {
        allow_node(call, Verb::ConfigWrite)?;
        let key = mutable(key)?;
        let parsed = parse(key, value)?;
        let before = self.value_of(key);
        let mut tx = self.base.begin(call, "admin").await?;
        let user = call.actor.user;
        let by = (!user.as_uuid().is_nil()).then_some(user);
        let name = format!("{PREFIX}{key}");
        node::set_setting(&mut tx, &name, &Value::String(value.to_owned()), by, self.base.now()).await?;
        let details = json!({ "key": key, "before": before, "value": value });
        self.base.journal.commit(tx, call, Act::new("config.set", key, details)).await?;
        self.remember(key, value.to_owned());
        if self.take_up(key, &parsed) {
            return Ok(());
        }
        Err(ServiceError::conflict(
            ErrorCode::UNMET_CONDITION,
            format!("`{key}` is stored, and takes effect at the next start: this process's log was set up by another"),
            "restart the daemon",
        ))
    }

    fn value_of(&self, key: &'static str) -> String {
        let settings = self.settings.read().unwrap_or_else(PoisonError::into_inner);
        let of_file = || self.loaded.entries().into_iter().find(|entry| entry.key == key).map(|entry| entry.value);
        settings.get(key).cloned().or_else(of_file).unwrap_or_default()
    }

    fn remember(&self, key: &'static str, value: String) {
        self.settings.write().unwrap_or_else(PoisonError::into_inner).insert(key, value);
    }

    /// Makes one key of `parsed` count. False when this process cannot.
    fn take_up(&self, key: &'static str, parsed: &Config) -> bool {
        let given = &parsed.grpc.rate_limit;
        let mut limit = self.limiter.limit();
        match key {
            "log.level" => return self.logs.set_level(parsed.log.level),
            "grpc.rate_limit.enabled" => limit.enabled = given.enabled,
            "grpc.rate_limit.per_second" => limit.per_second = given.per_second,
            "grpc.rate_limit.burst" => limit.burst = given.burst,
            // A test walks the list: a key without its line here does not get this far.
            _ => return false,
        }
        self.limiter.set(limit);
        true
    }
}

fn mutable(key: &str) -> Result<&'static str, ServiceError> {
    MUTABLE.iter().copied().find(|known| *known == key).ok_or_else(|| {
        let list = MUTABLE.join(", ");
        ServiceError::invalid("key", format!("`{key}` does not change while the node runs; these do: {list}"))
    })
}

/// A configuration in which this one key has this value, by the same rules as a flag.
fn parse(key: &'static str, value: &str) -> Result<Config, ServiceError> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(ServiceError::invalid("value", format!("is longer than {MAX_VALUE_BYTES} bytes")));
    }
    let sources = Sources { flags: vec![(key, value.to_owned())], ..Sources::default() };
    let loaded = load(&sources).map_err(|problems| {
        let first = problems.0.first();
        ServiceError::invalid("value", first.map_or_else(String::new, |problem| problem.message.clone()))
    })?;
    Ok(loaded.config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutable_key_parses_its_own_default_and_refuses_rubbish() {
        let defaults = load(&Sources::default()).unwrap();
        for key in MUTABLE {
            let entry = defaults.entries().into_iter().find(|entry| entry.key == *key).unwrap();
            assert_eq!(parse(key, &entry.value).unwrap(), Config::default(), "{key}");
            assert!(matches!(parse(key, "rubbish"), Err(ServiceError::Invalid { .. })), "{key}");
        }
        assert!(parse("grpc.rate_limit.burst", "1").is_err(), "rules beyond types hold too");
        assert!(mutable("grpc.listen").is_err());
    }
}
