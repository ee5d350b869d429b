//! From entries to the chunks they need, in an order in which each chunk comes once for many files.
//!
//! Files are gathered into windows; within one, chunks come in the order of their first use and go to every file that
//! lies in them. The last few chunks are kept for the next window, where a pack goes on.

use std::collections::HashMap;
use std::sync::Arc;

use bib_core::Hash;
use bib_core::content::Entry;
use bib_core::layout::Extent;

use super::chunks::{ChunkData, Fetch};
use super::target::{Cursor, Target, There};
use super::write::{Job, Task, Writers, find_present, hash_file};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::progress::{Phase, Progress};

/// Files of a window.
const WINDOW_FILES: usize = 8192;
/// Files of a window that lie in several chunks: each may be open at once.
const WINDOW_OPEN: usize = 128;
/// Extents of a window; a file with more is a window of its own.
const WINDOW_EXTENTS: usize = 65_536;
/// Chunks kept from one window to the next.
const KEPT_CHUNKS: usize = 4;
/// Files in one task for a thread.
const TASK_FILES: usize = 128;
/// Threads that look at what is there already.
const LOOKERS: usize = 4;

/// What came of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counted {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) kept: u64,
    pub(crate) received: u64,
}

/// One use of a chunk.
struct Use {
    job: usize,
    extent: usize,
    at: u64,
}

/// The files of a window and what they need.
pub(crate) struct Plan {
    client: Client,
    reference: String,
    target: Target,
    /// Whether files may be there already.
    look: bool,
    progress: Arc<dyn Progress>,
    jobs: Vec<Arc<Job>>,
    open: usize,
    extents: usize,
    numbered: usize,
    kept: Vec<(Hash, ChunkData)>,
    counted: Counted,
}

impl Plan {
    pub(crate) fn new(
        client: &Client,
        reference: &str,
        target: &Target,
        look: bool,
        progress: &Arc<dyn Progress>,
    ) -> Self {
        Self {
            client: client.clone(),
            reference: reference.to_owned(),
            target: target.clone(),
            look,
            progress: Arc::clone(progress),
            jobs: Vec::new(),
            open: 0,
            extents: 0,
            numbered: 0,
            kept: Vec::new(),
            counted: Counted::default(),
        }
    }

    pub(crate) fn counted(&self) -> Counted {
        self.counted
    }

    /// Adds the wanted files of a page.
    pub(crate) async fn add(
        &mut self,
        files: Vec<(&Entry, Vec<Extent>)>,
        wanted: impl Fn(&Entry) -> Option<String>,
        writers: &mut Writers,
    ) -> Result<()> {
        let mut jobs = Vec::new();
        for (entry, extents) in files {
            let (Some(path), Entry::File { exec, sha256, size, .. }) = (wanted(entry), entry) else { continue };
            self.counted.files += 1;
            self.counted.bytes += size;
            let number = self.numbered;
            self.numbered += 1;
            let present = vec![false; extents.len()];
            jobs.push(Job { number, path, executable: *exec, size: *size, sha256: *sha256, extents, present });
        }
        let jobs = if self.look { self.without_those_there(jobs).await? } else { jobs };
        for job in jobs {
            self.open += usize::from(job.extents.len() > 1);
            self.extents += job.extents.len();
            self.jobs.push(Arc::new(job));
            if self.jobs.len() >= WINDOW_FILES || self.open >= WINDOW_OPEN || self.extents >= WINDOW_EXTENTS {
                self.flush(writers).await?;
            }
        }
        Ok(())
    }

    /// Leaves out files that are there and right, and notes what is there of others.
    async fn without_those_there(&mut self, jobs: Vec<Job>) -> Result<Vec<Job>> {
        let (target, before, progress) = (self.target.clone(), jobs.len(), Arc::clone(&self.progress));
        let left = tokio::task::spawn_blocking(move || look_at(&target, jobs, progress.as_ref()))
            .await
            .map_err(Error::task)??;
        self.counted.kept += (before - left.len()) as u64;
        Ok(left)
    }

    /// Fetches what the window needs and hands it to the writers.
    pub(crate) async fn flush(&mut self, writers: &mut Writers) -> Result<()> {
        let jobs = std::mem::take(&mut self.jobs);
        (self.open, self.extents) = (0, 0);
        let (order, mut uses) = uses_of(&jobs);
        let mut done: Vec<Arc<Job>> = Vec::new();
        for job in &jobs {
            if job.extents.is_empty() {
                done.push(Arc::clone(job));
            } else if job.present.iter().all(|present| *present) {
                writers.push(Task::Present(Arc::clone(job))).await?;
            }
        }
        hand_out(writers, &ChunkData::default(), done).await?;
        // What the window before has kept; taken now, since this one keeps others before its end.
        let mut ready: HashMap<Hash, ChunkData> =
            self.kept.drain(..).filter(|(chunk, _)| uses.contains_key(chunk)).collect();
        let missing: Vec<Hash> = order.iter().filter(|chunk| !ready.contains_key(chunk)).copied().collect();
        let mut fetch = Fetch::new(&self.client, &self.reference, missing);
        for chunk in order {
            let data = match ready.remove(&chunk) {
                Some(data) => data,
                None => match fetch.next().await? {
                    Some(data) => data,
                    None => return Err(Error::damaged(format!("the node does not send chunk {chunk}"))),
                },
            };
            let mut whole = Vec::new();
            for place in uses.remove(&chunk).unwrap_or_default() {
                let job = Arc::clone(&jobs[place.job]);
                self.counted.received += u64::from(job.extents[place.extent].length);
                if job.extents.len() == 1 {
                    whole.push(job);
                } else {
                    writers.push(Task::Piece { data: data.clone(), job, extent: place.extent, at: place.at }).await?;
                }
            }
            hand_out(writers, &data, whole).await?;
            // Kept only at the end of a window: within one, each chunk comes once.
            if uses.len() < KEPT_CHUNKS {
                self.kept.push((chunk, data));
            }
        }
        Ok(())
    }
}

/// The chunks that the jobs need, by first use, and what each is used for.
fn uses_of(jobs: &[Arc<Job>]) -> (Vec<Hash>, HashMap<Hash, Vec<Use>>) {
    let mut order = Vec::new();
    let mut uses: HashMap<Hash, Vec<Use>> = HashMap::new();
    for (job, file) in jobs.iter().enumerate() {
        let mut at = 0;
        for (extent, run) in file.extents.iter().enumerate() {
            if !file.present[extent] {
                let places = uses.entry(run.chunk).or_default();
                if places.is_empty() {
                    order.push(run.chunk);
                }
                places.push(Use { job, extent, at });
            }
            at += u64::from(run.length);
        }
    }
    (order, uses)
}

async fn hand_out(writers: &mut Writers, data: &ChunkData, mut jobs: Vec<Arc<Job>>) -> Result<()> {
    while !jobs.is_empty() {
        let rest = jobs.split_off(jobs.len().min(TASK_FILES));
        writers.push(Task::Whole(data.clone(), jobs)).await?;
        jobs = rest;
    }
    Ok(())
}

fn look_at(target: &Target, jobs: Vec<Job>, progress: &dyn Progress) -> Result<Vec<Job>> {
    let share = jobs.len().div_ceil(LOOKERS).max(1);
    let mut shares = Vec::new();
    let mut rest = jobs;
    while !rest.is_empty() {
        let after = rest.split_off(rest.len().min(share));
        shares.push(rest);
        rest = after;
    }
    std::thread::scope(|scope| {
        let looking: Vec<_> = shares
            .into_iter()
            .map(|share| scope.spawn(move || look_at_share(&mut target.cursor(), share, progress)))
            .collect();
        let mut left = Vec::new();
        for share in looking {
            let share = share.join().map_err(|_| Error::new(crate::ErrorKind::Internal, "a looking thread died"))?;
            left.extend(share?);
        }
        Ok(left)
    })
}

fn look_at_share(cursor: &mut Cursor, jobs: Vec<Job>, progress: &dyn Progress) -> Result<Vec<Job>> {
    let mut left = Vec::new();
    for mut job in jobs {
        if is_there(cursor, &job)? {
            progress.advance(Phase::Receive, job.size);
            continue;
        }
        if job.extents.len() > 1 {
            job.present = find_present(cursor, &job)?;
            let lengths = job.extents.iter().zip(&job.present).filter(|(_, present)| **present);
            progress.advance(Phase::Receive, lengths.map(|(extent, _)| u64::from(extent.length)).sum());
        }
        left.push(job);
    }
    Ok(left)
}

fn is_there(cursor: &mut Cursor, job: &Job) -> Result<bool> {
    match cursor.look(&job.path)? {
        There::File { size, executable } if size == job.size => {
            let file = cursor.open_file(&job.path)?;
            let hash =
                hash_file(&file).map_err(|error| Error::local("read", std::path::Path::new(&job.path), error))?;
            if hash == job.sha256 && executable != job.executable {
                cursor.set_executable(&job.path, job.executable)?;
            }
            Ok(hash == job.sha256)
        }
        _ => Ok(false),
    }
}
