//! A rule: which entries it is about, and how many in which time make an alert.

use std::fmt;
use std::time::Duration;

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::parser::PrattParser;
use cel::{Context, Value};

use super::budget::{BUDGET, Timed, watch_loops};
use super::facts::{Facts, VARIABLES};

/// The longest expression, in bytes.
pub const MAX_EXPRESSION_BYTES: usize = 2048;
/// The most nodes of an expression, macros expanded.
const MAX_NODES: usize = 512;
/// How deep an expression may nest.
const MAX_DEPTH: u16 = 32;
/// How deep macros (`all`, `exists`, `map`, `filter`) may nest: time grows by the length of a list with each.
const MAX_MACRO_DEPTH: usize = 2;
/// The most entries that a rule may wait for.
pub const MAX_COUNT: u32 = 10_000;

/// The functions and operators that a rule may use. `matches` is not among them: `contains` and its kin tell the same
/// of names, in time that cannot surprise.
const FUNCTIONS: &[&str] = &[
    "_&&_",
    "_||_",
    "!_",
    "_==_",
    "_!=_",
    "_<_",
    "_<=_",
    "_>_",
    "_>=_",
    "_+_",
    "_-_",
    "_*_",
    "_/_",
    "_%_",
    "-_",
    "_?_:_",
    "_[_]",
    "@in",
    "_in_",
    "@not_strictly_false",
    "has",
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "int",
    "string",
    "double",
    "bool",
    "type",
];

/// What counts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Per {
    /// Everything.
    #[default]
    Node,
    /// Each actor by himself.
    Actor,
    /// Each address that a call came from, or the actor where there is none.
    Source,
    /// Each target.
    Target,
}

impl Per {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Actor => "actor",
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Severity {
    /// Worth knowing.
    Low,
    /// Somebody should look.
    #[default]
    Medium,
    /// Somebody should look now.
    High,
}

impl Severity {
    /// The word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

/// A rule as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSpec {
    /// Its name.
    pub name: String,
    /// What it is for, as a sentence.
    pub about: String,
    /// How the action of an entry must begin; empty for all. Looked at first, since it costs nothing.
    pub action: String,
    /// A CEL expression that is true for the entries that count; empty for all.
    pub when: String,
    /// So many entries ...
    pub count: u32,
    /// ... within this time ...
    pub within: Duration,
    /// ... of one of these make an alert.
    pub per: Per,
    /// After an alert the rule is silent about the same for this time.
    pub pause: Duration,
    /// How bad it is.
    pub severity: Severity,
}

/// Why a rule cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RuleError {
    /// What is wrong, and where in the expression.
    pub message: String,
    /// What would be right.
    pub hint: String,
}

impl RuleError {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

/// Why a rule could not say whether an entry counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleFailure {
    /// The expression failed.
    #[error("{0}")]
    Expression(String),
    /// It was cut off.
    #[error("it took longer than {} ms over one entry", BUDGET.as_millis())]
    TooSlow,
}

/// A rule that can be run.
pub struct Rule {
    spec: RuleSpec,
    expression: Option<IdedExpr>,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rule").field(&self.spec).finish()
    }
}

impl Rule {
    /// Checks a rule: within its bounds, with known names only, and true or false for an entry.
    ///
    /// # Errors
    /// With what is wrong and what would be right.
    pub fn compile(spec: RuleSpec) -> Result<Self, RuleError> {
        if !(1..=MAX_COUNT).contains(&spec.count) {
            return Err(RuleError::new(format!("count must be 1 to {MAX_COUNT}"), "1 alerts on each entry"));
        }
        if spec.action.is_empty() && spec.when.trim().is_empty() {
            return Err(RuleError::new("it is about every entry", "name an `action`, an expression (`when`), or both"));
        }
        if spec.action.len() > 64 {
            return Err(RuleError::new("`action` is longer than 64 bytes", "a beginning such as `auth.` is enough"));
        }
        let mut expression = if spec.when.trim().is_empty() { None } else { Some(parse(&spec.when)?) };
        expression.iter_mut().for_each(watch_loops);
        let rule = Self { spec, expression };
        rule.try_out()?;
        Ok(rule)
    }

    /// The rule as it is written.
    #[must_use]
    pub fn spec(&self) -> &RuleSpec {
        &self.spec
    }

    /// Whether an entry counts.
    ///
    /// # Errors
    /// When the expression fails, mostly because the entry has no member of that name, or takes too long: then the entry
    /// does not count.
    pub fn counts(&self, facts: &Facts<'_>) -> Result<bool, RuleFailure> {
        if !facts.action().starts_with(&self.spec.action) {
            return Ok(false);
        }
        let Some(expression) = &self.expression else { return Ok(true) };
        let timed = Timed::new(facts);
        let mut context = Context::default();
        context.set_variable_resolver(&timed);
        let found = Value::resolve(expression, &context);
        match found {
            _ if timed.is_over() => Err(RuleFailure::TooSlow),
            Ok(Value::Bool(counts)) => Ok(counts),
            Ok(other) => Err(RuleFailure::Expression(format!("it is of type {}, not bool", other.type_of()))),
            Err(error) => Err(RuleFailure::Expression(error.to_string())),
        }
    }

    /// Runs the expression on a made-up entry: types that never fit, and results that are no truth value, show there.
    /// Members that an entry may lack do not count against a rule.
    fn try_out(&self) -> Result<(), RuleError> {
        let Some(expression) = &self.expression else { return Ok(()) };
        let sample = Facts::sample();
        let timed = Timed::new(&sample);
        let mut context = Context::default();
        context.set_variable_resolver(&timed);
        let found = Value::resolve(expression, &context);
        match found {
            _ if timed.is_over() => Err(RuleError::new(
                format!("the expression takes longer than {} ms over a small entry", BUDGET.as_millis()),
                "look at less in a loop, or nest none",
            )),
            Ok(Value::Bool(_)) => Ok(()),
            Ok(other) => Err(RuleError::new(
                format!("the expression is of type {}, not bool", other.type_of()),
                "compare it with something: `rows > 1000`",
            )),
            Err(cel::ExecutionError::NoSuchOverload(error)) => Err(RuleError::new(
                format!("{error}"),
                "`int(..)` and `string(..)` convert; numbers of an entry are `int`",
            )),
            Err(cel::ExecutionError::UndeclaredReference(name)) => Err(unknown(&name)),
            Err(_) => Ok(()),
        }
    }
}

fn unknown(name: &str) -> RuleError {
    let best = VARIABLES.iter().copied().find(|known| known.starts_with(name) || name.starts_with(known));
    let all = VARIABLES.join(", ");
    let hint =
        best.map_or_else(|| format!("there are {all}"), |best| format!("did you mean `{best}`? there are {all}"));
    RuleError::new(format!("there is no `{name}`"), hint)
}

fn parse(text: &str) -> Result<IdedExpr, RuleError> {
    if text.len() > MAX_EXPRESSION_BYTES {
        let message = format!("the expression has {} bytes, more than {MAX_EXPRESSION_BYTES}", text.len());
        return Err(RuleError::new(message, "make several rules of it"));
    }
    let parser = PrattParser::new()
        .max_recursion_depth(MAX_DEPTH)
        .max_expression_node_count(MAX_NODES)
        .error_recovery_limit(2)
        .error_reporting_limit(2);
    let expression = parser.parse(text).map_err(|errors| {
        let first = errors.errors.into_iter().next();
        let (message, (line, column)) = first.map_or_else(|| (String::new(), (0, 0)), |e| (e.msg, e.pos));
        let message: String = message.chars().filter(|c| !c.is_control()).take(160).collect();
        if line < 1 {
            // It is about the whole, such as how deep it nests.
            return RuleError::new(message, "make several rules of it");
        }
        let excerpt = usize::try_from(line - 1).ok().and_then(|at| text.lines().nth(at)).unwrap_or_default();
        RuleError::new(
            format!("line {line}, column {column} of the expression: {message}"),
            format!("look at `{}`; docs/audit.md has examples", excerpt.chars().take(120).collect::<String>().trim()),
        )
    })?;
    let mut shape = Shape::default();
    shape.walk(&expression, 0)?;
    let references = expression.references();
    let mut functions = references.functions();
    functions.sort_unstable();
    if let Some(function) = functions.into_iter().find(|name| !FUNCTIONS.contains(name)) {
        let usable: Vec<&str> = FUNCTIONS.iter().copied().filter(|f| f.chars().all(|c| c.is_alphabetic())).collect();
        return Err(RuleError::new(
            format!("there is no function `{function}`"),
            format!("there are {}, and the macros all, exists, exists_one, filter, map", usable.join(", ")),
        ));
    }
    let mut variables = references.variables();
    variables.sort_unstable();
    let known = |name: &&str| VARIABLES.contains(name) || shape.bound.iter().any(|bound| bound == name);
    match variables.into_iter().find(|name| !known(name)) {
        Some(name) => Err(unknown(name)),
        None => Ok(expression),
    }
}

/// What a walk over an expression finds.
#[derive(Default)]
struct Shape {
    nodes: usize,
    /// Names that macros bind.
    bound: Vec<String>,
}

impl Shape {
    fn walk(&mut self, expression: &IdedExpr, macros: usize) -> Result<(), RuleError> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            let message = format!("the expression has more than {MAX_NODES} parts");
            return Err(RuleError::new(message, "make several rules of it"));
        }
        match &expression.expr {
            Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Ok(()),
            Expr::Call(call) => {
                call.target.iter().try_for_each(|target| self.walk(target, macros))?;
                call.args.iter().try_for_each(|argument| self.walk(argument, macros))
            }
            Expr::Comprehension(comprehension) => {
                if macros == MAX_MACRO_DEPTH {
                    let message = format!("macros nest deeper than {MAX_MACRO_DEPTH}");
                    return Err(RuleError::new(message, "make several rules of it"));
                }
                self.bound.push(comprehension.iter_var.clone());
                self.bound.extend(comprehension.iter_var2.clone());
                self.bound.push(comprehension.accu_var.clone());
                self.walk(&comprehension.iter_range, macros)?;
                let parts = [
                    &comprehension.accu_init,
                    &comprehension.loop_cond,
                    &comprehension.loop_step,
                    &comprehension.result,
                ];
                parts.into_iter().try_for_each(|part| self.walk(part, macros + 1))
            }
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.walk(element, macros)),
            Expr::Map(map) => self.walk_entries(map.entries.iter().map(|entry| &entry.expr), macros),
            Expr::Struct(structure) => self.walk_entries(structure.entries.iter().map(|entry| &entry.expr), macros),
            Expr::Select(select) => self.walk(&select.operand, macros),
        }
    }

    fn walk_entries<'e>(
        &mut self,
        entries: impl Iterator<Item = &'e EntryExpr>,
        macros: usize,
    ) -> Result<(), RuleError> {
        for entry in entries {
            match entry {
                EntryExpr::StructField(field) => self.walk(&field.value, macros)?,
                EntryExpr::MapEntry(pair) => {
                    self.walk(&pair.key, macros)?;
                    self.walk(&pair.value, macros)?;
                }
            }
        }
        Ok(())
    }
}
