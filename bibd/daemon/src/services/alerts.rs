//! Alerts: rules look at every sealed entry, and what they find is an entry itself.
//!
//! One task follows the log. An alert's entry commits together with the position behind the entry that brought it about,
//! so a process that dies neither loses an alert nor writes it twice. Whoever is told of alerts reads them from the log
//! (`alert_delivery.rs`): that an alert reaches somebody late keeps nobody waiting here.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bib_core::access::Verb;
use bibd_audit::action::ALERT;
use bibd_audit::alert::{Alert, BUDGET, Engine, Facts, Outcome, Rule, RuleSpec, STRIKES, builtin};
use bibd_audit::verify::Position;
use bibd_catalog::audit::{self, LoggedRow, Place};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::base::{Base, allow_node};
use super::error::ServiceError;
use super::journal::Act;
use super::log_reader::{LogReader, place_of};
use crate::actor::Call;
use crate::config::alerts::Alerts as Settings;
use crate::config::audit::Start;
use crate::foundation::Foundation;
use crate::grpc::health::{Condition, HealthBoard};
use crate::supervisor::{Policy, TaskKind, TaskResult};

/// The reader's name; a sink of the export cannot have it.
const READER: &str = "alerts:rules";
/// Bodies and details read at once.
const PAGE_BYTES: u64 = 4 << 20;
/// How often the log is looked at when nothing is heard of it.
const ROUND: Duration = Duration::from_secs(5);
/// How often the position is kept when there is no alert: what was seen since is looked at again after a crash.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// Entries of the past that are looked at after a start, so that rules count on.
const MEMORY_ENTRIES: u64 = 20_000;
/// Alerts in a minute; what is beyond is counted and told in one.
const PER_MINUTE: u32 = 60;
/// Alerts that trying a rule tells, at most.
const MAX_TOLD: u64 = 1_000;
/// Health's name for the rules.
const COMPONENT: &str = "alerts";

/// A rule as people see it.
#[derive(Debug, Clone)]
pub struct RuleState {
    /// The rule.
    pub spec: RuleSpec,
    /// It is built in.
    pub is_builtin: bool,
    /// Alerts since the daemon started.
    pub alerts: u64,
    /// Entries on which its expression failed since then.
    pub failures: u64,
    /// Why it last did.
    pub last_failure: String,
    /// It took too long too often: it is run no more until the daemon is started again.
    pub is_off: bool,
}

/// What became of a rule since the daemon started.
#[derive(Debug, Clone, Default)]
struct Count {
    alerts: u64,
    failures: u64,
    last_failure: String,
    is_off: bool,
}

/// The use cases of alerts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AlertUseCases {
    base: Base,
    settings: Arc<Settings>,
    known: Arc<HashSet<String>>,
    counts: Arc<Mutex<BTreeMap<String, Count>>>,
    health: HealthBoard,
}

/// What trying a rule on the past has come to.
#[derive(Debug, Clone, Default)]
pub struct Tried {
    /// Entries looked at.
    pub looked: u64,
    /// Alerts that there would have been.
    pub alerts: u64,
    /// Entries on which the expression failed.
    pub failed: u64,
    /// One of the alerts.
    pub alert: Option<Alert>,
    /// The last word.
    pub finished: bool,
}

/// Starts the rules.
///
/// # Errors
/// When the database is gone.
pub async fn start(foundation: &Foundation, base: &Base) -> Result<AlertUseCases, ServiceError> {
    let alerts = AlertUseCases {
        base: base.clone(),
        settings: Arc::new(foundation.config().audit.alerts.clone()),
        known: Arc::new(bibd_catalog::statements().map(|statement| statement.hash().to_string()).collect()),
        counts: Arc::default(),
        health: foundation.health.clone(),
    };
    alerts.health.set(COMPONENT, Condition::Serving);
    // Before the first call is answered: the rules of a new node see everything that anybody does.
    alerts.reader().begin(Start::Now).await?;
    let watching = alerts.clone();
    foundation
        .supervisor
        .spawn(TaskKind::Background, Policy::RestartWithBackoff, "alerts", move |stop| watching.clone().watch(stop));
    Ok(alerts)
}

impl AlertUseCases {
    /// Every rule that counts.
    ///
    /// # Errors
    /// When the caller may not read the log.
    pub fn list(&self, call: &Call) -> Result<Vec<RuleState>, ServiceError> {
        allow_node(call, Verb::AuditRead)?;
        let own: HashSet<&str> = self.settings.rules.iter().map(|rule| rule.name.as_str()).collect();
        let counts = self.counts();
        let states = self.compile()?.into_iter().map(|rule| {
            let spec = rule.spec().clone();
            let Count { alerts, failures, last_failure, is_off } = counts.get(&spec.name).cloned().unwrap_or_default();
            RuleState { is_builtin: !own.contains(spec.name.as_str()), spec, alerts, failures, last_failure, is_off }
        });
        Ok(states.collect())
    }

    /// The rule of this name, whether it is turned on or not.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, name: &str) -> Result<RuleSpec, ServiceError> {
        let own = self.settings.rules.iter().find(|rule| rule.name == name).map(RuleSpec::from);
        let found = own.or_else(|| builtin().into_iter().find(|spec| spec.name == name));
        found.ok_or_else(|| ServiceError::not_found("alert rule", name))
    }

    /// Tries a rule on the sealed entries from `since` on: nothing is written but that it was tried.
    ///
    /// # Errors
    /// When the caller may not, the rule cannot be used, or the database is gone.
    pub async fn try_out(
        &self,
        call: &Call,
        spec: RuleSpec,
        since: bib_core::Timestamp,
        out: mpsc::Sender<Tried>,
    ) -> Result<(), ServiceError> {
        allow_node(call, Verb::AuditRead)?;
        let name = spec.name.clone();
        let rule =
            Rule::compile(spec).map_err(|e| ServiceError::invalid("rule", format!("{}; {}", e.message, e.hint)))?;
        let (mut engine, mut after, mut tried) = (Engine::new(vec![rule]), Place::default(), Tried::default());
        loop {
            let rows = audit::page(&mut self.base.db.read_audit().await?, after, PAGE_BYTES).await?;
            let Some(last) = rows.last().map(place_of) else { break };
            after = last;
            let (back, outcomes, looked) = self.evaluate(engine, rows, Some(since)).await?;
            engine = back;
            tried.looked += looked;
            for outcome in outcomes {
                if !outcome.turned_off.is_empty() {
                    let (budget, looked) = (BUDGET.as_millis(), tried.looked);
                    return Err(ServiceError::invalid(
                        "rule",
                        format!(
                            "it took longer than {budget} ms over each of {STRIKES} of the first {looked} entries; the \
                             node would turn it off: look at fewer entries (`action`), or nest no loops"
                        ),
                    ));
                }
                tried.failed += outcome.failed.len() as u64;
                for alert in outcome.alerts {
                    tried.alerts += 1;
                    let told = Tried { alert: Some(alert), ..tried.clone() };
                    if tried.alerts <= MAX_TOLD && out.send(told).await.is_err() {
                        return Ok(());
                    }
                }
            }
            if out.send(tried.clone()).await.is_err() {
                return Ok(());
            }
        }
        let details = json!({ "looked": tried.looked, "alerts": tried.alerts });
        let act = Act::new("audit.alert_test", format!("rule:{name}"), details);
        self.base.journal.record(&self.base.db, call, act, bibd_audit::Outcome::Ok).await?;
        // The caller may be gone; nothing follows.
        let _ = out.send(Tried { finished: true, ..tried }).await;
        Ok(())
    }

    fn compile(&self) -> Result<Vec<Rule>, ServiceError> {
        // The configuration was checked when it was loaded.
        self.settings.compile().map_err(ServiceError::internal)
    }

    fn reader(&self) -> LogReader {
        LogReader::new(self.base.clone(), READER.to_owned(), "alerts")
    }

    async fn watch(self, stop: CancellationToken) -> TaskResult {
        // What was turned off before this task began anew stays so.
        let rules = self.compile()?.into_iter().filter(|rule| !self.is_off(&rule.spec().name));
        let mut engine = Engine::new(rules.collect());
        // Those of a node that had none begin with what is sealed from now on.
        let mut after = self.reader().begin(Start::Now).await?;
        let mut off;
        (engine, off) = self.remember(engine, after).await?;
        let mut newest = self.base.journal.newest();
        let mut budget = Budget::default();
        let mut kept = (after, Instant::now());
        loop {
            newest.borrow_and_update();
            let rows = audit::page(&mut self.base.db.read_audit().await?, after, PAGE_BYTES).await?;
            let last = rows.last().map(place_of);
            let mut alerts = Vec::new();
            if last.is_some() {
                let (back, outcomes, _) = self.evaluate(engine, rows, None).await?;
                engine = back;
                let turned_off;
                (alerts, turned_off) = self.note(outcomes, true);
                off.extend(turned_off);
            }
            after = last.unwrap_or(after);
            let mut due = budget.admit(alerts, self.base.ids.clock().monotonic());
            due.extend(off.drain(..).map(Due::Off));
            if !due.is_empty() || (after != kept.0 && kept.1.elapsed() >= KEEP_EVERY) {
                self.write(&due, after).await?;
                kept = (after, Instant::now());
            }
            if last.is_none() {
                let pause = if after == kept.0 { ROUND } else { KEEP_EVERY };
                tokio::select! {
                    () = stop.cancelled() => break,
                    // The sequencer says when there is more; the clock makes good what it did not say.
                    _ = tokio::time::timeout(pause, newest.changed()) => {}
                }
            } else if stop.is_cancelled() {
                break;
            }
        }
        Ok(self.write(&[], after).await?)
    }

    /// Looks again at what the rules may still be counting, up to `upto`. Also tells which rules this turned off.
    async fn remember(&self, mut engine: Engine, upto: Place) -> Result<(Engine, Vec<String>), ServiceError> {
        let memory = i64::try_from(engine.memory().as_secs()).unwrap_or(i64::MAX);
        let since = self.base.now().plus_seconds(-memory);
        let mut after = Place { seq: upto.seq.saturating_sub(MEMORY_ENTRIES), ..upto };
        let mut off = Vec::new();
        while after < upto {
            let mut rows = audit::page(&mut self.base.db.read_audit().await?, after, PAGE_BYTES).await?;
            rows.retain(|row| place_of(row) <= upto);
            let Some(last) = rows.last().map(place_of) else { break };
            after = last;
            let outcomes;
            (engine, outcomes, _) = self.evaluate(engine, rows, Some(since)).await?;
            off.extend(self.note(outcomes, false).1);
        }
        Ok((engine, off))
    }

    /// Shows entries to the engine, where that may take its time. Also returns how many there were.
    async fn evaluate(
        &self,
        mut engine: Engine,
        rows: Vec<LoggedRow>,
        since: Option<bib_core::Timestamp>,
    ) -> Result<(Engine, Vec<Outcome>, u64), ServiceError> {
        let known = Arc::clone(&self.known);
        let work = move || {
            let (mut outcomes, mut looked) = (Vec::new(), 0);
            for row in &rows {
                let place = place_of(row);
                let at = Position { epoch: place.epoch, seq: place.seq };
                let Some(body) = &row.body else { continue };
                // An entry that is none is for verification to name.
                let Ok(facts) = Facts::read(body, row.details.as_deref(), at, &known) else { continue };
                if since.is_some_and(|since| facts.time < since) {
                    continue;
                }
                looked += 1;
                let outcome = engine.look(&facts);
                // A rule is turned off by an entry that it failed on.
                if !outcome.alerts.is_empty() || !outcome.failed.is_empty() {
                    outcomes.push(outcome);
                }
            }
            (engine, outcomes, looked)
        };
        tokio::task::spawn_blocking(work).await.map_err(ServiceError::internal)
    }

    /// Counts what entries have led to, when they are `new`; which alerts there are, and which rules are off from now on.
    fn note(&self, outcomes: Vec<Outcome>, new: bool) -> (Vec<Alert>, Vec<String>) {
        let mut counts = self.counts();
        let (mut alerts, mut off) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            for rule in outcome.turned_off {
                counts.entry(rule.clone()).or_default().is_off = true;
                off.push(rule);
            }
            if !new {
                continue;
            }
            for (rule, why) in outcome.failed {
                let count = counts.entry(rule).or_default();
                count.failures += 1;
                count.last_failure = why.to_string();
            }
            for alert in outcome.alerts {
                counts.entry(alert.rule.clone()).or_default().alerts += 1;
                alerts.push(alert);
            }
        }
        let names: Vec<&str> = counts.iter().filter(|(_, count)| count.is_off).map(|(name, _)| name.as_str()).collect();
        if !names.is_empty() {
            let names = names.join(", ");
            let why = format!("rules that took too long are off until the daemon is started again: {names}");
            self.health.set(COMPONENT, Condition::Degraded(why));
        }
        (alerts, off)
    }

    fn is_off(&self, rule: &str) -> bool {
        self.counts().get(rule).is_some_and(|count| count.is_off)
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, Count>> {
        // Every use leaves the counts whole.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Alerts and the position behind them, in one transaction.
    async fn write(&self, due: &[Due], place: Place) -> Result<(), ServiceError> {
        let call = self.base.internal_call("alerts");
        let mut tx = self.base.begin(&call, "alerts").await?;
        let mut last = None;
        for due in due {
            let (rule, details) = due.entry();
            last = Some(self.base.journal.add(&mut tx, &call, Act::new(ALERT, format!("rule:{rule}"), details)).await?);
        }
        audit::save_reader(&mut tx, READER, place, self.base.now()).await?;
        match last {
            Some(entry) => self.base.journal.commit_added(tx, entry, ALERT).await?,
            None => tx.commit().await?,
        }
        for due in due {
            due.log();
        }
        Ok(())
    }
}

/// What goes into the log.
#[derive(Debug)]
enum Due {
    Alert(Box<Alert>),
    /// So many more in the last minute.
    LeftOut(u64),
    /// A rule took too long too often: nobody hears of what it is about any more.
    Off(String),
}

impl Due {
    fn entry(&self) -> (&str, serde_json::Value) {
        match self {
            Self::Alert(alert) => (&alert.rule, alert.details()),
            Self::LeftOut(count) => {
                let about = "more alerts came than are written";
                ("left-out", json!({ "rule": "left-out", "about": about, "severity": "high", "count": count }))
            }
            Self::Off(rule) => {
                let about = format!(
                    "the rule took longer than {} ms over {STRIKES} entries: it is off until the daemon is started again",
                    BUDGET.as_millis()
                );
                (rule, json!({ "rule": rule, "about": about, "severity": "high", "count": STRIKES }))
            }
        }
    }

    fn log(&self) {
        match self {
            Self::Alert(alert) => tracing::warn!(
                rule = alert.rule, severity = alert.severity.as_str(), key = alert.key, count = alert.count,
                last = %alert.last, "alert: {}", alert.about
            ),
            Self::LeftOut(count) => tracing::warn!(count, "more alerts came than are written"),
            Self::Off(rule) => tracing::error!(
                rule,
                "the rule took too long over {STRIKES} entries: it is off until the daemon is started again"
            ),
        }
    }
}

/// So many alerts in a minute.
#[derive(Debug, Default)]
struct Budget {
    since: Option<Instant>,
    used: u32,
    left_out: u64,
}

impl Budget {
    /// What is written now. A new minute begins by telling how many the last one left out.
    fn admit(&mut self, alerts: Vec<Alert>, now: Instant) -> Vec<Due> {
        let mut due = Vec::new();
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(60)) {
            (self.since, self.used) = (Some(now), 0);
            match std::mem::take(&mut self.left_out) {
                0 => {}
                count => due.push(Due::LeftOut(count)),
            }
        }
        for alert in alerts {
            if self.used < PER_MINUTE {
                self.used += 1;
                due.push(Due::Alert(Box::new(alert)));
            } else {
                self.left_out += 1;
            }
        }
        due
    }
}
