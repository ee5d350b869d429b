//! Writes files: each under a temporary name, its bytes hashed, renamed when they are right. A few threads, each with
//! its own place in the target; the pieces of one file always go to the same thread.

use std::collections::{BTreeSet, HashMap};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bib_core::layout::Extent;
use bib_core::{Hash, Hasher};
use tokio::sync::mpsc;

use super::chunks::ChunkData;
use super::target::{Cursor, Part, Sync, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{Phase, Progress};

/// Tasks that wait for one thread.
const QUEUE: usize = 3;
/// How much of a file is read at a time to hash it.
const READ_BYTES: usize = 1024 * 1024;

/// A file to write.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) number: usize,
    /// Where it goes, relative to the target.
    pub(crate) path: String,
    pub(crate) executable: bool,
    pub(crate) size: u64,
    pub(crate) sha256: Hash,
    pub(crate) extents: Vec<Extent>,
    /// Which extents an earlier download has left in the temporary file, right.
    pub(crate) present: Vec<bool>,
}

impl Job {
    fn missing(&self) -> usize {
        self.extents.len() - self.present.iter().filter(|present| **present).count()
    }
}

/// What a thread does next.
#[derive(Debug)]
pub(crate) enum Task {
    /// Files that lie whole in this chunk, or are empty.
    Whole(ChunkData, Vec<Arc<Job>>),
    /// One piece of a file: which extent, and where in the file it begins.
    Piece { data: ChunkData, job: Arc<Job>, extent: usize, at: u64 },
    /// A file whose extents were all there.
    Present(Arc<Job>),
}

/// The threads.
pub(crate) struct Writers {
    queues: Vec<mpsc::Sender<Task>>,
    threads: Vec<tokio::task::JoinHandle<Result<()>>>,
    next: usize,
}

impl Writers {
    /// Starts `count` threads.
    pub(crate) fn start(target: &Target, count: usize, sync: Sync, progress: &Arc<dyn Progress>) -> Self {
        let (mut queues, mut threads) = (Vec::new(), Vec::new());
        for _ in 0..count.max(1) {
            let (sender, tasks) = mpsc::channel(QUEUE); // a chunk of at most 4 MiB each
            let progress = Arc::clone(progress);
            let writer =
                Writer { cursor: target.cursor(), open: HashMap::new(), sync, dirs: BTreeSet::new(), progress };
            threads.push(tokio::task::spawn_blocking(move || writer.run(tasks)));
            queues.push(sender);
        }
        Self { queues, threads, next: 0 }
    }

    /// Hands out a task.
    pub(crate) async fn push(&mut self, task: Task) -> Result<()> {
        let queue = match &task {
            Task::Whole(..) => {
                self.next += 1;
                self.next % self.queues.len()
            }
            Task::Piece { job, .. } | Task::Present(job) => job.number % self.queues.len(),
        };
        if self.queues[queue].send(task).await.is_err() {
            return Err(self.failure().await);
        }
        Ok(())
    }

    /// Waits until everything is written.
    pub(crate) async fn finish(mut self) -> Result<()> {
        self.queues.clear();
        for thread in self.threads.drain(..) {
            thread.await.map_err(Error::task)??;
        }
        Ok(())
    }

    /// Why a thread has ended.
    async fn failure(&mut self) -> Error {
        self.queues.clear();
        for thread in self.threads.drain(..) {
            match thread.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error,
                Err(error) => return Error::task(error),
            }
        }
        Error::new(ErrorKind::Internal, "a writing thread ended too early")
    }
}

/// A file that is being put together.
struct Open {
    part: Part,
    /// Hashes while the pieces come in order; `None` once they did not.
    hasher: Option<Hasher>,
    hashed: u64,
    missing: usize,
}

struct Writer {
    cursor: Cursor,
    open: HashMap<usize, Open>,
    sync: Sync,
    /// Directories whose names are not durable yet.
    dirs: BTreeSet<String>,
    progress: Arc<dyn Progress>,
}

impl Writer {
    fn run(mut self, mut tasks: mpsc::Receiver<Task>) -> Result<()> {
        while let Some(task) = tasks.blocking_recv() {
            match task {
                Task::Whole(data, jobs) => {
                    for job in jobs {
                        self.write_whole(&data, &job)?;
                    }
                }
                Task::Piece { data, job, extent, at } => self.write_piece(&data, &job, extent, at)?,
                Task::Present(job) => self.finish(&job, None)?,
            }
        }
        std::mem::take(&mut self.dirs).iter().try_for_each(|dir| self.cursor.sync_dir(dir))
    }

    /// Gives a file that is right its name.
    fn keep(&mut self, part: Part, job: &Job) -> Result<()> {
        if self.sync == Sync::Each {
            part.file.sync_all().map_err(|error| self.failed("sync", job, error))?;
            // The directory and those above it, which may be new too.
            let ends = job.path.match_indices('/').map(|(end, _)| end);
            self.dirs.extend(ends.map(|end| job.path[..end].to_owned()).chain([String::new()]));
        }
        drop(part);
        self.cursor.finish_part(&job.path)
    }

    fn write_whole(&mut self, data: &ChunkData, job: &Job) -> Result<()> {
        let part = self.cursor.open_part(&job.path, job.executable, false)?;
        let mut hasher = Hasher::new();
        let mut at = 0;
        for extent in &job.extents {
            at += write(&part, data, extent, at, job, Some(&mut hasher))?;
        }
        if hasher.finish() != job.sha256 || at != job.size {
            return self.wrong(job);
        }
        self.progress.advance(Phase::Receive, job.size);
        self.keep(part, job)
    }

    fn write_piece(&mut self, data: &ChunkData, job: &Job, extent: usize, at: u64) -> Result<()> {
        if !self.open.contains_key(&job.number) {
            let keep = job.present.iter().any(|present| *present);
            let part = self.cursor.open_part(&job.path, job.executable, keep)?;
            part.file.set_len(job.size).map_err(|error| self.failed("write", job, error))?;
            let hasher = (!keep).then(Hasher::new);
            self.open.insert(job.number, Open { part, hasher, hashed: 0, missing: job.missing() });
        }
        let Some(open) = self.open.get_mut(&job.number) else { return Ok(()) };
        if open.hashed != at {
            open.hasher = None;
        }
        let written = write(&open.part, data, &job.extents[extent], at, job, open.hasher.as_mut())?;
        open.hashed = at + written;
        open.missing -= 1;
        self.progress.advance(Phase::Receive, written);
        if open.missing == 0 {
            let open = self.open.remove(&job.number);
            return self.finish(job, open);
        }
        Ok(())
    }

    fn finish(&mut self, job: &Job, open: Option<Open>) -> Result<()> {
        let (part, hasher) = match open {
            Some(open) => (open.part, open.hasher),
            None => (self.cursor.open_part(&job.path, job.executable, true)?, None),
        };
        part.file.set_len(job.size).map_err(|error| self.failed("write", job, error))?;
        let hash = match hasher {
            Some(hasher) => hasher.finish(),
            None => hash_file(&part.file).map_err(|error| self.failed("read", job, error))?,
        };
        if hash != job.sha256 {
            return self.wrong(job);
        }
        self.keep(part, job)
    }

    /// The bytes are not the file's: nothing of them stays.
    fn wrong(&mut self, job: &Job) -> Result<()> {
        self.cursor.discard_part(&job.path)?;
        Err(Error::damaged(format!("`{}` has other bytes than the version says", job.path))
            .with_detail("path", &job.path))
    }

    fn failed(&self, action: &str, job: &Job, error: std::io::Error) -> Error {
        Error::local(action, std::path::Path::new(&job.path), error)
    }
}

/// Writes one extent at its place in the file; gives how many bytes.
fn write(
    part: &Part,
    data: &ChunkData,
    extent: &Extent,
    at: u64,
    job: &Job,
    mut hasher: Option<&mut Hasher>,
) -> Result<u64> {
    let mut offset = at;
    let whole = data.read(extent.offset, extent.length, |piece| {
        if let Some(hasher) = &mut hasher {
            hasher.update(piece);
        }
        part.file
            .write_all_at(piece, offset)
            .map_err(|error| Error::local("write", std::path::Path::new(&job.path), error))?;
        offset += piece.len() as u64;
        Ok(())
    })?;
    if !whole {
        return Err(Error::damaged(format!("chunk {} ends before `{}` does", extent.chunk, job.path)));
    }
    Ok(offset - at)
}

/// The hash of a file from its beginning, wherever its position is.
pub(crate) fn hash_file(file: &std::fs::File) -> std::io::Result<Hash> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut buffer, at)?;
        if read == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..read]);
        at += read as u64;
    }
}

/// Which extents of a file an earlier download has left in its temporary file: those that are whole chunks and hash to
/// their names. Nothing is believed because it lies there.
pub(crate) fn find_present(cursor: &mut Cursor, job: &Job) -> Result<Vec<bool>> {
    let mut part = cursor.open_part(&job.path, job.executable, true)?;
    let mut present = vec![false; job.extents.len()];
    if part.left_over_bytes == 0 {
        return Ok(present);
    }
    let failed = |error| Error::local("read", std::path::Path::new(&job.path), error);
    let mut buffer = Vec::new();
    for (extent, present) in job.extents.iter().zip(&mut present) {
        buffer.clear();
        (&mut part.file).take(u64::from(extent.length)).read_to_end(&mut buffer).map_err(failed)?;
        if buffer.len() < extent.length as usize {
            break;
        }
        *present = extent.offset == 0 && Hash::of(&buffer) == extent.chunk;
    }
    Ok(present)
}
