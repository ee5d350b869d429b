//! The law of doors (`docs/ARCHITECTURE.md`): which room may name what.

use super::{Finding, Tree, code_lines, has_word, is_test};

/// Rooms that contain SQL.
const SQL_ROOMS: &[&str] = &["bibd/catalog/", "bibd/cache/", "bibd/postgres/"];
/// The composition root opens the pools that both rooms need: it names connection types and never a query.
const POOLS_ARE_OPENED_IN: &[&str] =
    &["bibd/daemon/src/app.rs", "bibd/daemon/src/foundation.rs", "bibd/daemon/src/pools.rs"];
/// Files that may say that a statement made at run time is safe: each says why at the place.
const ASSERTS_SQL_SAFE: &[&str] = &[
    "bibd/catalog/src/db.rs",
    "bibd/catalog/src/migrate.rs",
    "bibd/postgres/src/dump.rs",
    "bibd/postgres/src/ensure.rs",
    "bibd/postgres/src/superuser.rs",
    "bibd/postgres/src/upgrading/content.rs",
];
/// Rooms that name tonic's `Status`.
const STATUS_ROOMS: &[&str] = &["bib/client/", "bibd/daemon/src/grpc/"];
/// A library, and the only rooms that name it.
const ROOMS_OF_LIBRARIES: &[(&str, &[&str])] = &[
    ("libp2p", &["bibd/network/"]),
    ("datafusion", &["bibd/query/"]),
    ("bollard", &["bibd/postgres/"]),
    ("object_store", &["bibd/s3/"]),
    ("kube", &["bibd/postgres/"]),
    ("axum", &["bibd/daemon/"]),
    ("russh", &["bibd/daemon/"]),
];

fn within(path: &str, rooms: &[&str]) -> bool {
    rooms.iter().any(|room| path.starts_with(room))
}

/// Product code outside `rooms`: path, line number, line.
fn outside<'a>(tree: &'a Tree, rooms: &'a [&'a str]) -> impl Iterator<Item = (&'a str, usize, &'a str)> {
    let files = tree.texts(".rs").filter(move |(path, _)| !within(path, rooms) && !is_test(path));
    files.flat_map(|(path, text)| code_lines(text).map(move |(number, line)| (path, number, line)))
}

/// SQL only in `catalog`, `cache` and `postgres`.
pub(super) fn sql_at_home(tree: &Tree) -> Vec<Finding> {
    let repair = "move the statement into bibd/catalog and call it from here";
    outside(tree, SQL_ROOMS)
        .filter(|(path, _, line)| {
            let names_sqlx = line.contains("sqlx::");
            let only_connects =
                POOLS_ARE_OPENED_IN.contains(path) && !line.contains("query") && !line.contains("AssertSqlSafe");
            names_sqlx && !only_connects
        })
        .map(|(path, number, _)| format!("{path}:{number} names sqlx: {repair}"))
        .collect()
}

/// `AssertSqlSafe` only where it is listed.
pub(super) fn assert_sql_safe_in_listed_places(tree: &Tree) -> Vec<Finding> {
    let repair = "bind parameters instead; where that cannot be, list the file in xtask/src/tidy/doors.rs";
    outside(tree, ASSERTS_SQL_SAFE)
        .filter(|(_, _, line)| line.contains("AssertSqlSafe"))
        .map(|(path, number, _)| format!("{path}:{number} asserts that a statement is safe: {repair}"))
        .collect()
}

/// tonic's `Status` only in the client and the daemon's gRPC edge.
pub(super) fn status_at_the_edge(tree: &Tree) -> Vec<Finding> {
    let repair = "return the room's own error; the edge converts it";
    outside(tree, STATUS_ROOMS)
        .filter(|(_, _, line)| line.contains("tonic::") && has_word(line, "Status"))
        .map(|(path, number, _)| format!("{path}:{number} names tonic's Status: {repair}"))
        .collect()
}

/// Each big library only in the room that exists for it.
pub(super) fn libraries_in_their_rooms(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (library, rooms) in ROOMS_OF_LIBRARIES {
        let path_of = format!("{library}::");
        let named = outside(tree, rooms).filter(|(_, _, line)| {
            line.match_indices(&path_of)
                .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'))
        });
        let message = |(path, number, _)| format!("{path}:{number} names {library}: only {} may", rooms.join(", "));
        findings.extend(named.map(message));
    }
    findings
}

/// `bib*` never depends on `bibd*`, `core` on nothing of ours, `xtask` on none of the product.
pub(super) fn bib_without_bibd(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.texts("Cargo.toml") {
        let forbidden: &[&str] = match path {
            "bib/core/Cargo.toml" | "xtask/Cargo.toml" | "proto/Cargo.toml" => &["bib-", "bibd-", "bibd "],
            _ if path.starts_with("bib/") => &["bibd-", "bibd ", "bibd."],
            _ => continue,
        };
        for (at, line) in text.lines().enumerate() {
            if forbidden.iter().any(|begin| line.starts_with(begin)) {
                let number = at + 1;
                findings.push(format!("{path}:{number} depends on `{line}`: this room may not (docs/ARCHITECTURE.md)"));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql_outside_its_rooms_is_found_and_pools_are_not() {
        let tree = Tree::of(&[
            ("bibd/catalog/src/a.rs", "sqlx::query!(\"x\");"),
            ("bibd/blobs/src/a.rs", "// sqlx::query\nsqlx::query(\"x\");"),
            ("bibd/blobs/tests/a.rs", "sqlx::query(\"x\");"),
            ("bibd/daemon/src/foundation.rs", "use sqlx::postgres::PgPool;\nsqlx::query(\"SELECT 1\");"),
        ]);
        let found = sql_at_home(&tree);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("bibd/blobs/src/a.rs:2"), "{found:?}");
        assert!(found[1].starts_with("bibd/daemon/src/foundation.rs:2"), "{found:?}");
    }

    #[test]
    fn assertions_and_status_are_found() {
        let tree = Tree::of(&[
            ("bibd/catalog/src/users.rs", "AssertSqlSafe(text)"),
            ("bibd/catalog/src/db.rs", "AssertSqlSafe(text)"),
            ("bibd/daemon/src/services/a.rs", "use tonic::{Code, Status};\nuse tonic::StatusCode;"),
            ("bibd/daemon/src/grpc/a.rs", "use tonic::Status;"),
        ]);
        assert_eq!(assert_sql_safe_in_listed_places(&tree).len(), 1);
        assert_eq!(status_at_the_edge(&tree).len(), 1);
    }

    #[test]
    fn libraries_stay_in_their_rooms() {
        let tree = Tree::of(&[
            ("bibd/daemon/src/a.rs", "axum::serve();\nlibp2p::noise::x();"),
            ("bib/core/src/peer.rs", "libp2p_identity::PeerId"),
            ("bibd/network/src/a.rs", "libp2p::x"),
        ]);
        let found = libraries_in_their_rooms(&tree);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("bibd/daemon/src/a.rs:2"), "{found:?}");
    }

    #[test]
    fn a_dependency_through_a_closed_door_is_found() {
        let tree = Tree::of(&[
            ("bib/client/Cargo.toml", "bib-core.workspace = true\nbibd-catalog.workspace = true"),
            ("bib/core/Cargo.toml", "bib-proto.workspace = true"),
            ("bibd/daemon/Cargo.toml", "bib-core.workspace = true"),
        ]);
        assert_eq!(bib_without_bibd(&tree).len(), 2);
    }
}
