//! The records that a publish signs: the dataset with its new latest version, the version, and the person who signed.

use bib_core::record::{self, Body, Kind, VersionSignature};
use bib_core::{Hash, PeerId};
use bibd_catalog::datasets::Dataset;
use bibd_catalog::records::StoredRecord;
use bibd_catalog::users::{self, Person, UserKey};
use bibd_catalog::versions::Version;
use bibd_catalog::{Tx, records};

use super::base::{About, Base};
use super::error::ServiceError;
use crate::actor::Call;

/// Signs the dataset's record anew: `latest` is part of it.
pub(super) async fn dataset(base: &Base, tx: &mut Tx, dataset: &Dataset, latest: Hash) -> Result<(), ServiceError> {
    let (id, now) = (dataset.id.to_string(), base.now());
    let name = dataset.name.parse().map_err(|e: bib_core::name::NameError| ServiceError::internal(e))?;
    let make = |revision| {
        Body::Dataset(record::Dataset {
            revision,
            time: now,
            id: dataset.id,
            origin: dataset.origin,
            nonce: dataset.nonce,
            name,
            topic: dataset.topic,
            latest: Some(latest),
            life: record::Life::Live,
            extra: Default::default(),
        })
    };
    let signed = base.sign_next(tx, About { kind: Kind::Dataset, id: &id, origin: dataset.origin }, make).await?;
    put(tx, base, Kind::Dataset, &id, &signed).await
}

/// Signs the record of a version of a dataset that began with `origin`: the statement verbatim, its signature, and where the bytes lie.
pub(super) async fn version(base: &Base, tx: &mut Tx, origin: PeerId, version: &Version) -> Result<(), ServiceError> {
    let (id, now) = (version.hash.to_string(), base.now());
    let make = |revision| {
        Body::Version(record::Version {
            revision,
            time: now,
            dataset: version.dataset,
            statement: version.statement.clone(),
            signature: VersionSignature::Person { sshsig: version.signature.clone() },
            layout: version.layout,
            files: version.files,
            size_bytes: version.size_bytes,
            extra: Default::default(),
        })
    };
    let signed = base.sign_next(tx, About { kind: Kind::Version, id: &id, origin }, make).await?;
    put(tx, base, Kind::Version, &id, &signed).await
}

/// Keeps the author, and signs the person's record when something about it is new. The key signs for the person from
/// the first revision of the record on. The name is the node's own word for its user, never what a statement says of its
/// author: the node vouches for it. Answers the name.
pub(super) async fn person(base: &Base, tx: &mut Tx, call: &Call, key: &UserKey) -> Result<String, ServiceError> {
    let user = users::find(tx, key.user).await?;
    let user = user.ok_or_else(|| ServiceError::internal("the user of a key is gone"))?;
    let name = if user.display_name.is_empty() { user.name } else { user.display_name };
    let public: bib_identity::ssh::PublicKey = key.public_key.parse().map_err(ServiceError::internal)?;
    let id = key.fingerprint.to_string();
    let author =
        Person { fingerprint: id.clone(), public_key: public.to_line(), name: name.clone(), orcid: user.orcid.clone() };
    let now = base.now();
    let is_new = users::put_person(tx, &author, Some(call.actor.user), now).await?;
    let before = records::find(tx, Kind::Person.as_str(), &id).await?;
    // A record that a former node signed is this node's word only once it signed it too.
    let is_ours = before.as_ref().map(StoredRecord::signed).transpose()?.is_some_and(|record| record.key == base.peer);
    let valid_from = match &before {
        Some(_) if !is_new && is_ours => return Ok(name),
        Some(before) => match Body::parse(&before.body) {
            Ok(Body::Person(before)) if before.valid_until.is_none() => Some(before.valid_from),
            // A key that was removed and added again counts from now on.
            Ok(_) | Err(_) => None,
        },
        None => None,
    };
    let make = |revision| {
        Body::Person(record::Person {
            revision,
            time: now,
            node: base.peer,
            key: public.to_line(),
            name: name.clone(),
            orcid: user.orcid.parse().ok(),
            valid_from: valid_from.unwrap_or(revision),
            valid_until: None,
            extra: Default::default(),
        })
    };
    let signed = base.sign_next(tx, About { kind: Kind::Person, id: &id, origin: base.peer }, make).await?;
    put(tx, base, Kind::Person, &id, &signed).await?;
    Ok(name)
}

async fn put(tx: &mut Tx, base: &Base, kind: Kind, id: &str, record: &StoredRecord) -> Result<(), ServiceError> {
    if records::put(tx, kind.as_str(), id, record, base.now()).await? {
        return Ok(());
    }
    // Whoever signs holds the lock of what the record is about, so nobody else can have signed meanwhile.
    Err(ServiceError::internal(format!("the {} record of {id} was signed twice at once", kind.as_str())))
}
