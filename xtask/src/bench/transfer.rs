//! A large file, over the socket and over TLS, against hashing and copying it with the system's own tools.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::{Bench, measure, touch_memory};
use crate::node::{Node, passable_directory};
use crate::process::capture;
use crate::random::{Random, write_file};
use crate::report::Bound;

/// 2 GiB.
const BYTES: u64 = 2 << 30;

/// Publishes and downloads 2 GiB of random bytes, by both ways.
pub(super) fn large_file(bench: &mut Bench) -> anyhow::Result<()> {
    let directory = passable_directory(None)?;
    let home = directory.path();
    let mut random = bench.random();
    let mut node = bench.node(home);
    node.start()?;

    let one = input(home, "one", &mut random)?;
    touch_memory(home, 3 * BYTES)?;
    // Memory that was free for a while may belong to the host again, and `cp` would pay for getting it back: the best of
    // three in a row does not.
    let mut base = Duration::MAX;
    for _ in 0..3 {
        base = base.min(baseline(&home.join("one/data"), home)?);
    }
    bench.seconds("`openssl dgst -sha256`, `cp` and `fsync` of 2 GiB", base, None);
    let mut client_mib = 0.0_f64;

    let publish = measure(&mut publish(&node, &one, "bench/socket"))?;
    bench.seconds("publish 2 GiB over the socket", publish.took, None);
    bench.figure("publish, by the time of that", ratio(publish.took, base), "x", Some(Bound::AtMost(2.0)));
    let target = home.join("from-socket");
    touch_memory(home, BYTES)?;
    let download = measure(&mut download(&node, "bench/socket", &target))?;
    bench.seconds("download 2 GiB over the socket", download.took, None);
    bench.figure("download, by the time of that", ratio(download.took, base), "x", Some(Bound::AtMost(2.0)));
    same(&one, &target)?;
    client_mib = client_mib.max(publish.peak_mib).max(download.peak_mib);
    std::fs::remove_dir_all(&one).and_then(|()| std::fs::remove_dir_all(&target)).context("make room")?;

    // Other bytes, or nothing would be sent.
    let two = input(home, "two", &mut random)?;
    let address = node.ready()?.address.clone();
    let fingerprint = node.ready()?.fingerprint.clone();
    capture(node.bib(["connect", &address, "--fingerprint", &fingerprint, "--yes"]).env_remove("BIB_NODE"))?;
    let tls = |mut command: Command| {
        command.env("BIB_NODE", &address);
        command
    };
    capture(&mut tls(node.bib(["login", "--yes"])))?;
    let publish_tls = measure(&mut tls(self::publish(&node, &two, "bench/tls")))?;
    bench.seconds("publish 2 GiB over TLS on loopback", publish_tls.took, None);
    bench.figure(
        "publish over TLS, by the socket",
        ratio(publish_tls.took, publish.took),
        "x",
        Some(Bound::AtMost(1.5)),
    );
    let target = home.join("from-tls");
    touch_memory(home, BYTES)?;
    let download_tls = measure(&mut tls(self::download(&node, "bench/tls", &target)))?;
    bench.seconds("download 2 GiB over TLS on loopback", download_tls.took, None);
    let by_socket = ratio(download_tls.took, download.took);
    bench.figure("download over TLS, by the socket", by_socket, "x", Some(Bound::AtMost(1.5)));
    same(&two, &target)?;
    client_mib = client_mib.max(publish_tls.peak_mib).max(download_tls.peak_mib);
    bench.memory(client_mib, &node)?;
    node.stop()
}

fn ratio(value: Duration, base: Duration) -> f64 {
    value.as_secs_f64() / base.as_secs_f64()
}

fn input(home: &Path, name: &str, random: &mut Random) -> anyhow::Result<std::path::PathBuf> {
    let folder = home.join(name);
    std::fs::create_dir(&folder).context("make the folder")?;
    write_file(&folder.join("data"), BYTES, random)?;
    // What the input leaves in the page cache to be written must not be written while something is measured.
    capture(Command::new("sync").arg(folder.join("data")))?;
    Ok(folder)
}

fn baseline(file: &Path, home: &Path) -> anyhow::Result<Duration> {
    let copy = home.join("copy");
    let began = Instant::now();
    // The copy first, while the memory that was freed is still there.
    capture(Command::new("cp").args([file, copy.as_path()]))?;
    capture(Command::new("sync").arg(&copy))?;
    capture(Command::new("openssl").args(["dgst", "-sha256"]).arg(file))?;
    let took = began.elapsed();
    std::fs::remove_file(copy).context("remove the copy")?;
    Ok(took)
}

/// The command that publishes a folder.
pub(super) fn publish(node: &Node, folder: &Path, dataset: &str) -> Command {
    let mut command = node.bib(["dataset", "publish"]);
    command.arg(folder).args([dataset, "-m", "bench", "--license", "CC0-1.0", "--yes"]);
    command
}

/// The command that downloads a dataset.
pub(super) fn download(node: &Node, dataset: &str, target: &Path) -> Command {
    let mut command = node.bib(["dataset", "download", dataset]);
    command.arg(target);
    command
}

/// What came back is what was sent.
pub(super) fn same(one: &Path, other: &Path) -> anyhow::Result<()> {
    capture(Command::new("diff").args(["-r", "-q"]).args([one, other])).map(drop)
}
