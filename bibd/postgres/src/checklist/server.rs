//! Settings and rules of the running server: C.1, C.2 and C.4.

use std::collections::BTreeMap;

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::config::{CONF, SET_PER_ROLE};
use crate::error::Error;
use crate::receive;
use crate::role::OPERATOR_REPLICA;
use crate::settings::{MAX_CONNECTIONS, RESERVED_CONNECTIONS};
use crate::version::Version;
use crate::wal::KEEP_NOTHING;

use super::{Facts, Finding, Findings, Status, tls};

/// The effective settings, as `SHOW` prints them and in their base unit.
pub(super) struct Effective(BTreeMap<String, One>);

struct One {
    shown: String,
    raw: String,
    source: String,
    pending: bool,
}

impl Effective {
    async fn read(connection: &mut PgConnection) -> Result<Self, Error> {
        let rows = sqlx::query(
            "SELECT name, coalesce(current_setting(name, true), ''), coalesce(setting, ''), source, pending_restart
             FROM pg_settings",
        )
        .fetch_all(connection)
        .await
        .map_err(Error::sql("read the settings"))?;
        Ok(Self(
            rows.iter()
                .map(|row| {
                    (row.get(0), One { shown: row.get(1), raw: row.get(2), source: row.get(3), pending: row.get(4) })
                })
                .collect(),
        ))
    }

    pub(super) fn shown(&self, name: &str) -> &str {
        self.0.get(name).map_or("(absent)", |one| one.shown.as_str())
    }

    /// In the setting's base unit; -1 when it is not a number.
    fn number(&self, name: &str) -> i64 {
        self.0.get(name).and_then(|one| one.raw.parse().ok()).unwrap_or(-1)
    }

    /// What of `wanted` is different: `name = value`.
    pub(super) fn others(&self, wanted: &[(&str, &str)]) -> Vec<String> {
        wanted
            .iter()
            .filter(|(name, value)| self.shown(name) != *value)
            .map(|(name, _)| format!("{name} = '{}'", self.shown(name)))
            .collect()
    }
}

/// The items that the server's settings, rules and functions answer.
pub(super) async fn check(
    connection: &mut PgConnection,
    version: Version,
    facts: &Facts,
    findings: &mut Findings,
) -> Result<(), Error> {
    let effective = Effective::read(connection).await?;
    findings.add(version_finding(version));
    instance(&effective, version, facts, findings);
    logging(&effective, version, facts, findings);
    durability(&effective, version, findings);
    if facts.config.listening.is_some() {
        reception(connection, &effective, findings).await?;
    } else {
        archive(&effective, findings);
    }
    let all = Rule::read(connection, facts.is_operated).await?;
    rules(&all, facts, findings);
    if facts.config.listening.is_some() {
        tls::check(connection, &effective, &all, facts, findings).await?;
    }
    passwords(connection, findings).await?;
    drift(connection, &effective, facts, findings).await
}

fn version_finding(version: Version) -> Finding {
    let floor = version.floor();
    let status = if floor.is_some_and(|floor| version >= floor) { Status::Pass } else { Status::Warn };
    let expected = floor.map_or_else(|| "15 to 18".to_owned(), |floor| format!("{floor} or newer"));
    Finding { item: "C.1-1", title: "newest minor release", status, observed: version.to_string(), expected }
}

fn instance(effective: &Effective, version: Version, facts: &Facts, findings: &mut Findings) {
    let mut all = |item, title, wanted: &[(&str, &str)]| {
        if wanted.iter().all(|(name, _)| facts.is_kept(name)) {
            return findings.leave(item, title, KEPT);
        }
        let expected: Vec<String> = wanted.iter().map(|(name, value)| format!("{name} = '{value}'")).collect();
        findings.none(item, title, effective.others(wanted), &expected.join(", "));
    };
    all("C.1-2", "page checksums", &[("data_checksums", "on")]);
    all("C.1-3", "data directory private", &[("data_directory_mode", "0700")]);
    all("C.1-4", "socket private", &[("unix_socket_permissions", "0700"), ("unix_socket_group", "")]);
    match &facts.config.listening {
        None => all("C.2-10", "no network address", &[("listen_addresses", "")]),
        Some(listening) => all(
            "C.2-10",
            "no other network address",
            &[("listen_addresses", &listening.addresses), ("unix_socket_directories", "")],
        ),
    }
    all("C.2-13", "SCRAM only", &[("password_encryption", "scram-sha-256")]);
    let mut sized = vec![("krb_server_keyfile", String::new())];
    sized.push(("max_connections", MAX_CONNECTIONS.to_string()));
    let sized: Vec<(&str, &str)> = sized.iter().map(|(name, value)| (*name, value.as_str())).collect();
    all("C.2-17", "no Kerberos, connections sized", &sized);
    if version.major <= 16 {
        all("C.2-18", "no per-database users", &[("db_user_namespace", "off")]);
    } else {
        let status = Status::Pass;
        let gone = "db_user_namespace is gone since 17".to_owned();
        let (item, title) = ("C.2-18", "no per-database users");
        findings.add(Finding { item, title, status, observed: gone.clone(), expected: gone });
    }
    let reserved = effective.number("superuser_reserved_connections");
    let enough = reserved >= i64::from(RESERVED_CONNECTIONS);
    findings.check(
        "C.2-17",
        "no Kerberos, connections sized",
        enough,
        format!("{reserved} reserved"),
        "3 reserved or more",
    );
    if version.major >= 16 {
        let rounds = effective.number("scram_iterations");
        findings.check(
            "C.2-14",
            "SCRAM rounds",
            rounds >= 4096,
            format!("scram_iterations = {rounds}"),
            "4096 or more",
        );
    }
    let seconds = effective.number("authentication_timeout");
    let good = (1..=20).contains(&seconds);
    findings.check("C.2-15", "log-in deadline", good, format!("authentication_timeout = {seconds} s"), "20 s or less");
}

fn logging(effective: &Effective, version: Version, facts: &Facts, findings: &mut Findings) {
    let connections = if version.major >= 18 { "receipt,authentication,authorization" } else { "on" };
    let wanted = [("log_connections", connections), ("log_disconnections", "on")];
    findings.none("C.4-32", "connections logged", effective.others(&wanted), "log_connections and log_disconnections");
    let prefix = effective.shown("log_line_prefix");
    let lacking = ["%m", "%p", "%q", "%u", "%d", "%a", "%r"].into_iter().filter(|part| !prefix.contains(part));
    let mut problems: Vec<String> = lacking.map(|part| format!("log_line_prefix lacks {part}")).collect();
    problems.extend(effective.others(&[("log_timezone", "UTC")]));
    if !["default", "verbose"].contains(&effective.shown("log_error_verbosity")) {
        problems.push(format!("log_error_verbosity = '{}'", effective.shown("log_error_verbosity")));
    }
    findings.none("C.4-33", "log lines complete", problems, "who, where, when in UTC");
    // pgaudit is not loaded: BIB's own audit log is chained, and the golden list of libraries is empty (40).
    let wanted =
        [("log_statement", "ddl"), ("log_parameter_max_length", "0"), ("log_parameter_max_length_on_error", "0")];
    findings.none(
        "C.4-34",
        "definitions logged, parameters not",
        effective.others(&wanted),
        "log_statement = ddl, no parameters",
    );
    let wanted = [
        ("debug_print_parse", "off"),
        ("debug_print_rewritten", "off"),
        ("debug_print_plan", "off"),
        ("log_replication_commands", "on"),
        ("log_file_mode", "0600"),
        ("log_hostname", "off"),
        // Where somebody else keeps and rotates it, the server does not.
        ("logging_collector", facts.config.value("logging_collector").unwrap_or("on")),
        ("log_truncate_on_rotation", "on"),
    ];
    let ours: Vec<(&str, &str)> = wanted.into_iter().filter(|(name, _)| !facts.is_kept(name)).collect();
    let mut problems = effective.others(&ours);
    for name in ["log_min_duration_statement", "log_rotation_age"] {
        if !facts.is_kept(name) && effective.number(name) < 1 {
            problems.push(format!("{name} = '{}'", effective.shown(name)));
        }
    }
    if !facts.is_kept("log_filename") && effective.shown("log_filename") != "postgresql-%a.log" {
        problems.push("log_filename does not keep one week".to_owned());
    }
    let expected = if facts.is_operated {
        "without data, slow statements; its files are the operator's"
    } else {
        "0600, a file a day, one week, slow statements"
    };
    findings.none("C.4-36", "log private, rotated, without data", problems, expected);
}

fn durability(effective: &Effective, version: Version, findings: &mut Findings) {
    let mut problems = effective.others(&[("fsync", "on"), ("full_page_writes", "on"), ("wal_log_hints", "on")]);
    if !["on", "remote_apply"].contains(&effective.shown("synchronous_commit")) {
        problems.push(format!("synchronous_commit = '{}'", effective.shown("synchronous_commit")));
    }
    findings.none(
        "C.4-37",
        "acknowledged is durable",
        problems,
        "fsync, full_page_writes, synchronous_commit, wal_log_hints on",
    );
    let keep = effective.number("max_slot_wal_keep_size");
    findings.check(
        "C.4-39",
        "slots cannot fill the disk",
        keep > 0,
        format!("{keep} MB"),
        "max_slot_wal_keep_size finite",
    );
    let libraries = ["shared_preload_libraries", "local_preload_libraries", "session_preload_libraries"];
    findings.none(
        "C.4-40",
        "no libraries loaded",
        effective.others(&libraries.map(|name| (name, ""))),
        "the golden list: none",
    );
    let mut wanted = vec![
        ("allow_system_table_mods", "off"),
        ("row_security", "on"),
        ("zero_damaged_pages", "off"),
        ("ignore_checksum_failure", "off"),
        ("ignore_invalid_pages", "off"),
        ("ignore_system_indexes", "off"),
        ("dynamic_library_path", "$libdir"),
    ];
    if version.major >= 17 {
        wanted.push(("allow_alter_system", "off"));
    }
    findings.none("C.4-41", "no dangerous switches", effective.others(&wanted), "all off, libraries from $libdir only");
    let mut problems = effective.others(&[("client_connection_check_interval", "10s")]);
    if effective.number("idle_session_timeout") < 1 {
        problems.push("idle_session_timeout is off".to_owned());
    }
    findings.none(
        "C.4-43",
        "idle sessions end",
        problems,
        "idle_session_timeout, client_connection_check_interval = 10s",
    );
    findings.none("C.4-44", "no JIT", effective.others(&[("jit", "off")]), "jit off");
}

/// Nobody said to where the log should go.
fn without_archive(findings: &mut Findings) {
    let reason = "there is no `backup.store` in the configuration";
    let (item, title, status) = ("C.4-38", ARCHIVING, Status::NotApplicable { reason });
    findings.0.push(Finding { item, title, status, observed: String::new(), expected: String::new() });
}

const KEPT: &str = "the operator keeps these settings for itself";
const ARCHIVING: &str = "WAL archiving";

/// The write-ahead log is received by streaming replication, where somebody said to where it goes.
async fn reception(connection: &mut PgConnection, effective: &Effective, findings: &mut Findings) -> Result<(), Error> {
    if effective.number("archive_timeout") == 0 {
        without_archive(findings);
        return Ok(());
    }
    let mut problems = too_rarely(effective);
    match receive::retained(connection).await? {
        None => problems.push(format!("there is no slot {}", receive::SLOT)),
        Some(kept) => {
            if !kept.is_active {
                problems.push(format!("nobody receives it ({} MiB wait)", kept.bytes >> 20));
            }
            if !["reserved", "extended"].contains(&kept.status.as_str()) {
                problems.push(format!("the slot is {}", kept.status));
            }
        }
    }
    findings.none("C.4-38", ARCHIVING, problems, "received over its slot, archive_timeout at most 60 s");
    Ok(())
}

fn too_rarely(effective: &Effective) -> Vec<String> {
    let good = (1..=60).contains(&effective.number("archive_timeout"));
    if good { Vec::new() } else { vec![format!("archive_timeout = '{}'", effective.shown("archive_timeout"))] }
}

/// The write-ahead log is archived, where somebody said to where.
fn archive(effective: &Effective, findings: &mut Findings) {
    if effective.shown("archive_command") == KEEP_NOTHING {
        return without_archive(findings);
    }
    let mut problems = effective.others(&[("archive_mode", "on")]);
    problems.extend(too_rarely(effective));
    findings.none("C.4-38", ARCHIVING, problems, "archive_mode on, archive_timeout at most 60 s");
}

/// A line of `pg_hba.conf`, as it is in the file now.
pub(super) struct Rule {
    pub(super) line: i32,
    pub(super) kind: String,
    database: String,
    user: String,
    pub(super) method: String,
    /// Whether who comes shows a certificate of its own name.
    pub(super) asks_certificate: bool,
    error: Option<String>,
}

impl Rule {
    async fn read(connection: &mut PgConnection, is_operated: bool) -> Result<Vec<Self>, Error> {
        let rows = sqlx::query(
            "SELECT line_number, coalesce(type, ''), coalesce(array_to_string(database, ','), ''),
                    coalesce(array_to_string(user_name, ','), ''), coalesce(auth_method, ''),
                    'clientcert=verify-full' = ANY (coalesce(options, '{}')), error
             FROM pg_hba_file_rules ORDER BY line_number",
        )
        .fetch_all(connection)
        .await
        .map_err(Error::sql("read the rules of pg_hba.conf"))?;
        let mut all: Vec<Self> = rows
            .iter()
            .map(|row| Self {
                line: row.get(0),
                kind: row.get(1),
                database: row.get(2),
                user: row.get(3),
                method: row.get(4),
                asks_certificate: row.get(5),
                error: row.get(6),
            })
            .collect();
        if is_operated {
            // What the operator adds after ours is not reached: ours end with a line that refuses everybody.
            if let Some(last) = all.iter().position(|rule| rule.spelled() == CLOSED) {
                let replication = all.get(last + 1).is_some_and(|rule| rule.spelled() == CLOSED_REPLICATION);
                all.truncate(last + 1 + usize::from(replication));
            }
            all.retain(|rule| !rule.is_operators());
        }
        Ok(all)
    }

    fn spelled(&self) -> String {
        [&self.kind, &self.database, &self.user, &self.method].map(String::as_str).join(" ")
    }

    /// Whether it is one of those that stand before ours under an operator: its superuser through the pod's socket, its
    /// servers that follow and its pooler, which we do not have, by certificate.
    fn is_operators(&self) -> bool {
        let fixed = [
            "local all all peer".to_owned(),
            format!("hostssl postgres {OPERATOR_REPLICA} cert"),
            format!("hostssl replication {OPERATOR_REPLICA} cert"),
            "hostssl all cnpg_pooler_pgbouncer cert".to_owned(),
        ];
        fixed.contains(&self.spelled())
    }
}

const CLOSED: &str = "host all all reject";
const CLOSED_REPLICATION: &str = "host replication all reject";

/// Who is let in; only connections of one kind are.
fn rules(all: &[Rule], facts: &Facts, findings: &mut Findings) {
    let kind = if facts.config.listening.is_some() { "hostssl" } else { "local" };
    let mut problems = Vec::new();
    for rule in all {
        let (line, method) = (rule.line, &rule.method);
        if let Some(error) = &rule.error {
            problems.push(format!("line {line}: {error}"));
        } else if !["scram-sha-256", "reject"].contains(&method.as_str()) {
            problems.push(format!("line {line}: {method}"));
        } else if rule.kind != kind && method != "reject" {
            problems.push(format!("line {line}: {} is let in", rule.kind));
        }
    }
    let last = all.last().map(Rule::spelled).unwrap_or_default();
    let wanted = if facts.is_operated { CLOSED_REPLICATION } else { "local all all reject" };
    if last != wanted {
        problems.push(format!("the last line is `{last}`"));
    }
    let mut expected = format!("SCRAM by name, {kind} only; reject all last");
    if facts.is_operated {
        expected.push_str("; before them the operator's own, by certificate or through the pod's socket");
    }
    findings.none("C.2-12", "who is let in", problems, &expected);
}

async fn passwords(connection: &mut PgConnection, findings: &mut Findings) -> Result<(), Error> {
    let row = sqlx::query("SELECT md5, other, weakest, missing FROM bibd_check.passwords()")
        .fetch_one(connection)
        .await
        .map_err(Error::sql("count the kinds of passwords"))?;
    let [md5, other, weakest, missing] = [0, 1, 2, 3].map(|index| row.get::<i64, _>(index));
    let observed = format!("{md5} md5, {} of other kinds, {missing} logins without", other - md5);
    let good = other == 0 && missing == 0;
    findings.check("C.2-13", "SCRAM only", good, observed, "every password a SCRAM verifier");
    findings.check(
        "C.2-14",
        "SCRAM rounds",
        weakest >= 4096,
        format!("the weakest verifier has {weakest}"),
        "4096 or more",
    );
    Ok(())
}

/// Whether the server runs with the generated files and nothing else.
async fn drift(
    connection: &mut PgConnection,
    effective: &Effective,
    facts: &Facts,
    findings: &mut Findings,
) -> Result<(), Error> {
    let row = sqlx::query("SELECT errors, foreign_settings FROM bibd_check.file_settings()")
        .fetch_one(connection)
        .await
        .map_err(Error::sql("count the settings in files"))?;
    let (errors, foreign): (i64, i64) = (row.get(0), row.get(1));
    let mut problems = Vec::new();
    if errors > 0 {
        problems.push(format!("{errors} errors in {CONF}"));
    }
    // The operator writes ours into a file of its own, which the first one includes.
    if foreign > 0 && !facts.is_operated {
        problems.push(format!("{foreign} settings from other files (ALTER SYSTEM, include)"));
    }
    problems.extend(facts.config_differs.iter().map(|name| format!("{name} is not the generated one")));
    for (name, one) in &effective.0 {
        if one.pending {
            problems.push(format!("{name} waits for a restart"));
        }
        if ["command line", "environment variable"].contains(&one.source.as_str()) {
            problems.push(format!("{name} comes from the {}", one.source));
        }
    }
    for (name, value) in &facts.config.settings {
        // The kernel has no TCP timers for a Unix socket: the server shows 0, whatever the file says.
        let shown_otherwise = SET_PER_ROLE.contains(name) || name.starts_with("tcp_keepalives") || facts.is_kept(name);
        if !shown_otherwise && effective.shown(name) != value {
            problems.push(format!("{name} = '{}', the file says '{value}'", effective.shown(name)));
        }
    }
    let expected = if facts.is_operated {
        "the effective settings are those that the operator was given, but those that it keeps for itself"
    } else {
        "the effective settings are those of the generated files"
    };
    findings.none("C.4-42", "no drift", problems, expected);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_an_old_minor_release() {
        let status = |major, minor| {
            let finding = version_finding(Version { major, minor });
            assert_eq!(finding.item, "C.1-1");
            finding.status
        };
        assert_eq!(status(15, 18), Status::Warn);
        assert_eq!(status(15, 20), Status::Pass);
        assert_eq!(status(18, 7), Status::Pass);
        assert_eq!(status(14, 99), Status::Warn);
    }
}
