//! An object, read front to back in ranges: the next is under way while one is used.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use object_store::{GetOptions, GetRange, ObjectStore as _};

use super::{Bucket, Pending, Problem, S3Error};

/// The size of a range.
const RANGE_BYTES: u64 = 8 << 20;

/// An open object. It stays the one that was opened: one that is written over meanwhile is an error.
pub struct Reader {
    bucket: Bucket,
    key: String,
    size: u64,
    tag: Option<String>,
    /// Where the next request begins.
    next: u64,
    current: Bytes,
    under_way: Option<(u64, Pending<Bytes>)>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("object", &self.bucket.location(&self.key)).finish_non_exhaustive()
    }
}

impl Reader {
    pub(super) fn new(bucket: Bucket, key: &str, size: u64, tag: Option<String>) -> Self {
        Self { bucket, key: key.to_owned(), size, tag, next: 0, current: Bytes::new(), under_way: None }
    }

    /// Asks for the next range, when there is one.
    fn ask(&mut self) {
        let range = self.next..self.size.min(self.next + RANGE_BYTES);
        if range.is_empty() {
            return;
        }
        let length = range.end - range.start;
        self.next = range.end;
        let (store, path) = (self.bucket.store.clone(), self.bucket.path(&self.key));
        let tag = self.tag.clone();
        let options =
            GetOptions { range: Some(GetRange::Bounded(range)), if_match: tag.clone(), ..GetOptions::default() };
        let request = async move {
            let answer = store.get_opts(&path, options).await?;
            // Not every store heeds the condition.
            if answer.meta.e_tag != tag {
                let path = path.to_string();
                return Err(object_store::Error::Precondition { path, source: "another tag came".into() });
            }
            answer.bytes().await
        };
        self.under_way = Some((length, self.bucket.begin("read", &self.key, request)));
    }

    fn fill(&mut self) -> Result<(), S3Error> {
        if self.under_way.is_none() {
            self.ask();
        }
        let Some((length, pending)) = self.under_way.take() else { return Ok(()) };
        self.current = pending.wait()?;
        if self.current.len() as u64 != length {
            let problem = Problem::Broken(format!("{} of {length} bytes came", self.current.len()));
            return Err(S3Error { act: "read", object: self.bucket.location(&self.key), problem });
        }
        self.ask();
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() {
            self.fill().map_err(io::Error::other)?;
        }
        let taken = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..taken]);
        Ok(taken)
    }
}
