//! The configuration of alerts: rules over the audit log, and where alerts go.

use std::path::PathBuf;
use std::time::Duration;

use bibd_audit::alert::{Per, Rule, RuleError, RuleSpec, Severity, builtin};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Span;
use super::audit::{Finding, Secret, TlsTrust, check_secret, check_tls, check_url, is_name};

/// The most rules beside the built-in ones.
pub const MAX_RULES: usize = 64;
/// The most places that alerts go to.
pub const MAX_SINKS: usize = 8;

/// Rules over the audit log, and where alerts go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Alerts {
    /// Built-in rules that are turned off, by name; `all` turns off all. `bib admin audit alerts list` names them.
    pub without: Vec<String>,
    /// Rules of this node.
    pub rules: Vec<AlertRule>,
    /// Where alerts go, beside the audit log and the daemon's own log.
    pub sinks: Vec<AlertSink>,
}

/// A rule: so many entries that match, within a time, make an alert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertRule {
    /// Its name: lower-case letters, digits and `-`, at most 32. That of a built-in rule takes its place.
    pub name: String,
    /// What it is for, as a sentence.
    #[serde(default)]
    pub about: String,
    /// How the action of an entry must begin, such as `auth.`. Empty for all.
    #[serde(default)]
    pub action: String,
    /// A CEL expression that is true for entries that count. Empty for all.
    #[serde(default)]
    pub when: String,
    /// So many entries make an alert.
    #[serde(default = "count")]
    pub count: u32,
    /// Within this time.
    #[serde(default = "within")]
    pub within: Span,
    /// What counts by itself: `node` (everything together), `actor`, `source` (the address) or `target`.
    #[serde(default)]
    pub per: AlertPer,
    /// After an alert the rule is silent about the same for this time.
    #[serde(default = "pause")]
    pub pause: Span,
    /// `low`, `medium` or `high`.
    #[serde(default)]
    pub severity: AlertSeverity,
}

const fn count() -> u32 {
    1
}

const fn within() -> Span {
    Span(Duration::from_secs(60))
}

const fn pause() -> Span {
    Span(Duration::from_secs(600))
}

/// What counts by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum AlertPer {
    /// Everything together.
    #[default]
    Node,
    /// Each actor.
    Actor,
    /// Each address.
    Source,
    /// Each target.
    Target,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum AlertSeverity {
    /// Worth knowing.
    Low,
    /// Somebody should look.
    #[default]
    Medium,
    /// Somebody should look now.
    High,
}

/// A place that alerts go to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertSink {
    /// Under this name the node remembers which alerts it has sent there.
    pub name: String,
    /// What it is.
    pub to: AlertTarget,
    /// Only alerts that are at least so bad.
    #[serde(default = "any_severity")]
    pub at_least: AlertSeverity,
    /// How long one delivery may take.
    #[serde(default = "delivery_timeout")]
    pub timeout: Span,
}

const fn any_severity() -> AlertSeverity {
    AlertSeverity::Low
}

const fn delivery_timeout() -> Span {
    Span(Duration::from_secs(10))
}

/// What a sink of alerts is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AlertTarget {
    /// An HTTP server that takes a POST of JSON.
    Webhook(Webhook),
    /// A program that reads JSON from standard input.
    Command(AlertCommand),
}

/// An HTTP server that takes a POST of JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// The address, where it is no secret.
    #[serde(default)]
    pub url: Option<String>,
    /// Where the address is, when whoever knows it may post.
    #[serde(default)]
    pub secret_url: Option<Secret>,
    /// A token for `Authorization: Bearer ...`.
    #[serde(default)]
    pub bearer: Option<Secret>,
    /// How the server is known.
    #[serde(default)]
    pub tls: TlsTrust,
}

/// A program that reads JSON from standard input. No shell is involved; it gets no environment but `PATH`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AlertCommand {
    /// The program, by its absolute path, and its arguments.
    pub argv: Vec<String>,
}

impl From<&AlertRule> for RuleSpec {
    fn from(rule: &AlertRule) -> Self {
        Self {
            name: rule.name.clone(),
            about: rule.about.clone(),
            action: rule.action.clone(),
            when: rule.when.clone(),
            count: rule.count,
            within: rule.within.0,
            per: match rule.per {
                AlertPer::Node => Per::Node,
                AlertPer::Actor => Per::Actor,
                AlertPer::Source => Per::Source,
                AlertPer::Target => Per::Target,
            },
            pause: rule.pause.0,
            severity: rule.severity.into(),
        }
    }
}

impl From<AlertSeverity> for Severity {
    fn from(severity: AlertSeverity) -> Self {
        match severity {
            AlertSeverity::Low => Self::Low,
            AlertSeverity::Medium => Self::Medium,
            AlertSeverity::High => Self::High,
        }
    }
}

impl Alerts {
    /// The rules that count: the built-in ones without those turned off or replaced, then those of the configuration.
    ///
    /// # Errors
    /// With the first rule that cannot be used; a configuration that was loaded has none.
    pub fn compile(&self) -> Result<Vec<Rule>, RuleError> {
        let is_off = |name: &str| {
            self.without.iter().any(|without| without == name || without == "all")
                || self.rules.iter().any(|rule| rule.name == name)
        };
        let kept = builtin().into_iter().filter(|spec| !is_off(&spec.name));
        kept.chain(self.rules.iter().map(RuleSpec::from)).map(Rule::compile).collect()
    }
}

/// What types alone cannot say.
pub(super) fn check(alerts: &Alerts) -> Vec<Finding> {
    let mut found = check_rules(alerts);
    let names: Vec<String> = builtin().into_iter().map(|spec| spec.name).collect();
    for (item, name) in alerts.without.iter().enumerate() {
        if name != "all" && !names.contains(name) {
            found.push(Finding {
                key: "audit.alerts.without",
                item,
                message: format!("there is no built-in rule `{name}`"),
                hint: format!("there are {}", names.join(", ")),
            });
        }
    }
    for (item, sink) in alerts.sinks.iter().enumerate() {
        let mut refuse = |message: &str, hint: &str| {
            let message = format!("sink `{}`: {message}", sink.name);
            found.push(Finding { key: "audit.alerts.sinks", item, message, hint: hint.to_owned() });
        };
        if item == MAX_SINKS {
            refuse(&format!("there are more than {MAX_SINKS}"), "let one program tell others");
        }
        if !is_name(&sink.name) || alerts.sinks[..item].iter().any(|other| other.name == sink.name) {
            refuse("the name is not 1 to 32 lower-case letters, digits and `-`, or stands twice", "such as `on-call`");
        }
        if !(1..=60).contains(&sink.timeout.0.as_secs()) {
            refuse("timeout must be 1s to 60s", "10s is usual");
        }
        for (message, hint) in check_target(&sink.to) {
            refuse(&message, hint);
        }
    }
    found
}

fn check_rules(alerts: &Alerts) -> Vec<Finding> {
    let mut found = Vec::new();
    for (item, rule) in alerts.rules.iter().enumerate() {
        let mut refuse = |message: String, hint: String| {
            let message = format!("rule `{}`: {message}", rule.name);
            found.push(Finding { key: "audit.alerts.rules", item, message, hint });
        };
        if item == MAX_RULES {
            refuse(format!("there are more than {MAX_RULES}"), "let one rule see more: `action in [..]`".to_owned());
        }
        if !is_name(&rule.name) {
            let message = "the name is not 1 to 32 lower-case letters, digits and `-`";
            refuse(message.to_owned(), "such as `night-deletes`".to_owned());
        }
        if alerts.rules[..item].iter().any(|other| other.name == rule.name) {
            refuse("the name stands twice".to_owned(), "`bib admin audit alerts test` finds rules by name".to_owned());
        }
        let day = Duration::from_secs(86_400);
        if rule.within.0.is_zero() || rule.within.0 > day || rule.pause.0 > day {
            refuse(
                "within must be at most 24h and more than 0, pause at most 24h".to_owned(),
                "1m is usual".to_owned(),
            );
        }
        if let Err(error) = Rule::compile(RuleSpec::from(rule)) {
            refuse(error.message, error.hint);
        }
    }
    found
}

fn check_target(target: &AlertTarget) -> Vec<(String, &'static str)> {
    match target {
        AlertTarget::Webhook(webhook) => {
            let mut found = Vec::new();
            if webhook.url.is_some() == webhook.secret_url.is_some() {
                found.push(("it wants either `url` or `secret_url`".to_owned(), "an address that is no secret: `url`"));
            }
            found.extend(webhook.url.as_deref().and_then(check_url));
            found.extend(webhook.secret_url.as_ref().and_then(check_secret));
            found.extend(webhook.bearer.as_ref().and_then(check_secret));
            found.extend(check_tls(&webhook.tls));
            found
        }
        AlertTarget::Command(command) => {
            let is_program = command.argv.first().is_some_and(|program| PathBuf::from(program).is_absolute());
            let is_text = command.argv.len() <= 64 && command.argv.iter().all(|a| a.len() <= 4096 && !a.contains('\0'));
            if is_program && is_text {
                return Vec::new();
            }
            vec![(
                "argv must begin with the absolute path of a program".to_owned(),
                "such as [/usr/local/bin/page, --now]",
            )]
        }
    }
}
