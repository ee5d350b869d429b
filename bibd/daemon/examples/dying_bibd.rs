//! A daemon that kills itself (SIGKILL) at a step of its first rotation; for the tests of rotation.
//!
//! `dying_bibd DATA_DIR READY_FILE FAILPOINT`: the names of the steps are in `bibd_postgres::Failpoints`.

use std::path::PathBuf;
use std::sync::Arc;

use bibd::app::{Daemon, Options};
use bibd::clock::{Entropy, SystemClock};
use bibd::config::places::Home;
use bibd::config::{self, Sources};
use bibd_postgres::Failpoints;
use rustix::process::{Signal, getpid, kill_process};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [data_dir, ready_file, point] = <[String; 3]>::try_from(args).map_err(|_| "DATA_DIR READY_FILE FAILPOINT")?;
    let flags = vec![("data_dir", data_dir), ("grpc.listen", "127.0.0.1:0".to_owned())];
    let loaded = config::load(&Sources { flags, ..Sources::default() })?;
    let clock = Arc::new(SystemClock);
    let logs = bibd::logging::init(&loaded.config.log, clock.clone())?;
    let failpoints = Failpoints::new(move |hit| {
        // As `kill -9` would: nothing is flushed, no destructor runs.
        if hit == point && kill_process(getpid(), Signal::KILL).is_err() {
            std::process::abort();
        }
    });
    let options = Options {
        loaded,
        home: Home::of_this_user()?,
        ready_file: Some(PathBuf::from(ready_file)),
        admin_key: None,
        clock,
        entropy: Entropy::from_system(),
        logs,
        failpoints,
    };
    let daemon = Box::pin(Daemon::start(options)).await?;
    let drain = daemon.ended().await?;
    daemon.stop(drain).await;
    Ok(())
}
