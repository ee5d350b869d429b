//! `bib admin audit alerts`: rules over the audit log.

use bib_client::{Client, pb};
use clap::{Args, Subcommand};
use futures::TryStreamExt as _;

use crate::context::Context;
use crate::errors::{Exit, Failure, Result};
use crate::output::record;

/// Rules over the audit log.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The rules, built in and configured (`audit.alerts`)
    List,
    /// Tries a rule on past entries: the alerts that there would have been; nobody is alerted
    Test(Test),
}

/// What to try.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// A rule of `alerts list`; without one, `--when` alone: an alert for each entry
    #[arg(required_unless_present = "when")]
    rule: Option<String>,
    /// This CEL expression in place of the rule's
    #[arg(long, value_name = "EXPRESSION")]
    when: Option<String>,
    /// Entries from this time on, RFC 3339
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TIME")]
    since: String,
}

record! {
    /// A rule: `count` entries `within` a time that match `action` (a beginning) and `when` make an alert, counted by
    /// itself for each `per`. `alerts` and `failures` since the daemon started; `off`: it took too long over some, and is
    /// not run any more.
    AlertRuleRow {
        name: String = Text listed, severity: String = Text listed, action: String = Text listed,
        when: String = Text listed, count: u32 = Text listed, within_ms: u64 = Millis listed, per: String = Text listed,
        pause_ms: u64 = Millis, builtin: bool = Text, about: String = Text, alerts: u64 = Text listed, failures: u64 = Text,
        last_failure: String = Text, off: bool = Text listed,
    }
}

record! {
    /// An alert that there would have been. `first` and `last` are `EPOCH/SEQ`; the rest is of the last entry.
    AlertRow {
        time: String = Time listed, rule: String = Text, severity: String = Text, key: String = Text listed,
        count: u32 = Text listed, first: String = Text listed, last: String = Text listed, action: String = Text listed,
        actor: String = Text listed, target: String = Text, result: String = Text,
    }
}

impl Command {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context, client: &Client) -> Result<()> {
        match self {
            Self::List => {
                let mut list = context.output.list();
                for rule in client.admin().alert_rules().await? {
                    list.push(&AlertRuleRow::from(rule))?;
                }
                list.finish("no rules: `audit.alerts.without` turned off all").map(|_| ())
            }
            Self::Test(test) => test.run(context, client).await,
        }
    }
}

impl Test {
    async fn run(self, context: &Context, client: &Client) -> Result<()> {
        let request = pb::TestAlertRuleRequest {
            name: self.rule.unwrap_or_default(),
            when: self.when.unwrap_or_default(),
            since: self.since,
        };
        let mut words = client.admin().test_alert_rule(request).await?;
        let mut list = context.output.list();
        let mut last = None;
        while let Some(word) = words.try_next().await? {
            if let Some(alert) = &word.alert {
                list.push(&AlertRow::from(alert.clone()))?;
            }
            last = Some(word);
        }
        let Some(end) = last.filter(|word| word.finished) else {
            return Err(Failure::new(Exit::Unavailable, "the node ended the test half-way").with_hint("try again"));
        };
        let none = format!("no alerts in {} entries", end.looked);
        let told = list.finish(&none)?;
        if told < end.alerts {
            context.output.note(&format!("{} more alerts are not shown", end.alerts - told));
        }
        if end.failed > 0 {
            context.output.note(&format!("the expression failed on {} of {} entries", end.failed, end.looked));
        }
        Ok(())
    }
}

impl From<pb::AlertRule> for AlertRuleRow {
    fn from(rule: pb::AlertRule) -> Self {
        Self {
            name: rule.name,
            severity: rule.severity,
            action: rule.action,
            when: rule.when,
            count: rule.count,
            within_ms: rule.within_ms,
            per: rule.per,
            pause_ms: rule.pause_ms,
            builtin: rule.builtin,
            about: rule.about,
            alerts: rule.alerts,
            failures: rule.failures,
            last_failure: rule.last_failure,
            off: rule.off,
        }
    }
}

impl From<pb::Alert> for AlertRow {
    fn from(alert: pb::Alert) -> Self {
        let pb::Alert { rule, severity, key, count, first, last, time, action, actor, target, result } = alert;
        Self { time, rule, severity, key, count, first, last, action, actor, target, result }
    }
}
