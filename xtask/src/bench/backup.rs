//! What a backup, a restore and the archive of the log cost, by what PostgreSQL's own programs do on the same server.
//!
//! The database holds rows that compress about as well as real ones, in a schema of the bench's own. `pg_basebackup` writes
//! one compressed file, synced, and nothing else; a backup is also sealed, hashed, signed and written down, a restore is
//! also opened, checked file by file, recovered, examined row by row and by the audit log.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::login::Login;
use super::{Bench, measure, median};
use crate::node::passable_directory;
use crate::process::{capture, shown};
use crate::report::Bound;

/// How much the database holds at least.
const BYTES: u64 = 5 << 30;
/// Rows of one statement of the filling: half a GiB.
const ROWS: u64 = 400_000;
/// The compression of a backup, as `pg_basebackup` spells it (`bibd/daemon/src/backup/pack.rs`).
const COMPRESSION: &str = "--compress=client-zstd:1";
/// How long `pgbench` runs each time, in seconds, and how often each way.
const PGBENCH_SECONDS: &str = "30";
const PGBENCH_TURNS: usize = 3;
/// `pgbench -i -s`: 300 MB of tables.
const PGBENCH_SCALE: &str = "20";
/// How long the archive may take to catch up.
const ARCHIVED: Duration = Duration::from_secs(300);

/// A backup of 5 GiB and its restore.
pub(super) fn backup(bench: &mut Bench) -> anyhow::Result<()> {
    let directory = passable_directory(None)?;
    let home = directory.path();
    let mut node = bench.node(home);
    // Filled before there is a store: an archive of the filling would be measured by nobody.
    node.start()?;
    let superuser = Login::superuser(bench, &node)?;
    let bytes = fill(bench, &superuser)?;
    node.stop()?;
    let store = home.join("store");
    configure(home, Some(&store))?;
    node.start()?;
    let sheet = home.join("sheet").display().to_string();
    node.ask(&["admin", "recovery", "export", "--out", &sheet])?;

    let alone = base_backup(bench, &superuser, &home.join("alone.tar.zst"))?;
    let made = measure(&mut node.bib(["admin", "backup", "create"]))?;
    let id = made.answer["backup"].as_str().context("a backup has no name")?.to_owned();
    let back = home.join("back");
    let mut restore = node.bibd(["restore", "--output", "json", "--backup", &id]);
    restore.arg("--from").arg(&store).arg("--to").arg(&back).args(["--identity", &sheet]);
    let began = Instant::now();
    let restored: Value = serde_json::from_str(&capture(&mut restore)?).context("read what restore said")?;
    let restoring = began.elapsed();
    ensure!(restored["verdict"] == "OK", "the restored node: {restored}");
    bench.memory(made.peak_mib, &node)?;
    node.stop()?;

    let rate = |took: Duration| bytes as f64 / took.as_secs_f64() / f64::from(1 << 20);
    bench.figure("the database", bytes as f64 / f64::from(1 << 30), "GiB", Some(Bound::AtLeast(5.0)));
    bench.figure("`pg_basebackup` alone, compressed, synced", rate(alone), "MiB/s", None);
    bench.figure("`bib admin backup create`", rate(made.took), "MiB/s", None);
    bench.figure("by the speed of `pg_basebackup`", ratio(alone, made.took), "x", Some(Bound::AtLeast(0.5)));
    bench.figure("`bibd restore`", rate(restoring), "MiB/s", None);
    bench.figure("by the speed of `pg_basebackup`, a restore", ratio(alone, restoring), "x", Some(Bound::AtLeast(0.5)));
    Ok(())
}

/// `pgbench` with and without the archive of the log, in turn.
pub(super) fn archive(bench: &mut Bench) -> anyhow::Result<()> {
    let directory = passable_directory(None)?;
    let home = directory.path();
    let mut node = bench.node(home);
    node.start()?;
    let superuser = Login::superuser(bench, &node)?;
    superuser.say(bench, "CREATE SCHEMA bench")?;
    capture(pgbench(bench, &superuser).args(["-i", "-q", "-s", PGBENCH_SCALE]))?;
    // Sealing takes a recovery key, and without a backup that it continues no log is kept.
    node.ask(&["admin", "recovery", "export", "--out", &home.join("sheet").display().to_string()])?;
    node.stop()?;
    let store = home.join("store");
    configure(home, Some(&store))?;
    node.start()?;
    node.ask(&["admin", "backup", "create"])?;
    node.stop()?;
    let before = count(&store)?;
    let mut rates: [Vec<f64>; 2] = Default::default();
    for _ in 0..PGBENCH_TURNS {
        for (rates, store) in rates.iter_mut().zip([None, Some(store.as_path())]) {
            configure(home, store)?;
            node.start()?;
            // The cache is as warm as it gets, and no checkpoint of the turn before falls into this one.
            superuser.say(bench, "CHECKPOINT")?;
            let said = capture(pgbench(bench, &superuser).args(["-c", "8", "-j", "2", "-T", PGBENCH_SECONDS]))?;
            rates.push(transactions(&said)?);
            if store.is_some() {
                wait_until_shipped(&node.data().join("postgres/spool"), bench, &superuser)?;
            }
            node.stop()?;
        }
    }
    ensure!(count(&store)? > before, "nothing was archived");
    let [without, with] = rates.map(median);
    bench.figure("`pgbench`, 8 clients, without an archive", without, "transactions/s", None);
    bench.figure("the same with the log archived, sealed and shipped", with, "transactions/s", None);
    bench.figure("with the archive by without", with / without, "x", Some(Bound::AtLeast(0.85)));
    Ok(())
}

fn ratio(alone: Duration, ours: Duration) -> f64 {
    alone.as_secs_f64() / ours.as_secs_f64()
}

fn configure(home: &Path, store: Option<&Path>) -> anyhow::Result<()> {
    let config = home.join("config");
    fs::create_dir_all(&config).context("make the configuration's directory")?;
    let text = store.map(|store| format!("backup:\n  store: {}\n  every: 0s\n", store.display())).unwrap_or_default();
    fs::write(config.join("config.yaml"), text).context("write the configuration")
}

/// Rows until the database is large enough; returns its size.
fn fill(bench: &Bench, superuser: &Login) -> anyhow::Result<u64> {
    superuser.say(bench, "CREATE SCHEMA bench; CREATE TABLE bench.rows (number bigint, words text)")?;
    loop {
        let size = superuser.say(bench, "SELECT pg_database_size('bib')")?;
        let size: u64 = size.trim().parse().context("read the size of the database")?;
        println!("the database holds {} MiB", size >> 20);
        if size >= BYTES {
            return Ok(size);
        }
        // Hexadecimal digits of a hash, and words that come again: half of it is news.
        let rows = format!(
            "INSERT INTO bench.rows SELECT n, (SELECT string_agg(md5((n * 31 + k)::text) || ' sample measured at ', '')
             FROM generate_series(1, 24) k) FROM generate_series(1, {ROWS}) n; CHECKPOINT"
        );
        superuser.say(bench, &rows)?;
    }
}

/// `pg_basebackup` into one file on the disk, as a login of the backup's role that is idle at the time.
fn base_backup(bench: &Bench, superuser: &Login, target: &Path) -> anyhow::Result<Duration> {
    let idle = "SELECT rolname FROM pg_roles WHERE rolname ~ '^bibd_backup_[ab]$' AND NOT rolcanlogin";
    let name = superuser.say(bench, idle)?.trim().to_owned();
    superuser.say(bench, &format!("ALTER ROLE {name} LOGIN PASSWORD 'bench'"))?;
    let mut program = superuser.of(&name, "bench").program(bench, "pg_basebackup");
    program.args(["-D", "-", "-Ft", "-X", "fetch", "--checkpoint=fast", COMPRESSION]);
    let file = File::create(target).context("make a file")?;
    let began = Instant::now();
    program.stdin(Stdio::null()).stdout(file.try_clone().context("share a file")?);
    ensure!(program.status().context("run pg_basebackup")?.success(), "`{}` failed", shown(&program));
    file.sync_all().context("sync a file")?;
    let took = began.elapsed();
    superuser.say(bench, &format!("ALTER ROLE {name} NOLOGIN PASSWORD NULL"))?;
    fs::remove_file(target).context("remove a file")?;
    Ok(took)
}

fn pgbench(bench: &Bench, superuser: &Login) -> Command {
    let mut program = superuser.program(bench, "pgbench");
    program.env("PGOPTIONS", "-c search_path=bench");
    program
}

/// Transactions a second, as `pgbench` says them.
fn transactions(said: &str) -> anyhow::Result<f64> {
    let line = said.lines().find_map(|line| line.strip_prefix("tps = ")).context("pgbench says no `tps`")?;
    line.split(' ').next().and_then(|number| number.parse().ok()).with_context(|| format!("read `{line}`"))
}

/// Waits until the server has nothing left to hand over, and the daemon nothing to ship.
fn wait_until_shipped(spool: &Path, bench: &Bench, superuser: &Login) -> anyhow::Result<()> {
    let began = Instant::now();
    let waiting = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name ~ 'ready$'";
    while superuser.say(bench, waiting)?.trim() != "0" || count(spool)? > 0 {
        ensure!(began.elapsed() < ARCHIVED, "the archive does not catch up");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Files below `directory`.
fn count(directory: &Path) -> anyhow::Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir(directory).with_context(|| format!("read `{}`", directory.display()))? {
        let entry = entry.context("read a directory")?;
        found += if entry.file_type().context("look at a file")?.is_dir() { count(&entry.path())? } else { 1 };
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read_out_of_what_pgbench_says() {
        let said = "number of failed transactions: 0 (0.000%)\nlatency average = 4.2 ms\n\
                    tps = 1905.25 (without initial connection time)\n";
        assert!((transactions(said).unwrap() - 1905.25).abs() < 1e-6);
        assert!(transactions("nothing").is_err());
    }

    #[test]
    fn files_are_counted_below_directories() {
        let here = tempfile::tempdir().unwrap();
        fs::create_dir(here.path().join("a")).unwrap();
        fs::write(here.path().join("a/1"), "").unwrap();
        fs::write(here.path().join("2"), "").unwrap();
        assert_eq!(count(here.path()).unwrap(), 2);
    }
}
