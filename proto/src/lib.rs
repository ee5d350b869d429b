//! The wire: the messages and services of package `bib.v1`, as prost and tonic make them. No logic.
//!
//! The `.proto` files beside this crate are the documentation of the API; `build.rs` compiles them with protox.
//! The package is additive: fields and RPCs are added, never changed or removed.

/// Package `bib.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, rust_2018_idioms, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("bib.v1");

    /// The compiled descriptors, for gRPC server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
