//! The rules that every node has unless its configuration turns them off.

use std::time::Duration;

use super::rule::{Per, RuleSpec, Severity};

/// They need no tuning on a small node. What they are about, `docs/audit.md` tells.
#[must_use]
pub fn builtin() -> Vec<RuleSpec> {
    let minutes = |n: u64| Duration::from_secs(n * 60);
    let rule = |name: &str, about: &str, action: &str, when: &str| RuleSpec {
        name: name.to_owned(),
        about: about.to_owned(),
        action: action.to_owned(),
        when: when.to_owned(),
        count: 1,
        within: minutes(1),
        per: Per::Node,
        pause: Duration::ZERO,
        severity: Severity::High,
    };
    vec![
        RuleSpec {
            count: 5,
            per: Per::Source,
            pause: minutes(10),
            ..rule("failed-log-ins", "log-ins were refused again and again", "auth.login", "result == 'denied'")
        },
        RuleSpec {
            count: 10,
            per: Per::Source,
            pause: minutes(10),
            severity: Severity::Medium,
            ..rule("refused-calls", "calls were refused again and again", "call.refused", "")
        },
        RuleSpec {
            pause: minutes(10),
            ..rule("refusals-left-out", "more calls were refused than the log can hold", "call.refusals", "")
        },
        // A new database is made from nothing: that is no change.
        RuleSpec {
            severity: Severity::Medium,
            ..rule("schema-change", "the database's schema was changed", "database.migrate", "details.from != 0")
        },
        RuleSpec {
            count: 100,
            within: minutes(10),
            per: Per::Actor,
            pause: minutes(60),
            severity: Severity::Medium,
            ..rule("bulk-read", "one actor read many versions in a short time", "dataset.read", "")
        },
        RuleSpec {
            per: Per::Actor,
            pause: minutes(60),
            severity: Severity::Medium,
            ..rule("many-rows", "one act read or changed very many rows", "", "rows > 1000000")
        },
        RuleSpec {
            per: Per::Actor,
            pause: minutes(60),
            ..rule("unusual-statement", "a statement ran that is not one of the daemon's", "", "unknown_statements > 0")
        },
        RuleSpec {
            severity: Severity::Medium,
            ..rule("log-exported", "the whole audit log was read out", "audit.export", "")
        },
        rule("log-tampered", "the audit log was found changed", "audit.verify", "details.verdict == 'TAMPERED'"),
        rule("details-erased", "details of an entry were erased", "audit.erase", ""),
        RuleSpec {
            per: Per::Target,
            severity: Severity::Medium,
            ..rule("sink-degraded", "a place that the log is sent to does not take it", "export.degraded", "")
        },
    ]
}
