//! Sends pages: content and layout, indexes and roots, those that the node lacks.

use std::collections::HashSet;
use std::sync::Arc;

use bib_core::content::Block;
use bib_proto::v1 as pb;
use bytes::Bytes;
use futures::stream;
use tokio::sync::mpsc;

use super::ingest::Stopped;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Phase, Progress};

/// Pages asked about at once, at most.
const BATCH_PAGES: usize = 256;
/// Their bytes at most, a page more or less.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Pages that wait for the sender.
const QUEUE: usize = 8;

/// A page on its way.
pub(crate) type Page = (pb::PageKind, Block);

/// Where pages go in.
#[derive(Debug, Clone)]
pub(crate) struct PageOutlet(mpsc::Sender<Page>);

impl PageOutlet {
    /// An outlet and what comes out of it.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Page>) {
        let (sender, receiver) = mpsc::channel(QUEUE); // a page each, at most 3 MiB
        (Self(sender), receiver)
    }

    pub(crate) fn put(&self, kind: pb::PageKind, block: Block) -> Result<(), Stopped> {
        self.0.blocking_send((kind, block)).map_err(|_| Stopped)
    }
}

/// Sends every page that comes out of `pages` and is missing, until the channel is closed.
pub(crate) async fn send_all(
    client: Client,
    session_id: String,
    mut pages: mpsc::Receiver<Page>,
    progress: Arc<dyn Progress>,
) -> Result<()> {
    while let Some(first) = pages.recv().await {
        let mut bytes = first.1.bytes.len();
        let mut batch = vec![first];
        while batch.len() < BATCH_PAGES
            && bytes < BATCH_BYTES
            && let Some(next) = pages.recv().await
        {
            bytes += next.1.bytes.len();
            batch.push(next);
        }
        let count = batch.len() as u64;
        send_batch(&client, &session_id, batch).await?;
        progress.advance(Phase::Describe, count);
    }
    Ok(())
}

async fn send_batch(client: &Client, session_id: &str, batch: Vec<Page>) -> Result<()> {
    let request = pb::FindMissingPagesRequest {
        session_id: session_id.to_owned(),
        pages: batch.iter().map(|(_, block)| Bytes::copy_from_slice(block.hash.as_bytes())).collect(),
    };
    let missing: HashSet<u32> = client.datasets().find_missing_pages(request).await?.into_iter().collect();
    let mut wanted = Vec::new();
    for (position, (kind, block)) in (0u32..).zip(batch) {
        if missing.contains(&position) {
            wanted.push((kind, block.hash, Bytes::from(block.bytes)));
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let mut left = client.options().attempts.max(1);
    loop {
        left -= 1;
        let mut session = Some(session_id.to_owned());
        let messages: Vec<_> = wanted
            .iter()
            .map(|(kind, hash, bytes)| pb::PutPagesRequest {
                session_id: session.take().unwrap_or_default(),
                kind: (*kind).into(),
                page: Bytes::copy_from_slice(hash.as_bytes()),
                data: bytes.clone(),
            })
            .collect();
        match client.datasets().put_pages(stream::iter(messages)).await {
            Ok(answer) if answer.pages as usize > wanted.len() => {
                return Err(Error::bad_answer("the node took more pages than were sent"));
            }
            Ok(_) => return Ok(()),
            Err(error) if error.is_transport() && error.kind() == ErrorKind::Unavailable && left > 0 => {
                tracing::debug!(error = %error.chain(), "sending pages again");
            }
            Err(error) => return Err(error),
        }
    }
}
