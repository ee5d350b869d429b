//! `cargo xtask bench`: the figures that are promised, each with its bound, in one run.
//!
//! Release programs, seeded random inputs, ratios against what the machine does by itself in the same run. Page cache is
//! touched first: the first write to fresh memory is many times slower on virtual machines and would be measured instead.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::node::{Node, Profile, Programs, passable_directory};
use crate::postgres;
use crate::process::{capture, root, shown};
use crate::random::Random;
use crate::report::{Bound, Figure, Machine, Report, Run, now};

mod backup;
mod commits;
mod container;
mod files;
mod glass;
mod login;
mod rotation;
mod siem;
mod transfer;

/// Makes all inputs the same again.
const SEED: u64 = 7;
/// No benchmark lets client or daemon use more.
const MOST_MEMORY_MIB: f64 = 256.0;

/// A benchmark.
type Benchmark = fn(&mut Bench) -> anyhow::Result<()>;

/// Every benchmark with its name, in order.
const BENCHMARKS: &[(&str, Benchmark)] = &[
    ("start", start),
    ("large-file", transfer::large_file),
    ("many-files", files::many_files),
    ("one-of-a-million", files::one_of_a_million),
    ("commits", commits::topics),
    ("audit-verify", commits::audit_verify),
    ("rotation", rotation::rotation),
    ("container", container::container),
    ("break-glass", glass::glass),
    ("siem", siem::export),
    ("backup", backup::backup),
    ("archive", backup::archive),
];

/// Runs the benchmarks whose names were given, or all; after each it writes `docs/benchmarks.json` and the page made of it.
///
/// A run of some keeps the figures of the others, which must have been measured on the same machine.
///
/// # Errors
/// When a benchmark cannot be run, a name is unknown, the machine is another one, or a bound was missed.
pub fn run(names: &[String]) -> anyhow::Result<()> {
    if let Some(unknown) = names.iter().find(|name| BENCHMARKS.iter().all(|(known, _)| known != name)) {
        let known: Vec<&str> = BENCHMARKS.iter().map(|(name, _)| *name).collect();
        bail!("there is no benchmark `{unknown}`; there are {}", known.join(", "));
    }
    let postgres = postgres::ensure()?;
    let machine = machine(&postgres)?;
    let mut report =
        if names.is_empty() { None } else { former()? }.unwrap_or_else(|| Report::on(machine.clone(), SEED));
    ensure!(report.machine == machine, "the figures are of another machine ({:?}): run all of them", report.machine);
    let programs = Programs::build(Profile::Release)?;
    let commit = crate::soak::commit()?;
    let mut missed = Vec::new();
    for (name, benchmark) in BENCHMARKS {
        if !names.is_empty() && names.iter().all(|wanted| wanted != name) {
            continue;
        }
        println!("\n==== {name}");
        let mut bench = Bench { name, programs: programs.clone(), figures: Vec::new(), postgres: postgres.clone() };
        benchmark(&mut bench).with_context(|| format!("benchmark `{name}`"))?;
        let is_missed = |figure: &&Figure| figure.holds() == Some(false);
        missed.extend(bench.figures.iter().filter(is_missed).map(|figure| figure.what.clone()));
        report.take(name, Run { commit: commit.clone(), time: now()? }, bench.figures);
        let place = |figure: &Figure| BENCHMARKS.iter().position(|(name, _)| *name == figure.benchmark);
        report.figures.sort_by_key(place);
        write(&report)?;
    }
    if !missed.is_empty() {
        bail!("missed: {}", missed.join("; "));
    }
    Ok(())
}

/// Makes the page again from the JSON that is there.
///
/// # Errors
/// When there is none.
pub fn write_page() -> anyhow::Result<()> {
    let json = fs::read_to_string(root().join("docs/benchmarks.json")).context("read docs/benchmarks.json")?;
    fs::write(root().join("docs/benchmarks.md"), crate::report::page_of(&json)?).context("write docs/benchmarks.md")
}

fn write(report: &Report) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(report).context("write the report")?;
    fs::write(root().join("docs/benchmarks.json"), format!("{json}\n")).context("write docs/benchmarks.json")?;
    write_page()
}

/// What was measured before.
fn former() -> anyhow::Result<Option<Report>> {
    match fs::read_to_string(root().join("docs/benchmarks.json")) {
        Ok(json) => serde_json::from_str(&json).context("read docs/benchmarks.json").map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("read docs/benchmarks.json"),
    }
}

fn machine(postgres: &Path) -> anyhow::Result<Machine> {
    let cpu = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let processor = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let memory = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let kib = memory.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's version")?;
    let storage = capture(Command::new("findmnt").args(["-n", "-o", "FSTYPE", "--target"]).arg(std::env::temp_dir()))?;
    Ok(Machine {
        processor: processor.trim_start_matches(['\t', ' ', ':']).to_owned(),
        threads: std::thread::available_parallelism().context("count the processors")?.get(),
        memory_mib: kib / 1024,
        kernel: format!("Linux {}", kernel.trim()),
        storage: storage.trim().to_owned(),
        postgres: capture(Command::new(postgres.join("postgres")).arg("--version"))?.trim().to_owned(),
    })
}

/// One benchmark while it runs.
pub(super) struct Bench {
    name: &'static str,
    programs: Programs,
    postgres: std::path::PathBuf,
    figures: Vec<Figure>,
}

impl Bench {
    fn node(&self, directory: &Path) -> Node {
        Node::new(self.programs.clone(), directory)
    }

    fn random(&self) -> Random {
        Random::of(SEED)
    }

    fn figure(&mut self, what: &str, value: f64, unit: &str, bound: Option<Bound>) {
        let value = (value * 100.0).round() / 100.0;
        let figure =
            Figure { benchmark: self.name.to_owned(), what: what.to_owned(), value, unit: unit.to_owned(), bound };
        let verdict = figure.holds().map_or("", |holds| if holds { ", holds" } else { ", MISSED" });
        println!("{what}: {value} {unit}{verdict}");
        self.figures.push(figure);
    }

    fn seconds(&mut self, what: &str, took: Duration, bound: Option<f64>) {
        self.figure(what, took.as_secs_f64(), "s", bound.map(Bound::AtMost));
    }

    fn memory(&mut self, client_mib: f64, node: &Node) -> anyhow::Result<()> {
        let daemon = peak_mib(node.pid().context("the daemon has gone")?).context("the daemon's memory")?;
        self.figure("peak memory of the client", client_mib, "MiB", Some(Bound::AtMost(MOST_MEMORY_MIB)));
        self.figure("peak memory of the daemon", daemon, "MiB", Some(Bound::AtMost(MOST_MEMORY_MIB)));
        Ok(())
    }
}

/// How a command of `bib` went.
pub(super) struct Ran {
    took: Duration,
    /// Peak resident memory in MiB.
    peak_mib: f64,
    answer: Value,
}

/// Runs `bib ... -o json` and watches its memory.
pub(super) fn measure(command: &mut Command) -> anyhow::Result<Ran> {
    command.args(["-o", "json", "--quiet"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start `{}`", shown(command)))?;
    let mut peak = 0.0_f64;
    while child.try_wait().context("wait for bib")?.is_none() {
        // The kernel keeps the peak, so only what is used after the last look is missed.
        peak = peak.max(peak_mib(child.id()).unwrap_or(0.0));
        std::thread::sleep(Duration::from_millis(2));
    }
    let took = began.elapsed();
    let output = child.wait_with_output().context("read what bib said")?;
    if !output.status.success() {
        bail!("`{}` failed: {}\n{}", shown(command), output.status, String::from_utf8_lossy(&output.stderr));
    }
    let answer =
        serde_json::from_slice(&output.stdout).with_context(|| format!("read the JSON of `{}`", shown(command)))?;
    Ok(Ran { took, peak_mib: peak, answer })
}

/// The most resident memory that a process ever had, in MiB.
fn peak_mib(pid: u32) -> Option<f64> {
    memory_mib(pid, "VmHWM:")
}

fn memory_mib(pid: u32, field: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().trim_end_matches(" kB").trim().parse::<f64>().ok()? / 1024.0)
}

/// The middle one.
pub(super) fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Puts every page of so many bytes of page cache to use once, on the file system of `directory`.
pub(super) fn touch_memory(directory: &Path, bytes: u64) -> anyhow::Result<()> {
    let path = directory.join("touch");
    let mut file = fs::File::create(&path).context("make a file")?;
    let block = vec![1; 1 << 20];
    for _ in 0..bytes >> 20 {
        std::io::Write::write_all(&mut file, &block).context("touch memory")?;
    }
    fs::remove_file(path).context("remove the file")
}

/// First and later starts, and memory at rest.
fn start(bench: &mut Bench) -> anyhow::Result<()> {
    let directory = passable_directory(None)?;
    let mut node = bench.node(directory.path());
    let first = node.start()?;
    bench.seconds("first start, with initdb", first, Some(10.0));
    node.stop()?;
    let mut later = Vec::new();
    for _ in 0..5 {
        later.push(node.start()?);
        if later.len() < 5 {
            node.stop()?;
        }
    }
    later.sort();
    bench.seconds("later start (median of 5)", later[2], Some(1.5));
    // Until background tasks of the start are through.
    std::thread::sleep(Duration::from_secs(5));
    let idle = memory_mib(node.pid().context("the daemon has gone")?, "VmRSS:").context("the daemon's memory")?;
    bench.figure("memory of the idle daemon, without PostgreSQL", idle, "MiB", Some(Bound::AtMost(100.0)));
    node.stop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_memory_of_a_process() {
        let own = peak_mib(std::process::id()).unwrap();
        assert!((1.0..1_000.0).contains(&own), "{own}");
    }

    #[test]
    fn an_unknown_benchmark_is_refused_with_the_list() {
        let error = run(&["nonsense".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("many-files"), "{error}");
    }
}
