//! The database past the daemon, for what must be compared with the same server: needs what an attacker would need, the
//! node's key (`bibd/daemon/examples/superuser_login.rs`).

use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

use super::Bench;
use crate::node::Node;
use crate::process::{capture, cargo};

/// Who logs in, and where.
#[derive(Debug, Clone)]
pub(super) struct Login {
    host: String,
    user: String,
    password: String,
}

impl Login {
    /// The superuser of a node that runs.
    pub(super) fn superuser(bench: &Bench, node: &Node) -> anyhow::Result<Self> {
        let build = ["build", "--release", "--locked", "--package", "bibd", "--example", "superuser_login"];
        crate::process::run(cargo().args(build))?;
        let example = bench.programs.bib.with_file_name("examples").join("superuser_login");
        let said = capture(Command::new(example).arg(node.data()))?;
        let said: Value = serde_json::from_str(&said).context("read what superuser_login said")?;
        let text = |name: &str| {
            said[name].as_str().map(str::to_owned).with_context(|| format!("superuser_login says no `{name}`"))
        };
        Ok(Self { host: text("host")?, user: text("user")?, password: text("password")? })
    }

    /// Somebody else at the same server.
    pub(super) fn of(&self, user: &str, password: &str) -> Self {
        Self { host: self.host.clone(), user: user.to_owned(), password: password.to_owned() }
    }

    /// One of PostgreSQL's programs as this user, in BIB's database.
    pub(super) fn program(&self, bench: &Bench, name: &str) -> Command {
        let mut program = Command::new(bench.postgres.join(name));
        program.env("PGHOST", &self.host).env("PGUSER", &self.user).env("PGPASSWORD", &self.password);
        program.env("PGDATABASE", "bib").env("PGPORT", "5432").env("PGSSLMODE", "disable");
        program.env("PGGSSENCMODE", "disable");
        program
    }

    /// `psql`, without anybody's settings.
    pub(super) fn psql(&self, bench: &Bench) -> Command {
        let mut psql = self.program(bench, "psql");
        psql.arg("-X");
        psql
    }

    /// Says this to the server.
    pub(super) fn say(&self, bench: &Bench, sql: &str) -> anyhow::Result<String> {
        capture(self.psql(bench).args(["-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]))
    }
}
