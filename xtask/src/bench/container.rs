//! PostgreSQL in a container, its image at hand: how long until it takes connections.

use std::time::Duration;

use anyhow::Context as _;

use super::Bench;
use crate::engines::Engine;
use crate::image;
use crate::node::passable_directory;
use crate::process::capture;

const STARTS: usize = 5;

/// First and later starts on each engine.
pub(super) fn container(bench: &mut Bench) -> anyhow::Result<()> {
    image::ensure()?;
    for engine in Engine::ALL {
        let mut later = Vec::new();
        let directory = passable_directory(None)?;
        let mut node = bench.node(directory.path());
        node.in_a_container(engine.socket(), image::IMAGE);
        let first = node.start()?;
        for _ in 0..STARTS {
            node.stop()?;
            later.push(node.start()?);
        }
        node.stop()?;
        capture(&mut node.cleanup())?;
        later.sort();
        let name = engine.name();
        bench.seconds(&format!("first start with a container of {name}, with initdb"), first, Some(5.0));
        let median: Duration = *later.get(STARTS / 2).context("there were no starts")?;
        bench.seconds(&format!("later start with a container of {name} (median of {STARTS})"), median, Some(2.0));
    }
    Ok(())
}
