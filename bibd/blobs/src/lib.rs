//! Content-addressed chunks on disk: `blobs/ab/cd/<sha256>`, and the trash and quarantine beside them; and chunks that
//! moved on into a bucket ([`objects`]).
//!
//! This room owns files and objects. It never speaks SQL and never decides whether a chunk is wanted: state, references and
//! leases are rows of the catalog, which the daemon's services combine with this store. What it promises: a chunk is
//! visible only after its SHA-256 was checked; what [`BlobStore::put_many`] has returned survives a power cut;
//! what a read returns is what was put, or a typed error.
//!
//! On disk a chunk is either its bare bytes (`sha256sum` of the file prints its name) or zstd frames
//! (`zstd -dc FILE | sha256sum` does). There is no header: the name is a hash, so trying both readings decides which
//! one it is, beyond doubt, from the disk alone; see [`codec`](mod@codec). A chunk that is itself a `.zst` file
//! and stored bare is no exception, because the bare reading is tried first.
//!
//! Start reading at [`store`] (what is on disk), then [`put`] (the order of write, fsync, rename, fsync).

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod chunk;
pub mod codec;
mod direct;
mod disk;
mod error;
mod failpoints;
mod in_place;
pub mod objects;
pub mod put;
mod read;
mod scrub;
pub mod store;
mod trash;

pub use chunk::{Encoding, Frame, Incoming, Location, MAX_CHUNK_BYTES, MAX_FRAME_BYTES, Stored};
pub use error::{Damage, OpenError, ReadError, StoreError};
pub use failpoints::Failpoints;
pub use in_place::FileGuard;
pub use objects::{Fetched, FoundObject, ObjectError, ObjectName, Objects};
pub use scrub::{Depth, Expected, FileState, Finding, ScrubBudget, ScrubPage, ScrubbedFile};
pub use store::{BlobStore, Compression, Settings, Usage};
pub use trash::Restored;
