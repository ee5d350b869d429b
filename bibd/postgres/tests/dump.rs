//! Logical dumps: one snapshot whatever is written meanwhile, everything that is ours and nothing else, read by a server of
//! any provisioner and of a later major version; and nothing half said to be whole.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::io::{self, Read};
use std::time::Duration;

use bibd_postgres::dump::{LoadError, Rows};
use bibd_postgres::{Error, GroupRole, Stop};
use support::{Ground, TestServer, machine_has_postgres, newer_programs, run, text, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

on_every_provisioner!(a_dump_is_read_by_another_server, a_program_that_is_not_fed_leaves_nothing);

/// Tables as the catalog has them: owned by the owner, one partitioned, one made by a later migration without grants.
async fn fill(server: &TestServer) {
    let sql = "SET ROLE bibd_owner;
         CREATE SCHEMA bib;
         CREATE TABLE bib.plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, word text NOT NULL);
         INSERT INTO bib.plain (word) SELECT 'word ' || n FROM generate_series(1, 1000) n;
         CREATE TABLE bib.parts (at date NOT NULL, word text) PARTITION BY RANGE (at);
         CREATE TABLE bib.parts_1 PARTITION OF bib.parts FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
         CREATE TABLE bib.parts_2 PARTITION OF bib.parts FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
         INSERT INTO bib.parts SELECT date '2026-01-01' + n % 50, 'x' FROM generate_series(1, 500) n;
         CREATE FUNCTION bib.twice(x int) RETURNS int LANGUAGE sql AS 'SELECT 2 * x';
         CREATE TABLE bib.\"odd \"\"name\" AS SELECT 1 AS x";
    run(&mut server.attacker().await, sql).await.unwrap();
}

async fn read(mut reader: io::PipeReader) -> Vec<u8> {
    let all = move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map(|_| bytes)
    };
    tokio::task::spawn_blocking(all).await.unwrap().unwrap()
}

async fn dumped(server: &TestServer) -> (Vec<u8>, Rows) {
    let login = server.database.login(GroupRole::Backup).unwrap();
    let (dump, reader) = server.postgres.dump(&login).await.unwrap();
    // Whatever is committed now is not in it.
    let late = "INSERT INTO bib.plain (word) VALUES ('late'); DELETE FROM bib.parts WHERE at < '2026-01-10'";
    run(&mut server.attacker().await, late).await.unwrap();
    let bytes = read(reader).await;
    (bytes, dump.finish().await.unwrap())
}

/// The passwords and what the server shows of them are gone with the program.
fn leftovers(server: &TestServer) -> Vec<String> {
    let entries = std::fs::read_dir(server.layout().socket_dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("pgpass") || name.contains("pipe") || name == "backup").collect()
}

async fn a_dump_is_read_by_another_server(ground: Ground) {
    let server = TestServer::started_on(ground).await;
    fill(&server).await;
    let (bytes, rows) = dumped(&server).await;
    let counted = |table: &str| rows.get(table).copied();
    assert_eq!((counted("bib.plain"), counted("bib.parts")), (Some(1000), Some(500)), "{rows:?}");
    assert_eq!((counted("bib.\"odd \"\"name\""), rows.len()), (Some(1), 3), "partitions are in their table: {rows:?}");
    assert_eq!(leftovers(&server), Vec::<String>::new());
    server.postgres.stop(Stop::Clean).await.unwrap();

    let other = TestServer::started_on(loaded_on(ground)).await;
    other.database.load_dump(io::Cursor::new(bytes)).await.unwrap();
    other.database.ensure_roles().await.unwrap();
    assert_eq!(other.database.count_rows().await.unwrap(), rows);
    assert_eq!(leftovers(&other), Vec::<String>::new());
    let mut attacker = other.attacker().await;
    assert_eq!(text(&mut attacker, "SELECT bib.twice(count(*)::int)::text FROM bib.parts_1").await, "620");
    let owners = "SELECT string_agg(DISTINCT pg_get_userbyid(relowner), ',') FROM pg_class
                  WHERE relnamespace = 'bib'::regnamespace";
    assert_eq!(text(&mut attacker, owners).await, "bibd_owner");
    run(&mut attacker, "INSERT INTO bib.plain (word) VALUES ('after')").await.unwrap();
    // A sequence is of no moment: it may know of the late row.
    let next = text(&mut attacker, "SELECT id::text FROM bib.plain WHERE word = 'after'").await;
    assert!(["1001", "1002"].contains(&next.as_str()), "{next}");
    drop(attacker);
    other.postgres.stop(Stop::Clean).await.unwrap();
}

/// Where a dump of this ground is loaded: a pod's comes into a server beside the node, as every restore does.
fn loaded_on(ground: Ground) -> Ground {
    if ground == Ground::Tcp { Ground::Process } else { ground }
}

/// Gives some bytes, then fails.
struct Torn(io::Cursor<Vec<u8>>);

impl Read for Torn {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::Error::other("the store is gone")),
            read => Ok(read),
        }
    }
}

async fn a_program_that_is_not_fed_leaves_nothing(ground: Ground) {
    let server = TestServer::started_on(ground).await;
    fill(&server).await;
    let (bytes, _) = dumped(&server).await;
    let empty = |server: &TestServer| {
        let database = server.database.clone();
        async move { database.count_rows().await.unwrap().is_empty() }
    };
    server.postgres.stop(Stop::Clean).await.unwrap();
    let other = TestServer::started_on(loaded_on(ground)).await;
    let refused = other.database.load_dump(Torn(io::Cursor::new(bytes[..200].to_vec()))).await.unwrap_err();
    assert!(matches!(&refused, LoadError::Source(error) if error.to_string().contains("gone")), "{refused}");
    let refused = other.database.load_dump(io::Cursor::new(b"no dump".to_vec())).await.unwrap_err();
    assert!(matches!(refused, LoadError::Postgres(Error::Tool { tool: "pg_restore", .. })), "{refused}");
    assert!(empty(&other).await && leftovers(&other).is_empty(), "{:?}", leftovers(&other));
    // Cut in the rows: the program says so.
    let refused = other.database.load_dump(io::Cursor::new(bytes[..bytes.len() - 3000].to_vec())).await.unwrap_err();
    assert!(matches!(refused, LoadError::Postgres(Error::Tool { .. })), "{refused}");
    other.postgres.stop(Stop::Clean).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_is_read_by_a_later_major_version() {
    if !machine_has_postgres().await {
        return;
    }
    let Some(newer) = newer_programs().await else { return };
    let server = TestServer::started().await;
    fill(&server).await;
    let (bytes, rows) = dumped(&server).await;
    server.postgres.stop(Stop::Clean).await.unwrap();
    let mut other = TestServer::new();
    other.settings.bin_dir = Some(newer);
    other.another_daemon();
    other.postgres.provision().await.unwrap();
    other.postgres.start().await.unwrap();
    other.database.ensure_roles().await.unwrap();
    other.database.load_dump(io::Cursor::new(bytes)).await.unwrap();
    assert_eq!(other.database.count_rows().await.unwrap(), rows);
    other.postgres.stop(Stop::Clean).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_is_given_up_leaves_nobody_in_the_database() {
    if !machine_has_postgres().await {
        return;
    }
    let server = TestServer::started().await;
    fill(&server).await;
    let login = server.database.login(GroupRole::Backup).unwrap();
    let (dump, reader) = server.postgres.dump(&login).await.unwrap();
    drop((dump, reader));
    let mut attacker = server.attacker().await;
    let left = "SELECT count(*)::text FROM pg_stat_activity WHERE usename LIKE 'bibd\\_backup%'";
    wait_for("its sessions end", PATIENCE, async || text(&mut attacker, left).await == "0").await;
    assert_eq!(leftovers(&server), Vec::<String>::new());
    drop(attacker);
    server.postgres.stop(Stop::Clean).await.unwrap();
}
