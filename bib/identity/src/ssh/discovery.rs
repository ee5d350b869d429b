//! Which keys a person has: the one that was named, then those in the agent, then the usual files.

use std::path::{Path, PathBuf};

use bib_core::KeyFingerprint;
use secrecy::SecretString;

use super::user_key::{PassphraseRequest, read_public_half};
use super::{PublicKey, SshError, UserKey, agent};
use crate::file::FileError;

/// Where to look. The caller reads the environment.
#[derive(Debug, Clone, Default)]
pub struct Discovery {
    /// A key that the person named, private or public: then no other is tried.
    pub explicit: Option<PathBuf>,
    /// `SSH_AUTH_SOCK`.
    pub agent_socket: Option<PathBuf>,
    /// The home directory, for `.ssh/id_ed25519` and `.ssh/id_ecdsa`.
    pub home: Option<PathBuf>,
}

/// A key that was found and is not yet unlocked.
#[derive(Debug, Clone)]
pub enum Candidate {
    /// Held by an agent.
    Agent {
        /// The agent's socket.
        socket: PathBuf,
        /// The key.
        public: PublicKey,
    },
    /// In a file, perhaps protected by a passphrase.
    File {
        /// The private key's file.
        path: PathBuf,
        /// The key.
        public: PublicKey,
    },
}

impl Candidate {
    /// The key.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        match self {
            Self::Agent { public, .. } | Self::File { public, .. } => public,
        }
    }

    /// Makes the key ready to sign, asking for a passphrase when its file has one.
    ///
    /// # Errors
    /// As [`UserKey::load`].
    pub fn unlock(
        &self,
        passphrase: &mut dyn FnMut(PassphraseRequest<'_>) -> Option<SecretString>,
    ) -> Result<UserKey, SshError> {
        match self {
            Self::Agent { socket, public } => Ok(UserKey::in_agent(socket, public.clone())),
            Self::File { path, .. } => UserKey::load(path, passphrase),
        }
    }
}

impl Discovery {
    /// The keys that can be tried, best first, each once. Files and agents that are not there are passed over; with
    /// an explicit key nothing is.
    ///
    /// # Errors
    /// For the explicit key, whatever keeps it from being used; for the others, a file that is there but unusable is
    /// passed over with a warning.
    pub fn candidates(&self) -> Result<Vec<Candidate>, SshError> {
        if let Some(path) = &self.explicit {
            return self.explicit_candidate(path).map(|c| vec![c]);
        }
        let mut found: Vec<Candidate> = self
            .agent_keys()
            .into_iter()
            .flat_map(|(socket, keys)| {
                keys.into_iter().map(move |public| Candidate::Agent { socket: socket.clone(), public })
            })
            .collect();
        for path in self.usual_files() {
            match read_public_half(&path) {
                Ok(public) if found.iter().any(|c| *c.public() == public) => {}
                Ok(public) => found.push(Candidate::File { path, public }),
                Err(SshError::File(FileError::Missing { .. })) => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "an SSH key was passed over"),
            }
        }
        Ok(found)
    }

    /// The candidate with this fingerprint.
    ///
    /// # Errors
    /// As [`Self::candidates`]; [`SshError::NoKey`] when none has it.
    pub fn candidate_of(&self, fingerprint: &KeyFingerprint) -> Result<Candidate, SshError> {
        self.candidates()?.into_iter().find(|c| c.public().fingerprint() == *fingerprint).ok_or(SshError::NoKey)
    }

    /// The best key, ready to sign.
    ///
    /// # Errors
    /// [`SshError::NoKey`] when there is none, else why the best one cannot be used.
    pub fn best(
        &self,
        passphrase: &mut dyn FnMut(PassphraseRequest<'_>) -> Option<SecretString>,
    ) -> Result<UserKey, SshError> {
        self.candidates()?.first().ok_or(SshError::NoKey)?.unlock(passphrase)
    }

    /// The named key, through the agent when that holds it: no passphrase is asked then, and RSA can sign.
    fn explicit_candidate(&self, path: &Path) -> Result<Candidate, SshError> {
        let (private, public) = if path.extension().is_some_and(|e| e == "pub") {
            let text = crate::file::read_public(path, 32 * 1024)?;
            let public = std::str::from_utf8(&text).map_err(|_| SshError::PublicKey)?.parse::<PublicKey>()?;
            (path.with_extension(""), public)
        } else {
            (path.to_owned(), read_public_half(path)?)
        };
        if let Some((socket, keys)) = self.agent_keys()
            && keys.contains(&public)
        {
            return Ok(Candidate::Agent { socket, public });
        }
        if public.kind() == super::KeyKind::Rsa {
            return Err(SshError::RsaNeedsAgent { path: private });
        }
        Ok(Candidate::File { path: private, public })
    }

    /// What the agent holds. One that does not answer counts as absent: `SSH_AUTH_SOCK` is often left over.
    fn agent_keys(&self) -> Option<(PathBuf, Vec<PublicKey>)> {
        let socket = self.agent_socket.clone()?;
        match agent::list(&socket) {
            Ok(keys) => Some((socket, keys)),
            Err(error) => {
                tracing::debug!(socket = %socket.display(), %error, "ssh-agent does not answer");
                None
            }
        }
    }

    fn usual_files(&self) -> Vec<PathBuf> {
        let directory = self.home.iter().map(|home| home.join(".ssh"));
        directory.flat_map(|d| [d.join("id_ed25519"), d.join("id_ecdsa")]).collect()
    }
}
