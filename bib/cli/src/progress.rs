//! How far a long act is, on standard error: bars with rate and time left on a terminal, a line every few seconds
//! elsewhere, nothing with `--quiet`.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bib_client::{Notice, Phase, Progress};
use bib_core::text::scrub;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::output::Output;
use crate::units::format_bytes;

/// How often a line is written where there are no bars.
const EVERY: Duration = Duration::from_secs(5);

/// What fits the terminal and the flags.
pub(crate) fn watch(output: &Output) -> Arc<dyn Progress> {
    if output.is_quiet() {
        Arc::new(Quiet)
    } else if std::io::stderr().is_terminal() {
        Arc::new(Bars::default())
    } else {
        Arc::new(Lines::new(Box::new(std::io::stderr())))
    }
}

/// Nothing but what changes the person's machine: a key that was made is said aloud even with `--quiet`.
struct Quiet;

impl Progress for Quiet {
    fn total(&self, _: Phase, _: Option<u64>) {}

    fn advance(&self, _: Phase, _: u64) {}

    fn notice(&self, notice: Notice) {
        if matches!(notice, Notice::KeyMade { .. }) {
            // There is nobody to tell when standard error cannot be written.
            let _ = writeln!(std::io::stderr(), "note: {}", scrub(&notice.to_string()));
        }
    }
}

/// Bars, one for each phase.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    bars: Mutex<HashMap<Phase, ProgressBar>>,
}

impl Bars {
    fn bar(&self, phase: Phase) -> ProgressBar {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        let make =
            || self.all.add(ProgressBar::no_length().with_style(style(phase, None)).with_prefix(phase.to_string()));
        bars.entry(phase).or_insert_with(make).clone()
    }
}

fn style(phase: Phase, total: Option<u64>) -> ProgressStyle {
    let template = match (phase.counts_bytes(), total) {
        (true, Some(_)) => {
            "{prefix:>10} [{bar:24}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left"
        }
        (true, None) => "{prefix:>10} {binary_bytes} {binary_bytes_per_sec}",
        (false, Some(_)) => "{prefix:>10} [{bar:24}] {human_pos}/{human_len}, {eta} left",
        (false, None) => "{prefix:>10} {human_pos}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

impl Progress for Bars {
    fn total(&self, phase: Phase, total: Option<u64>) {
        let bar = self.bar(phase);
        if let Some(total) = total {
            bar.set_style(style(phase, Some(total)));
            bar.set_length(total);
        }
    }

    fn advance(&self, phase: Phase, by: u64) {
        self.bar(phase).inc(by);
    }

    fn notice(&self, notice: Notice) {
        // A terminal that went away is noticed by whoever writes the result.
        let _ = self.all.println(format!("note: {}", scrub(&notice.to_string())));
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        for bar in self.bars.get_mut().unwrap_or_else(PoisonError::into_inner).values() {
            bar.finish_and_clear();
        }
    }
}

/// Lines, for logs and pipes.
struct Lines(Mutex<LinesState>);

struct LinesState {
    to: Box<dyn std::io::Write + Send>,
    phases: HashMap<Phase, PhaseState>,
}

struct PhaseState {
    done: u64,
    total: Option<u64>,
    began: Instant,
    told: Instant,
}

impl PhaseState {
    fn new(now: Instant) -> Self {
        Self { done: 0, total: None, began: now, told: now }
    }

    fn line(&self, phase: Phase, now: Instant) -> String {
        let shown = |n: u64| if phase.counts_bytes() { format_bytes(n) } else { n.to_string() };
        let mut line = format!("{phase}: {}", shown(self.done));
        if let Some(total) = self.total {
            line.push_str(&format!(" of {}", shown(total)));
        }
        let seconds = now.duration_since(self.began).as_secs_f64();
        if phase.counts_bytes() && seconds > 0.0 {
            line.push_str(&format!(", {}/s", format_bytes((self.done as f64 / seconds) as u64)));
        }
        line
    }
}

impl Lines {
    fn new(to: Box<dyn std::io::Write + Send>) -> Self {
        Self(Mutex::new(LinesState { to, phases: HashMap::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, LinesState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn advance_at(&self, phase: Phase, by: u64, now: Instant) {
        let mut state = self.lock();
        let known = state.phases.entry(phase).or_insert_with(|| PhaseState::new(now));
        known.done += by;
        if now.duration_since(known.told) >= EVERY {
            known.told = now;
            let line = known.line(phase, now);
            // Progress that cannot be written is no reason to stop the work.
            let _ = writeln!(state.to, "{line}");
        }
    }
}

impl Progress for Lines {
    fn total(&self, phase: Phase, total: Option<u64>) {
        let mut state = self.lock();
        state.phases.entry(phase).or_insert_with(|| PhaseState::new(Instant::now())).total = total;
    }

    fn advance(&self, phase: Phase, by: u64) {
        self.advance_at(phase, by, Instant::now());
    }

    fn notice(&self, notice: Notice) {
        let line = format!("note: {}", scrub(&notice.to_string()));
        // As above.
        let _ = writeln!(self.lock().to, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_every_few_seconds_and_names_are_scrubbed() {
        let sink = Sink::default();
        let lines = Lines::new(Box::new(sink.clone()));
        lines.total(Phase::Walk, None);
        let start = Instant::now();
        lines.advance_at(Phase::Walk, 1, start);
        lines.advance_at(Phase::Walk, 1, start + Duration::from_secs(1));
        lines.advance_at(Phase::Walk, 8, start + Duration::from_secs(6));
        lines.advance_at(Phase::Walk, 1, start + Duration::from_secs(7));
        lines.notice(Notice::Skipped { path: "a\u{1b}[2J".to_owned(), what: "socket" });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "looking: 10\nnote: `a\\u{1b}[2J` is a socket and is left out\n");
    }
}
