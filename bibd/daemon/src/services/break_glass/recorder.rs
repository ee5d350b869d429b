//! The recording of one session: JSON lines that count, and the same for a terminal (asciicast v2).
//!
//! Lines gather in memory and go to the files in order; [`Recorder::commit`] returns once everything so far is on the disk.
//! Whoever commits while another does waits and usually finds the work done. A recorder that cannot write says so for ever:
//! the session is cut, and nothing that it did not take was passed on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bib_core::{Hash, Hasher};
use bib_identity::file::{self, FileError};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::transcript::Line;

/// Lines that wait for a statement gather up to here; then they are written, so that a long answer takes no memory.
const GATHERED_BYTES: usize = 1 << 20;
/// How long the disk may take. A disk that hangs is a recorder that is dead.
const DISK_DEADLINE: Duration = Duration::from_millis(1_500);

/// Why a session cannot be recorded any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    /// The disk.
    #[error("write the recording")]
    Io(#[from] io::Error),
    /// A directory or file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Somebody removed the file.
    #[error("the recording was removed while it was written")]
    Removed,
    /// It is as large as it may be.
    #[error("the recording is larger than {0} bytes")]
    Full(u64),
    /// The disk hangs.
    #[error("the recording was not written within {DISK_DEADLINE:?}")]
    Hangs,
    /// An earlier error.
    #[error("the recording has failed before")]
    Broken,
}

/// Where the recordings of a grant lie.
#[derive(Debug, Clone)]
pub(super) struct Shelf(PathBuf);

impl Shelf {
    /// Makes the directory of a grant, durable.
    ///
    /// # Errors
    /// [`RecordError`].
    pub(super) fn make(root: &Path, grant: Uuid) -> Result<Self, RecordError> {
        file::ensure_private_dir(root)?;
        let shelf = Self::of(root, grant);
        match std::fs::DirBuilder::new().mode(0o700).create(&shelf.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        File::open(root)?.sync_all()?;
        Ok(shelf)
    }

    /// The directory of a grant, there or not.
    pub(super) fn of(root: &Path, grant: Uuid) -> Self {
        Self(root.join(grant.to_string()))
    }

    /// The file of what was in the database before.
    pub(super) fn before(&self) -> PathBuf {
        self.0.join("before.json")
    }

    /// The recording of a session.
    pub(super) fn recording(&self, session: Uuid, form: Form) -> PathBuf {
        self.0.join(format!("{session}.{}", form.extension()))
    }

    /// Sessions that have a recording here.
    pub(super) fn sessions(&self) -> Vec<Uuid> {
        let mut found: Vec<Uuid> = std::fs::read_dir(&self.0)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".jsonl")?.parse().ok())
            .collect();
        found.sort();
        found
    }
}

/// The two forms of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// JSON lines: the one that counts.
    Lines,
    /// asciicast v2, for `asciinema play`.
    Cast,
}

impl Form {
    const fn extension(self) -> &'static str {
        match self {
            Self::Lines => "jsonl",
            Self::Cast => "cast",
        }
    }
}

/// The recording up to a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// Lines so far.
    pub(super) lines: u64,
    /// SHA-256 of the file up to the end of that line.
    pub(super) head: Hash,
}

/// Writes a recording. See the module.
#[derive(Debug)]
pub(super) struct Recorder {
    begun: Instant,
    max_bytes: u64,
    state: Mutex<State>,
    /// Held while the disk works, by the work itself: whoever waits for it waits for the disk.
    files: Arc<tokio::sync::Mutex<Files>>,
}

#[derive(Debug)]
struct Files {
    lines: File,
    cast: File,
}

#[derive(Debug)]
struct State {
    gathered: Vec<u8>,
    cast: Vec<u8>,
    bytes: u64,
    lines: u64,
    hash: Hasher,
    is_broken: bool,
}

impl Recorder {
    /// Begins a recording with its head.
    ///
    /// # Errors
    /// [`RecordError`].
    pub(super) async fn begin(
        shelf: &Shelf,
        session: Uuid,
        head: Map<String, Value>,
        started_s: i64,
        max_bytes: u64,
        now: Instant,
    ) -> Result<Self, RecordError> {
        let (lines, cast) = (shelf.recording(session, Form::Lines), shelf.recording(session, Form::Cast));
        let directory = shelf.0.clone();
        let files = blocking(move || {
            let open = |path: &Path| OpenOptions::new().append(true).create_new(true).mode(0o600).open(path);
            let files = Files { lines: open(&lines)?, cast: open(&cast)? };
            File::open(directory)?.sync_all()?;
            Ok::<_, RecordError>(files)
        })
        .await?;
        let state = State {
            gathered: Vec::new(),
            cast: format!("{}\n", cast_head(&head, started_s)).into_bytes(),
            bytes: 0,
            lines: 0,
            hash: Hasher::new(),
            is_broken: false,
        };
        let recorder =
            Self { begun: now, max_bytes, state: Mutex::new(state), files: Arc::new(tokio::sync::Mutex::new(files)) };
        recorder.write_line(head, now)?;
        recorder.commit().await?;
        Ok(recorder)
    }

    /// Adds a line. Returns its number.
    ///
    /// # Errors
    /// [`RecordError::Full`], [`RecordError::Broken`].
    pub(super) fn add(&self, line: Line, now: Instant) -> Result<u64, RecordError> {
        let seconds = now.saturating_duration_since(self.begun).as_secs_f64();
        let event = |kind: &str, text: &str| {
            if !text.is_empty() {
                // A terminal wants its lines ended so, and must not be told to do anything else.
                let text: String =
                    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect();
                let event = json!([seconds, kind, text.replace('\n', "\r\n")]);
                self.lock().cast.extend_from_slice(format!("{event}\n").as_bytes());
            }
        };
        event("i", &line.typed);
        event("o", &line.shown);
        self.write_line(line.fields, now)
    }

    /// So much has gathered that it should be written before more comes.
    pub(super) fn is_heavy(&self) -> bool {
        let state = self.lock();
        state.gathered.len() + state.cast.len() >= GATHERED_BYTES
    }

    /// Where the recording stands, with what is not on the disk yet.
    pub(super) fn mark(&self) -> Mark {
        let state = self.lock();
        Mark { lines: state.lines, head: state.hash.clone().finish() }
    }

    /// Returns when everything that was added before is on the disk.
    ///
    /// # Errors
    /// [`RecordError`]; then every later call fails too.
    pub(super) async fn commit(&self) -> Result<(), RecordError> {
        let outcome = tokio::time::timeout(DISK_DEADLINE, self.write_out()).await.unwrap_or(Err(RecordError::Hangs));
        if outcome.is_err() {
            self.lock().is_broken = true;
        }
        outcome
    }

    async fn write_out(&self) -> Result<(), RecordError> {
        let files = Arc::clone(&self.files).lock_owned().await;
        let (lines, cast) = {
            let mut state = self.lock();
            if state.is_broken {
                return Err(RecordError::Broken);
            }
            (std::mem::take(&mut state.gathered), std::mem::take(&mut state.cast))
        };
        blocking(move || {
            (&files.cast).write_all(&cast)?;
            if !lines.is_empty() {
                (&files.lines).write_all(&lines)?;
                files.lines.sync_data()?;
            }
            // Nobody would find what is written into a file without a name.
            if files.lines.metadata()?.nlink() == 0 { Err(RecordError::Removed) } else { Ok(()) }
        })
        .await
    }

    fn write_line(&self, mut fields: Map<String, Value>, now: Instant) -> Result<u64, RecordError> {
        let us = u64::try_from(now.saturating_duration_since(self.begun).as_micros()).unwrap_or(u64::MAX);
        let mut state = self.lock();
        if state.is_broken {
            return Err(RecordError::Broken);
        }
        fields.insert("n".to_owned(), json!(state.lines + 1));
        fields.insert("us".to_owned(), json!(us));
        let text = format!("{}\n", Value::Object(fields));
        if state.bytes + text.len() as u64 > self.max_bytes {
            state.is_broken = true;
            return Err(RecordError::Full(self.max_bytes));
        }
        state.bytes += text.len() as u64;
        state.lines += 1;
        state.hash.update(text.as_bytes());
        state.gathered.extend_from_slice(text.as_bytes());
        Ok(state.lines)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each use leaves it whole: a line is added as one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The head of an asciicast: what plays it wants to know.
fn cast_head(head: &Map<String, Value>, started_s: i64) -> Value {
    let title = format!("break-glass {}", head.get("session").and_then(Value::as_str).unwrap_or_default());
    json!({ "version": 2, "width": 120, "height": 40, "timestamp": started_s, "title": title })
}

/// Work that waits for the disk, away from the asynchronous threads.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled before it began: the runtime ends, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        let fields = Map::from_iter([("text".to_owned(), Value::String(text.to_owned()))]);
        Line { fields, is_durable: true, shown: format!("{text}\u{1b}[2J\n"), typed: text.to_owned() }
    }

    async fn begun(dir: &Path, max_bytes: u64) -> (Recorder, Shelf, Uuid) {
        let (grant, session) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let shelf = Shelf::make(&dir.join("glass"), grant).unwrap();
        let head = Map::from_iter([("session".to_owned(), Value::String(session.to_string()))]);
        let recorder = Recorder::begin(&shelf, session, head, 7, max_bytes, Instant::now()).await.unwrap();
        (recorder, shelf, session)
    }

    #[tokio::test]
    async fn what_was_committed_is_in_the_file_and_its_hash_is_the_mark() {
        let dir = tempfile::tempdir().unwrap();
        let (recorder, shelf, session) = begun(dir.path(), 1 << 20).await;
        for text in ["one", "two"] {
            recorder.add(line(text), Instant::now()).unwrap();
        }
        recorder.commit().await.unwrap();
        let text = std::fs::read_to_string(shelf.recording(session, Form::Lines)).unwrap();
        assert_eq!(recorder.mark(), Mark { lines: 3, head: Hash::of(text.as_bytes()) });
        assert!(text.lines().nth(2).unwrap().contains(r#""n":3,"text":"two""#), "{text}");
        assert_eq!(shelf.sessions(), [session]);
        let cast = std::fs::read_to_string(shelf.recording(session, Form::Cast)).unwrap();
        let rows: Vec<Value> = cast.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
        assert_eq!((rows[0]["version"].as_u64(), rows[0]["timestamp"].as_i64()), (Some(2), Some(7)));
        assert_eq!((rows[1][1].as_str(), rows[1][2].as_str()), (Some("i"), Some("one")));
        assert_eq!(rows[2][2].as_str(), Some("one\u{fffd}[2J\r\n"), "a terminal is told nothing");
    }

    #[tokio::test]
    async fn a_recorder_that_failed_once_takes_nothing_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let (recorder, _, _) = begun(dir.path(), 200).await;
        assert!(matches!(recorder.add(line(&"x".repeat(300)), Instant::now()), Err(RecordError::Full(200))));
        assert!(matches!(recorder.add(line("x"), Instant::now()), Err(RecordError::Broken)));
        assert!(matches!(recorder.commit().await, Err(RecordError::Broken)));
    }

    #[tokio::test]
    async fn a_file_that_was_removed_is_no_recording() {
        let dir = tempfile::tempdir().unwrap();
        let (recorder, shelf, session) = begun(dir.path(), 1 << 20).await;
        std::fs::remove_file(shelf.recording(session, Form::Lines)).unwrap();
        assert!(matches!(recorder.commit().await, Err(RecordError::Removed)));
    }
}
