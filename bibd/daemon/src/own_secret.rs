//! `bibd secret`: secrets of a person (tokens of collectors, passwords) sealed to the node, for the configuration to
//! name. They lie beside the node's own, under names that no part of the node uses, and are read when they are needed:
//! a new one counts without a restart.

use std::io::{IsTerminal as _, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use bib_identity::NodeKey;
use bib_identity::sealed::SealError;
use secrecy::SecretSlice;
use zeroize::Zeroizing;

use crate::config::Places;
use crate::config::audit::is_secret_name;
use crate::export::sealed_name;
use crate::secrets::Secrets;
use crate::services::recovery;

/// Longer than any token.
const MAX_BYTES: u64 = 16 << 10;

/// Why a secret was not set, listed or removed.
#[derive(Debug, thiserror::Error)]
pub enum OwnSecretError {
    /// The name.
    #[error("`{0}` is not a name for a secret")]
    Name(String),
    /// There is no such secret.
    #[error("there is no secret `{0}`")]
    Unknown(String),
    /// Typed where it can be read.
    #[error("a secret is not typed on a terminal")]
    Terminal,
    /// Nothing came, or too much.
    #[error("a secret is 1 to {MAX_BYTES} bytes")]
    Length,
    /// Another user owns the node's secrets.
    #[error("the node's secrets belong to the user with the uid {0}")]
    Owner(u32),
    /// The node has no key yet.
    #[error("this node has no identity yet")]
    NoNode(#[source] bib_identity::node_key::NodeKeyError),
    /// Sealing or reading.
    #[error("the node's secrets")]
    Seal(#[from] SealError),
    /// The system.
    #[error("{act}")]
    Io {
        /// What was tried.
        act: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl OwnSecretError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Name(_) => "1 to 48 lower-case letters, digits and `-`, such as `splunk-token`",
            Self::Unknown(_) => "`bibd secret list` names those that are there",
            Self::Terminal => "give it on standard input: `bibd secret set NAME < FILE`",
            Self::Length => "put the secret alone into standard input",
            Self::Owner(_) => "run this as that user: what root writes, the daemon could not read",
            Self::NoNode(_) => "`bibd init` makes one; name the node with --data-dir",
            Self::Seal(_) | Self::Io { .. } => "`bibd doctor` looks for the cause",
        }
    }
}

/// The secrets of the node in these places.
struct Own(Secrets);

impl Own {
    fn open(places: &Places) -> Result<Self, OwnSecretError> {
        let key = NodeKey::load(&places.data.join("identity/node_key")).map_err(OwnSecretError::NoNode)?;
        let directory = places.data.join("secrets");
        let io = |act| move |source| OwnSecretError::Io { act, source };
        let owner = std::fs::metadata(&directory).map_err(io("look at the node's secrets"))?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            return Err(OwnSecretError::Owner(owner));
        }
        let secrets = Secrets::new(&directory, Arc::new(key), Vec::new());
        if let Some(public) = recovery::find(&secrets)? {
            secrets.set_recovery(vec![public.recipient()?]);
        }
        Ok(Self(secrets))
    }
}

/// Seals what standard input holds under `name`, in place of what was there. A line end at its end is left out.
///
/// # Errors
/// When the name or the secret is none, or the node's secrets cannot be written.
pub fn set(places: &Places, name: &str) -> Result<(), OwnSecretError> {
    check(name)?;
    let own = Own::open(places)?;
    let mut input = std::io::stdin().lock();
    if input.is_terminal() {
        return Err(OwnSecretError::Terminal);
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(MAX_BYTES).unwrap_or(0) + 1));
    let read = (&mut input).take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|source| OwnSecretError::Io { act: "read the secret", source })?;
    while matches!(bytes.last(), Some(b'\n' | b'\r')) {
        bytes.pop();
    }
    if bytes.is_empty() || bytes.len() as u64 > MAX_BYTES {
        return Err(OwnSecretError::Length);
    }
    own.0.directory()?.write(&sealed_name(name), &SecretSlice::from(bytes.to_vec()))?;
    Ok(())
}

/// The names of all secrets of people.
///
/// # Errors
/// When the node's secrets cannot be looked at.
pub fn list(places: &Places) -> Result<Vec<String>, OwnSecretError> {
    Own::open(places)?;
    let failed = |source| OwnSecretError::Io { act: "look at the node's secrets", source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(places.data.join("secrets")).map_err(failed)? {
        let file = entry.map_err(failed)?.file_name();
        let name = file.to_str().and_then(|file| file.strip_suffix(".age")?.strip_prefix(&sealed_name("")));
        names.extend(name.map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Removes a secret.
///
/// # Errors
/// When there is none of that name.
pub fn remove(places: &Places, name: &str) -> Result<(), OwnSecretError> {
    check(name)?;
    let removed = Own::open(places)?.0.directory()?.remove(&sealed_name(name))?;
    if removed { Ok(()) } else { Err(OwnSecretError::Unknown(name.to_owned())) }
}

fn check(name: &str) -> Result<(), OwnSecretError> {
    if is_secret_name(name) { Ok(()) } else { Err(OwnSecretError::Name(name.chars().take(80).collect())) }
}
