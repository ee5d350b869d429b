//! A version as citations and exports need it, read from its statement and not from the node's word.

use bib_client::{Client, pb};
use bib_core::citation::{Citable, ListedFile};
use bib_core::statement::Statement;
use bib_core::{Hash, PeerId};
use futures::TryStreamExt as _;

use crate::errors::{Exit, Failure, Result};

/// Makes a [`Citable`] of a version.
///
/// # Errors
/// Exit 7 when the statement is not the one that the version's hash names.
pub(super) fn citable(version: &pb::Version) -> Result<Citable> {
    let wrong = |what: &str| {
        Failure::new(
            Exit::Integrity,
            format!("the node's answer about `{}` is not consistent: {what}", version.dataset),
        )
        .with_code(bib_client::error::code::DAMAGED)
    };
    let hash: Hash = version.version.parse().map_err(|_| wrong("the version is no hash"))?;
    if Hash::of(&version.statement) != hash {
        return Err(wrong("the statement has another hash"));
    }
    let statement = Statement::parse(&version.statement).map_err(|error| wrong(&error.to_string()))?;
    let owner: PeerId = version.owner.parse().map_err(|_| wrong("the owner is no peer id"))?;
    Ok(Citable {
        reference: format!("{owner}:{}@{hash}", version.dataset),
        name: version.dataset.clone(),
        version: hash,
        label: statement.label,
        owner,
        metadata: statement.metadata,
        license: statement.license,
        message: statement.message,
        time: statement.time,
        size_bytes: version.size_bytes,
        files: version.files,
    })
}

/// The regular files of a version, for the exports that list them.
///
/// # Errors
/// What the node fails with.
pub(super) async fn files(client: &Client, version: &pb::Version) -> Result<Vec<ListedFile>> {
    let exact = format!("{}@{}", version.dataset, version.version);
    let mut entries = client.datasets().files(&exact, "");
    let mut files = Vec::new();
    while let Some(entry) = entries.try_next().await? {
        if !matches!(entry.kind.as_str(), "file" | "exec") {
            continue;
        }
        let sha256 = entry.sha256.parse().map_err(|_| {
            Failure::failed("the node's list of files names no hashes").with_code(bib_client::error::code::BAD_ANSWER)
        })?;
        files.push(ListedFile { path: entry.path, sha256, size_bytes: entry.size });
    }
    Ok(files)
}
