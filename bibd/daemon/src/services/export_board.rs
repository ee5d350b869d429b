//! How the sinks of the audit log are: for health, metrics, the log itself and `bib admin audit sinks`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bib_core::Timestamp;
use bibd_catalog::audit::Place;
use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};
use serde_json::{Value, json};

use crate::config::audit::Sink as Settings;
use crate::export::{SendError, describe};
use crate::grpc::health::{Condition, HealthBoard};

/// A sink that fails for longer than this degrades the node's health; one that somebody must
/// repair does so at once.
const PATIENCE_SECONDS: i64 = 30;

/// Health's name for all sinks together.
const COMPONENT: &str = "audit-export";

/// Counters by sink.
#[derive(Debug, Clone)]
pub struct Meters {
    sent: IntCounterVec,
    errors: IntCounterVec,
    behind: IntGaugeVec,
}

impl Meters {
    /// Registers them.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let sink = &["sink"];
        let sent = Opts::new("bibd_audit_export_sent_total", "Audit entries that a sink has taken.");
        let errors = Opts::new("bibd_audit_export_errors_total", "Attempts to send audit entries that failed.");
        let behind = Opts::new("bibd_audit_export_behind", "Sealed audit entries that a sink has not taken yet.");
        let meters = Self {
            sent: IntCounterVec::new(sent, sink)?,
            errors: IntCounterVec::new(errors, sink)?,
            behind: IntGaugeVec::new(behind, sink)?,
        };
        registry.register(Box::new(meters.sent.clone()))?;
        registry.register(Box::new(meters.errors.clone()))?;
        registry.register(Box::new(meters.behind.clone()))?;
        Ok(meters)
    }
}

/// Why a sink does not take entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// The first failure since it last took some.
    pub since: Timestamp,
    /// The last one.
    pub last: Timestamp,
    /// What is in the way now.
    pub reason: String,
    /// What a person can do.
    pub hint: Option<&'static str>,
}

impl Failing {
    /// From now on.
    #[must_use]
    pub fn of(error: &SendError, now: Timestamp) -> Self {
        Self { since: now, last: now, reason: error.reason.clone(), hint: error.hint }
    }
}

/// How one sink is.
#[derive(Debug, Clone)]
pub struct SinkState {
    /// Its name.
    pub name: String,
    /// `file`, `syslog`, `elastic` or `splunk`.
    pub kind: &'static str,
    /// Where it is.
    pub target: String,
    /// The last entry that it has.
    pub place: Place,
    /// Entries that it does not have yet.
    pub behind: u64,
    /// Entries that it took since the daemon started.
    pub sent: u64,
    /// Attempts that failed since then.
    pub errors: u64,
    /// Why it takes none, if so.
    pub failing: Option<Failing>,
    max_behind: u64,
    /// What the log was last told.
    told: bool,
}

impl SinkState {
    /// A sentence about what is wrong, if something is.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        if let Some(failing) = &self.failing {
            return Some(format!("takes no entries since {}: {}; {} wait", failing.since, failing.reason, self.behind));
        }
        self.is_far_behind()
            .then(|| format!("is {} entries behind, more than `max_behind` ({})", self.behind, self.max_behind))
    }
}

impl SinkState {
    /// Past the bound, until half of it: a sink at the bound is not now well and now ill.
    fn is_far_behind(&self) -> bool {
        self.behind > if self.told { self.max_behind / 2 } else { self.max_behind }
    }
}

#[derive(Debug)]
struct State {
    sinks: BTreeMap<String, SinkState>,
    /// The last number of each epoch.
    heads: BTreeMap<u64, u64>,
}

/// Where the shippers say how their sinks are. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ExportBoard {
    state: Arc<Mutex<State>>,
    health: HealthBoard,
    meters: Meters,
}

impl ExportBoard {
    /// For these sinks.
    #[must_use]
    pub fn new(sinks: &[Settings], health: HealthBoard, meters: Meters) -> Self {
        let state = |settings: &Settings| {
            let (kind, target) = describe(settings);
            let name = settings.name.clone();
            let state = SinkState {
                name: name.clone(),
                kind,
                target,
                place: Place::default(),
                behind: 0,
                sent: 0,
                errors: 0,
                failing: None,
                max_behind: settings.max_behind,
                told: false,
            };
            (name, state)
        };
        for sink in sinks {
            // There from the start, at zero.
            meters.sent.with_label_values(&[&sink.name]);
            meters.errors.with_label_values(&[&sink.name]);
        }
        let state = State { sinks: sinks.iter().map(state).collect(), heads: BTreeMap::new() };
        if !sinks.is_empty() {
            health.set(COMPONENT, Condition::Serving);
        }
        Self { state: Arc::new(Mutex::new(state)), health, meters }
    }

    /// Every sink by name.
    #[must_use]
    pub fn list(&self) -> Vec<SinkState> {
        self.lock().sinks.values().cloned().collect()
    }

    /// A sink goes on from here.
    pub fn stands(&self, name: &str, place: Place, heads: &[Place]) {
        let mut state = self.lock();
        for head in heads {
            let known = state.heads.entry(head.epoch).or_default();
            *known = head.seq.max(*known);
        }
        self.update(&mut state, name, |sink| sink.place = place);
    }

    /// The log has come this far.
    pub fn newest(&self, newest: Place) {
        let mut state = self.lock();
        let known = state.heads.entry(newest.epoch).or_default();
        *known = newest.seq.max(*known);
        let names: Vec<String> = state.sinks.keys().cloned().collect();
        for name in names {
            self.update(&mut state, &name, |_| {});
        }
    }

    /// A sink has everything up to here.
    pub fn took(&self, name: &str, place: Place, entries: u64) {
        self.meters.sent.with_label_values(&[name]).inc_by(entries);
        let mut state = self.lock();
        self.update(&mut state, name, |sink| {
            (sink.place, sink.failing) = (place, None);
            sink.sent += entries;
        });
    }

    /// A sink took nothing.
    pub fn failed(&self, name: &str, failing: Failing) {
        self.meters.errors.with_label_values(&[name]).inc();
        let mut state = self.lock();
        self.update(&mut state, name, |sink| {
            let since = sink.failing.as_ref().map_or(failing.since, |before| before.since);
            sink.failing = Some(Failing { since, ..failing });
            sink.errors += 1;
        });
    }

    /// What the log should be told now and was not yet: action and details.
    #[must_use]
    pub fn change(&self, name: &str) -> Option<(&'static str, Value)> {
        let mut state = self.lock();
        let sink = state.sinks.get_mut(name)?;
        let (trouble, behind) = (sink.trouble(), sink.behind);
        match (is_degraded(sink), sink.told, trouble) {
            (true, false, Some(trouble)) => {
                sink.told = true;
                Some(("export.degraded", json!({ "sink": name, "trouble": trouble, "behind": behind })))
            }
            (false, true, None) => {
                sink.told = false;
                Some(("export.recovered", json!({ "sink": name, "behind": behind })))
            }
            _ => None,
        }
    }

    fn update(&self, state: &mut State, name: &str, change: impl FnOnce(&mut SinkState)) {
        let State { sinks, heads } = state;
        let Some(sink) = sinks.get_mut(name) else { return };
        change(sink);
        let place = sink.place;
        sink.behind = heads
            .range(place.epoch..)
            .map(|(epoch, last)| if *epoch == place.epoch { last.saturating_sub(place.seq) } else { *last })
            .sum();
        self.meters.behind.with_label_values(&[name]).set(i64::try_from(sink.behind).unwrap_or(i64::MAX));
        let troubles: Vec<String> = sinks
            .values()
            .filter(|sink| is_degraded(sink))
            .filter_map(|sink| Some(format!("the sink `{}` of the audit log {}", sink.name, sink.trouble()?)))
            .collect();
        let condition = if troubles.is_empty() { Condition::Serving } else { Condition::Degraded(troubles.join("; ")) };
        self.health.set(COMPONENT, condition);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every use leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A failure that time alone may repair is given some.
fn is_degraded(sink: &SinkState) -> bool {
    let lasting = sink
        .failing
        .as_ref()
        .is_some_and(|failing| failing.hint.is_some() || failing.last >= failing.since.plus_seconds(PATIENCE_SECONDS));
    lasting || sink.is_far_behind()
}
