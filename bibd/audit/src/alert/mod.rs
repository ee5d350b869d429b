//! Alerts: rules over sealed entries, a CEL expression (<https://cel.dev>) and a count in a time each.
//!
//! Pure: entries go in, in their order, alerts come out; time is what the entries say. The same engine watches the log
//! and tries a rule on the past. Rules never see the entries of alerts, so no alert can bring about another.
//!
//! A rule is bounded before it is run ([`rule`]): length, depth and nodes of its expression, and how deep its macros
//! nest. What it sees of an entry is bounded too: details of at most 32 KiB, at most 32 statements. And so is the time
//! that it may look at one entry ([`BUDGET`]): one that takes longer is cut off there, and after [`STRIKES`] such entries
//! the engine runs it no more.

mod budget;
mod builtin;
mod engine;
mod facts;
pub mod rule;

pub use budget::BUDGET;
pub use builtin::builtin;
pub use engine::{Alert, Engine, Outcome, STRIKES};
pub use facts::Facts;
pub use rule::{Per, Rule, RuleError, RuleFailure, RuleSpec, Severity};

#[cfg(test)]
mod tests;
