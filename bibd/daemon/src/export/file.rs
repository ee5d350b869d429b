//! The file of JSON lines: whole lines on disk before the next batch, set aside when it is large.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::credentials::blocking;
use super::{Batch, SendError, Sent, Sink};
use crate::config::audit::FileTarget;

/// The file is for the daemon to write and for its group, a collector's, to read.
const MODE: u32 = 0o640;

/// How far back the end of the last whole line is looked for.
const LOOK_BACK_BYTES: u64 = 4 << 20;

/// A file, and those set aside.
#[derive(Debug)]
pub struct FileSink(Arc<Mutex<Lines>>);

#[derive(Debug)]
struct Lines {
    path: PathBuf,
    rotate_bytes: u64,
    keep: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Bytes of whole lines.
    length: u64,
    /// Device and inode: somebody else may set the file aside.
    place: (u64, u64),
}

impl FileSink {
    /// As configured. Nothing is opened yet.
    #[must_use]
    pub fn new(target: &FileTarget) -> Self {
        let (path, rotate_bytes, keep) = (target.path.clone(), target.rotate_bytes.0, target.keep);
        Self(Arc::new(Mutex::new(Lines { path, rotate_bytes, keep, open: None })))
    }
}

#[async_trait]
impl Sink for FileSink {
    async fn send(&mut self, batch: &Batch) -> Result<Sent, SendError> {
        // The lock outlives a caller that goes away: two appends never run at once.
        let (mut lines, bytes) = (Arc::clone(&self.0).lock_owned().await, batch.bytes.clone());
        blocking(move || {
            lines.append(&bytes).map_err(|error| {
                lines.open = None;
                failed(&lines.path, &error)
            })
        })
        .await?;
        Ok(Sent::Safe)
    }
}

impl Lines {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let moved = match (&self.open, fs::symlink_metadata(&self.path)) {
            (Some(open), Ok(found)) => open.place != (found.dev(), found.ino()),
            _ => true,
        };
        if moved {
            self.open = None;
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => Open::at(&self.path)?,
        };
        if open.length >= self.rotate_bytes {
            drop(open);
            self.set_aside()?;
            open = Open::at(&self.path)?;
        }
        let open = self.open.insert(open);
        let written = open.file.write_all(bytes).and_then(|()| open.file.sync_data());
        if let Err(error) = written {
            // No half line stays, whatever of this batch was written.
            open.file.set_len(open.length)?;
            return Err(error);
        }
        open.length += bytes.len() as u64;
        Ok(())
    }

    /// `PATH` becomes `PATH.1`, that `PATH.2`, and so on; beyond what is kept the oldest goes.
    fn set_aside(&self) -> io::Result<()> {
        let numbered = |n: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        let mut last = 1;
        while last < u32::MAX && numbered(last).symlink_metadata().is_ok() && (self.keep == 0 || last < self.keep) {
            last += 1;
        }
        for n in (1..last).rev() {
            fs::rename(numbered(n), numbered(n + 1))?;
        }
        fs::rename(&self.path, numbered(1))?;
        sync_directory(&self.path)
    }
}

impl Open {
    /// Opens for appending; what a process that died left of a line is cut off: it is sent again.
    fn at(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(MODE)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(path)?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let length = end_of_last_line(&mut file, found.len())?;
        if length < found.len() {
            tracing::warn!(path = %path.display(), bytes = found.len() - length, "a line that was cut off is removed");
            file.set_len(length)?;
        }
        sync_directory(path)?;
        Ok(Self { file, length, place: (found.dev(), found.ino()) })
    }
}

fn end_of_last_line(file: &mut File, length: u64) -> io::Result<u64> {
    let begin = length.saturating_sub(LOOK_BACK_BYTES);
    file.seek(SeekFrom::Start(begin))?;
    let mut tail = Vec::new();
    file.take(LOOK_BACK_BYTES).read_to_end(&mut tail)?;
    match tail.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => Ok(begin + at as u64 + 1),
        None if begin == 0 => Ok(0),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "it ends in 4 MiB without a line: is it ours?")),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)?.sync_all()
}

fn failed(path: &Path, error: &io::Error) -> SendError {
    const ELSEWHERE: &str = "move it away, or name another path";
    let reason = format!("append to `{}`: {error}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => SendError::lasting(reason, "make the directory, for the daemon's user to write"),
        io::ErrorKind::PermissionDenied => SendError::lasting(reason, "let the daemon's user write there"),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SendError::lasting(reason, "make room there"),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => SendError::lasting(reason, ELSEWHERE),
        // The path is a link.
        _ if error.raw_os_error() == Some(libc::ELOOP) => SendError::lasting(reason, ELSEWHERE),
        _ => SendError::passing(reason),
    }
}

#[cfg(test)]
mod tests {
    use bibd_catalog::audit::Place;
    use bytes::Bytes;

    use super::*;
    use crate::config::Size;

    fn batch(text: &str) -> Batch {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        Batch { bytes, last: Place { epoch: 1, seq: 1 }, entries: 1 }
    }

    fn target(path: &Path, rotate_bytes: u64, keep: u32) -> FileTarget {
        FileTarget { path: path.to_owned(), rotate_bytes: Size(rotate_bytes), keep }
    }

    #[tokio::test]
    async fn a_file_is_set_aside_when_it_is_full_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut sink = FileSink::new(&target(&path, 10, 2));
        for n in 1..=5 {
            sink.send(&batch(&format!("line {n} is long\n"))).await.unwrap();
        }
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("audit.jsonl"), "line 5 is long\n");
        assert_eq!(read("audit.jsonl.1"), "line 4 is long\n");
        assert_eq!(read("audit.jsonl.2"), "line 3 is long\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        // All are kept when so configured.
        let mut sink = FileSink::new(&target(&path, 10, 0));
        for n in 6..=9 {
            sink.send(&batch(&format!("line {n} is long\n"))).await.unwrap();
        }
        assert_eq!(read("audit.jsonl.6"), "line 3 is long\n");
        assert_eq!(read("audit.jsonl"), "line 9 is long\n");
    }

    #[tokio::test]
    async fn what_a_dead_process_left_of_a_line_goes_and_a_file_moved_by_others_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        fs::write(&path, "whole\nhal").unwrap();
        let mut sink = FileSink::new(&target(&path, 1 << 20, 2));
        sink.send(&batch("one\n")).await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole\none\n");
        fs::rename(&path, folder.path().join("elsewhere")).unwrap();
        sink.send(&batch("two\n")).await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
    }

    #[tokio::test]
    async fn a_link_a_device_and_a_missing_directory_are_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        for path in [link, "/dev/null".into(), folder.path().join("missing/audit.jsonl")] {
            let error = FileSink::new(&target(&path, 1 << 20, 2)).send(&batch("x\n")).await.unwrap_err();
            assert!(error.hint.is_some() && error.reason.contains(path.to_str().unwrap()), "{error:?}");
        }
    }
}
