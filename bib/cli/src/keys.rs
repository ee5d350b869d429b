//! Which SSH key logs in and signs: the named one, then the agent's, then the usual files, then the one `bib` made.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bib_client::KeySource;
use bib_core::KeyFingerprint;
use bib_identity::ssh::{Candidate, Discovery, SshError, UserKey};

use crate::confirm::Asker;
use crate::errors::{Exit, Failure, Result};

/// Where keys are looked for.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    /// `--key`, `BIB_KEY` or `identity.key`: then no other is tried.
    pub(crate) explicit: Option<PathBuf>,
    /// `SSH_AUTH_SOCK`.
    pub(crate) agent_socket: Option<PathBuf>,
    /// The home directory.
    pub(crate) home: Option<PathBuf>,
    /// Where a key is made for a person who has none.
    pub(crate) own: PathBuf,
    /// Who is asked for passphrases.
    pub(crate) asker: Asker,
}

impl Keys {
    /// The key for an act: one of `wanted`, in that order, or the best of all when nothing is wanted.
    ///
    /// # Errors
    /// Whatever keeps the named key, or the one that was chosen, from being used.
    pub(crate) fn find(&self, wanted: &[KeyFingerprint]) -> Result<Option<UserKey>, SshError> {
        let candidates = self.candidates()?;
        let named = |fingerprint: &KeyFingerprint| candidates.iter().find(|c| c.public().fingerprint() == *fingerprint);
        // A named key is used even where another one is wanted: the node then says that it does not know it.
        let chosen = match (wanted, &self.explicit) {
            ([], _) | (_, Some(_)) => candidates.first(),
            (wanted, None) => wanted.iter().find_map(named),
        };
        chosen.map(|candidate| candidate.unlock(&mut |request| self.asker.passphrase(request.path))).transpose()
    }

    /// The key that logs in, or the error that says there is none.
    ///
    /// # Errors
    /// As [`Keys::find`]; when there is no key at all.
    pub(crate) fn required(&self) -> Result<Arc<UserKey>> {
        let found = self.find(&[]).map_err(|error| Failure::from(bib_client::Error::from(error)))?;
        found.map(Arc::new).ok_or_else(|| {
            Failure::new(Exit::Denied, "there is no SSH key to log in with")
                .with_code(bib_client::error::code::NO_KEY)
                .with_hint("name one with `--key`, add one to your ssh-agent, or make one with `ssh-keygen -t ed25519`")
        })
    }

    /// The same as the client wants it. `preferred` is the key of the last log-in; a passphrase is asked for once.
    pub(crate) fn source(self, preferred: Option<KeyFingerprint>) -> KeySource {
        let known: Mutex<HashMap<Vec<KeyFingerprint>, Arc<UserKey>>> = Mutex::default();
        Arc::new(move |wanted| {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(key) = known.get(wanted) {
                return Ok(Some(Arc::clone(key)));
            }
            let again: Vec<KeyFingerprint> = preferred.iter().copied().collect();
            let found = match self.find(if wanted.is_empty() { &again } else { wanted })? {
                None if wanted.is_empty() => self.find(&[])?,
                found => found,
            };
            let found = found.map(Arc::new);
            if let Some(key) = &found {
                known.insert(wanted.to_vec(), Arc::clone(key));
            }
            Ok(found)
        })
    }

    fn candidates(&self) -> Result<Vec<Candidate>, SshError> {
        let discovery = Discovery {
            explicit: self.explicit.clone(),
            agent_socket: self.agent_socket.clone(),
            home: self.home.clone(),
        };
        let mut found = discovery.candidates()?;
        if self.explicit.is_none() && self.own.exists() {
            let own = Discovery { explicit: Some(self.own.clone()), ..discovery }.candidates()?;
            found.extend(
                own.into_iter().filter(|own| !found.iter().any(|c| c.public() == own.public())).collect::<Vec<_>>(),
            );
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(dir: &std::path::Path) -> Keys {
        Keys {
            explicit: None,
            agent_socket: None,
            home: Some(dir.join("home")),
            own: dir.join("id_ed25519"),
            asker: Asker::nobody(false),
        }
    }

    fn make(path: &std::path::Path) -> KeyFingerprint {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        bib_identity::ssh::generate(path, "test", &mut rand::rngs::OsRng).unwrap().public().fingerprint()
    }

    #[test]
    fn the_persons_key_comes_first_and_the_wanted_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keys(dir.path());
        assert!(keys.find(&[]).unwrap().is_none());
        assert!(keys.required().is_err());
        let own = make(&keys.own);
        assert_eq!(keys.find(&[]).unwrap().unwrap().public().fingerprint(), own);
        let usual = make(&dir.path().join("home/.ssh/id_ed25519"));
        assert_eq!(keys.find(&[]).unwrap().unwrap().public().fingerprint(), usual);
        assert_eq!(keys.find(&[own, usual]).unwrap().unwrap().public().fingerprint(), own);
        let other = make(&dir.path().join("other"));
        assert!(keys.find(&[other]).unwrap().is_none());
        let named = Keys { explicit: Some(dir.path().join("other")), ..keys.clone() };
        assert_eq!(named.find(&[usual]).unwrap().unwrap().public().fingerprint(), other);
        let source = keys.source(Some(own));
        assert_eq!(source(&[]).unwrap().unwrap().public().fingerprint(), own);
    }
}
