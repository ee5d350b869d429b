//! `publish --in-place`: files stay where they are and the node is told which of their bytes are which chunk.

use std::path::Path;

use bib_core::layout::Extent;
use bib_proto::v1 as pb;
use bytes::Bytes;
use futures::stream;

use super::ingest::Work;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result, code};

/// Extents in one message: less than 1 MiB.
const EXTENTS_PER_MESSAGE: usize = 8192;

/// Tells the node about `files`, which were cut and hashed.
pub(crate) async fn put(client: &Client, session_id: &str, root: &Path, work: &Work, files: &[u32]) -> Result<()> {
    let root = std::fs::canonicalize(root).map_err(|error| Error::local("find", root, error))?;
    let root = if root.is_dir() { root } else { root.parent().map(Path::to_owned).unwrap_or_default() };
    let mut messages = Vec::new();
    for file in files {
        let extents = work.extents.get(*file as usize).unwrap_or_default();
        if extents.is_empty() {
            continue;
        }
        let path = root.join(work.tree.file_path(*file as usize));
        let path = path.into_os_string().into_string().map_err(|path| {
            Error::new(ErrorKind::Invalid, format!("`{}` is not UTF-8", path.display())).with_code(code::UNNAMEABLE)
        })?;
        messages.extend(messages_of(session_id, &path, &extents));
    }
    if messages.is_empty() {
        return Ok(());
    }
    client.datasets().put_in_place(stream::iter(messages)).await.map(|_| ())
}

fn messages_of(session_id: &str, path: &str, extents: &[Extent]) -> Vec<pb::PutInPlaceRequest> {
    let mut offset = 0;
    let mut placed = Vec::with_capacity(extents.len());
    for extent in extents {
        placed.push(pb::InPlaceExtent {
            chunk: Bytes::copy_from_slice(extent.chunk.as_bytes()),
            offset,
            length: extent.length,
        });
        offset += u64::from(extent.length);
    }
    placed
        .chunks(EXTENTS_PER_MESSAGE)
        .map(|extents| pb::PutInPlaceRequest {
            session_id: session_id.to_owned(),
            path: path.to_owned(),
            extents: extents.to_vec(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use bib_core::Hash;

    use super::*;

    #[test]
    fn extents_follow_one_another_across_messages() {
        let extents = vec![Extent { chunk: Hash::of(b"x"), offset: 0, length: 7 }; EXTENTS_PER_MESSAGE + 3];
        let messages = messages_of("s", "/a", &extents);
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[1].extents.len(), 3);
        assert_eq!(messages[1].extents[0].offset, 7 * EXTENTS_PER_MESSAGE as u64);
    }
}
