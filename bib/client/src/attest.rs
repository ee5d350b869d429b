//! Who says that a version is what it is: the statement's hash, the author's signature, and who vouches for the key.
//!
//! Nothing here asks the network. What is judged is what the node sent along; a node that lies about a key is told by
//! comparing the key's fingerprint elsewhere, which is why the verdicts name it.

use std::fmt;

use bib_core::record::{Body, Lineage, SignedRecord, StepProof, VersionSignature};
use bib_core::signature::{Purpose, VERSION_NAMESPACE};
use bib_core::statement::{Author, Statement};
use bib_core::{DatasetId, Hash, KeyFingerprint, Nonce, PeerId};
use bib_identity::node_key;
use bib_identity::ssh::{self, PublicKey};
use bib_proto::v1 as pb;

use crate::error::{Error, Result};

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It holds. The text says who or what.
    Good(String),
    /// It does not hold. The text says why.
    Bad(String),
    /// It cannot be told. The text says why not.
    Unknown(String),
}

impl Verdict {
    /// Whether it holds.
    #[must_use]
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Good(_))
    }

    /// Whether it is known not to hold.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        matches!(self, Self::Bad(_))
    }

    /// One word: `good`, `bad` or `unknown`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Good(_) => "good",
            Self::Bad(_) => "bad",
            Self::Unknown(_) => "unknown",
        }
    }

    /// What was found, in words.
    #[must_use]
    pub fn explanation(&self) -> &str {
        match self {
            Self::Good(text) | Self::Bad(text) | Self::Unknown(text) => text,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.word(), self.explanation())
    }
}

/// Reads the statement of a version that a node sent, and holds it against the version's hash.
///
/// # Errors
/// [`crate::ErrorKind::Integrity`] when the bytes are not the version's statement, or say something else than the node.
pub fn statement_of(version: &pb::Version) -> Result<Statement> {
    let hash = Hash::of(&version.statement);
    if hash.to_string() != version.version {
        return Err(Error::damaged(format!("the statement that came is that of {hash}, not of {}", version.version)));
    }
    let statement = Statement::parse(&version.statement).map_err(|error| Error::damaged(error.to_string()))?;
    if statement.content.to_string() != version.content {
        return Err(Error::damaged(format!("the statement is about the content {}", statement.content)));
    }
    Ok(statement)
}

/// Whether the author signed the statement.
#[must_use]
pub fn author_verdict(version: &pb::Version, statement: &Statement) -> Verdict {
    match &statement.author {
        Author::Person { key, .. } => person_signed(version, key),
        Author::Service { node, .. } => service_signed(version, node),
    }
}

/// A service has no person's key: the node signs the statement, and the signature lies in the version's record.
fn service_signed(version: &pb::Version, node: &PeerId) -> Verdict {
    let record = match checked_record(version, version.record.as_ref()) {
        Ok((Body::Version(record), _)) if record.statement == version.statement.as_ref() => record,
        Ok(_) => return Verdict::Bad("the record that came is not about this version".to_owned()),
        Err(verdict) => return verdict,
    };
    match &record.signature {
        VersionSignature::Service { node: signer, signature }
            if signer == node && node_key::verify(node, Purpose::Version, &version.statement, signature).is_ok() =>
        {
            Verdict::Good(format!("signed by node {node} for a service"))
        }
        _ => Verdict::Bad(format!("the statement is not signed by node {node}")),
    }
}

fn person_signed(version: &pb::Version, key: &KeyFingerprint) -> Verdict {
    if version.signature.is_empty() {
        return Verdict::Bad(format!("the statement names the author {key} and has no signature"));
    }
    let public: PublicKey = match version.author_public_key.parse() {
        Ok(public) => public,
        Err(_) => return Verdict::Unknown(format!("the public key {key} did not come along")),
    };
    if public.fingerprint() != *key {
        return Verdict::Bad(format!("the public key that came is {}, not {key}", public.fingerprint()));
    }
    match ssh::verify(&public, VERSION_NAMESPACE, &version.statement, &version.signature) {
        Ok(()) => Verdict::Good(format!("signed with {key}")),
        Err(error) => Verdict::Bad(format!("the signature with {key}: {error}")),
    }
}

/// Who vouches that the author's key is the person's.
#[must_use]
pub fn voucher_verdict(version: &pb::Version, statement: &Statement) -> Verdict {
    let Author::Person { key, .. } = &statement.author else {
        return Verdict::Good("the node speaks for itself".to_owned());
    };
    match checked_record(version, version.person_record.as_ref()) {
        Ok((Body::Person(person), signer)) => match person.fingerprint() {
            Ok(found) if found == *key && person.node == signer => {
                let follows = match version.owner == signer.to_string() {
                    true => String::new(),
                    false => format!("; its proved successor is node {}", version.owner),
                };
                Verdict::Good(format!("node {signer} vouches that {key} is {}{follows}", person.name))
            }
            _ => Verdict::Bad(format!("the record that came vouches for another key than {key}")),
        },
        Ok(_) => Verdict::Bad("the record that came is not about a person".to_owned()),
        Err(verdict) => verdict,
    }
}

/// The name that the version's owner vouches for, when it does: the author's as the node knows it.
#[must_use]
pub fn vouched_name(version: &pb::Version, statement: &Statement) -> Option<String> {
    let Author::Person { key, .. } = &statement.author else { return None };
    match checked_record(version, version.person_record.as_ref()) {
        Ok((Body::Person(person), _)) if person.fingerprint().is_ok_and(|found| found == *key) => Some(person.name),
        _ => None,
    }
}

/// Reads a record that counts: signed by the version's owner or, within its time, by a node that the owner follows.
/// Answers who signed.
fn checked_record(version: &pb::Version, record: Option<&pb::SignedRecord>) -> Result<(Body, PeerId), Verdict> {
    let Ok(owner) = version.owner.parse::<PeerId>() else {
        return Err(Verdict::Unknown("the version's owner is not known".to_owned()));
    };
    let Some(record) = record else {
        return Err(Verdict::Unknown("no record came along".to_owned()));
    };
    let (lineage, origin) = lineage(version, owner)?;
    let Some(signer) = peer(&record.key).filter(|signer| lineage.distance(signer, &owner).is_some()) else {
        return Err(Verdict::Bad(format!("the record is not signed by node {owner}, nor by one that it follows")));
    };
    if node_key::verify(&signer, Purpose::Record, &record.body, &record.sig).is_err() {
        return Err(Verdict::Bad(format!("the record's signature is not that of node {signer}")));
    }
    let body = Body::parse(&record.body);
    let body = body.map_err(|error| Verdict::Bad(format!("the record cannot be read: {error}")))?;
    let counts = match &body {
        // A person's record is about nobody's dataset: who signed vouches, for as long as it was the owner.
        Body::Person(_) => lineage.within(&signer, body.revision()),
        _ => lineage.judge(&origin, &signer, body.revision()),
    };
    counts.map_err(|error| Verdict::Bad(format!("the record does not count: {error}")))?;
    Ok((body, signer))
}

/// The successions that came along and hold, and the node that made the dataset: its id belongs to that node.
fn lineage(version: &pb::Version, owner: PeerId) -> Result<(Lineage, PeerId), Verdict> {
    let mut lineage = Lineage::default();
    // A node of an earlier minor version says nothing of an origin, and has no predecessor.
    if version.origin.is_empty() && version.successions.is_empty() {
        return Ok((lineage, owner));
    }
    for proof in &version.successions {
        let records = proof.node.as_ref().and_then(signed).zip(proof.succession.as_ref().and_then(signed));
        let Some((node, succession)) = records else {
            return Err(Verdict::Bad("a succession that came along is no record".to_owned()));
        };
        let step = StepProof { node, succession }.open(&node_key::holds);
        lineage.add(step.map_err(|error| Verdict::Bad(format!("a succession does not hold: {error}")))?);
    }
    let nonce = <[u8; 16]>::try_from(version.nonce.as_ref()).ok().map(Nonce::from_bytes);
    let made = version.origin.parse::<PeerId>().ok().zip(nonce);
    let about = Statement::parse(&version.statement).ok().map(|statement| statement.dataset);
    let origin = made.filter(|(origin, nonce)| about == Some(DatasetId::derive(origin, nonce)));
    let Some((origin, _)) = origin else {
        return Err(Verdict::Bad(
            "the dataset's id does not belong to the node that is said to have made it".to_owned(),
        ));
    };
    if lineage.present(&origin) != owner {
        return Err(Verdict::Bad(format!("nothing proves that node {owner} follows {origin}, which made the dataset")));
    }
    Ok((lineage, origin))
}

fn signed(record: &pb::SignedRecord) -> Option<SignedRecord> {
    let sig = record.sig.as_ref().try_into().ok()?;
    Some(SignedRecord { body: record.body.to_vec(), key: peer(&record.key)?, sig })
}

/// A peer id from its multihash bytes.
fn peer(bytes: &[u8]) -> Option<PeerId> {
    let key = PeerId::from_public_key(bytes.get(6..)?.try_into().ok()?);
    (key.to_multihash() == bytes).then_some(key)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bib_core::Timestamp;
    use bib_identity::ssh::{UserKey, generate};
    use rand_core::OsRng;

    use super::*;

    fn key() -> (tempfile::TempDir, UserKey) {
        let dir = tempfile::tempdir().unwrap();
        let key = generate(&dir.path().join("id"), "ada", &mut OsRng).unwrap();
        (dir, key)
    }

    fn signed(key: &UserKey) -> pb::Version {
        let dataset =
            bib_core::DatasetId::derive(&PeerId::from_public_key([7; 32]), &bib_core::Nonce::from_bytes([1; 16]));
        let statement = Statement {
            dataset,
            content: Hash::of(b"content"),
            parents: Vec::new(),
            label: None,
            message: "first".to_owned(),
            time: Timestamp::from_micros(0),
            license: "CC0-1.0".to_owned(),
            metadata: Default::default(),
            author: Author::Person { key: key.public().fingerprint(), name: None },
            provenance: None,
            author_extra: Default::default(),
            extra: Default::default(),
        };
        let bytes = statement.to_bytes().unwrap();
        pb::Version {
            version: Hash::of(&bytes).to_string(),
            content: statement.content.to_string(),
            signature: key.sign(VERSION_NAMESPACE, &bytes).unwrap().into_string(),
            author_public_key: key.public().to_line(),
            statement: bytes.into(),
            ..pb::Version::default()
        }
    }

    #[test]
    fn a_signed_version_is_good_and_nobody_vouches() {
        let (_dir, key) = key();
        let version = signed(&key);
        let statement = statement_of(&version).unwrap();
        assert!(author_verdict(&version, &statement).is_good());
        assert_eq!(voucher_verdict(&version, &statement).word(), "unknown");
        assert_eq!(vouched_name(&version, &statement), None);
    }

    #[test]
    fn another_key_another_statement_or_no_signature_is_bad() {
        let (_dir, key) = key();
        let (_other_dir, other) = self::key();
        let version = signed(&key);
        let statement = statement_of(&version).unwrap();
        let cases: BTreeMap<&str, pb::Version> = [
            ("no signature", pb::Version { signature: String::new(), ..version.clone() }),
            ("another key's line", pb::Version { author_public_key: other.public().to_line(), ..version.clone() }),
            ("another signature", pb::Version { signature: signed(&other).signature, ..version.clone() }),
        ]
        .into();
        for (what, version) in cases {
            assert!(author_verdict(&version, &statement).is_bad(), "{what}");
        }
        let mut changed = version.statement.to_vec();
        changed[20] ^= 1;
        assert!(statement_of(&pb::Version { statement: changed.into(), ..version.clone() }).is_err());
        assert!(statement_of(&pb::Version { content: Hash::of(b"x").to_string(), ..version }).is_err());
    }
}
