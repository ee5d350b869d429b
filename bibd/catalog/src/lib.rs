//! All SQL of the catalog: users, topics, datasets, versions, pages, chunks, leases, records and the audit log's rows.
//!
//! What this room owns: the schema (`migrations/postgres/`), every statement on it, and the transaction as a value.
//! What it must never do: decide who may do what (that is `bib_core::access` and the daemon's services), or name gRPC.
//!
//! How it is written. A module per table family holds its statements as [`Statement`] statics, private row types, and
//! functions that take a [`Session`]: a [`Tx`] where something is written, or a [`Read`] where not. A function named
//! `find_` answers `Ok(None)` when there is nothing, `load_` fails, `list_` is paged by key. Nonsense in a row is
//! [`Error::Inconsistent`]. A use case is: `let mut tx = db.begin(&context).await?`, some calls, the audit entry
//! ([`audit::append`]) with [`Tx::take_notes`], `tx.commit().await?`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod access;
pub mod audit;
pub mod chunks;
pub mod datasets;
mod db;
mod error;
pub mod glass;
pub mod grants;
pub mod leases;
mod ledger;
pub mod migrate;
pub mod node;
pub mod objects;
pub mod pages;
pub mod records;
mod row;
mod statement;
pub mod statistics;
pub mod successions;
pub mod topics;
pub mod users;
pub mod versions;

pub use db::{Context, Db, Pools, Read, Role, Session, Tx};
pub use error::{Error, Result};
pub use ledger::with_ledger;
pub use statement::{Class, Statement, StatementCount, statement_counts};

/// Every statement of the catalog, for the test that prepares each against the real schema.
pub fn statements() -> impl Iterator<Item = &'static Statement> {
    [
        access::STATEMENTS.to_vec(),
        audit::statements(),
        chunks::STATEMENTS.to_vec(),
        objects::STATEMENTS.to_vec(),
        datasets::STATEMENTS.to_vec(),
        glass::STATEMENTS.to_vec(),
        grants::STATEMENTS.to_vec(),
        leases::STATEMENTS.to_vec(),
        node::STATEMENTS.to_vec(),
        pages::STATEMENTS.to_vec(),
        records::STATEMENTS.to_vec(),
        statistics::STATEMENTS.to_vec(),
        successions::STATEMENTS.to_vec(),
        topics::STATEMENTS.to_vec(),
        users::STATEMENTS.to_vec(),
        versions::STATEMENTS.to_vec(),
    ]
    .into_iter()
    .flatten()
}
