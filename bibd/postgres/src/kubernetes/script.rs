//! What runs inside of the pod: one `sh` script for any image with PostgreSQL's programs.
//!
//! `init` makes the cluster by the same two steps as on a machine: `initdb` beside its place, then one rename. Whether
//! it may is not for the pod to decide: the file [`CLUSTER`] says `initialising`, or which
//! cluster must be there. So a volume that was lost never becomes an empty database. Its last words, where the kubelet
//! takes a container's from, are which cluster there is and whose programs ([`said`]).

use std::path::{Path, PathBuf};

use super::names::{self, CLUSTER, VERIFIER};
use crate::config::{AUTO_CONF, CONF, HBA, IDENT};
use crate::role::ADMIN;
use crate::settings::{Layout, PORT};
use crate::version::Version;

/// The script's name in the configuration's directory.
pub const SCRIPT: &str = "server.sh";
/// The server's user, as the pod's `/etc/passwd`: `initdb` looks its own name up.
pub const PASSWD: &str = "passwd";
/// How long `pg_isready` waits for an answer, seconds.
const ANSWER_S: u32 = 3;

/// Where the script finds what it works on.
#[derive(Debug, Clone)]
pub struct Inside {
    /// The server's directories.
    pub layout: Layout,
    /// The generated files.
    pub config: PathBuf,
    /// Where the superuser's verifier is, in the container that makes the cluster.
    pub first: PathBuf,
    /// The major version that the image must have.
    pub major: u32,
    /// Where the server listens.
    pub port: u16,
    /// How long a clean stop may take, seconds.
    pub stop_s: u64,
}

impl Inside {
    /// The places of a pod.
    #[must_use]
    pub fn of_pod(major: u32, stop_s: u64) -> Self {
        let (config, first) = (PathBuf::from(names::CONFIG), PathBuf::from(names::FIRST));
        Self { layout: names::layout(), config, first, major, port: PORT, stop_s }
    }

    /// The script, whole.
    #[must_use]
    pub fn script(&self) -> String {
        let layout = &self.layout;
        let head = format!(
            "#!/bin/sh\n\
             # Written by bibd: {SCRIPT} init|run|ready|alive|stop\n\
             set -eu\n\
             umask 077\n\
             ulimit -c 0\n\
             major={major}\n\
             port={port}\n\
             home={home}\n\
             data={data}\n\
             new={new}\n\
             config={config}\n\
             cluster={cluster}\n\
             verifier={verifier}\n",
            major = self.major,
            port = self.port,
            home = quoted(&layout.home),
            data = quoted(&layout.data),
            new = quoted(&layout.data_new),
            config = quoted(&self.config),
            cluster = quoted(&self.config.join(CLUSTER)),
            verifier = quoted(&self.first.join(VERIFIER)),
        );
        let settings = format!(
            "-c config_file=\"$config/{CONF}\" -c hba_file=\"$config/{HBA}\" -c ident_file=\"$config/{IDENT}\""
        );
        let body = BODY
            .replace("@ADMIN@", ADMIN)
            .replace("@AUTO@", AUTO_CONF)
            .replace("@SETTINGS@", &settings)
            .replace("@ANSWER@", &ANSWER_S.to_string())
            .replace("@STOP@", &self.stop_s.to_string());
        head + &body
    }
}

/// What `init` said: PostgreSQL's name of the cluster, and the version of the image's programs.
#[must_use]
pub fn said(message: &str) -> Option<(u64, Version)> {
    let (cluster, banner) = message.trim().split_once(' ')?;
    Some((cluster.parse().ok()?, Version::parse_banner(banner)?))
}

/// The one line of [`PASSWD`].
#[must_use]
pub fn passwd(uid: u32) -> String {
    format!("postgres:x:{uid}:{uid}:PostgreSQL:/tmp:/bin/sh\n")
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// The kubelet gives a volume's files to the pod's group, PGDATA too, which the server refuses to enter: hence `chmod`.
/// A reason is printed last, where the kubelet takes it from as the container's last words.
const BODY: &str = r#"
fail() {
    echo "$*" >&2
    exit 1
}

find_programs() {
    ifs=$IFS
    IFS=:
    found=
    for d in $PATH /usr/lib/postgresql/$major/bin /usr/pgsql-$major/bin /usr/local/pgsql/bin; do
        { [ -x "$d/postgres" ] && [ -x "$d/initdb" ]; } || continue
        banner=$("$d/postgres" --version 2>/dev/null) || continue
        case $banner in
            "postgres (PostgreSQL) $major"[.a-z]*) bin=$d; IFS=$ifs; return 0 ;;
        esac
        found="$found; $d has $banner"
    done
    IFS=$ifs
    fail "the image has no PostgreSQL $major${found:-, and no other}"
}

init() {
    expected=$(cat "$cluster")
    if [ -d "$data" ]; then
        chmod u=rwx,go=,g-s "$data"
        has=$(cat "$data/PG_VERSION")
        [ "$has" = "$major" ] || fail "the data belongs to PostgreSQL $has, the configuration says $major"
        is=$(identify)
        [ "$expected" = initialising ] || [ "$is" = "$expected" ] || fail "the volume holds cluster $is, expected $expected"
        rm -rf "$new"
        tell "$is"
        return 0
    fi
    [ "$expected" = initialising ] || fail "the volume is empty, expected cluster $expected"
    [ -s "$verifier" ] || fail "there is no verifier of the superuser"
    rm -rf "$new"
    mkdir -p -m 0700 "$new"
    if [ "$major" -ge 17 ]; then
        set -- --locale-provider=builtin --builtin-locale=C.UTF-8 --locale=C
    else
        ctype=C
        if locale -a 2>/dev/null | grep -qiE '^c\.utf-?8$'; then ctype=C.UTF-8; fi
        set -- --locale-provider=libc --locale=C --lc-ctype=$ctype
    fi
    "$bin/initdb" --pgdata="$new" --username=@ADMIN@ --pwfile="$verifier" --auth=scram-sha-256 \
        --data-checksums --encoding=UTF8 --no-instructions "$@"
    mv "$new" "$data"
    sync "$home"
    tell "$(identify)"
}

identify() {
    "$bin/pg_controldata" -D "$data" | sed -n 's/^Database system identifier: *//p'
}

tell() {
    [ ! -w /dev/termination-log ] || echo "$1 $banner" > /dev/termination-log
}

run() {
    [ -d "$data" ] || fail "there is no database in the volume"
    chmod u=rwx,go=,g-s "$data"
    : > "$data/@AUTO@"
    exec "$bin/postgres" -D "$data" @SETTINGS@
}

# 0 it accepts connections, 1 it refuses them for now, 2 it does not answer. Nobody is let in this way, and need not.
ask() {
    said=0
    PGSSLMODE=disable PGGSSENCMODE=disable "$bin/pg_isready" -q -h 127.0.0.1 -p "$port" -t @ANSWER@ || said=$?
    return "$said"
}

find_programs
case ${1:-} in
    init) init ;;
    run) run ;;
    ready) ask ;;
    alive) said=0; ask || said=$?; [ "$said" -le 1 ] ;;
    stop) "$bin/pg_ctl" stop -s -D "$data" -m fast -w -t @STOP@ ;;
    *) fail "usage: $0 init|run|ready|alive|stop" ;;
esac
"#;
