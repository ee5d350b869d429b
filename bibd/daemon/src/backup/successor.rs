//! A node whose identity is lost or stolen goes on under a new one: the last steps of `bibd restore --new-identity`.
//!
//! What the former node owned goes over by a succession: a record that the recovery key of the sheet signs, which names the
//! new peer id, and which the new key accepts. The key is made first and stays in `successor/` of the target, whatever
//! happens, until the first start has carried the succession out: so a restore that was cut off goes on under the same name.
//! Then the store is told who the successor is (`succession/<peer id>`): a node gets one, not two. What the former key or
//! its CA could open is made anew: identity, CA, server certificate, disk key. The other secrets are opened with the sheet's
//! age key and sealed to the new identity. All of it is made beside what was restored and swapped in at the end; the mark
//! of an unfinished restore lies over everything.
//!
//! The database learns of it at the first start ([`crate::services::succession`]), after its migrations.

use std::fs;
use std::path::{Path, PathBuf};

use bib_core::record::{Body, Revision, SignedRecord, StepProof, Succession};
use bib_core::signature::Purpose;
use bib_core::{PeerId, Timestamp};
use bib_identity::ca::{CA_CERTIFICATE_FILE, CA_KEY_SECRET};
use bib_identity::recovery::ParsedSheet;
use bib_identity::server_certificate::SERVER_KEY_SECRET;
use bib_identity::{CertificateAuthority, Fingerprint, NodeKey, SealedDir, file};
use bibd_audit::succession;
use bibd_postgres::Failpoints;
use secrecy::{ExposeSecret as _, SecretSlice};
use zeroize::Zeroizing;

use super::error::BackupError;
use super::landing::Examined;
use super::store::Store;
use crate::at_rest;
use crate::clock::Entropy;
use crate::inheritance::{DIRECTORY, FORMER_KEYS, PROOF, accept};
use crate::services::recovery;

/// Where the store says who the successor is.
const CLAIM: &str = "succession";
/// The key, in the target and in [`DIRECTORY`].
const KEY: &str = "node_key";
/// Directories of the target that are made anew.
const SWAPPED: [&str; 3] = ["identity", "secrets", "certs"];
/// The longest sealed secret, bytes.
const MAX_SECRET_BYTES: u64 = 1 << 20;
/// Secrets that end with the former identity: what signs for it, what is derived from it, whose sheet it had.
const DROPPED: [&str; 4] = [CA_KEY_SECRET, SERVER_KEY_SECRET, at_rest::NAME, recovery::NAME];

/// Who goes on.
#[derive(Debug, Clone)]
pub struct Successor {
    /// The new peer id.
    pub peer: PeerId,
    /// The new CA, which clients have to trust.
    pub ca: Fingerprint,
    /// The last of the former node's records that count: epoch and number.
    pub last: (u64, u64),
}

/// What makes a successor.
#[derive(Debug)]
pub struct Succeeding<'a> {
    /// The target of the restore.
    pub to: &'a Path,
    /// The former node's part of the store.
    pub store: &'a Store,
    /// The former node's sheet.
    pub sheet: &'a ParsedSheet,
    /// For the keys.
    pub entropy: &'a Entropy,
    /// The time, in seconds since 1970.
    pub now_s: i64,
    /// Where a test ends the process.
    pub failpoints: &'a Failpoints,
}

/// Who the store says is the successor of its node.
///
/// # Errors
/// When the store cannot be read.
pub fn claimed(store: &Store) -> Result<Vec<PeerId>, BackupError> {
    Ok(store.list(CLAIM)?.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Refuses when somebody else than `own` is the successor.
///
/// # Errors
/// [`BackupError::Succeeded`].
pub fn require_unclaimed(store: &Store, node: &PeerId, own: Option<&PeerId>) -> Result<(), BackupError> {
    match claimed(store)?.into_iter().find(|peer| Some(peer) != own) {
        Some(by) => Err(BackupError::Succeeded { node: *node, by, place: store.place(&format!("{CLAIM}/{by}")) }),
        None => Ok(()),
    }
}

/// Refuses when `data` holds the very identity that is said to be lost.
///
/// # Errors
/// [`BackupError::IdentityNotLost`].
pub fn require_lost(data: &Path, node: &PeerId) -> Result<(), BackupError> {
    let path = data.join("identity").join(KEY);
    match NodeKey::load(&path) {
        Ok(key) if key.peer_id() == *node => Err(BackupError::IdentityNotLost { node: *node, path }),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The key that an earlier, unfinished restore into `to` made for the successor.
#[must_use]
pub fn key_left_in(to: &Path) -> Option<NodeKey> {
    NodeKey::load(&to.join(DIRECTORY).join(KEY)).ok()
}

/// Whether a new attempt leaves `path` of the target alone: the successor's key.
#[must_use]
pub fn is_kept(to: &Path, path: &Path) -> bool {
    path == to.join(DIRECTORY)
}

impl Succeeding<'_> {
    /// The successor's key: the one that an earlier attempt made, or a new one. What else that attempt left goes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn key(&self) -> Result<NodeKey, BackupError> {
        let directory = self.to.join(DIRECTORY);
        file::ensure_private_dir(&directory).map_err(BackupError::Key)?;
        for entry in fs::read_dir(&directory).map_err(BackupError::io("list", &directory))? {
            let path = entry.map_err(BackupError::io("list", &directory))?.path();
            if path.file_name().is_none_or(|name| name != KEY) {
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(BackupError::io("remove", &path))?;
            }
        }
        let path = directory.join(KEY);
        let made = if path.exists() { NodeKey::load(&path) } else { NodeKey::create(&path, &mut self.entropy.clone()) };
        made.map_err(|error| failed("make a key in", &path)(error))
    }

    /// The former node's record, when it names the recovery key of this sheet.
    ///
    /// # Errors
    /// [`BackupError::OtherSheet`].
    pub fn entitled(&self, examined: &Examined) -> Result<SignedRecord, BackupError> {
        let node = self.sheet.peer_id;
        let recovery = PeerId::from_public_key(self.sheet.sheet.public().ed25519);
        let unread = |error: bibd_catalog::Error| BackupError::Examine(Box::new(error));
        let record = examined.node_record.as_ref().map(|row| row.signed().map_err(unread)).transpose()?;
        record
            .filter(|record| match Body::parse(&record.body) {
                Ok(Body::Node(body)) => body.id == node && body.recovery == Some(recovery),
                _ => false,
            })
            .ok_or(BackupError::OtherSheet { node })
    }

    /// Makes what the successor is in the restored directory, which is that of the former node until the last step.
    ///
    /// # Errors
    /// [`BackupError`]; the mark is still there then, and the next attempt does it again.
    pub fn install(
        &self,
        key: &NodeKey,
        node: SignedRecord,
        examined: &Examined,
        epoch: u64,
    ) -> Result<Successor, BackupError> {
        let (former, peer) = (self.sheet.peer_id, key.peer_id());
        require_unclaimed(self.store, &former, Some(&peer))?;
        let word: [u8; 16] = self.entropy.bytes();
        // Our own name may stand there from an earlier attempt; two who claim at once both see the other.
        if claimed(self.store)?.is_empty() {
            self.store.take(&format!("{CLAIM}/{peer}"), hex::encode(word).as_bytes())?;
        }
        require_unclaimed(self.store, &former, Some(&peer))?;
        self.failpoints.hit("succession.claimed");

        let proof = self.prove(key, node, examined, epoch)?;
        let made = self.to.join(DIRECTORY);
        let line = serde_json::to_vec(&succession::line(&proof)).map_err(|_| BackupError::Broken)?;
        self.write(&made.join(PROOF), &line)?;
        let ca = self.make(&made, key)?;
        self.failpoints.hit("succession.made");

        // The identity goes first: whoever finds a directory without one knows that no server runs in it.
        for name in SWAPPED {
            let path = self.to.join(name);
            fs::remove_dir_all(&path).map_err(BackupError::io("remove", &path))?;
        }
        for name in SWAPPED.into_iter().rev() {
            let (from, path) = (made.join(name), self.to.join(name));
            fs::rename(&from, &path).map_err(BackupError::io("rename", &from))?;
        }
        self.failpoints.hit("succession.swapped");
        Ok(Successor { peer, ca, last: (examined.last.epoch, examined.last.n) })
    }

    /// The succession, signed by the sheet's recovery key and accepted by the new key. Its epoch is the first one of the
    /// audit log in which the new key signs.
    fn prove(
        &self,
        key: &NodeKey,
        node: SignedRecord,
        examined: &Examined,
        epoch: u64,
    ) -> Result<StepProof, BackupError> {
        let unsaid = |_| BackupError::Broken;
        let mut succession = Succession {
            revision: Revision::first(epoch),
            time: self.now(),
            from: self.sheet.peer_id,
            to: key.peer_id(),
            last: examined.last,
            acceptance: None,
            extra: Default::default(),
        };
        succession.acceptance = Some(accept(key, &succession.offer_bytes().map_err(|_| BackupError::Broken)?));
        let body = Body::Succession(succession).to_bytes().map_err(unsaid)?;
        let sheet = &self.sheet.sheet;
        let sig = sheet.sign(Purpose::Succession, &body);
        let signed = SignedRecord { body, key: PeerId::from_public_key(sheet.public().ed25519), sig };
        Ok(StepProof { node, succession: signed })
    }

    /// Identity, secrets and certificates in `made`.
    fn make(&self, made: &Path, key: &NodeKey) -> Result<Fingerprint, BackupError> {
        let [identity, secrets, certs] = SWAPPED.map(|name| made.join(name));
        for directory in [&identity, &certs] {
            file::ensure_private_dir(directory).map_err(BackupError::Key)?;
        }
        let copy = |from: PathBuf, to: PathBuf| fs::copy(&from, to).map(drop).map_err(BackupError::io("copy", &from));
        copy(self.to.join("identity/FORMAT"), identity.join("FORMAT"))?;
        // A copy: the other one stays until the first start has carried the succession out.
        copy(made.join(KEY), identity.join(KEY))?;
        let sealed = |object: String| move |source| BackupError::Sealed { object, source };
        let directory = SealedDir::open(&secrets, key, Vec::new()).map_err(sealed("secrets".to_owned()))?;
        let old = self.to.join("secrets");
        for entry in fs::read_dir(&old).map_err(BackupError::io("list", &old))? {
            let path = entry.map_err(BackupError::io("list", &old))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".age"));
            let Some(name) = name.filter(|name| !DROPPED.contains(name)) else { continue };
            let object = || sealed(format!("secrets/{name}.age"));
            let bytes = file::read_private(&path, MAX_SECRET_BYTES).map_err(BackupError::Key)?;
            let secret = self.sheet.sheet.open(&bytes).map_err(object())?;
            directory.write(name, &secret).map_err(object())?;
        }
        self.keep_former_key(&directory)?;
        let authority = CertificateAuthority::ensure(&certs, &directory, self.now(), &mut self.entropy.clone());
        let authority = authority.map_err(failed("make a CA in", &certs.join(CA_CERTIFICATE_FILE)))?;
        Ok(authority.fingerprint())
    }

    /// What was sealed to the former node lies on in object storage: its key opens that, and signs for nobody any more.
    fn keep_former_key(&self, directory: &SealedDir<'_>) -> Result<(), BackupError> {
        let object = || |source| BackupError::Sealed { object: format!("secrets/{FORMER_KEYS}.age"), source };
        let path = self.to.join("identity").join(KEY);
        let key = file::read_private(&path, MAX_SECRET_BYTES).map_err(BackupError::Key)?;
        // Those of whom the former node followed came with its secrets.
        let before = directory.find(FORMER_KEYS).map_err(object())?;
        let mut keys = Zeroizing::new(before.map_or_else(Vec::new, |keys| keys.expose_secret().to_vec()));
        keys.extend_from_slice(&key);
        directory.write(FORMER_KEYS, &SecretSlice::from(keys.to_vec())).map_err(object())
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.now_s.saturating_mul(1_000_000))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
        file::replace_private(path, bytes).map_err(failed("write", path))
    }
}

/// As [`BackupError::io`], for errors of `bib-identity`.
fn failed<E: std::error::Error + Send + Sync + 'static>(
    act: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> BackupError + use<E> {
    let path = path.to_owned();
    move |error| BackupError::of_io(act, path, std::io::Error::other(error))
}
