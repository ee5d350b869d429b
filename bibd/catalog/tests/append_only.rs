//! The log only grows (security.md, B-AUD 54): whoever tries anything else is refused, and details go one way only.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use bibd_postgres::GroupRole;
use sqlx::PgConnection;
use support::{TestServer, all_roles, code, machine_has_postgres, migrated, run, text};

const REFUSED: &str = "42501";
const LOG: [&str; 4] = ["audit_entry", "audit_detail", "audit_seal", "audit_checkpoint"];

/// A server whose log has three entries with details, a seal and a checkpoint.
async fn with_a_log() -> TestServer {
    let server = migrated().await;
    let mut service = server.connect(GroupRole::Service).await;
    run(&mut service, "SELECT bib.audit_make_month(now()), bib.audit_make_block(1, 1)").await.unwrap();
    for n in 1..=3 {
        run(&mut service, &entry(n, "topic.create", "topic:x")).await.unwrap();
    }
    let mut seal = server.connect(GroupRole::Seal).await;
    let zeros = "decode(repeat('00', 32), 'hex')";
    run(&mut seal, &format!("INSERT INTO bib.audit_seal VALUES (1, 1, '{}', now(), {zeros}, {zeros})", id(1)))
        .await
        .unwrap();
    run(&mut seal, "INSERT INTO bib.audit_checkpoint VALUES (1, 1, 'note', now())").await.unwrap();
    server
}

fn id(n: u8) -> String {
    format!("00000000-0000-7000-8000-0000000000{n:02x}")
}

fn entry(n: u8, action: &str, target: &str) -> String {
    let id = id(n);
    format!(
        "INSERT INTO bib.audit_entry (id, time, body, node, actor, via, action, target, result, operation)
         VALUES ('{id}', now(), '{{}}', 'n', 'a', 'socket', '{action}', '{target}', 'ok', '{id}');
         INSERT INTO bib.audit_detail VALUES ('{id}', now(), decode(repeat('11', 32), 'hex'), '{{}}')"
    )
}

/// Everything that would change or hide a row of the log, or make that possible.
async fn attacks(superuser: &mut PgConnection) -> Vec<String> {
    let partitions = "SELECT string_agg(relname, ' ') FROM pg_class WHERE relispartition AND relkind = 'r'";
    let partitions = text(superuser, partitions).await;
    let mut attacks = Vec::new();
    for table in LOG.into_iter().chain(partitions.split(' ')) {
        let column = if table.starts_with("audit_entry") {
            "actor = 'mallory'"
        } else if table.starts_with("audit_detail") {
            "details = ''"
        } else if table.starts_with("audit_seal") {
            "head = digest"
        } else {
            "note = ''"
        };
        for attack in [
            format!("UPDATE bib.{table} SET {column}"),
            format!("DELETE FROM bib.{table}"),
            format!("TRUNCATE bib.{table}"),
            format!("TRUNCATE bib.{table} CASCADE"),
            format!("ALTER TABLE bib.{table} DISABLE TRIGGER ALL"),
            format!("ALTER TABLE bib.{table} DISABLE TRIGGER USER"),
            format!("ALTER TABLE bib.{table} ADD COLUMN x int"),
            format!("ALTER TABLE bib.{table} OWNER TO CURRENT_USER"),
            format!("ALTER TABLE bib.{table} RENAME TO gone"),
            format!("DROP TABLE bib.{table}"),
            format!("DROP TRIGGER audit_truncate ON bib.{table}"),
            format!("CREATE RULE r AS ON INSERT TO bib.{table} DO INSTEAD NOTHING"),
            format!("CREATE TRIGGER t BEFORE INSERT ON bib.{table} FOR EACH ROW EXECUTE FUNCTION bib.audit_refuse()"),
            format!("LOCK TABLE bib.{table} IN ACCESS EXCLUSIVE MODE"),
            format!("COPY bib.{table} FROM PROGRAM 'true'"),
            format!("COPY bib.{table} FROM '/dev/null'"),
            format!("COPY bib.{table} TO PROGRAM 'true'"),
            format!("MERGE INTO bib.{table} t USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE"),
        ] {
            attacks.push(if attack.starts_with("LOCK") { format!("BEGIN; {attack}") } else { attack });
        }
    }
    attacks.extend(
        [
            "SET session_replication_role = replica",
            "SET LOCAL session_replication_role = replica",
            "SELECT set_config('session_replication_role', 'replica', false)",
            "SET ROLE bibd_owner",
            "SET ROLE bibd_migrate",
            "SET SESSION AUTHORIZATION bibd_admin",
            "ALTER ROLE bibd_owner LOGIN",
            "CREATE OR REPLACE FUNCTION bib.audit_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
            "DROP FUNCTION bib.audit_refuse() CASCADE",
            "ALTER FUNCTION bib.audit_erase(uuid) SECURITY INVOKER",
            "SELECT bib.audit_guard('bib.audit_checkpoint', 'entry')",
            "DROP SCHEMA bib CASCADE",
            "CREATE TABLE bib.mine ()",
            "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION bib.audit_refuse()",
            "CREATE POLICY p ON bib.audit_entry USING (false)",
            "UPDATE bib.audit_unsealed SET digest = ''",
            "TRUNCATE bib.audit_unsealed",
            "SELECT bib.audit_detach_month(now())",
            "SELECT bib.audit_drop_month(now(), '00000000-0000-7000-8000-000000000001')",
        ]
        .map(str::to_owned),
    );
    attacks
}

#[tokio::test]
async fn b_aud_54_every_attack_by_every_role_is_refused() {
    if !machine_has_postgres().await {
        return;
    }
    let server = with_a_log().await;
    let mut superuser = server.attacker().await;
    let before = fingerprint(&mut superuser).await;
    let attacks = attacks(&mut superuser).await;
    let mut wrong = Vec::new();
    for role in all_roles() {
        let mut connection = server.connect(role).await;
        for attack in &attacks {
            let answer = code(&mut connection, attack).await;
            run(&mut connection, "ROLLBACK").await.unwrap();
            if answer != REFUSED {
                wrong.push(format!("{role}: {attack}: {answer}"));
            }
        }
        if role != GroupRole::Seal {
            for attack in [
                "INSERT INTO bib.audit_seal SELECT epoch, seq + 1, entry_id, entry_time, digest, head FROM bib.audit_seal",
                "INSERT INTO bib.audit_checkpoint VALUES (9, 9, 'note', now())",
                "DELETE FROM bib.audit_unsealed",
                "INSERT INTO bib.audit_unsealed (id, time, digest) VALUES (gen_random_uuid(), now(), '')",
            ] {
                let answer = code(&mut connection, attack).await;
                if answer != REFUSED {
                    wrong.push(format!("{role}: {attack}: {answer}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} attacks:\n{}", wrong.len(), attacks.len() * 9, wrong.join("\n"));
    assert_eq!(fingerprint(&mut superuser).await, before);
}

/// All rows of the log, and its triggers.
async fn fingerprint(connection: &mut PgConnection) -> String {
    let sql = "SELECT md5(concat(
        (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM bib.audit_entry t),
        (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM bib.audit_detail t),
        (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM bib.audit_seal t),
        (SELECT string_agg(t::text, ',' ORDER BY t::text) FROM bib.audit_checkpoint t),
        (SELECT string_agg(tgrelid::regclass || tgname || tgenabled::text, ',' ORDER BY tgrelid, tgname) FROM pg_trigger)))";
    text(connection, sql).await
}

#[tokio::test]
async fn the_triggers_fire_for_the_owner_and_for_a_superuser_in_replica_mode() {
    if !machine_has_postgres().await {
        return;
    }
    let server = with_a_log().await;
    let mut superuser = server.attacker().await;
    let before = fingerprint(&mut superuser).await;
    let parts =
        "SELECT string_agg(relname, ' ') FROM pg_class WHERE relispartition AND relkind = 'r' AND relname ~ '^audit'";
    let parts = text(&mut superuser, parts).await;
    for begin in ["SET ROLE bibd_owner", "SET session_replication_role = replica"] {
        for table in LOG.into_iter().chain(parts.split(' ')) {
            for verb in [format!("DELETE FROM bib.{table}"), format!("TRUNCATE bib.{table}")] {
                let answer = code(&mut superuser, &format!("BEGIN; {begin}; {verb}")).await;
                run(&mut superuser, "ROLLBACK").await.unwrap();
                assert_eq!(answer, REFUSED, "{begin}: {verb}");
            }
        }
        let update = format!("BEGIN; {begin}; UPDATE bib.audit_entry SET actor = 'mallory'");
        assert_eq!(code(&mut superuser, &update).await, REFUSED, "{begin}");
        run(&mut superuser, "ROLLBACK").await.unwrap();
    }
    assert_eq!(fingerprint(&mut superuser).await, before);
}

#[tokio::test]
async fn details_go_only_together_with_an_entry_that_says_so() {
    if !machine_has_postgres().await {
        return;
    }
    let server = with_a_log().await;
    let mut service = server.connect(GroupRole::Service).await;
    let erase = format!("SELECT bib.audit_erase('{}')::text", id(1));
    let count = "SELECT string_agg(right(id::text, 2), ' ' ORDER BY id) FROM bib.audit_detail";

    assert_eq!(code(&mut service, &erase).await, REFUSED, "no entry at all");
    let other = format!("BEGIN; {}; {erase}", entry(9, "audit.erase", &id(2)));
    assert_eq!(code(&mut service, &other).await, REFUSED, "an entry about another one");
    run(&mut service, "ROLLBACK").await.unwrap();
    let failed = entry(9, "audit.erase", &id(1)).replace("'ok'", "'denied'");
    assert_eq!(code(&mut service, &format!("BEGIN; {failed}; {erase}")).await, REFUSED, "an entry about a refusal");
    run(&mut service, "ROLLBACK").await.unwrap();
    run(&mut service, &entry(8, "audit.erase", &id(1))).await.unwrap();
    assert_eq!(code(&mut service, &erase).await, REFUSED, "an entry of a transaction before");
    // What audit_erase says to the trigger is of no use to somebody without its rights.
    let forged = format!("BEGIN; SET LOCAL bib.erasing = '{0}'; DELETE FROM bib.audit_detail WHERE id = '{0}'", id(1));
    assert_eq!(code(&mut service, &forged).await, REFUSED);
    run(&mut service, "ROLLBACK").await.unwrap();
    assert_eq!(text(&mut service, count).await, "01 02 03 08");

    run(&mut service, &format!("BEGIN; {}", entry(10, "audit.erase", &id(1)))).await.unwrap();
    assert_eq!(text(&mut service, &erase).await, "true");
    assert_eq!(text(&mut service, &erase).await, "false", "gone already");
    let next = format!("SELECT bib.audit_erase('{}')", id(2));
    assert_eq!(code(&mut service, &format!("SAVEPOINT s; {next}")).await, REFUSED, "only what the entry names");
    run(&mut service, "ROLLBACK TO SAVEPOINT s; COMMIT").await.unwrap();
    assert_eq!(text(&mut service, count).await, "02 03 08 0a");
    assert_eq!(text(&mut service, "SELECT count(*)::text FROM bib.audit_entry").await, "5");
}
