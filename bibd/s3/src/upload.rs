//! An object that is written as it comes: small ones in one request, large ones in parts.
//!
//! The parts of an upload that is never completed lie in the store, unseen and paid for. So before the first part goes
//! out a small object `tmp/…` says which upload it is for; it goes with the upload, and [`Bucket::sweep`] gives up the
//! uploads of those that are left. Between the upload's beginning and that object there are no parts to pay for.

use std::collections::VecDeque;
use std::io::{self, Write};

use bib_core::Hash;
use bytes::Bytes;
use object_store::MultipartId;
use object_store::multipart::{MultipartStore as _, PartId};
use serde::{Deserialize, Serialize};

use super::{Bucket, Pending, Problem, S3Error, pieces};

/// Where the notes of unfinished uploads lie.
const TEMPORARY: &str = "tmp";
/// Parts on their way at once.
const AT_ONCE: usize = 2;
/// What a store takes.
const MAX_PARTS: usize = 10_000;

/// What a note says.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    key: String,
    upload: String,
}

/// An upload that has begun.
struct Begun {
    id: MultipartId,
    note: String,
    under_way: VecDeque<Pending<PartId>>,
    parts: Vec<PartId>,
}

/// An object that is being written. Dropped, it was never there.
pub struct Upload {
    bucket: Bucket,
    key: String,
    buffer: Vec<u8>,
    bytes: u64,
    begun: Option<Begun>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("object", &self.bucket.location(&self.key)).finish_non_exhaustive()
    }
}

impl Bucket {
    /// Begins an object.
    #[must_use]
    pub fn upload(&self, key: &str) -> Upload {
        Upload { bucket: self.clone(), key: key.to_owned(), buffer: Vec::new(), bytes: 0, begun: None }
    }

    /// Gives up what a process that died left of objects whose keys begin with `family`. Only for who writes it alone.
    ///
    /// # Errors
    /// When the store does not take it.
    pub fn sweep(&self, family: &str) -> Result<(), S3Error> {
        let begin = format!("{family}-");
        for name in self.list(TEMPORARY)?.into_iter().filter(|name| name.starts_with(&begin)) {
            let place = format!("{TEMPORARY}/{name}");
            let Some(bytes) = self.read_all(&place)? else { continue };
            // One that is no note has no upload.
            let note: Option<Note> = serde_json::from_slice(&bytes).ok();
            match note.map_or(Ok(()), |note| self.give_up(&note.key, note.upload)) {
                Ok(()) => self.delete(&[place])?,
                // It costs something and breaks nothing: asked again the next time.
                Err(error) if matches!(error.problem, Problem::Forbidden(_) | Problem::Refused(_)) => {
                    tracing::warn!(hint = error.problem.hint(), "{error}: {}", error.problem);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn give_up(&self, key: &str, upload: MultipartId) -> Result<(), S3Error> {
        let (store, path) = (self.store.clone(), self.path(key));
        let given_up = self.begin("give up", key, async move { store.abort_multipart(&path, &upload).await }).wait();
        // The store may have forgotten it by itself.
        given_up.or_else(|error| if error.problem == Problem::NotFound { Ok(()) } else { Err(error) })
    }
}

impl Upload {
    /// Where it will be.
    #[must_use]
    pub fn location(&self) -> String {
        self.bucket.location(&self.key)
    }

    fn failed(&self, problem: Problem) -> S3Error {
        S3Error { act: "write", object: self.location(), problem }
    }

    fn begin(&self) -> Result<Begun, S3Error> {
        let (store, path) = (self.bucket.store.clone(), self.bucket.path(&self.key));
        let id = self.bucket.begin("write", &self.key, async move { store.create_multipart(&path).await }).wait()?;
        let family = self.key.split('/').next().unwrap_or_default();
        let note = format!("{TEMPORARY}/{family}-{}", &Hash::of(id.as_bytes()).to_string()[..16]);
        let said = Note { key: self.key.clone(), upload: id.clone() };
        let bytes = serde_json::to_vec(&said).map_err(|error| self.failed(Problem::Refused(error.to_string())))?;
        if let Err(error) = self.bucket.put(&note, &bytes) {
            // It holds nothing yet: the store may keep it.
            let _ = self.bucket.give_up(&self.key, id);
            return Err(error);
        }
        Ok(Begun { id, note, under_way: VecDeque::new(), parts: Vec::new() })
    }

    /// Sends the buffer as the next part, once there is room for it.
    fn send(&mut self) -> Result<(), S3Error> {
        if self.begun.is_none() {
            self.begun = Some(self.begin()?);
        }
        let (bucket, key) = (self.bucket.clone(), self.key.clone());
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let too_large = self.failed(Problem::TooLarge);
        let Some(begun) = &mut self.begun else { return Ok(()) };
        while begun.under_way.len() >= AT_ONCE {
            begun.parts.extend(begun.under_way.pop_front().map(Pending::wait).transpose()?);
        }
        let index = begun.parts.len() + begun.under_way.len();
        if index >= MAX_PARTS {
            return Err(too_large);
        }
        let (store, path, id) = (bucket.store.clone(), bucket.path(&key), begun.id.clone());
        let request = async move { store.put_part(&path, &id, index, pieces(bytes)).await };
        begun.under_way.push_back(bucket.begin("write", &key, request));
        Ok(())
    }

    /// Makes the object exist.
    ///
    /// # Errors
    /// When the store does not take it: then it does not exist.
    pub fn commit(mut self) -> Result<(), S3Error> {
        if self.begun.is_none() {
            let bytes = std::mem::take(&mut self.buffer);
            return self.bucket.put(&self.key, &bytes);
        }
        if !self.buffer.is_empty() {
            self.send()?;
        }
        let Some(begun) = &mut self.begun else { return Ok(()) };
        while let Some(pending) = begun.under_way.pop_front() {
            begun.parts.push(pending.wait()?);
        }
        let (store, path) = (self.bucket.store.clone(), self.bucket.path(&self.key));
        let (id, parts) = (begun.id.clone(), std::mem::take(&mut begun.parts));
        let request = async move { store.complete_multipart(&path, &id, parts).await };
        match self.bucket.begin("complete", &self.key, request).wait() {
            // Asked again after its answer was lost, the store knows no such upload any more, and says so in its way.
            Err(error) if error.problem != Problem::Stopping => {
                if self.bucket.head(&self.key)?.is_none_or(|meta| meta.size != self.bytes) {
                    return Err(error);
                }
            }
            done => drop(done?),
        }
        // It is there: a note that stays is swept with the next one.
        if let Some(begun) = self.begun.take() {
            let _ = self.bucket.delete(&[begun.note]);
        }
        Ok(())
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == self.bucket.part_bytes {
            self.send().map_err(io::Error::other)?;
        }
        let taken = bytes.len().min(self.bucket.part_bytes - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        self.bytes += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(Begun { id, note, under_way, .. }) = self.begun.take() else { return };
        // A part that arrives after the end of its upload would stay.
        drop(under_way);
        let (bucket, path) = (self.bucket.clone(), self.bucket.path(&self.key));
        let note = bucket.path(&note);
        // Nobody waits: what is not given up now is swept later.
        let closing = bucket.closing.clone();
        bucket.runtime.clone().spawn(async move {
            use object_store::ObjectStoreExt as _;
            let given_up = closing.run_until_cancelled(bucket.store.abort_multipart(&path, &id)).await;
            if matches!(given_up, Some(Ok(()))) {
                let _ = bucket.store.delete(&note).await;
            }
        });
    }
}
