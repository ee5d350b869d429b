//! The time that a rule may take over one entry.
//!
//! The bounds on an expression ([`super::rule`]) keep it small, not quick: two loops over the largest list that an entry
//! can hold are a hundred million steps, and nothing ends a thread from outside. So every step of a loop first asks for
//! a variable that is there only while there is time; what is not in a loop is short. Time is what the thread's processor
//! spent, so that a machine under load turns no rule off.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use cel::common::ast::operators::{ADD, CONDITIONAL, LOGICAL_AND};
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue};
use cel::common::types::CelBool;
use cel::common::value::CowVal;
use cel::context::VariableResolver;
use rustix::time::{ClockId, clock_gettime};

use super::facts::Facts;

/// How long one expression may look at one entry.
pub const BUDGET: Duration = Duration::from_millis(50);

/// `true` while there is time. No expression can name it: `@` begins no name.
const IN_TIME: &str = "@in_time";

/// Looking at the clock is a call of the system, as long as some steps are.
const LOOK_EVERY: u32 = 16;

static TRUE: CelBool = CelBool::TRUE;

/// What this thread has used of the processor.
fn used() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Facts that are there for a time.
#[derive(Debug)]
pub(super) struct Timed<'f> {
    facts: &'f Facts<'f>,
    until: Duration,
    asked: AtomicU32,
    late: AtomicBool,
}

impl<'f> Timed<'f> {
    /// From now on.
    pub(super) fn new(facts: &'f Facts<'f>) -> Self {
        Self { facts, until: used() + BUDGET, asked: AtomicU32::new(0), late: AtomicBool::new(false) }
    }

    /// Whether all the time was used, looking at the clock once more.
    pub(super) fn is_over(&self) -> bool {
        self.late.load(Ordering::Relaxed) || used() > self.until
    }

    fn is_late(&self) -> bool {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        if asked.is_multiple_of(LOOK_EVERY) && used() > self.until {
            self.late.store(true, Ordering::Relaxed);
        }
        self.late.load(Ordering::Relaxed)
    }
}

impl VariableResolver for Timed<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        if self.is_late() {
            return None;
        }
        if name == IN_TIME { Some(CowVal::Borrowed(&TRUE)) } else { self.facts.resolve(name) }
    }
}

/// Makes every step of every loop of an expression ask whether there is time.
pub(super) fn watch_loops(expression: &mut IdedExpr) {
    match &mut expression.expr {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
        Expr::Call(call) => {
            call.target.iter_mut().for_each(|target| watch_loops(target));
            call.args.iter_mut().for_each(watch_loops);
        }
        Expr::Comprehension(comprehension) => {
            let parts = [
                &mut comprehension.iter_range,
                &mut comprehension.accu_init,
                &mut comprehension.loop_cond,
                &mut comprehension.loop_step,
                &mut comprehension.result,
            ];
            parts.into_iter().for_each(watch_loops);
            watch_loop(comprehension);
        }
        Expr::List(list) => list.elements.iter_mut().for_each(watch_loops),
        Expr::Map(map) => map.entries.iter_mut().for_each(|entry| watch_entry(&mut entry.expr)),
        Expr::Struct(structure) => structure.entries.iter_mut().for_each(|entry| watch_entry(&mut entry.expr)),
        Expr::Select(select) => watch_loops(&mut select.operand),
    }
}

fn watch_entry(entry: &mut EntryExpr) {
    match entry {
        EntryExpr::StructField(field) => watch_loops(&mut field.value),
        EntryExpr::MapEntry(pair) => {
            watch_loops(&mut pair.key);
            watch_loops(&mut pair.value);
        }
    }
}

fn watch_loop(comprehension: &mut ComprehensionExpr) {
    // `map` and `filter` are known to the interpreter by their condition, a literal, and by the shape of their step;
    // elsewhere it would copy the list at each step. So the question goes into the step.
    if matches!(comprehension.loop_cond.expr, Expr::Literal(_))
        && let Expr::Call(step) = &mut comprehension.loop_step.expr
    {
        match (step.func_name.as_str(), step.args.as_mut_slice()) {
            (CONDITIONAL, [guard, ..]) => return ask_before(guard),
            (ADD, [_, IdedExpr { expr: Expr::List(list), .. }]) => {
                return list.elements.iter_mut().for_each(ask_first);
            }
            _ => {}
        }
    }
    ask_before(&mut comprehension.loop_cond);
}

/// `@in_time && condition`.
fn ask_before(condition: &mut IdedExpr) {
    let rest = std::mem::take(condition);
    *condition = call(LOGICAL_AND, vec![in_time(), rest]);
}

/// `@in_time ? value : false`.
fn ask_first(value: &mut IdedExpr) {
    let rest = std::mem::take(value);
    let never = IdedExpr { id: 0, expr: Expr::Literal(LiteralValue::Boolean(CelBool::FALSE)) };
    *value = call(CONDITIONAL, vec![in_time(), rest, never]);
}

fn in_time() -> IdedExpr {
    IdedExpr { id: 0, expr: Expr::Ident(IN_TIME.to_owned()) }
}

fn call(name: &str, args: Vec<IdedExpr>) -> IdedExpr {
    IdedExpr { id: 0, expr: Expr::Call(CallExpr { func_name: name.to_owned(), target: None, args }) }
}
