//! Who is who in BIB: the node's key, people's SSH keys, the certificate authority, and what a client trusts.
//!
//! This room reads and writes key files, seals secrets and checks certificates, for `bib` and `bibd` alike. It never
//! talks to a network (an `ssh-agent` socket is the one exception), reads no clock and, where a library lets it,
//! draws no randomness of its own: the composition roots pass both in. It never regenerates a key that should exist.
//!
//! Start reading at [`node_key`] (who a node is), [`ca`] (how it vouches for others), [`trust`] (how a client decides
//! whom it speaks to) and [`ssh`] (who a person is). Every error enum has a `hint()` for the person's boundary.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod ca;
pub mod certificate;
pub mod credentials;
pub mod file;
pub mod node_key;
pub mod pem;
pub mod recovery;
pub mod request;
pub mod sealed;
pub mod sealed_stream;
pub mod server_certificate;
pub mod server_tls;
pub mod ssh;
pub mod time_source;
pub mod token_file;
pub mod trust;

pub use ca::{CertificateAuthority, IssuedCertificate, SanName};
pub use certificate::{CertificateInfo, ClientIdentity, Fingerprint};
pub use credentials::ClientCredentials;
pub use file::FileError;
pub use node_key::NodeKey;
pub use sealed::{Recipient, SealedDir};
pub use server_certificate::ServerCertificate;
pub use time_source::TimeSource;
