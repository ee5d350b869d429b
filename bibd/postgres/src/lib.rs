//! The managed PostgreSQL: find it, create it, harden it, run it, give it roles, and check it against the list.
//!
//! This room owns one PostgreSQL server, its files, its roles and their passwords. It never touches the catalog's
//! tables (their grants are made by migrations, which it only lets in), never takes a connection string from
//! outside, and never lets a password reach an argument list, an environment, a log or an error: what leaves this
//! process is a SCRAM verifier. The daemon decides when things happen; this room decides how.
//!
//! What it knows of backups is PostgreSQL's part ([`backup`], [`dump`], [`wal`], [`receive`]): the daemon seals, signs,
//! stores.
//!
//! Of break-glass it knows the role and the wire ([`glass`]): the daemon records, decides, and cuts.
//!
//! Where no socket reaches the server, [`tcp`] makes the certificates and connects with them.
//!
//! Start reading at [`provisioner`] (the trait) and [`managed`] (what every provisioner of this machine does), then
//! [`process`] and [`container`] (where the programs run), [`kubernetes`] (a pod), [`choose`] (which of them), [`moving`] (from one to the other),
//! [`upgrading`] (to a newer major version), [`database`]
//! (roles, logins, the migrations' door), [`rotation`] and [`checklist`] (`bib admin db audit`).

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod account;
pub mod backup;
pub mod binaries;
pub mod checklist;
pub mod choose;
mod cluster;
pub mod config;
pub mod container;
pub mod database;
pub mod dump;
mod ensure;
pub mod error;
mod failpoints;
mod file;
pub mod glass;
mod host;
pub mod kubernetes;
pub mod managed;
pub mod moving;
mod network_fs;
mod pipe;
mod postmaster;
mod probe;
pub mod process;
pub mod provisioner;
pub mod random;
pub mod receive;
mod record;
pub mod role;
pub mod rotation;
mod run;
mod scram;
pub mod secrets;
pub mod settings;
pub mod superuser;
pub mod tcp;
mod tool;
pub mod upgrading;
pub mod version;
pub mod wal;

pub use binaries::Found;
pub use choose::Wanted;
pub use container::ContainerPostgres;
pub use database::Database;
pub use error::Error;
pub use failpoints::Failpoints;
pub use kubernetes::{InKubernetes, KubernetesPostgres, KubernetesSettings};
pub use network_fs::network_kind;
pub use process::ProcessPostgres;
pub use provisioner::{Contained, Health, ManagedPostgres, Program, Provisioned, Started, State, Stop};
pub use random::Randomness;
pub use record::Choice;
pub use role::{GroupRole, Letter, Login};
pub use secrets::{SecretStore, SecretStoreError};
pub use settings::{ContainerSettings, Layout, Limits, OnNewDirectory, Recovery, RunAs, Settings, Target, Wal};
pub use superuser::{Act, PrivilegedObserver};
pub use version::Version;
