//! The configuration: defaults, file, environment and flags, and what is said about mistakes.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Duration;

use bibd::config::{self, Config, Loaded, Origin, Problem, Sources};

fn yaml(text: &str) -> Sources {
    Sources { file: Some((PathBuf::from("config.yaml"), text.to_owned())), ..Sources::default() }
}

fn toml(text: &str) -> Sources {
    Sources { file: Some((PathBuf::from("config.toml"), text.to_owned())), ..Sources::default() }
}

fn good(sources: &Sources) -> Loaded {
    config::load(sources).unwrap()
}

/// The only problem of a configuration: key, line, message, hint.
fn problem(sources: &Sources) -> (String, Option<usize>, String, String) {
    let mut problems = config::load(sources).unwrap_err().0;
    assert_eq!(problems.len(), 1, "{problems:?}");
    let Problem { origin, key, message, hint } = problems.remove(0);
    let line = match origin {
        Origin::File { line, .. } => line,
        _ => None,
    };
    (key, line, message, hint.unwrap_or_default())
}

#[test]
fn nothing_given_is_the_default_and_every_default_is_valid() {
    let loaded = good(&Sources::default());
    assert_eq!(loaded.config, Config::default());
    assert!(loaded.entries().iter().all(|entry| entry.origin == Origin::Default));
    assert_eq!(good(&yaml("")).config, Config::default());
    assert_eq!(good(&yaml("# nothing\ngrpc:\n")).config, Config::default());
}

#[test]
fn later_sources_win_and_the_origin_is_kept() {
    let mut sources = yaml("grpc:\n  listen: \"127.0.0.1:1\"\n  max_streams: 7\nlog:\n  level: debug\n");
    sources.environment = vec![
        ("BIBD__LOG__LEVEL".into(), "warn".into()),
        ("BIBD__GRPC__RATE_LIMIT__BURST".into(), "70".into()),
        ("BIBD_CONFIG_DIR".into(), "ignored".into()),
    ];
    sources.flags = vec![("grpc.listen", "127.0.0.1:0,[::1]:0".into())];
    let loaded = good(&sources);
    assert_eq!(loaded.config.grpc.listen.len(), 2);
    assert_eq!(loaded.config.log.level, config::Level::Warn);
    assert_eq!(loaded.config.grpc.rate_limit.burst, 70);
    assert_eq!(loaded.origin("grpc.listen"), &Origin::Flag);
    assert_eq!(loaded.origin("log.level"), &Origin::Environment { variable: "BIBD__LOG__LEVEL".into() });
    assert_eq!(loaded.origin("grpc.max_streams"), &Origin::File { path: "config.yaml".into(), line: Some(3) });
    assert_eq!(loaded.origin("grpc.reflection"), &Origin::Default);
}

#[test]
fn units_are_read_in_both_formats() {
    let loaded = good(&toml("[grpc]\nhandshake_timeout = \"5s\"\nidle_timeout = 60\nmax_message_bytes = \"8 MiB\"\n"));
    assert_eq!(loaded.config.grpc.handshake_timeout.0, Duration::from_secs(5));
    assert_eq!(loaded.config.grpc.idle_timeout.0, Duration::from_secs(60));
    assert_eq!(loaded.config.grpc.max_message_bytes.0, 8 << 20);
}

#[test]
fn an_unknown_key_is_named_with_line_and_the_likely_one() {
    let (key, line, message, hint) = problem(&yaml("grpc:\n  reflection: false\n  max_stream: 7\n"));
    assert_eq!((key.as_str(), line, message.as_str()), ("grpc.max_stream", Some(3), "this key is not known"));
    assert_eq!(hint, "did you mean `grpc.max_streams`?");
    let cases = [
        (toml("[grcp]\nlisten = []\n"), "did you mean `grpc`?"),
        (yaml("listen: [\"127.0.0.1:0\"]\n"), "did you mean `"),
        (yaml("database:\n  provisoner: auto\n"), "did you mean `database.provisioner`?"),
    ];
    for (sources, expected) in cases {
        let (.., hint) = problem(&sources);
        assert!(hint.starts_with(expected), "{hint}");
    }
    let sources = Sources { environment: vec![("BIBD__LOG__LEVLE".into(), "info".into())], ..Sources::default() };
    assert_eq!(problem(&sources).3, "did you mean `log.level`?");
}

#[test]
fn a_value_of_the_wrong_type_is_named_with_its_line() {
    let cases = [
        ("grpc:\n  max_streams: many\n", "grpc.max_streams", 2, "many"),
        ("grpc:\n  handshake_timeout: soon\n", "grpc.handshake_timeout", 2, "`soon` is not a duration"),
        ("log:\n\n  level: loud\n", "log.level", 3, "loud"),
        ("metrics:\n  listen: everywhere\n", "metrics.listen", 2, "socket address"),
        ("tls: yes\n", "tls", 1, "a section with keys was expected"),
    ];
    for (text, key, line, message) in cases {
        let found = problem(&yaml(text));
        assert_eq!((found.0.as_str(), found.1), (key, Some(line)), "{text}");
        assert!(found.2.contains(message), "{}", found.2);
    }
}

#[test]
fn what_this_version_cannot_do_is_refused_with_the_reason() {
    let cases = [
        ("database:\n  backend: sqlite\n", "database.backend", "a full node needs the managed PostgreSQL"),
        (
            "database:\n  provisioner: kubernetes\n  kubernetes:\n    outside: [192.0.2.0/24]\n",
            "database.kubernetes.outside",
            "needs `outside_host`",
        ),
        ("database:\n  container:\n    digest: sha256:12\n", "database.container.digest", "64 hex digits"),
        ("database:\n  container:\n    memory: 300MiB\n", "database.container.memory", "256MiB more"),
        ("database:\n  container:\n    pids: 20\n", "database.container.pids", "at least 150"),
        (
            "data_dir: /srv/a:b\ndatabase:\n  container:\n    selinux_relabel: true\n",
            "database.container.selinux_relabel",
            "has a colon",
        ),
        ("node:\n  mode: selective\n", "node.mode", "`selective` with PostgreSQL is not available in this version"),
        ("grpc:\n  max_message_bytes: 1MiB\n", "grpc.max_message_bytes", "must be 4MiB to 64MiB"),
        ("blobs:\n  trash_hours: 1\n", "blobs.trash_hours", "must be at least 24"),
        ("audit:\n  checkpoint_seconds: 0\n", "audit.checkpoint_seconds", "must be 1 to 3600"),
    ];
    for (text, key, message) in cases {
        let found = problem(&yaml(text));
        assert_eq!((found.0.as_str(), found.1), (key, Some(text.lines().count())), "{text}");
        assert!(found.2.contains(message) && !found.3.is_empty(), "{found:?}");
    }
}

#[test]
fn broken_files_are_named_with_their_line() {
    assert!(
        problem(&yaml(
            "grpc:
  listen: [
"
        ))
        .1
        .is_some()
    );
    assert_eq!(problem(&toml("[grpc]\nlisten = \n")).1, Some(2));
    let twice = problem(&yaml("log:\n  level: info\nlog:\n  level: warn\n"));
    assert!(twice.2.contains("duplicate"), "{twice:?}");
}

#[test]
fn all_problems_are_told_at_once() {
    let problems =
        config::load(&yaml("grpc:\n  max_stream: 7\nlog:\n  level: loud\nnode:\n  mode: selective\n")).unwrap_err();
    assert_eq!(problems.0.len(), 3, "{problems}");
}

#[test]
fn the_schema_names_every_key() {
    let schema = Config::schema().to_string();
    for entry in good(&Sources::default()).entries() {
        let name = entry.key.rsplit('.').next().unwrap();
        assert!(schema.contains(&format!("\"{name}\"")), "{}", entry.key);
    }
}

#[test]
fn a_sink_that_cannot_work_is_refused_with_its_line_and_the_fix() {
    let sink = |name: &str, to: &str| format!("\n    - name: {name}\n      to: {{{to}}}");
    let splunk = |url: &str| sink("s", &format!("splunk: {{url: '{url}', token: {{sealed: hec}}}}"));
    let file = |rest: &str| sink("f", &format!("file: {{path: /var/log/a.jsonl{rest}}}"));
    let cases = [
        (sink("Big Name", "file: {path: /a/b}"), 5, "lower-case", "`splunk`"),
        (file(""), 5, "stands twice", "remembers"),
        (sink("x", "file: {path: relative}"), 5, "absolute", "/var/log"),
        (sink("x", "syslog: {address: 'logs.example.org'}"), 5, "HOST:PORT", "6514"),
        (sink("x", "syslog: {address: 'h:6514', facility: 24}"), 5, "facility", "13"),
        (sink("x", "syslog: {address: 'h:6514', tls: {key_file: /k}}"), 5, "belong together", "both"),
        (splunk("http://splunk.example.org:8088"), 5, "in clear", "https"),
        (splunk("https://user:pw@splunk.example.org"), 5, "holds a user", "does not belong"),
        (splunk("ftp://splunk.example.org"), 5, "not https", "https://"),
        (sink("x", "splunk: {url: 'https://s', token: {file: token}}"), 5, "absolute path", "/etc"),
        (sink("x", "splunk: {url: 'https://s', token: {sealed: '../x'}}"), 5, "sealed secret", "lower-case"),
        (sink("x", "elastic: {url: 'https://e', index: 'Bad Index'}"), 5, "name of an index", "bib-audit"),
    ];
    for (text, line, message, hint) in cases {
        let found = problem(&yaml(&format!("audit:\n  export:{}{text}\n", file(""))));
        assert_eq!((found.0.as_str(), found.1), ("audit.export", Some(line)), "{text}");
        assert!(found.2.contains(message) && found.3.contains(hint), "{found:?}");
        assert!(!found.2.contains("pw"), "{found:?}");
    }
    let unknown = problem(&yaml("audit:\n  export:\n    - {name: x, to: {file: {paht: /a/b}}}\n"));
    assert!(unknown.2.contains("paht") && unknown.2.contains("path"), "{unknown:?}");
    let good_ones = [
        file(""),
        splunk("https://splunk.example.org:8088"),
        sink("e", "elastic: {url: 'http://[::1]:9200', login: {basic: {user: u, password: {file: /p}}}}"),
        sink("l", "syslog: {address: '[::1]:6514'}"),
    ];
    let loaded = good(&yaml(&format!("audit:\n  export:{}\n", good_ones.concat())));
    assert_eq!(loaded.config.audit.export.len(), 4);
    let twice = "[[audit.export]]\nname = \"f\"\n[audit.export.to.file]\npath = \"/a/b\"\n[[audit.export]]\nname = \"f\"\n[audit.export.to.file]\npath = \"/a/c\"\n";
    assert_eq!(problem(&toml(twice)).1, Some(5));
}

#[test]
fn a_store_in_a_bucket_is_described_beside_it_and_holds_no_secret() {
    let text = "backup:\n  store: s3://lab-backups/bib\n  s3:\n    endpoint: https://s3.example.org:9000\n    part_size: 64MiB\n";
    let loaded = good(&yaml(text));
    let store = loaded.config.backup.store.as_ref().unwrap();
    assert_eq!(store.to_string(), "s3://lab-backups/bib");
    assert_eq!(loaded.config.backup.s3.part_size.0, 64 << 20);
    assert_eq!(good(&yaml("backup:\n  store: /mnt/b\n")).config.backup.store.unwrap().to_string(), "/mnt/b");
    for (line, key, word) in [
        ("store: backups", "backup.store", "absolute path or s3://bucket/prefix"),
        ("store: gs://bucket", "backup.store", "is not a store such as"),
        ("store: s3://Bucket", "backup.store", "is not a store such as"),
        ("s3: {endpoint: 'http://s3.example.org'}", "backup.s3.endpoint", "in clear"),
        ("s3: {endpoint: 'https://id:word@s3.example.org'}", "backup.s3.endpoint", "without a user"),
        ("s3: {endpoint: 'https://s3.example.org/bucket'}", "backup.s3.endpoint", "must end with the host"),
        ("s3: {region: 'eu central'}", "backup.s3.region", "must be a word"),
        ("s3: {timeout: 0s}", "backup.s3.timeout", "1s to 10m"),
        ("s3: {part_size: 1MiB}", "backup.s3.part_size", "5MiB to 1GiB"),
        ("s3: {credentials_file: key}", "backup.s3.credentials_file", "absolute path"),
        ("s3: {secret_access_key: hush}", "backup.s3.secret_access_key", "not known"),
    ] {
        let (found, _, message, _) = problem(&yaml(&format!("backup:\n  {line}\n")));
        assert!(found == key && message.contains(word) && !message.contains("hush"), "{line}: {found}: {message}");
    }
}
