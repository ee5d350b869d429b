//! A person's key, ready to sign: held in memory from a file, or held by an agent.

use std::fmt;
use std::path::{Path, PathBuf};

use rand_core::CryptoRngCore;
use secrecy::{ExposeSecret as _, SecretString};
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{HashAlg, LineEnding, PrivateKey, Signature, SshSig};

use super::public_key::check_algorithm;
use super::{PublicKey, SshError, SshSignature, agent};
use crate::file;

/// The largest private key file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 32 * 1024;
/// How often a passphrase is asked for.
const MAX_ATTEMPTS: u32 = 3;
/// The longest signature namespace, in bytes.
const MAX_NAMESPACE_BYTES: usize = 128;

/// What a person is asked.
#[derive(Debug, Clone, Copy)]
pub struct PassphraseRequest<'a> {
    /// The key file.
    pub path: &'a Path,
    /// 1 at first, up to 3.
    pub attempt: u32,
}

enum Holder {
    Memory(Box<PrivateKey>),
    Agent(PathBuf),
}

/// A person's key, ready to sign.
pub struct UserKey {
    public: PublicKey,
    holder: Holder,
}

impl UserKey {
    /// Reads a private key file, asking `passphrase` up to three times when it is protected (`None` gives up).
    ///
    /// # Errors
    /// One error for each thing that can be wrong with the file; [`SshError::RsaNeedsAgent`] for RSA.
    pub fn load(
        path: &Path,
        passphrase: &mut dyn FnMut(PassphraseRequest<'_>) -> Option<SecretString>,
    ) -> Result<Self, SshError> {
        let key = read(path)?;
        // Before the passphrase: the type stands in the clear.
        let public = public_of(path, &key)?;
        let key = if key.is_encrypted() { decrypt(path, &key, passphrase)? } else { key };
        Ok(Self { public, holder: Holder::Memory(Box::new(key)) })
    }

    /// A key that the agent at `socket` holds.
    #[must_use]
    pub fn in_agent(socket: &Path, public: PublicKey) -> Self {
        Self { public, holder: Holder::Agent(socket.to_owned()) }
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs `message` in `namespace` as SSHSIG with SHA-512. With an agent this may wait up to a minute for a person.
    ///
    /// # Errors
    /// [`SshError::AgentRefused`] and kin; [`SshError::Namespace`].
    pub fn sign(&self, namespace: &str, message: &[u8]) -> Result<SshSignature, SshError> {
        if namespace.is_empty() || namespace.len() > MAX_NAMESPACE_BYTES {
            return Err(SshError::Namespace(namespace.chars().take(80).collect()));
        }
        let signature = match &self.holder {
            Holder::Memory(key) => key.sign(namespace, HashAlg::Sha512, message).map_err(SshError::Key)?,
            Holder::Agent(socket) => self.sign_in_agent(socket, namespace, message)?,
        };
        signature.to_pem(LineEnding::LF).map(SshSignature::from_pem).map_err(SshError::Key)
    }

    fn sign_in_agent(&self, socket: &Path, namespace: &str, message: &[u8]) -> Result<SshSig, SshError> {
        let data = SshSig::signed_data(namespace, HashAlg::Sha512, message).map_err(SshError::Key)?;
        let blob = agent::sign(socket, &self.public, &data)?;
        let signature = Signature::try_from(blob.as_slice())
            .map_err(|_| SshError::AgentAnswer("something else than a signature"))?;
        // An agent too old for SHA-2 answers with SHA-1.
        check_algorithm(self.public.kind(), &signature.algorithm())
            .map_err(|_| SshError::AgentAnswer("a signature with an algorithm that is not accepted"))?;
        SshSig::new(self.public.key_data().clone(), namespace, HashAlg::Sha512, signature).map_err(SshError::Key)
    }
}

impl fmt::Debug for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserKey").field("public", &self.public).finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<PrivateKey, SshError> {
    let text = file::read_private(path, MAX_FILE_BYTES)?;
    PrivateKey::from_openssh(text.as_slice()).map_err(|_| {
        // The old formats say in their first line what they hold.
        if text.starts_with(b"-----BEGIN RSA PRIVATE KEY-----") {
            SshError::RsaNeedsAgent { path: path.to_owned() }
        } else {
            SshError::NotOpenSsh { path: path.to_owned() }
        }
    })
}

fn public_of(path: &Path, key: &PrivateKey) -> Result<PublicKey, SshError> {
    let public = PublicKey::from_library(key.public_key().clone())?;
    if public.kind() == super::KeyKind::Rsa {
        return Err(SshError::RsaNeedsAgent { path: path.to_owned() });
    }
    Ok(public)
}

/// The public half of a key file, which stands in the clear also in a protected one. RSA keys too.
pub(crate) fn read_public_half(path: &Path) -> Result<PublicKey, SshError> {
    match read(path) {
        Ok(key) => PublicKey::from_library(key.public_key().clone()),
        Err(error) => {
            // A key on a token or in an old format has its public half beside it.
            let beside = path.with_added_extension("pub");
            let text = file::read_public(&beside, MAX_FILE_BYTES).map_err(|_| error)?;
            std::str::from_utf8(&text).map_err(|_| SshError::PublicKey)?.parse()
        }
    }
}

fn decrypt(
    path: &Path,
    key: &PrivateKey,
    passphrase: &mut dyn FnMut(PassphraseRequest<'_>) -> Option<SecretString>,
) -> Result<PrivateKey, SshError> {
    for attempt in 1..=MAX_ATTEMPTS {
        let Some(given) = passphrase(PassphraseRequest { path, attempt }) else { break };
        if let Ok(key) = key.decrypt(given.expose_secret()) {
            return Ok(key);
        }
    }
    Err(SshError::Passphrase { path: path.to_owned() })
}

/// Makes an Ed25519 key for a person who has none: `path` (0600) and `path.pub`. Without a passphrase, so that the
/// first publish needs no question; `ssh-keygen -p` adds one.
///
/// # Errors
/// [`crate::FileError::Exists`] when there is a file: a key is never overwritten.
pub fn generate(path: &Path, comment: &str, rng: &mut impl CryptoRngCore) -> Result<UserKey, SshError> {
    let comment: String = comment.chars().filter(|c| !c.is_control()).take(128).collect();
    let pair = KeypairData::Ed25519(Ed25519Keypair::random(rng));
    let key = PrivateKey::new(pair, comment).map_err(SshError::Key)?;
    let public = PublicKey::from_library(key.public_key().clone())?;
    let text = key.to_openssh(LineEnding::LF).map_err(SshError::Key)?;
    file::create_private(path, text.as_bytes())?;
    let line = format!("{} {}\n", public.to_line(), public.comment());
    file::replace_public(&path.with_added_extension("pub"), line.as_bytes())?;
    Ok(UserKey { public, holder: Holder::Memory(Box::new(key)) })
}
