//! What the chunk store says, in the words of use cases.

use bib_core::Hash;
use bibd_blobs::{ReadError, StoreError};

use super::error::ServiceError;
use crate::errors::ErrorCode;

/// Why chunks were not stored.
pub(super) fn not_stored(error: StoreError) -> ServiceError {
    match error {
        StoreError::HashMismatch { hash } => {
            ServiceError::invalid("frame", format!("the bytes sent for chunk {hash} have another hash"))
        }
        StoreError::Size { .. } | StoreError::Frame { .. } => ServiceError::invalid("frame", error.to_string()),
        StoreError::NoSpace { .. } => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the chunk store is full");
            ServiceError::unavailable(ErrorCode::DISK_FULL, "the node's chunk store has no space left")
        }
        StoreError::ReadOnly { .. } => ServiceError::unavailable(
            ErrorCode::STORE_UNAVAILABLE,
            "the node's chunk store takes no writes: its disk failed",
        ),
        StoreError::Stopping => ServiceError::unavailable(ErrorCode::SHUTTING_DOWN, "the node is stopping"),
        StoreError::Io { .. } => ServiceError::internal(error),
    }
}

/// Why a chunk was not read, when the chunk itself is not to blame.
pub(super) fn not_read(error: ReadError) -> ServiceError {
    match error {
        ReadError::Stopping => ServiceError::unavailable(ErrorCode::SHUTTING_DOWN, "the node is stopping"),
        other => ServiceError::internal(other),
    }
}

/// Why a chunk cannot be had: the chunk, and a sentence; `None` when something else is to blame.
pub(super) fn damage(error: &ReadError) -> Option<(Hash, String)> {
    match error {
        ReadError::Missing { hash } => Some((*hash, "its file is missing".to_owned())),
        ReadError::Corrupt { hash, damage, .. } => Some((*hash, damage.to_string())),
        ReadError::Changed { hash, what, .. } => {
            Some((*hash, format!("the file that it lies in was changed since it was published ({what})")))
        }
        ReadError::RawLength { hash, stated, found } => Some((*hash, format!("{found} bytes instead of {stated}"))),
        ReadError::Io { .. } | ReadError::Stopping => None,
    }
}

/// The refusal to hand out damaged bytes.
pub(super) fn damaged(chunk: &Hash, why: &str) -> ServiceError {
    ServiceError::Integrity {
        code: ErrorCode::INTEGRITY,
        sentence: format!("chunk {chunk} is damaged: {why}"),
        hint: "publish the same folder again to heal it, or fetch the version from another node".to_owned(),
    }
}
