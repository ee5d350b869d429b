//! `cargo xtask demo`: the main job as a user sees it, with the real programs in a temporary directory.
//!
//! Every command is printed before its output, as it can be pasted. The run fails when anything is not as it should be.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::node::{Node, Profile, Programs, passable_directory};
use crate::process::{capture, root, shown};
use crate::random::{Random, write_observations};
use crate::{offline, postgres};

/// Rows of the table.
const OBSERVATIONS: u64 = 1_000_000;
/// Makes the table the same on every machine.
const SEED: u64 = 20_261_120;

/// Runs the demo; `keep` leaves the node running.
///
/// # Errors
/// The first thing that is not as it should be.
pub fn run(keep: bool) -> anyhow::Result<()> {
    let postgres = postgres::ensure()?;
    println!("PostgreSQL: {}", postgres.display());
    // Unoptimised where it does not matter: it builds in minutes, and hashing is as fast as in a release.
    let programs = Programs::build(Profile::Dev)?;
    let directory = passable_directory(None)?;
    let began = Instant::now();
    let mut demo = Demo { node: Node::new(programs.clone(), directory.path()), home: directory.path().to_owned() };
    demo.story()?;
    println!("\nAll of it held, in {:.1} s.", began.elapsed().as_secs_f64());
    demo.leave(keep, &programs, directory)
}

struct Demo {
    node: Node,
    home: PathBuf,
}

impl Demo {
    fn story(&mut self) -> anyhow::Result<()> {
        self.prepare()?;
        self.title("A node of your own: PostgreSQL, keys, certificates, all by itself");
        println!("$ {} &", shown(&self.node.daemon()));
        let took = self.node.start()?;
        println!("ready in {:.1} s", took.as_secs_f64());
        self.bib(&["status"])?;

        self.title("Publish: the repository's own docs, and a million weather observations");
        self.bib(&[
            "dataset",
            "publish",
            "docs",
            "demo/handbook",
            "-m",
            "the handbook",
            "--license",
            "CC-BY-4.0",
            "--yes",
        ])?;
        let publish =
            ["dataset", "publish", "weather", "climate/stations", "-m", "hourly", "--license", "CC0-1.0", "--yes"];
        self.bib(&publish)?;
        let again = self.published(&publish)?;
        ensure!(again["created"] == false, "an unchanged folder made a version");

        self.title("Change a line of it and publish again: only what changed is sent");
        self.change()?;
        let change = ["dataset", "publish", "weather", "climate/stations", "-m", "one value corrected", "--yes"];
        let changed = self.published(&[&change[..], &["--license", "CC0-1.0"]].concat())?;
        let (bytes, sent) = (number(&changed, "bytes")?, number(&changed, "bytes_sent")?);
        ensure!(changed["created"] == true, "a changed folder made no version");
        ensure!(sent > 0 && sent * 4 < bytes, "of {bytes} bytes {sent} were sent again");
        println!("=> of {bytes} bytes {sent} were sent");
        self.bib(&["dataset", "versions", "climate/stations"])?;

        self.title("Get it back, bit for bit");
        self.bib(&["dataset", "download", "climate/stations", "restored"])?;
        self.shell("diff", &["-r", "weather", "restored"])?;
        println!("=> no difference");
        self.bib(&["dataset", "download", "demo/handbook", "handbook"])?;
        self.shell("diff", &["-r", "docs", "handbook"])?;
        println!("=> no difference");

        self.title("Verify it here, and prove it to a stranger who has no BIB");
        self.bib(&["dataset", "verify", "climate/stations", "restored"])?;
        self.prove()?;

        self.title("Who did what");
        self.bib(&["admin", "audit", "list"])?;
        let verdict = self.node.ask(&["admin", "audit", "verify"])?;
        self.bib(&["admin", "audit", "verify"])?;
        ensure!(verdict["verdict"] == "OK", "the audit log's verdict is {}", verdict["verdict"]);
        Ok(())
    }

    /// The folders that are published.
    fn prepare(&self) -> anyhow::Result<()> {
        self.title("The folders");
        copy_folder(&root().join("docs"), &self.home.join("docs"))?;
        fs::create_dir(self.home.join("weather")).context("make the folder of the table")?;
        let table = self.home.join("weather/observations.csv");
        write_observations(&table, OBSERVATIONS, &mut Random::of(SEED))?;
        fs::write(self.home.join("weather/README.md"), "Observations of 500 stations, one an hour. Made up.\n")
            .context("write the table's description")?;
        println!("in {}:", self.home.display());
        self.shell("du", &["-sh", "docs", "weather"])
    }

    /// One value in the middle of the table.
    fn change(&self) -> anyhow::Result<()> {
        let table = self.home.join("weather/observations.csv");
        let mut text = fs::read_to_string(&table).context("read the table")?;
        let middle = text.len() / 2;
        let line = middle + text[middle..].find('\n').context("find a line")? + 1;
        let end = line + text[line..].find('\n').context("find its end")?;
        text.replace_range(line..end, "S250,2060-01-01T00:00:00Z,-0.1,50,3.2,1013.2");
        fs::write(&table, text).context("write the table")
    }

    fn prove(&self) -> anyhow::Result<()> {
        let mut prove = self.node.bib(["dataset", "prove", "climate/stations"]);
        println!("$ {} > bundle.tar", shown(&prove));
        let output = prove.output().context("start bib")?;
        std::io::stderr().write_all(&output.stderr).context("pass standard error on")?;
        ensure!(output.status.success(), "`{}` failed: {}", shown(&prove), output.status);
        let bundle = self.home.join("bundle.tar");
        fs::write(&bundle, &output.stdout).context("write the bundle")?;
        let tools = offline::Tools::new()?;
        let key = &self.node.ready()?.peer_id;
        let said = tools.verify(&bundle, &self.home.join("restored"), key)?;
        println!(
            "$ python3 verify.py bundle.tar restored {key}     # the script of docs/verify.md, without BIB\n{said}"
        );
        Ok(())
    }

    /// Runs `bib` with our standard streams.
    fn bib(&self, arguments: &[&str]) -> anyhow::Result<()> {
        crate::process::run(&mut self.node.bib(arguments))
    }

    /// Publishes for a program: prints and returns the JSON.
    fn published(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let all = [arguments, &["-o", "json"]].concat();
        println!("$ {}", shown(&self.node.bib(&all)));
        let value: Value =
            serde_json::from_str(&capture(&mut self.node.bib(&all))?).context("read the JSON of publish")?;
        println!("{value:#}");
        Ok(value)
    }

    fn shell(&self, program: &str, arguments: &[&str]) -> anyhow::Result<()> {
        crate::process::run(Command::new(program).current_dir(&self.home).args(arguments))
    }

    fn title(&self, text: &str) {
        println!("\n# {text}");
    }

    /// Stops the node, or says how to go on with it.
    fn leave(self, keep: bool, programs: &Programs, directory: tempfile::TempDir) -> anyhow::Result<()> {
        let Self { mut node, home } = self;
        if !keep {
            node.stop()?;
            println!("The node was stopped and its directory removed. Try next:");
            println!("  cargo xtask demo --keep        the same, and the node stays for you to use");
            println!("  cargo xtask test               every test");
            println!("  docs/ARCHITECTURE.md           the map");
            return Ok(());
        }
        let socket = node.ready()?.socket.display().to_string();
        let _path = directory.keep();
        let pid = node.keep().context("the node has gone")?;
        println!("The node runs on. Try next, in this shell:");
        println!("  export HOME={}/home BIB_NODE=unix:{socket}", home.display());
        println!("  alias bib={}", programs.bib.display());
        println!("  bib topic list");
        println!("  bib dataset files climate/stations");
        println!("  bib dataset cite climate/stations");
        println!("  bib dataset publish FOLDER my/data -m 'what it is' --license CC-BY-4.0");
        println!("Stop it: kill {pid}     Remove it: rm -r {}", home.display());
        Ok(())
    }
}

fn number(value: &Value, name: &str) -> anyhow::Result<u64> {
    match value[name].as_u64() {
        Some(number) => Ok(number),
        None => bail!("the answer has no `{name}`: {value}"),
    }
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir(to).with_context(|| format!("make `{}`", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("read `{}`", from.display()))? {
        let entry = entry.context("read a folder")?;
        let target = to.join(entry.file_name());
        if entry.file_type().context("look at a file")?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("copy `{}`", entry.path().display()))?;
        }
    }
    Ok(())
}
