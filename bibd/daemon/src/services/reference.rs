//! From what a caller writes to a dataset or a version that the caller may know of.
//!
//! The one place where references are looked up, and the one place where the policy is asked about datasets. What a
//! caller may not see is answered word for word like what does not exist.

use bib_core::access::{Embargo, Standing, Verb};
use bib_core::name::{FullName, Owner, Reference, VersionSelector};
use bib_core::statement::Statement;
use bib_core::{DatasetId, Hash, Timestamp};
use bibd_catalog::datasets::SeenDataset;
use bibd_catalog::versions::{Version, VersionState};
use bibd_catalog::{Session, datasets, versions};

use super::base::{Base, allow_topic};
use super::error::ServiceError;
use crate::actor::Call;
use crate::errors::ErrorCode;

/// A version with its dataset, both of which the caller may see.
#[derive(Debug, Clone)]
pub struct Found {
    /// The dataset and what the caller is to its topic.
    pub seen: SeenDataset,
    /// The version.
    pub version: Version,
}

/// A reference, read: `topic/name[@VERSION]`, `DATASET-ID[@VERSION]` or a whole version hash.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Name(FullName, Option<VersionSelector>),
    Id(DatasetId, Option<VersionSelector>),
    Version(Hash),
}

/// The dataset that `text` names (`topic/name` or an id), if the caller may do `verb` with it. A version in the
/// reference is refused. `verb` must not be one that reads bytes: those need a version, see [`version`].
///
/// # Errors
/// When the text is no reference, there is no such dataset for the caller, or the policy says no.
pub async fn dataset(
    base: &Base,
    call: &Call,
    session: &mut impl Session,
    text: &str,
    verb: Verb,
) -> Result<SeenDataset, ServiceError> {
    let target = parse(base, text, "dataset")?;
    match &target {
        Target::Name(_, None) | Target::Id(_, None) => {}
        Target::Name(_, Some(_)) | Target::Id(_, Some(_)) | Target::Version(_) => {
            return Err(ServiceError::invalid("dataset", "a dataset is wanted here, without a version"));
        }
    }
    let seen = find_dataset(base, call, session, &target).await?;
    let seen = seen.ok_or_else(|| ServiceError::not_found("dataset", text))?;
    allow(call, &seen, verb, Embargo::Over, ("dataset", text))?;
    Ok(seen)
}

/// The version that `text` names (`topic/name[@VERSION]`, an id likewise, or a version hash), if the caller may do
/// `verb` with it. Without a version it is the latest. A verb that reads bytes also looks at the embargo.
///
/// # Errors
/// As [`dataset`]; and when the dataset has no such version, or the digits fit more than one.
pub async fn version(
    base: &Base,
    call: &Call,
    session: &mut impl Session,
    text: &str,
    verb: Verb,
) -> Result<Found, ServiceError> {
    let absent = || ServiceError::not_found("version", text);
    let target = parse(base, text, "reference")?;
    let (seen, version) = match &target {
        Target::Version(hash) => {
            let version = versions::find(session, hash).await?.ok_or_else(absent)?;
            let seen = datasets::find(session, call.actor.user, base.now(), version.dataset).await?;
            (seen.ok_or_else(absent)?, version)
        }
        Target::Name(_, selector) | Target::Id(_, selector) => {
            let seen = find_dataset(base, call, session, &target).await?;
            // Not "version": that there is a dataset of this name is told only after the policy was asked.
            let seen = seen.ok_or_else(|| ServiceError::not_found("dataset", text))?;
            allow(call, &seen, Verb::DatasetShow, Embargo::Over, ("dataset", text))?;
            let version = select(session, &seen, selector.as_ref(), text).await?.ok_or_else(absent)?;
            (seen, version)
        }
    };
    let embargo = if verb == Verb::DatasetRead { embargo_of(&version, base.now()) } else { Embargo::Over };
    allow(call, &seen, verb, embargo, ("version", text))?;
    Ok(Found { seen, version })
}

/// As [`version`] for a verb that needs the bytes: a withdrawn version has none.
///
/// # Errors
/// As [`version`]; and [`ErrorCode::WITHDRAWN`].
pub async fn readable(base: &Base, call: &Call, session: &mut impl Session, text: &str) -> Result<Found, ServiceError> {
    let found = version(base, call, session, text, Verb::DatasetRead).await?;
    if found.version.state == VersionState::Withdrawn {
        return Err(withdrawn(&found.version));
    }
    Ok(found)
}

/// Asks the policy whether the caller may do `verb` with a dataset.
///
/// # Errors
/// When it says no. What the caller may not see is answered as not there, in the words of `what`.
pub fn allow(
    call: &Call,
    seen: &SeenDataset,
    verb: Verb,
    embargo: Embargo,
    what: (&'static str, &str),
) -> Result<(), ServiceError> {
    let standing = Standing::of(seen.grant, seen.is_creator);
    allow_topic(call, verb, &seen.topic_name, seen.visibility, standing, embargo, what)
}

/// Whether an embargo on a version's bytes is in force at `now`. A statement that cannot be read keeps its bytes.
#[must_use]
pub fn embargo_of(version: &Version, now: Timestamp) -> Embargo {
    match Statement::parse(&version.statement) {
        Ok(statement) if statement.metadata.embargo.is_none_or(|until| until <= now) => Embargo::Over,
        Ok(_) | Err(_) => Embargo::InForce,
    }
}

/// The refusal to read a withdrawn version.
pub(super) fn withdrawn(version: &Version) -> ServiceError {
    ServiceError::Conflict {
        code: ErrorCode::WITHDRAWN,
        sentence: format!("version {} was withdrawn: {}", version.hash, version.withdrawal_reason),
        hint: "`bib dataset versions` lists the others; metadata and reason stay".to_owned(),
        values: vec![("version", version.hash.to_string())],
    }
}

fn parse(base: &Base, text: &str, field: &'static str) -> Result<Target, ServiceError> {
    let invalid = |reason: String| ServiceError::invalid(field, reason);
    if let Ok(hash) = text.parse() {
        return Ok(Target::Version(hash));
    }
    let (head, selector) = match text.split_once('@') {
        Some((head, selector)) => (head, Some(selector)),
        None => (text, None),
    };
    // Both are spelled like a segment, and a name of one segment is a topic, never a dataset.
    if head.len() == 36
        && let Ok(id) = head.parse()
    {
        let selector = selector.map(VersionSelector::new).transpose().map_err(|e| invalid(e.to_string()))?;
        return Ok(Target::Id(id, selector));
    }
    let reference: Reference = text.parse().map_err(|e: bib_core::name::ReferenceError| invalid(e.to_string()))?;
    if reference.path.is_some() {
        return Err(invalid("a dataset or version is wanted here, without a path".to_owned()));
    }
    match &reference.owner {
        None => {}
        // What was cited under a former node's name is found.
        Some(Owner::Peer(peer)) if base.is_own(peer) => {}
        Some(_) => return Err(ServiceError::not_found("dataset", text)),
    }
    if reference.name.as_dataset().is_err() {
        return Err(invalid(format!("`{}` is a topic; a dataset is written `topic/name`", reference.name)));
    }
    Ok(Target::Name(reference.name, reference.version))
}

async fn find_dataset(
    base: &Base,
    call: &Call,
    session: &mut impl Session,
    target: &Target,
) -> Result<Option<SeenDataset>, ServiceError> {
    let (user, now) = (call.actor.user, base.now());
    Ok(match target {
        Target::Name(name, _) => datasets::find_by_name(session, user, now, name.as_str(), &base.peer).await?,
        Target::Id(id, _) => datasets::find(session, user, now, *id).await?,
        Target::Version(_) => None,
    })
}

async fn select(
    session: &mut impl Session,
    seen: &SeenDataset,
    selector: Option<&VersionSelector>,
    text: &str,
) -> Result<Option<Version>, ServiceError> {
    let id = seen.dataset.id;
    match selector {
        None | Some(VersionSelector::Latest) => match &seen.dataset.latest {
            Some(latest) => Ok(versions::find(session, latest).await?),
            None => Ok(None),
        },
        Some(VersionSelector::Tag(tag)) => Ok(versions::find_tag(session, id, tag.as_str()).await?),
        Some(VersionSelector::Prefix(prefix)) => {
            let mut found = versions::find_prefix(session, id, &prefix.to_string()).await?;
            if found.len() > 1 {
                return Err(ServiceError::invalid(
                    "reference",
                    format!("`{text}` fits more than one version; add digits"),
                ));
            }
            Ok(found.pop())
        }
    }
}
