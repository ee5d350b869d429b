//! Reads pages of a version, each held against the hash that it was asked for by.

use std::collections::VecDeque;

use bib_core::Hash;
use bib_core::content::ContentRoot;
use bib_core::layout::LayoutRoot;
use bib_proto::v1 as pb;
use bytes::Bytes;
use futures::StreamExt as _;

use crate::client::{Answers, Client};
use crate::error::{Error, Result};

/// Pages asked for in one call.
const ASK_PAGES: usize = 1024;

/// Reads pages of one version.
#[derive(Debug, Clone)]
pub(crate) struct PageReader {
    client: Client,
    reference: String,
}

/// The two roots of a version.
#[derive(Debug)]
pub(crate) struct Roots {
    pub(crate) content: ContentRoot,
    pub(crate) layout: LayoutRoot,
}

impl PageReader {
    pub(crate) fn new(client: &Client, reference: String) -> Self {
        Self { client: client.clone(), reference }
    }

    /// The roots. The content root must hash to `content`; the layout is nobody's promise, only its form counts.
    pub(crate) async fn roots(&self, content: &Hash) -> Result<Roots> {
        let mut answers = self.ask(&[]).await?;
        let (mut content_root, mut layout_root) = (None, None);
        while let Some(answer) = answers.next().await {
            let answer = answer?;
            match answer.kind() {
                pb::PageKind::ContentRoot if Hash::of(&answer.data) == *content => {
                    let root = ContentRoot::parse(&answer.data).map_err(|error| Error::damaged(error.to_string()))?;
                    content_root = Some(root);
                }
                pb::PageKind::ContentRoot => {
                    return Err(Error::damaged(format!("the content root that came is not {content}")));
                }
                pb::PageKind::LayoutRoot => {
                    let root = LayoutRoot::parse(&answer.data).map_err(|error| Error::damaged(error.to_string()))?;
                    layout_root = Some(root);
                }
                _ => return Err(Error::bad_answer("the node sent something else than roots")),
            }
        }
        match (content_root, layout_root) {
            (Some(content), Some(layout)) => Ok(Roots { content, layout }),
            _ => Err(Error::bad_answer("the node sent no roots")),
        }
    }

    /// These pages, in this order.
    pub(crate) fn read(&self, hashes: Vec<Hash>) -> Reading {
        Reading { reader: self.clone(), rest: hashes.into(), asked: VecDeque::new(), answers: None }
    }

    async fn ask(&self, hashes: &[Hash]) -> Result<Answers<pb::GetPagesResponse>> {
        let request = pb::GetPagesRequest {
            reference: self.reference.clone(),
            pages: hashes.iter().map(|hash| Bytes::copy_from_slice(hash.as_bytes())).collect(),
        };
        self.client.datasets().get_pages(request).await
    }
}

/// Pages that come one after another.
pub(crate) struct Reading {
    reader: PageReader,
    rest: VecDeque<Hash>,
    asked: VecDeque<Hash>,
    answers: Option<Answers<pb::GetPagesResponse>>,
}

impl Reading {
    /// The next page; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.asked.is_empty() {
            let count = self.rest.len().min(ASK_PAGES);
            if count == 0 {
                return Ok(None);
            }
            self.asked = self.rest.drain(..count).collect();
            self.answers = Some(self.reader.ask(self.asked.make_contiguous()).await?);
        }
        let (Some(answers), Some(wanted)) = (&mut self.answers, self.asked.pop_front()) else { return Ok(None) };
        let Some(answer) = answers.next().await else {
            return Err(Error::damaged(format!("the node does not send the page {wanted}")));
        };
        let data = answer?.data;
        if Hash::of(&data) == wanted {
            Ok(Some(data))
        } else {
            Err(Error::damaged(format!("the page that came is not {wanted}")))
        }
    }
}
