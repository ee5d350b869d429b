//! Pages on their way in: parsed strictly, hashed, summed up, and kept with a lease.
//!
//! What a page says on its own is checked here, once; what pages say together is checked by the commit.

use std::collections::BTreeSet;

use bib_core::content::{ContentRoot, IndexObject, Page};
use bib_core::layout::{LayoutIndex, LayoutPage, LayoutRoot};
use bib_core::{Hash, SessionId};
use bibd_catalog::pages::{self, NewPage, PageKind, Summary};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};

use super::error::ServiceError;
use super::upload::UploadUseCases;
use crate::actor::Call;
use crate::errors::ErrorCode;

/// Bytes of the pages that are kept in one transaction, about.
const BATCH_BYTES: usize = 4 << 20;

/// Pages that are kept in one transaction, at most.
const BATCH_PAGES: usize = 64;

/// A page as it arrived.
#[derive(Debug, Clone)]
pub struct SentPage {
    /// What it is said to be.
    pub kind: PageKind,
    /// What it is said to hash to.
    pub hash: Hash,
    /// Its bytes.
    pub body: Bytes,
}

impl UploadUseCases {
    /// Keeps pages for a session and says how many, and how many bytes. Batch by batch: after an error, what was kept
    /// before stays kept.
    ///
    /// # Errors
    /// When a page is not what it is said to be, the session is over, or its user's quota is used up.
    pub async fn put_pages(
        &self,
        call: &Call,
        session: SessionId,
        mut sent: impl Stream<Item = Result<SentPage, ServiceError>> + Send + Unpin,
    ) -> Result<(u64, u64), ServiceError> {
        let (mut pages, mut bytes) = (0, 0);
        loop {
            let (mut batch, mut batch_bytes) = (Vec::new(), 0);
            while batch.len() < BATCH_PAGES && batch_bytes < BATCH_BYTES {
                let Some(page) = sent.next().await else { break };
                let page = page?;
                batch_bytes += page.body.len();
                batch.push(page);
            }
            if batch.is_empty() {
                return Ok((pages, bytes));
            }
            pages += batch.len() as u64;
            bytes += batch_bytes as u64;
            self.keep(call, session, batch, batch_bytes as u64).await?;
        }
    }

    async fn keep(
        &self,
        call: &Call,
        session: SessionId,
        batch: Vec<SentPage>,
        bytes: u64,
    ) -> Result<(), ServiceError> {
        let parsed = tokio::task::spawn_blocking(move || batch.iter().map(parse).collect::<Result<Vec<_>, _>>());
        let parsed = parsed.await.map_err(ServiceError::internal)??;
        // A page that was here without a lease may be collected between our insert, which found it, and our lease.
        for _ in 0..2 {
            match self.keep_parsed(call, session, &parsed, bytes).await {
                Err(error) if error.code() == ErrorCode::CONFLICT => {}
                result => return result,
            }
        }
        self.keep_parsed(call, session, &parsed, bytes).await
    }

    async fn keep_parsed(
        &self,
        call: &Call,
        session: SessionId,
        parsed: &[NewPage],
        bytes: u64,
    ) -> Result<(), ServiceError> {
        let now = self.base.now();
        let mut tx = self.base.begin(call, "upload").await?;
        self.live(&mut tx, call, session).await?;
        pages::put(&mut tx, session, parsed, now).await?;
        self.charge(&mut tx, call, bytes, now).await?;
        self.beat(&mut tx, session, bytes, now).await?;
        Ok(tx.commit().await?)
    }
}

fn parse(sent: &SentPage) -> Result<NewPage, ServiceError> {
    let wrong = |reason: String| ServiceError::invalid("page", format!("{}: {reason}", sent.hash));
    if Hash::of(&sent.body) != sent.hash {
        return Err(wrong("the bytes sent for this page have another hash".to_owned()));
    }
    let (mut summary, mut chunks) = (None, BTreeSet::new());
    match sent.kind {
        PageKind::ContentRoot => drop(ContentRoot::parse(&sent.body).map_err(|e| wrong(e.to_string()))?),
        PageKind::ContentIndex => drop(IndexObject::parse(&sent.body).map_err(|e| wrong(e.to_string()))?),
        PageKind::LayoutRoot => drop(LayoutRoot::parse(&sent.body).map_err(|e| wrong(e.to_string()))?),
        PageKind::LayoutIndex => drop(LayoutIndex::parse(&sent.body).map_err(|e| wrong(e.to_string()))?),
        PageKind::ContentPage => {
            let page = Page::parse(&sent.body).map_err(|e| wrong(e.to_string()))?;
            summary = Some(summarise(&page).ok_or_else(|| wrong("its files have 2^63 bytes or more".to_owned()))?);
        }
        PageKind::LayoutPage => {
            let page = LayoutPage::parse(&sent.body).map_err(|e| wrong(e.to_string()))?;
            chunks.extend(page.lines.iter().flat_map(|line| line.extents.iter().map(|extent| extent.chunk)));
        }
    }
    let chunks = chunks.into_iter().collect();
    Ok(NewPage { hash: sent.hash, kind: sent.kind, body: sent.body.to_vec(), summary, chunks })
}

/// What the rules of the tree need of a page later.
fn summarise(page: &Page) -> Option<Summary> {
    let path = |entry: Option<&bib_core::content::Entry>| entry.map(|e| e.path().as_str().to_owned());
    let mut size_bytes: u64 = 0;
    for entry in &page.entries {
        size_bytes = size_bytes.checked_add(entry.size()).filter(|sum| *sum < bib_core::content::MAX_TOTAL_BYTES)?;
    }
    let files = page.entries.iter().filter(|entry| matches!(entry, bib_core::content::Entry::File { .. })).count();
    Some(Summary {
        entries: u32::try_from(page.entries.len()).ok()?,
        files: files as u64,
        size_bytes,
        first_path: path(page.entries.first())?,
        last_path: path(page.entries.last())?,
        body_bytes: page.size_bytes as u64,
    })
}
