//! The append-only file of checkpoints, on another path than the database.
//!
//! A record is a note as it is, then one empty line. A checkpoint's text has no empty lines, so records are read one
//! after the other without escapes: text lines, an empty line, signature lines, an empty line. A crash can leave a torn
//! last record, which nobody was told of; the next append removes it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::note::SignedNote;

/// The longest file that is read, in bytes: some two million checkpoints.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Why the file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointFileError {
    /// The disk says no.
    #[error("{act} the checkpoint file `{path}`")]
    Io {
        /// What was tried.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Longer than any checkpoint file.
    #[error("the checkpoint file `{0}` is longer than 1 GiB")]
    TooLong(PathBuf),
    /// There is something else at that path; it is left alone.
    #[error("`{0}` is not a file of checkpoints")]
    NotOurs(PathBuf),
}

/// What a checkpoint file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// Every whole record, as written. Whether one is a valid checkpoint is for the verifier to say.
    pub notes: Vec<String>,
    /// The bytes of a torn last record; 0 when the file ends as it should.
    pub torn_bytes: u64,
}

/// The file of checkpoints.
#[derive(Debug, Clone)]
pub struct CheckpointFile {
    path: PathBuf,
}

impl CheckpointFile {
    /// The file at `path`; it need not exist yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends notes and returns when they are on the disk. Blocking: call it off the async threads. One writer at a time.
    ///
    /// # Errors
    /// When the disk says no; then the last records are not there, or torn.
    pub fn append(&self, notes: &[SignedNote]) -> Result<(), CheckpointFileError> {
        let new = !self.path.exists();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o644);
        let mut file = options.open(&self.path).map_err(|e| self.io("open", e))?;
        let end = self.whole_end(&mut file)?;
        if file.metadata().map_err(|e| self.io("read", e))?.len() != end {
            file.set_len(end).map_err(|e| self.io("remove a torn record of", e))?;
        }
        file.seek(SeekFrom::Start(end)).map_err(|e| self.io("append to", e))?;
        let text: String = notes.iter().map(|note| format!("{note}\n")).collect();
        file.write_all(text.as_bytes()).map_err(|e| self.io("append to", e))?;
        file.sync_all().map_err(|e| self.io("sync", e))?;
        if new && let Some(parent) = self.path.parent().filter(|p| !p.as_os_str().is_empty()) {
            File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| self.io("sync the folder of", e))?;
        }
        Ok(())
    }

    /// Reads every record. A file that is not there has none. Blocking.
    ///
    /// # Errors
    /// When the disk says no, or the file is too long.
    pub fn read(&self) -> Result<Records, CheckpointFileError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Records::default()),
            Err(error) => return Err(self.io("open", error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| self.io("read", e))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(CheckpointFileError::TooLong(self.path.clone()));
        }
        Ok(split_records(&bytes))
    }

    /// Where the last whole record ends, found from the last 256 KiB: a note is shorter.
    fn whole_end(&self, file: &mut File) -> Result<u64, CheckpointFileError> {
        let read = |e| self.io("read", e);
        let length = file.metadata().map_err(read)?.len();
        // A torn record will be cut off, so a file that was never ours must not get that far.
        let mut begin = Vec::new();
        (&mut *file).take(4).read_to_end(&mut begin).map_err(read)?;
        if !b"bib/".starts_with(&begin) {
            return Err(CheckpointFileError::NotOurs(self.path.clone()));
        }
        let start = length.saturating_sub(2 * crate::note::MAX_NOTE_BYTES as u64);
        file.seek(SeekFrom::Start(start)).map_err(read)?;
        let mut tail = Vec::new();
        file.take(length - start).read_to_end(&mut tail).map_err(read)?;
        match last_record_end(&tail) {
            Some(end) => Ok(start + end as u64),
            None if start == 0 => Ok(0),
            None => Err(CheckpointFileError::NotOurs(self.path.clone())),
        }
    }

    fn io(&self, act: &'static str, source: io::Error) -> CheckpointFileError {
        CheckpointFileError::Io { act, path: self.path.clone(), source }
    }
}

/// Splits the bytes of a checkpoint file into records.
#[must_use]
pub fn split_records(bytes: &[u8]) -> Records {
    let mut records = Records::default();
    let mut rest = bytes;
    while let Some(end) = record_end(rest) {
        let (record, after) = rest.split_at(end);
        records.notes.push(String::from_utf8_lossy(&record[..end - 1]).into_owned());
        rest = after;
    }
    records.torn_bytes = rest.len() as u64;
    records
}

/// The length of the first record: to the empty line that follows the one before the signatures.
fn record_end(bytes: &[u8]) -> Option<usize> {
    let text = find_empty_line(bytes)?;
    find_empty_line(&bytes[text..]).map(|signatures| text + signatures)
}

/// The length up to and with the first empty line.
fn find_empty_line(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|pair| pair == b"\n\n").map(|at| at + 2)
}

/// Where the last whole record ends: after an empty line that follows a signature line.
fn last_record_end(bytes: &[u8]) -> Option<usize> {
    let mut end = bytes.len();
    while let Some(at) = bytes[..end].windows(2).rposition(|pair| pair == b"\n\n") {
        let line = bytes[..at].iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1);
        if bytes[line..at].starts_with("\u{2014} ".as_bytes()) {
            return Some(at + 2);
        }
        end = at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::note::NoteSignature;

    fn note(number: u8) -> SignedNote {
        let line = NoteSignature { name: "n".into(), key_id: [1; 4], bytes: vec![number; 64] };
        SignedNote { text: format!("bib/origin\n{number}\nroot\nchain\n"), signatures: vec![line.clone(), line] }
    }

    #[test]
    fn appended_notes_are_read_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = CheckpointFile::new(&dir.path().join("checkpoints"));
        assert_eq!(file.read().unwrap(), Records::default());
        for number in 0..3 {
            file.append(&[note(number)]).unwrap();
        }
        let notes = (0..3).map(|number| note(number).to_string()).collect();
        assert_eq!(file.read().unwrap(), Records { notes, torn_bytes: 0 });
    }

    #[test]
    fn somebody_elses_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        std::fs::write(&path, "my diary").unwrap();
        let error = CheckpointFile::new(&path).append(&[note(1)]).unwrap_err();
        assert!(matches!(error, CheckpointFileError::NotOurs(_)));
        assert_eq!(std::fs::read(&path).unwrap(), b"my diary");
    }

    #[test]
    fn a_record_torn_at_any_byte_is_ignored_and_then_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoints");
        let file = CheckpointFile::new(&path);
        file.append(&[note(1)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let second = format!("{}\n", note(2)).into_bytes();
        for torn in 0..second.len() {
            std::fs::write(&path, [whole.as_slice(), &second[..torn]].concat()).unwrap();
            let records = file.read().unwrap();
            assert_eq!((records.notes.len(), records.torn_bytes), (1, torn as u64), "torn at {torn}");
            file.append(&[note(3)]).unwrap();
            assert_eq!(file.read().unwrap().notes, [note(1).to_string(), note(3).to_string()], "torn at {torn}");
        }
    }
}
