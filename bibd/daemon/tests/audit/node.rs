//! A node's log on a real server: everything between the use cases and PostgreSQL, without the edge.
#![allow(unreachable_pub, reason = "a module of a test binary")]

#[path = "../../../postgres/tests/support/mod.rs"]
mod server;

use std::sync::Arc;
use std::time::Duration;

use bib_core::access::NodeRole;
use bib_core::{Timestamp, UserId};
use bib_identity::NodeKey;
use bibd::actor::{Actor, Call, Scopes, Via};
use bibd::clock::{Clock as _, Entropy, Ids, ManualClock};
use bibd::services::audit::AuditService;
use bibd::services::base::{Base, Quotas};
use bibd::services::journal::{Act, Journal};
use bibd::services::sequencer::Sequencer;
use bibd::services::updates::Updates;
use bibd_audit::CheckpointFile;
use bibd_blobs::BlobStore;
use bibd_catalog::{Db, Pools, migrate};
use bibd_postgres::GroupRole;
use serde_json::{Value, json};
pub use server::{TestServer, machine_has_postgres, run, text, wait_for};
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// 2026-11-28T12:00:00Z: the partitions of two months exist from the first moment.
const BEGIN_US: i64 = 1_795_867_200_000_000;

pub struct Node {
    pub server: TestServer,
    pub base: Base,
    pub clock: ManualClock,
    pub file: CheckpointFile,
    folder: tempfile::TempDir,
}

impl Node {
    pub async fn new() -> Self {
        let server = TestServer::started().await;
        let clock = ManualClock::at(Timestamp::from_micros(BEGIN_US));
        let now = clock.now();
        let migrated = server.database.with_migration_login(async |options| {
            let mut connection = PgConnection::connect_with(&options).await.unwrap();
            migrate::up(&mut connection, now).await
        });
        migrated.await.unwrap().unwrap();
        let pool = |group: GroupRole, size: u32| -> PgPool {
            let options = server.database.connect_options(group).unwrap();
            PgPoolOptions::new()
                .max_connections(size)
                .acquire_timeout(Duration::from_secs(20))
                .connect_lazy_with(options)
        };
        let db = Db::new(Pools {
            service: pool(GroupRole::Service, 24),
            seal: pool(GroupRole::Seal, 2),
            audit: pool(GroupRole::Audit, 4),
            monitor: pool(GroupRole::Monitor, 2),
        });
        let folder = tempfile::tempdir().unwrap();
        let mut entropy = Entropy::seeded(5);
        let key = NodeKey::create(&folder.path().join("node_key"), &mut entropy).unwrap();
        let ids = Ids::new(Arc::new(clock.clone()), entropy);
        let peer = key.peer_id();
        let base = Base {
            db,
            blobs: BlobStore::open(&folder.path().join("blobs"), bibd_blobs::Settings::default()).unwrap(),
            key: Arc::new(key),
            peer,
            epoch: 1,
            inheritance: Default::default(),
            journal: Journal::new(peer, ids.clone()),
            ids,
            updates: Updates::default(),
            quotas: Quotas::default(),
        };
        let file = CheckpointFile::new(&folder.path().join("checkpoints"));
        Self { server, base, clock, file, folder }
    }

    /// As after a restart of the daemon, in this epoch.
    pub fn restart(&mut self, epoch: u64) {
        self.base.epoch = epoch;
        self.base.journal = Journal::new(self.base.peer, self.base.ids.clone());
    }

    /// A call of somebody.
    pub fn call(&self) -> Call {
        let user = UserId::from_uuid(Uuid::from_u128(0xADA));
        let actor = Actor {
            user,
            name: "ada".to_owned(),
            role: NodeRole::Admin,
            via: Via::Socket { uid: 1000 },
            scopes: Scopes::All,
        };
        let operation = self.base.ids.operation();
        Call { operation, request_id: operation.to_string(), actor, time: self.base.now() }
    }

    /// One act in a transaction of its own.
    pub async fn act(&self, target: &str) -> Uuid {
        self.clock.advance(Duration::from_millis(7));
        let call = self.call();
        let tx = self.base.begin(&call, "test").await.unwrap();
        let act = Act::new("topic.create", target, json!({ "title": format!("about {target}") }));
        self.base.journal.commit(tx, &call, act).await.unwrap()
    }

    /// Seals what waits and signs a checkpoint, as each start of the daemon does.
    pub async fn seal(&self) {
        Sequencer::start(self.base.clone(), self.file.clone(), Duration::from_secs(3600)).await.unwrap();
    }

    /// The sequencer as the supervisor runs it: made again when it fails.
    pub async fn sequence(&self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let started = Sequencer::start(self.base.clone(), self.file.clone(), Duration::from_millis(200)).await;
            let Ok(sequencer) = started else { continue };
            if sequencer.run(stop.clone()).await.is_ok() {
                return;
            }
        }
    }

    pub async fn attacker(&self) -> PgConnection {
        self.server.attacker().await
    }

    /// Verdicts of both verifiers about the database as it is, with the checkpoint file or without.
    pub async fn verdicts(&self, with_file: bool) -> (Value, Value) {
        let nowhere = CheckpointFile::new(&self.folder.path().join("nowhere"));
        let file = if with_file { self.file.clone() } else { nowhere };
        let audit = AuditService::new(self.base.clone(), file.clone());
        let call = self.call();
        let (progress, mut told) = tokio::sync::mpsc::channel(64);
        let verification = audit.verify(&call, progress).await.unwrap();
        while told.try_recv().is_ok() {}
        let rust = summary(&verification.verdict);

        let (out, mut buffers) = tokio::sync::mpsc::channel::<Vec<u8>>(4);
        let read = async {
            let mut export = Vec::new();
            while let Some(buffer) = buffers.recv().await {
                export.extend_from_slice(&buffer);
            }
            export
        };
        let (exported, export) = futures::join!(audit.export(&call, out), read);
        exported.unwrap();
        (rust, self.python(&export, &file))
    }

    fn python(&self, export: &[u8], file: &CheckpointFile) -> Value {
        let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../audit/python/verify_log.py");
        let log = self.folder.path().join("log.jsonl");
        std::fs::write(&log, export).unwrap();
        let mut command = std::process::Command::new("python3");
        command.arg(script).arg(&log);
        let checkpoints = if file.path().exists() { file.path() } else { std::path::Path::new("-") };
        command.arg(checkpoints).arg(hex::encode(self.base.peer.public_key()));
        let output = command.output().expect("python3 is needed: the second verifier is written in it");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("python said {said}{error}"))
    }
}

/// What both verifiers tell of a verdict.
pub fn summary(verdict: &bibd_audit::Verdict) -> Value {
    use bibd_audit::Verdict;
    match verdict {
        Verdict::Ok(ok) => json!({
            "verdict": "OK", "entries": ok.entries, "head": ok.head,
            "checkpoint": [ok.checkpoint.epoch, ok.checkpoint.seq],
        }),
        Verdict::Tampered(tamper) => json!({
            "verdict": "TAMPERED", "first_bad": [tamper.first_bad.epoch, tamper.first_bad.seq], "class": tamper.class,
        }),
        Verdict::Unverified { entries, .. } => json!({"verdict": "UNVERIFIED", "entries": entries}),
    }
}

pub async fn number(connection: &mut PgConnection, sql: &str) -> u64 {
    let n: i64 = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await.unwrap();
    u64::try_from(n).unwrap()
}
