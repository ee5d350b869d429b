//! The cache of nodes that are never authoritative (`node.mode: proxy`, and `selective` without a PostgreSQL): one SQLite
//! file with what other nodes said, each thing for as long as `ttl`.
//!
//! ```text
//! <data_dir>/cache/          0700
//!   cache.sqlite             0600, WAL mode; application_id "BIBC", user_version = number of the last migration
//!   cache.sqlite.damaged     what was set aside when SQLite found the file damaged; the cache began anew
//! ```
//!
//! This room holds signed [records](bib_core::record) of others and pages by their hash. It never holds the only copy of
//! anything: whatever it loses can be asked for again, so a damaged file is set aside and an empty one takes its place. It
//! refuses what this very node signed ([`Error::Own`]): that has its home in the catalog of a full node. What it gives was
//! checked when it came in (signature or hash) and is not older than the time to live.
//!
//! SQLite has no roles, so nothing would keep an injected statement away from a table: therefore no user, grant of this node,
//! audit entry or secret is ever here.
//!
//! Start reading at [`store`] (the file, its life, the bounds), then [`kept`] (what goes in and comes out).

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod kept;
mod schema;
mod store;

pub use error::{Error, OpenError};
pub use kept::{CachedRecord, Kept, Listed};
pub use store::{Cache, MAX_PAGE_BYTES, Opened, Settings, Swept, Usage};
