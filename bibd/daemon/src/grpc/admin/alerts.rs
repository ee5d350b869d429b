//! Rules over the audit log on the wire.

use std::time::Duration;

use bib_core::Timestamp;
use bib_proto::v1 as pb;
use bibd_audit::alert::{Alert, Per, RuleSpec, Severity};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tonic::Status;

use super::working::{Told, working};
use crate::actor::Call;
use crate::services::ServiceError;
use crate::services::alerts::{AlertUseCases, RuleState, Tried};

/// A rule.
pub(super) fn rule(state: RuleState) -> pb::AlertRule {
    let RuleState { spec, is_builtin, alerts, failures, last_failure, is_off } = state;
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    pb::AlertRule {
        about: spec.about,
        action: spec.action,
        when: spec.when,
        count: spec.count,
        within_ms: millis(spec.within),
        per: spec.per.as_str().to_owned(),
        pause_ms: millis(spec.pause),
        severity: spec.severity.as_str().to_owned(),
        builtin: is_builtin,
        alerts,
        failures,
        last_failure,
        off: is_off,
        name: spec.name,
    }
}

/// Tries a rule on the past: progress and alerts, then the end.
///
/// # Errors
/// When there is no such rule, or the time is none.
pub(super) fn test(
    alerts: AlertUseCases,
    call: Call,
    wanted: pb::TestAlertRuleRequest,
) -> Result<BoxStream<'static, Result<pb::TestAlertRuleResponse, Status>>, ServiceError> {
    let mut spec = if wanted.name.is_empty() { ad_hoc() } else { alerts.find(&wanted.name)? };
    if !wanted.when.is_empty() {
        spec.when = wanted.when;
    }
    let since = match wanted.since.as_str() {
        "" => Timestamp::from_micros(i64::MIN),
        text => text.parse::<Timestamp>().map_err(|error| ServiceError::invalid("since", error.to_string()))?,
    };
    let (out, words) = mpsc::channel(16); // alerts and progress that the caller has not read yet
    let work = async move { alerts.try_out(&call, spec, since, out).await };
    let told = |told: Told<Tried, Result<(), ServiceError>>| async move {
        match told {
            Told::Report(tried) => Some(Ok(word(tried))),
            Told::End(Ok(())) => None,
            Told::End(Err(error)) => Some(Err(Status::from(error))),
        }
    };
    Ok(working(words, Box::pin(work)).filter_map(told).boxed())
}

/// An expression without a name: an alert for each entry.
fn ad_hoc() -> RuleSpec {
    RuleSpec {
        name: "expression".to_owned(),
        about: String::new(),
        action: String::new(),
        when: String::new(),
        count: 1,
        within: Duration::from_secs(60),
        per: Per::Node,
        pause: Duration::ZERO,
        severity: Severity::Low,
    }
}

fn word(tried: Tried) -> pb::TestAlertRuleResponse {
    pb::TestAlertRuleResponse {
        looked: tried.looked,
        alerts: tried.alerts,
        failed: tried.failed,
        alert: tried.alert.map(alert),
        finished: tried.finished,
    }
}

fn alert(alert: Alert) -> pb::Alert {
    pb::Alert {
        rule: alert.rule,
        severity: alert.severity.as_str().to_owned(),
        key: alert.key,
        count: alert.count,
        first: alert.first.to_string(),
        last: alert.last.to_string(),
        time: alert.time.to_string(),
        action: alert.action,
        actor: alert.actor,
        target: alert.target,
        result: alert.result,
    }
}
