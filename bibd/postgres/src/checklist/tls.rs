//! What protects a server that is reached over TCP: C.2-16 and C.4-45, as the running server sees it.

use std::os::unix::fs::MetadataExt as _;

use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::error::Error;
use crate::role::OPERATOR;
use crate::tcp::{KEY_FILE, Listening};

use super::server::{Effective, Rule};
use super::{Facts, Findings};

/// How many sessions a finding names.
const SHOWN: i64 = 5;

/// What the key's file and its directory are that should be closed to others; nothing when they are.
pub(super) fn open_files(listening: &Listening, uid: u32) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, wanted) in [(listening.files.clone(), 0o700), (listening.files.join(KEY_FILE), 0o600)] {
        match std::fs::symlink_metadata(&path) {
            Err(error) => problems.push(format!("{}: {error}", path.display())),
            Ok(meta) if meta.mode() & 0o7777 != wanted || meta.uid() != uid => {
                problems.push(format!("{} is {:04o} of user {}", path.display(), meta.mode() & 0o7777, meta.uid()));
            }
            Ok(_) => {}
        }
    }
    problems
}

/// The items of TLS, asked of the server.
pub(super) async fn check(
    connection: &mut PgConnection,
    effective: &Effective,
    rules: &[Rule],
    facts: &Facts,
    findings: &mut Findings,
) -> Result<(), Error> {
    let mut problems = effective.others(&[("ssl", "on"), ("ssl_min_protocol_version", "TLSv1.3")]);
    for name in ["ssl_ca_file", "ssl_cert_file", "ssl_key_file"] {
        if effective.shown(name).is_empty() {
            problems.push(format!("{name} is empty"));
        }
    }
    let open =
        rules.iter().filter(|rule| rule.method != "reject" && !(rule.kind == "hostssl" && rule.asks_certificate));
    problems.extend(open.map(|rule| format!("line {}: no certificate is asked for", rule.line)));
    problems.extend_from_slice(&facts.open_certificates);
    let expected = if facts.is_operated {
        "TLS 1.3, every rule of ours hostssl with clientcert=verify-full; the files of the key are the operator's"
    } else {
        "TLS 1.3, every rule hostssl with clientcert=verify-full, the key for the server alone"
    };
    findings.none("C.2-16", "TLS with client certificates", problems, expected);

    // The name in the certificate is the role's: that is what verify-full is.
    let rows = sqlx::query(
        "SELECT concat_ws(' ', activity.usename, coalesce(tls.version, 'without TLS'), tls.client_dn)
         FROM pg_stat_activity AS activity
         LEFT JOIN pg_stat_ssl AS tls USING (pid)
         WHERE activity.usename IS NOT NULL
           AND activity.backend_type IN ('client backend', 'walsender')
           AND (tls.ssl IS NOT TRUE
                OR tls.version IS DISTINCT FROM 'TLSv1.3'
                OR tls.client_dn IS DISTINCT FROM '/CN=' || activity.usename)
           AND NOT ($2 AND activity.usename = $3 AND activity.client_addr IS NULL)
         LIMIT $1",
    )
    .bind(SHOWN)
    .bind(facts.is_operated)
    .bind(OPERATOR)
    .fetch_all(connection)
    .await
    .map_err(Error::sql("look at the sessions' TLS"))?;
    let problems = rows.iter().map(|row| row.get::<String, _>(0)).collect();
    let expected = if facts.is_operated {
        "every session with TLS 1.3 and a certificate of its own role, but the operator's own through the pod's socket"
    } else {
        "every session with TLS 1.3 and a certificate of its own role"
    };
    findings.none("C.4-45", "every connection uses TLS", problems, expected);
    Ok(())
}
