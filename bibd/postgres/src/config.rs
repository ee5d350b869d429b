//! The server's three configuration files, which we own whole: `postgresql.conf`, `pg_hba.conf`, `pg_ident.conf`.
//!
//! They are a function of the version, the layout and the limits, and are written anew at each start: what was
//! changed by hand or by `ALTER SYSTEM` is gone then, and until then the checklist names it. Values are spelled the
//! way `SHOW` prints them, so that the effective settings can be compared with the file word by word.

use std::path::Path;

use crate::account::Account;
use crate::error::Error;
use crate::file;
use crate::glass;
use crate::role::{ADMIN, DATABASE, GroupRole, Letter, MIGRATE};
use crate::scram;
use crate::settings::{Layout, Limits, MAX_CONNECTIONS, PORT, RESERVED_CONNECTIONS, Target, Wal};
use crate::tcp::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, Listening};
use crate::version::Version;
use crate::wal::{KEEP_NOTHING, archive_command, restore_command};

/// The files as they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Each setting with its value, in the file's order.
    pub settings: Vec<(&'static str, String)>,
    /// `pg_hba.conf`, whole.
    pub hba: String,
    /// `pg_ident.conf`, whole.
    pub ident: String,
    /// Set where the server is reached over TCP.
    pub(crate) listening: Option<Listening>,
}

/// The files' names in PGDATA.
pub const CONF: &str = "postgresql.conf";
/// Who may log in, how.
pub const HBA: &str = "pg_hba.conf";
/// User name maps: none.
pub const IDENT: &str = "pg_ident.conf";
/// What `ALTER SYSTEM` writes; kept empty.
pub const AUTO_CONF: &str = "postgresql.auto.conf";

const HEADER: &str = "# Written by bibd at each start: what is changed here by hand is lost then,\n\
                      # and `bib admin db audit` names it until then.\n";
const AUTO_HEADER: &str = "# Kept empty by bibd.\n";

impl Config {
    /// The files for a server of `version` that is reached through its socket.
    pub fn new(version: Version, layout: &Layout, limits: &Limits, wal: &Wal) -> Self {
        Self::of(version, layout, limits, wal, None)
    }

    /// What a setting is to be.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// The files for a server of `version` that is reached over TCP and has no socket. Its log leaves by streaming
    /// replication and not by a command: who takes it away is another machine.
    pub fn over_tcp(version: Version, layout: &Layout, limits: &Limits, wal: &Wal, listening: &Listening) -> Self {
        Self::of(version, layout, limits, wal, Some(listening))
    }

    fn of(version: Version, layout: &Layout, limits: &Limits, wal: &Wal, listening: Option<&Listening>) -> Self {
        Self {
            settings: settings(version, layout, limits, wal, listening),
            hba: hba(listening),
            ident: HEADER.to_owned(),
            listening: listening.cloned(),
        }
    }

    /// `postgresql.conf`, whole.
    pub fn conf(&self) -> String {
        let mut text = HEADER.to_owned();
        for (name, value) in &self.settings {
            text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        text
    }

    /// Each file with its content.
    pub fn files(&self) -> [(&'static str, String); 4] {
        [(CONF, self.conf()), (HBA, self.hba.clone()), (IDENT, self.ident.clone()), (AUTO_CONF, AUTO_HEADER.to_owned())]
    }

    /// Makes the files in `data` say this. Returns the names of those that said something else.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn write(&self, data: &Path, account: Account) -> Result<Vec<&'static str>, Error> {
        let mut changed = Vec::new();
        for (name, text) in self.files() {
            let path = data.join(name);
            if !std::fs::read(&path).is_ok_and(|bytes| bytes == text.as_bytes()) {
                file::replace(&path, text.as_bytes(), Some(account))?;
                changed.push(name);
            }
        }
        Ok(changed)
    }
}

/// All that TLS 1.3 has of use; older servers say the same by not saying anything.
const TLS13_CIPHERS: &str = "TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256";

/// Settings that a login role overrides (see `ensure::role_settings`): effective values differ from the file.
pub(crate) const SET_PER_ROLE: [&str; 1] = ["idle_in_transaction_session_timeout"];

fn settings(
    version: Version,
    layout: &Layout,
    limits: &Limits,
    wal: &Wal,
    listening: Option<&Listening>,
) -> Vec<(&'static str, String)> {
    let mut all: Vec<(&'static str, String)> = Vec::new();
    let mut set = |name, value: &str| all.push((name, value.to_owned()));

    // Reachable through one socket, in a directory that nobody else enters; or over TCP with TLS and no socket.
    set("listen_addresses", listening.map_or("", |one| &one.addresses));
    set("port", &listening.map_or(PORT, |one| one.port).to_string());
    let socket_dir = layout.socket_dir.display().to_string();
    set("unix_socket_directories", if listening.is_some() { "" } else { &socket_dir });
    set("unix_socket_permissions", "0700");
    set("unix_socket_group", "");
    set("bonjour", "off");
    set("ssl", if listening.is_some() { "on" } else { "off" });
    if let Some(listening) = listening {
        set("ssl_min_protocol_version", "TLSv1.3");
        set("ssl_max_protocol_version", "");
        set("ssl_ca_file", &listening.file(CA_FILE));
        set("ssl_cert_file", &listening.file(CERTIFICATE_FILE));
        set("ssl_key_file", &listening.file(KEY_FILE));
        set("ssl_crl_file", "");
        set("ssl_crl_dir", "");
        set("ssl_passphrase_command", "");
        if version.major >= 18 {
            set("ssl_groups", "X25519:prime256v1");
            set("ssl_tls13_ciphers", TLS13_CIPHERS);
        } else {
            set("ssl_ecdh_curve", "prime256v1");
        }
    }
    set("max_connections", &MAX_CONNECTIONS.to_string());
    set("superuser_reserved_connections", &RESERVED_CONNECTIONS.to_string());

    // Who somebody is.
    set("password_encryption", "scram-sha-256");
    if version.major >= 16 {
        set("scram_iterations", &scram::ITERATIONS.to_string());
    }
    if version.major <= 16 {
        set("db_user_namespace", "off");
    }
    set("authentication_timeout", "15s");
    set("krb_server_keyfile", "");
    set("row_security", "on");

    // What may be loaded and changed.
    set("shared_preload_libraries", "");
    set("session_preload_libraries", "");
    set("local_preload_libraries", "");
    set("dynamic_library_path", "$libdir");
    set("allow_system_table_mods", "off");
    if version.major >= 17 {
        set("allow_alter_system", "off");
    }

    // Nothing acknowledged is lost. Many small commits: groups form by themselves, segments are kept and reused.
    set("fsync", "on");
    set("full_page_writes", "on");
    set("synchronous_commit", "on");
    set("wal_level", "replica");
    set("wal_log_hints", "on");
    set("wal_compression", "pglz");
    set("max_wal_size", &megabytes(limits.max_wal_mb));
    set("min_wal_size", &megabytes((limits.max_wal_mb / 4).max(80)));
    set("checkpoint_timeout", "15min");
    set("checkpoint_completion_target", "0.9");
    set("max_wal_senders", "4");
    set("max_replication_slots", "4");
    set("max_slot_wal_keep_size", "4GB");
    // Always on, so that archiving begins and ends without a restart; without an archive the command keeps nothing.
    set("archive_mode", "on");
    match wal {
        Wal::Archive { timeout_s, .. } if listening.is_some() => {
            set("archive_command", KEEP_NOTHING);
            set("archive_timeout", &milliseconds(timeout_s.saturating_mul(1000)));
        }
        Wal::Archive { timeout_s, max_files, reserve_kb } => {
            set("archive_command", &archive_command(&layout.spool, *max_files, *reserve_kb));
            set("archive_timeout", &milliseconds(timeout_s.saturating_mul(1000)));
        }
        Wal::Recycle | Wal::Recover(_) => {
            set("archive_command", KEEP_NOTHING);
            set("archive_timeout", "0");
        }
    }
    if let Wal::Recover(recovery) = wal {
        // Nobody is let in before the end, so that who gets in sees the restored state and no earlier one.
        set("hot_standby", "off");
        set("restore_command", &recovery.feed.as_deref().map_or_else(|| "false".to_owned(), restore_command));
        set("recovery_target_timeline", "current");
        match &recovery.target {
            Target::Consistent => set("recovery_target", "immediate"),
            Target::Latest => {}
            // The server reads this before it knows the letters of any time zone.
            Target::Time(time) => set("recovery_target_time", &time.replace('T', " ").replace('Z', "+00")),
        }
        set("recovery_target_action", "promote");
    }
    set("data_sync_retry", "off");
    set("zero_damaged_pages", "off");

    // Sizes.
    set("shared_buffers", &megabytes(limits.shared_buffers_mb));
    set("work_mem", "8MB");
    set("maintenance_work_mem", "128MB");
    set("max_prepared_transactions", "0");
    set("jit", "off");

    // Nobody waits or idles for ever.
    set("idle_session_timeout", "1h");
    set("idle_in_transaction_session_timeout", "10min");
    set("client_connection_check_interval", "10s");
    // On a Unix socket the system's TCP timers say nothing; they are for the modes over TCP.
    set("tcp_keepalives_idle", "60");
    set("tcp_keepalives_interval", "10");
    set("tcp_keepalives_count", "6");

    // The log: who came, what was defined, what was slow; never a parameter, for those are people's data.
    set("logging_collector", "on");
    set("log_destination", "stderr");
    set("log_directory", &layout.log.display().to_string());
    set("log_filename", "postgresql-%a.log");
    set("log_file_mode", "0600");
    set("log_rotation_age", "1d");
    set("log_rotation_size", "0");
    set("log_truncate_on_rotation", "on");
    set("log_timezone", "UTC");
    set("log_line_prefix", "%m [%p] %q%u@%d %a %r ");
    set("log_error_verbosity", "default");
    set("log_connections", if version.major >= 18 { "receipt,authentication,authorization" } else { "on" });
    set("log_disconnections", "on");
    set("log_hostname", "off");
    set("log_statement", "ddl");
    set("log_replication_commands", "on");
    set("log_min_duration_statement", &milliseconds(limits.slow_statement_ms));
    set("log_parameter_max_length", "0");
    set("log_parameter_max_length_on_error", "0");
    set("log_checkpoints", "on");
    set("log_lock_waits", "on");
    set("debug_print_parse", "off");
    set("debug_print_rewritten", "off");
    set("debug_print_plan", "off");

    // One language, one clock, whatever the machine's.
    set("TimeZone", "UTC");
    set("lc_messages", "C");
    set("lc_monetary", "C");
    set("lc_numeric", "C");
    set("lc_time", "C");
    set("default_text_search_config", "pg_catalog.simple");
    all
}

/// Spelled as `SHOW` does: the largest unit that is exact.
fn megabytes(mb: u32) -> String {
    if mb.is_multiple_of(1024) && mb > 0 { format!("{}GB", mb / 1024) } else { format!("{mb}MB") }
}

/// Spelled as `SHOW` does.
fn milliseconds(ms: u32) -> String {
    match ms {
        0 => "0".to_owned(),
        ms if ms.is_multiple_of(60_000) => format!("{}min", ms / 60_000),
        ms if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

/// One line per login role, by its name; everything else is rejected, the last line for all. Over TCP each also shows a
/// certificate that bears its name, and nobody is let in without TLS or through a socket.
fn hba(listening: Option<&Listening>) -> String {
    let mut text = HEADER.to_owned();
    let width = if listening.is_some() { 9 } else { 6 };
    let mut line = |kind: &str, database: &str, user: &str, rest: &str| {
        text.push_str(&format!("{kind:<width$}{database:<14}{user:<22}{rest}\n"));
    };
    let (kind, how) = match listening {
        None => ("local", "scram-sha-256".to_owned()),
        Some(listening) => ("hostssl", format!("{:<16}{LET_IN_OVER_TCP}", listening.from)),
    };
    line(kind, &format!("{DATABASE},postgres"), ADMIN, &how);
    line(kind, DATABASE, MIGRATE, &how);
    for group in GroupRole::ALL {
        for letter in Letter::ALL {
            line(kind, DATABASE, &group.login_name(letter), &how);
        }
    }
    for access in glass::Access::ALL {
        // Whoever is a member: the roles of break-glass come and go without a word here.
        line(kind, DATABASE, &format!("+{}", access.group()), &how);
    }
    for letter in Letter::ALL {
        line(kind, "replication", &GroupRole::Backup.login_name(letter), &how);
    }
    line("local", "replication", "all", "reject");
    line("host", "all", "all", "all reject");
    line("host", "replication", "all", "all reject");
    line("local", "all", "all", "reject");
    text
}

/// A password, and a certificate whose name is the role's. PostgreSQL takes no `map=` with SCRAM, so the names are the
/// same.
const LET_IN_OVER_TCP: &str = "scram-sha-256 clientcert=verify-full";

#[cfg(test)]
mod tests {
    use super::*;

    fn config(major: u32) -> Config {
        let layout = Layout::new(Path::new("/var/lib/bibd"), Path::new("/run/bibd"));
        Config::new(Version { major, minor: 1 }, &layout, &Limits::default(), &Wal::Recycle)
    }

    #[test]
    fn each_version_gets_the_settings_it_knows() {
        let has = |major, name: &str| config(major).settings.iter().any(|(n, _)| *n == name);
        assert_eq!([15, 16, 17, 18].map(|v| has(v, "scram_iterations")), [false, true, true, true]);
        assert_eq!([15, 16, 17, 18].map(|v| has(v, "db_user_namespace")), [true, true, false, false]);
        assert_eq!([15, 16, 17, 18].map(|v| has(v, "allow_alter_system")), [false, false, true, true]);
        for major in 15..=18 {
            let names: std::collections::BTreeSet<_> = config(major).settings.iter().map(|(n, _)| *n).collect();
            assert_eq!(names.len(), config(major).settings.len(), "a setting stands twice");
        }
    }

    #[test]
    fn hba_never_trusts_and_ends_with_reject() {
        let hba = config(15).hba;
        let rules: Vec<&str> = hba.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(rules.iter().all(|rule| rule.ends_with("scram-sha-256") || rule.ends_with("reject")));
        assert_eq!(rules.last().unwrap().split_whitespace().collect::<Vec<_>>(), ["local", "all", "all", "reject"]);
        assert!(rules.iter().filter(|rule| rule.starts_with("host")).all(|rule| rule.ends_with("reject")));
    }

    fn over_tcp(major: u32) -> Config {
        let layout = Layout::new(Path::new("/var/lib/bibd"), Path::new("/run/bibd"));
        let listening = Listening::on_loopback(5433, Path::new("/run/bibd/pg/tls"));
        Config::over_tcp(Version { major, minor: 1 }, &layout, &Limits::default(), &Wal::Recycle, &listening)
    }

    #[test]
    fn over_tcp_only_these_settings_differ() {
        let (socket, tcp) = (config(15), over_tcp(15));
        let differs: Vec<String> = tcp
            .settings
            .iter()
            .filter(|one| !socket.settings.contains(one))
            .map(|(name, value)| format!("{name} = '{value}'\n"))
            .collect();
        expect_test::expect![[r#"
            listen_addresses = '127.0.0.1'
            port = '5433'
            unix_socket_directories = ''
            ssl = 'on'
            ssl_min_protocol_version = 'TLSv1.3'
            ssl_max_protocol_version = ''
            ssl_ca_file = '/run/bibd/pg/tls/ca.crt'
            ssl_cert_file = '/run/bibd/pg/tls/server.crt'
            ssl_key_file = '/run/bibd/pg/tls/server.key'
            ssl_crl_file = ''
            ssl_crl_dir = ''
            ssl_passphrase_command = ''
            ssl_ecdh_curve = 'prime256v1'
        "#]]
        .assert_eq(&differs.concat());
        let names = |config: &Config| config.settings.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        assert!(
            names(&over_tcp(18)).contains(&"ssl_tls13_ciphers") && !names(&over_tcp(18)).contains(&"ssl_ecdh_curve")
        );
        assert!(names(&socket).iter().all(|name| names(&tcp).contains(name)));
    }

    #[test]
    fn over_tcp_everybody_shows_both_factors_and_nobody_comes_by_another_way() {
        let hba = over_tcp(15).hba;
        let shown: Vec<&str> = hba
            .lines()
            .filter(|line| !line.starts_with('#') && !line.contains("_scrape_") && !line.contains("_transform_"))
            .filter(|line| {
                !["_seal_", "_audit_", "_monitor_", "_query_", "_jobs_"].iter().any(|role| line.contains(role))
            })
            .collect();
        expect_test::expect![[r#"
            hostssl  bib,postgres  bibd_admin            127.0.0.1/32    scram-sha-256 clientcert=verify-full
            hostssl  bib           bibd_migrate          127.0.0.1/32    scram-sha-256 clientcert=verify-full
            hostssl  bib           bibd_service_a        127.0.0.1/32    scram-sha-256 clientcert=verify-full
            hostssl  bib           bibd_service_b        127.0.0.1/32    scram-sha-256 clientcert=verify-full
            hostssl  bib           bibd_backup_a         127.0.0.1/32    scram-sha-256 clientcert=verify-full
            hostssl  bib           bibd_backup_b         127.0.0.1/32    scram-sha-256 clientcert=verify-full
            hostssl  bib           +bibd_glass_read      127.0.0.1/32    scram-sha-256 clientcert=verify-full
            hostssl  bib           +bibd_glass_write     127.0.0.1/32    scram-sha-256 clientcert=verify-full
            hostssl  replication   bibd_backup_a         127.0.0.1/32    scram-sha-256 clientcert=verify-full
            hostssl  replication   bibd_backup_b         127.0.0.1/32    scram-sha-256 clientcert=verify-full
            local    replication   all                   reject
            host     all           all                   all reject
            host     replication   all                   all reject
            local    all           all                   reject
        "#]]
        .assert_eq(&format!("{}\n", shown.join("\n")));
        let logins = hba.lines().filter(|line| line.ends_with(LET_IN_OVER_TCP)).count();
        assert_eq!(logins, 2 + GroupRole::ALL.len() * 2 + 2 + 2);
    }

    #[test]
    fn sizes_and_times_are_spelled_as_show_does() {
        assert_eq!([128, 1024, 1536].map(megabytes), ["128MB", "1GB", "1536MB"]);
        assert_eq!([0, 250, 1000, 60_000].map(milliseconds), ["0", "250ms", "1s", "1min"]);
    }
}
