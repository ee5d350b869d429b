//! Counting: a window for each rule and each that counts by itself.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bib_core::Timestamp;
use serde_json::{Value, json};

use super::facts::Facts;
use super::rule::{Per, Rule, RuleFailure, Severity};
use crate::action::ALERT;
use crate::verify::Position;

/// Actors, sources or targets that one rule counts by themselves at once.
const MAX_KEYS: usize = 10_000;

/// After so many entries over which a rule took too long it is run no more.
pub const STRIKES: u32 = 3;

/// An alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// The rule.
    pub rule: String,
    /// What it is for.
    pub about: String,
    /// How bad it is.
    pub severity: Severity,
    /// What was counted by itself.
    pub per: Per,
    /// Which of those.
    pub key: String,
    /// How many entries there were, and in which time.
    pub count: u32,
    /// The first and the last of them.
    pub first: Position,
    /// The last.
    pub last: Position,
    /// When the last was.
    pub time: Timestamp,
    /// Action, actor, target and result of the last.
    pub action: String,
    /// The actor.
    pub actor: String,
    /// The target.
    pub target: String,
    /// The result.
    pub result: String,
    /// Where it came from.
    pub source: String,
}

impl Alert {
    /// As the details of its entry.
    #[must_use]
    pub fn details(&self) -> Value {
        json!({
            "rule": self.rule, "about": self.about, "severity": self.severity.as_str(), "per": self.per.as_str(),
            "key": self.key, "count": self.count, "first": self.first.to_string(), "last": self.last.to_string(),
            "time": self.time.to_string(), "action": self.action, "actor": self.actor, "target": self.target,
            "result": self.result, "source": self.source,
        })
    }
}

/// What an entry led to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Alerts.
    pub alerts: Vec<Alert>,
    /// Rules that failed on it, and why.
    pub failed: Vec<(String, RuleFailure)>,
    /// Rules that are run no more from here on.
    pub turned_off: Vec<String>,
}

#[derive(Debug, Default)]
struct Window {
    seen: VecDeque<(Timestamp, Position)>,
    /// No alert before this moment.
    quiet_until: Option<Timestamp>,
}

#[derive(Debug)]
struct Watch {
    rule: Rule,
    windows: HashMap<String, Window>,
    /// Entries over which it took too long.
    strikes: u32,
}

/// Rules with what they have counted.
#[derive(Debug)]
pub struct Engine(Vec<Watch>);

impl Engine {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(rules.into_iter().map(|rule| Watch { rule, windows: HashMap::new(), strikes: 0 }).collect())
    }

    /// The longest time that a rule counts over or is silent for: so much of the past makes an engine what it was.
    #[must_use]
    pub fn memory(&self) -> Duration {
        self.0.iter().map(|watch| watch.rule.spec().within.max(watch.rule.spec().pause)).max().unwrap_or_default()
    }

    /// Takes the next entry of the log. Alerts themselves are passed over.
    pub fn look(&mut self, facts: &Facts<'_>) -> Outcome {
        let mut outcome = Outcome::default();
        if facts.action() == ALERT {
            return outcome;
        }
        for watch in self.0.iter_mut().filter(|watch| watch.strikes < STRIKES) {
            match watch.rule.counts(facts) {
                Ok(true) => outcome.alerts.extend(watch.count(facts)),
                Ok(false) => {}
                Err(why) => {
                    let name = &watch.rule.spec().name;
                    watch.strikes += u32::from(why == RuleFailure::TooSlow);
                    if watch.strikes == STRIKES {
                        outcome.turned_off.push(name.clone());
                    }
                    outcome.failed.push((name.clone(), why));
                }
            }
        }
        outcome
    }
}

impl Watch {
    fn count(&mut self, facts: &Facts<'_>) -> Option<Alert> {
        let spec = self.rule.spec();
        let key = match spec.per {
            Per::Node => String::new(),
            Per::Actor => facts.actor().to_owned(),
            Per::Source => facts.source().into_owned(),
            Per::Target => facts.target().to_owned(),
        };
        if self.windows.len() >= MAX_KEYS && !self.windows.contains_key(&key) {
            make_room(&mut self.windows, facts.time, spec.within.max(spec.pause));
        }
        let window = self.windows.entry(key.clone()).or_default();
        let wanted = usize::try_from(spec.count).unwrap_or(usize::MAX);
        window.seen.push_back((facts.time, facts.at));
        while window.seen.len() > wanted {
            window.seen.pop_front();
        }
        let (since, first) = *window.seen.front()?;
        let is_full = window.seen.len() == wanted && age(since, facts.time) <= spec.within;
        let is_quiet = window.quiet_until.is_some_and(|until| facts.time < until);
        if !is_full || is_quiet {
            return None;
        }
        window.seen.clear();
        let pause = i64::try_from(spec.pause.as_micros()).unwrap_or(i64::MAX);
        window.quiet_until = (pause > 0).then(|| Timestamp::from_micros(facts.time.as_micros().saturating_add(pause)));
        Some(Alert {
            rule: spec.name.clone(),
            about: spec.about.clone(),
            severity: spec.severity,
            per: spec.per,
            key,
            count: spec.count,
            first,
            last: facts.at,
            time: facts.time,
            action: facts.action().to_owned(),
            actor: facts.actor().to_owned(),
            target: facts.target().to_owned(),
            result: facts.result().to_owned(),
            source: facts.source().into_owned(),
        })
    }
}

/// Forgets what is too old to count, and when that is not enough, all: a flood of names must not fill the memory.
fn make_room(windows: &mut HashMap<String, Window>, now: Timestamp, memory: Duration) {
    let is_young = |time: &Timestamp| age(*time, now) <= memory;
    windows.retain(|_, window| {
        window.seen.back().is_some_and(|(time, _)| is_young(time))
            || window.quiet_until.is_some_and(|until| now < until)
    });
    if windows.len() >= MAX_KEYS {
        windows.clear();
    }
}

/// Clocks jump: an entry from before another is no older than it.
fn age(then: Timestamp, now: Timestamp) -> Duration {
    let micros = now.as_micros().saturating_sub(then.as_micros());
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}
