//! Who a person is: an SSH key that people already have, in a file or in an agent.
//!
//! A person signs with SSHSIG (`PROTOCOL.sshsig` of OpenSSH), SHA-512, in a namespace, so that `ssh-keygen -Y verify`
//! can check it. Ed25519 and ECDSA P-256 keys sign from their file; RSA keys sign through an agent alone, which keeps
//! an RSA private-key implementation with timing trouble (RUSTSEC-2023-0071) away from secrets. DSA, SHA-1 and keys
//! on security tokens (`sk-`) are refused.

mod agent;
mod discovery;
mod public_key;
mod user_key;

use std::path::PathBuf;

pub use discovery::{Candidate, Discovery};
pub use public_key::{KeyKind, MAX_LINE_BYTES, MAX_SIGNATURE_BYTES, PublicKey, SshSignature, verify};
pub use user_key::{PassphraseRequest, UserKey, generate};

use crate::file::FileError;

/// Why an SSH key cannot be read or used.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// The file is missing, empty, open to others, or cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not a private key in OpenSSH format.
    #[error("`{path}` is not a private key in OpenSSH format")]
    NotOpenSsh {
        /// The key file.
        path: PathBuf,
    },
    /// The text is not a public key line, or is too long.
    #[error("the text is not an SSH public key")]
    PublicKey,
    /// The key's type or size is not taken.
    #[error("keys of type {0} are not supported")]
    Unsupported(String),
    /// An RSA key in a file.
    #[error("`{path}` is an RSA key, which signs through ssh-agent only")]
    RsaNeedsAgent {
        /// The key file.
        path: PathBuf,
    },
    /// The key is protected and no passphrase, or a wrong one, was given.
    #[error("`{path}` is protected by a passphrase, and the right one was not given")]
    Passphrase {
        /// The key file.
        path: PathBuf,
    },
    /// No agent answers at the socket, or it broke off.
    #[error("talk to ssh-agent")]
    Agent(#[source] std::io::Error),
    /// The agent answered something that is not the protocol.
    #[error("ssh-agent answered {0}")]
    AgentAnswer(&'static str),
    /// The agent does not hold the key, or its owner refused.
    #[error("ssh-agent refuses to sign")]
    AgentRefused,
    /// There is no key to be found.
    #[error("no SSH key was found")]
    NoKey,
    /// The namespace is empty or too long.
    #[error("`{0}` is not a signature namespace")]
    Namespace(String),
    /// The library could not sign or encode.
    #[error("use the SSH key")]
    Key(#[source] ssh_key::Error),
}

impl SshError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::File(error) => error.hint(),
            Self::NotOpenSsh { .. } => {
                Some("name the private key, not the .pub; an old format is converted by: ssh-keygen -p -f FILE")
            }
            Self::RsaNeedsAgent { .. } => {
                Some("add it to an agent (ssh-add FILE), or make a new key: ssh-keygen -t ed25519")
            }
            Self::Unsupported(_) => Some("use an Ed25519 key: ssh-keygen -t ed25519"),
            Self::Passphrase { .. } => Some("add the key to an agent: ssh-add FILE"),
            Self::Agent(_) => Some("check SSH_AUTH_SOCK, or start an agent: eval $(ssh-agent)"),
            Self::AgentRefused => Some("`ssh-add -l` lists the keys that the agent holds"),
            Self::NoKey => Some("make one: ssh-keygen -t ed25519"),
            _ => None,
        }
    }
}

/// Why a signature is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// More bytes than an SSHSIG has.
    #[error("the signature is longer than an SSH signature can be")]
    TooLong,
    /// Not an SSHSIG text.
    #[error("the text is not an SSH signature")]
    Malformed,
    /// Made for another use.
    #[error("the signature is for the namespace `{0}`")]
    OtherNamespace(String),
    /// Made by another key.
    #[error("the signature is by another key")]
    OtherKey,
    /// SHA-1, DSA, or an algorithm that does not belong to the key.
    #[error("signatures of type {0} are not accepted")]
    Algorithm(String),
    /// Not a signature over this message.
    #[error("the signature is not valid for these bytes")]
    Wrong,
}
