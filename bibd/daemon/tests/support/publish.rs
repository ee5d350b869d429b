//! A publisher in miniature: folders in memory, made into content, layout and chunks by `bib-core`, and sent through the
//! use cases.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::collections::{BTreeMap, HashMap};

use bib_core::content::{Block, ContentBuilder, Entry};
use bib_core::layout::{Extent, FileLayout, LayoutBuilder};
use bib_core::metadata::Metadata;
use bib_core::signature::VERSION_NAMESPACE;
use bib_core::statement::{Author, Statement};
use bib_core::{Hash, SessionId, chunk};
use bibd::services::ServiceError;
use bibd::services::assemble::Piece;
use bibd::services::commit::{CommitVersion, Committed};
use bibd::services::receive_pages::SentPage;
use bibd::services::upload::{BeginUpload, Begun};
use bibd_blobs::Encoding;
use bibd_catalog::pages::PageKind;
use bibd_catalog::versions::Version;
use bytes::Bytes;
use futures::{StreamExt as _, stream};

use super::support::{Lab, Person};

/// Path to bytes.
pub type Folder = BTreeMap<String, Vec<u8>>;

/// Files in memory.
pub fn folder(files: &[(&str, &[u8])]) -> Folder {
    files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect()
}

/// A folder as it is sent.
pub struct Described {
    pub content_root: Block,
    pub layout_root: Block,
    pub pages: Vec<(PageKind, Block)>,
    pub chunks: HashMap<Hash, Bytes>,
}

/// Describes a folder. Every file is one row of chunks, packed anew, but for those that `old` lays out.
pub fn describe(folder: &Folder) -> Described {
    let mut chunks = HashMap::new();
    let mut layouts: HashMap<Hash, Vec<Extent>> = HashMap::new();
    for bytes in folder.values() {
        let mut extents = Vec::new();
        for part in chunk::chunks(bytes) {
            let hash = Hash::of(part);
            chunks.insert(hash, Bytes::copy_from_slice(part));
            extents.push(Extent { chunk: hash, offset: 0, length: u32::try_from(part.len()).unwrap() });
        }
        layouts.insert(Hash::of(bytes), extents);
    }
    let mut builder = ContentBuilder::new();
    let mut pages = Vec::new();
    for (path, bytes) in folder {
        let entry =
            Entry::File { path: path.parse().unwrap(), exec: false, sha256: Hash::of(bytes), size: bytes.len() as u64 };
        pages.extend(builder.push(&entry).unwrap());
    }
    let content = builder.finish().unwrap();
    pages.extend(content.last_page.clone());
    let mut layout = LayoutBuilder::new();
    let mut sent: Vec<(PageKind, Block)> = Vec::new();
    for page in pages {
        let parsed = bib_core::content::Page::parse(&page.bytes).unwrap();
        let files: Vec<FileLayout> = parsed
            .entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::File { sha256, .. } => Some(FileLayout { sha256: *sha256, extents: layouts[sha256].clone() }),
                Entry::Dir { .. } | Entry::Link { .. } => None,
            })
            .collect();
        let made = layout.page(page.hash, &files).unwrap();
        sent.push((PageKind::ContentPage, page));
        sent.extend(made.into_iter().map(|block| (PageKind::LayoutPage, block)));
    }
    let layout = layout.finish(&content.index_lengths).unwrap();
    sent.extend(content.index.iter().cloned().map(|block| (PageKind::ContentIndex, block)));
    sent.extend(layout.index.iter().cloned().map(|block| (PageKind::LayoutIndex, block)));
    sent.push((PageKind::ContentRoot, content.root.clone()));
    sent.push((PageKind::LayoutRoot, layout.root.clone()));
    Described { content_root: content.root, layout_root: layout.root, pages: sent, chunks }
}

/// What one publish sent, and how it ended.
#[derive(Debug)]
pub struct Outcome {
    pub committed: Committed,
    pub chunks_sent: usize,
    pub pages_sent: usize,
}

impl Outcome {
    pub fn version(&self) -> &Version {
        match &self.committed {
            Committed::Version { version, .. } => version,
            Committed::Resend(chunks) => panic!("asked to send {} chunks again", chunks.len()),
        }
    }

    pub fn created(&self) -> bool {
        matches!(self.committed, Committed::Version { created: true, .. })
    }
}

impl Lab {
    pub async fn begin(&self, who: &Person, dataset: &str) -> Result<Begun, ServiceError> {
        let wanted = BeginUpload { dataset: dataset.parse().unwrap(), create: true, parent: None, session: None };
        self.data.uploads.begin(&who.call, &wanted).await
    }

    /// Sends chunks as pieces of 1 MiB at most.
    pub async fn send_chunks(
        &self,
        who: &Person,
        session: SessionId,
        chunks: impl IntoIterator<Item = (Hash, Bytes)>,
    ) -> Result<usize, ServiceError> {
        let mut pieces = Vec::new();
        for (hash, bytes) in chunks {
            let length = u32::try_from(bytes.len()).unwrap();
            for (offset, size) in bib_core::frame::pieces(length) {
                let data = bytes.slice(offset as usize..(offset + size) as usize);
                let encoding = Encoding::Raw;
                let piece = Piece { chunk: hash, offset, encoding, raw_length: length, encoded_length: length, data };
                pieces.push(Ok(piece));
            }
        }
        let mut answers = self.data.receive.clone().receive(who.call.clone(), session, stream::iter(pieces));
        let mut durable = 0;
        while let Some(batch) = answers.next().await {
            durable += batch?.len();
        }
        Ok(durable)
    }

    pub async fn send_pages(
        &self,
        who: &Person,
        session: SessionId,
        pages: &[(PageKind, Block)],
    ) -> Result<(u64, u64), ServiceError> {
        let sent: Vec<_> = pages
            .iter()
            .map(|(kind, block)| Ok(SentPage { kind: *kind, hash: block.hash, body: block.bytes.clone().into() }))
            .collect();
        self.data.uploads.put_pages(&who.call, session, stream::iter(sent)).await
    }

    /// Sends what is missing of a folder; says how many chunks and pages.
    pub async fn stage(
        &self,
        who: &Person,
        session: SessionId,
        described: &Described,
    ) -> Result<(usize, usize), ServiceError> {
        let mut all: Vec<Hash> = described.chunks.keys().copied().collect();
        all.sort_unstable();
        let missing = self.data.uploads.missing_chunks(&who.call, session, &all).await?;
        let wanted: Vec<(Hash, Bytes)> =
            missing.iter().map(|at| all[*at as usize]).map(|hash| (hash, described.chunks[&hash].clone())).collect();
        let chunks = self.send_chunks(who, session, wanted).await?;
        let hashes: Vec<Hash> = described.pages.iter().map(|(_, block)| block.hash).collect();
        let missing = self.data.uploads.missing_pages(&who.call, session, &hashes).await?;
        let pages: Vec<_> = missing.iter().map(|at| described.pages[*at as usize].clone()).collect();
        self.send_pages(who, session, &pages).await?;
        Ok((chunks, pages.len()))
    }

    pub fn statement(&self, who: &Person, begun: &Begun, described: &Described, parents: Vec<Hash>) -> Statement {
        Statement {
            dataset: begun.seen.dataset.id,
            content: described.content_root.hash,
            parents,
            label: None,
            message: "as measured".to_owned(),
            time: self.base.now(),
            license: "CC-BY-4.0".to_owned(),
            metadata: Metadata::default(),
            author: Author::Person { key: who.key.public().fingerprint(), name: None },
            provenance: None,
            author_extra: Default::default(),
            extra: Default::default(),
        }
    }

    pub fn signed(&self, who: &Person, session: SessionId, statement: &Statement, layout: Hash) -> CommitVersion {
        let bytes = statement.to_bytes().unwrap();
        CommitVersion {
            session,
            signature: who.key.sign(VERSION_NAMESPACE, &bytes).unwrap().into_string(),
            content_root: statement.content,
            layout_root: layout,
            idempotency_key: String::new(),
            statement: bytes.into(),
        }
    }

    /// A whole publish upon the latest version.
    pub async fn publish(&self, who: &Person, dataset: &str, folder: &Folder) -> Result<Outcome, ServiceError> {
        let described = describe(folder);
        let begun = self.begin(who, dataset).await?;
        let session = begun.upload.id;
        let (chunks_sent, pages_sent) = self.stage(who, session, &described).await?;
        let parents = begun.latest.iter().map(|version| version.hash).collect();
        let statement = self.statement(who, &begun, &described, parents);
        let wanted = self.signed(who, session, &statement, described.layout_root.hash);
        let committed = self.data.commits.commit(&who.call, wanted).await?;
        Ok(Outcome { committed, chunks_sent, pages_sent })
    }

    /// Downloads a version as a reader does: roots, pages, layouts, chunks; every hash checked.
    pub async fn download(&self, who: &Person, reference: &str) -> Result<Folder, ServiceError> {
        let roots = self.pages(who, reference, Vec::new()).await?;
        let content = match bib_core::content::ContentRoot::parse(&roots[0]).unwrap() {
            bib_core::content::ContentRoot::Pages(pages) => pages,
            bib_core::content::ContentRoot::Indexes(_) => panic!("a small folder has one level"),
        };
        let layout = bib_core::layout::LayoutRoot::parse(&roots[1]).unwrap();
        let mut folder = Folder::new();
        for page in content {
            let body = self.pages(who, reference, vec![page]).await?.remove(0);
            let page = bib_core::content::Page::parse(&body).unwrap();
            let names = layout.pages_for(&page.hash).unwrap().to_vec();
            let bodies = if names.is_empty() { Vec::new() } else { self.pages(who, reference, names).await? };
            let lines: Vec<_> = bodies.iter().map(|body| bib_core::layout::LayoutPage::parse(body).unwrap()).collect();
            for (entry, extents) in bib_core::layout::join(&page, &lines).unwrap() {
                let mut bytes = Vec::new();
                for extent in extents {
                    let chunk = self.chunk(who, reference, extent.chunk).await?;
                    bytes.extend_from_slice(&chunk[extent.offset as usize..(extent.offset + extent.length) as usize]);
                }
                let Entry::File { sha256, .. } = entry else { panic!("only files have a layout") };
                assert_eq!(Hash::of(&bytes), *sha256);
                folder.insert(entry.path().to_string(), bytes);
            }
        }
        Ok(folder)
    }

    pub async fn pages(&self, who: &Person, reference: &str, wanted: Vec<Hash>) -> Result<Vec<Vec<u8>>, ServiceError> {
        let mut pages = self.data.downloads.pages(&who.call, reference, wanted).await?;
        let mut bodies = Vec::new();
        while let Some(page) = pages.next().await {
            bodies.push(page?.body);
        }
        Ok(bodies)
    }

    /// One chunk, as zstd frames where it is stored so.
    pub async fn chunk(&self, who: &Person, reference: &str, chunk: Hash) -> Result<Vec<u8>, ServiceError> {
        let mut pieces = self.data.downloads.chunks(&who.call, reference, vec![chunk], true).await?;
        let (mut bytes, mut last) = (Vec::new(), None);
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            assert_eq!((piece.chunk, piece.offset as usize), (chunk, bytes.len()));
            bytes.extend_from_slice(&piece.data);
            last = Some(piece);
        }
        let last = last.unwrap();
        assert_eq!(bytes.len(), last.encoded_length as usize);
        let raw = match last.encoding {
            Encoding::Raw => bytes,
            Encoding::Zstd => zstd::bulk::decompress(&bytes, last.raw_length as usize).unwrap(),
        };
        assert_eq!(Hash::of(&raw), chunk);
        Ok(raw)
    }
}
