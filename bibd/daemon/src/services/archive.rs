//! Months of the audit log that left the database: a file each, the lines of an export, compressed.
//!
//! What stands in an archive can be checked without it being trusted: every line has its seal, and the seals stay in the
//! database. Everything here may take its time: call it where that hurts nobody.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use bib_core::{Hash, Hasher, PeerId, Timestamp};
use bibd_audit::export::{self, ExportError, Line, SealedLine};
use tempfile::NamedTempFile;
use uuid::Uuid;

use crate::at_rest::AtRest;

/// The directory in the data directory, unless the configuration names another.
pub const DIRECTORY: &str = "audit-archive";

/// How the names of archives end.
pub const SUFFIX: &str = ".jsonl.zst";

/// What the directory holds, as its `FORMAT` file says.
const FORMAT: &str = "bib-audit-archive/1\n";

/// zstd's own default: entries are much alike.
const LEVEL: i32 = 3;

/// Why an archive cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The system.
    #[error("{act} `{path}`")]
    Io {
        /// What was tried.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It holds something else.
    #[error("`{path}`")]
    Export {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ExportError,
    },
}

/// The directory of archives. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Archive {
    directory: PathBuf,
    node: PeerId,
    /// What encrypts the directory when it is made.
    at_rest: Option<AtRest>,
}

/// A month being written; nothing is there until [`ArchiveWriter::finish`].
pub struct ArchiveWriter {
    encoder: zstd::Encoder<'static, NamedTempFile>,
    path: PathBuf,
    line: Vec<u8>,
    entries: u64,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The file's name.
    pub name: String,
    /// Of the file.
    pub sha256: Hash,
    /// Its length.
    pub bytes: u64,
    /// How many entries it holds.
    pub entries: u64,
}

impl Archive {
    /// Over `directory`, for the log of `node`. Nothing is made yet.
    #[must_use]
    pub fn new(directory: &Path, node: PeerId) -> Self {
        Self { directory: directory.to_owned(), node, at_rest: None }
    }

    /// The same, whose directory is encrypted as the rest of the data directory.
    #[must_use]
    pub fn encrypted(self, at_rest: AtRest) -> Self {
        Self { at_rest: Some(at_rest), ..self }
    }

    /// When the file of a month was written, if there is one.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn written_at(&self, month: &str) -> Result<Option<Timestamp>, ArchiveError> {
        let path = self.path(month);
        match fs::metadata(&path).and_then(|meta| meta.modified()) {
            Ok(modified) => Ok(Some(Timestamp::from(time::OffsetDateTime::from(modified)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("look at", &path)(error)),
        }
    }

    /// Begins the file of a month.
    ///
    /// # Errors
    /// When the directory cannot be made or written.
    pub fn begin(&self, month: &str) -> Result<ArchiveWriter, ArchiveError> {
        let failed = |act| io_error(act, &self.directory);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(failed("make"))?;
        if let Some(at_rest) = &self.at_rest {
            at_rest.adopt(&self.directory).map_err(failed("encrypt"))?;
        }
        let format = self.directory.join("FORMAT");
        if !format.exists() {
            fs::write(&format, FORMAT).map_err(io_error("write", &format))?;
        }
        let mut file = NamedTempFile::new_in(&self.directory).map_err(failed("write into"))?;
        file.as_file_mut().set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed("write into"))?;
        let path = self.path(month);
        let encoder = zstd::Encoder::new(file, LEVEL).map_err(io_error("compress", &path))?;
        let mut writer = ArchiveWriter { encoder, path, line: Vec::new(), entries: 0 };
        writer.push(&Line::Header { format: export::FORMAT.to_owned(), node: self.node })?;
        Ok(writer)
    }

    /// The entry with this number, if the archive of that month has it.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn find(&self, month: &str, epoch: u64, seq: u64) -> Result<Option<SealedLine>, ArchiveError> {
        self.walk(month, |line| (line.seal.epoch, line.seal.seq) == (epoch, seq))
    }

    /// The entry with this id, if the archive of that month has it.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn find_id(&self, month: &str, id: Uuid) -> Result<Option<SealedLine>, ArchiveError> {
        self.walk(month, |line| line.seal.entry == id)
    }

    /// Writes the file of a month anew without the details of one entry. False when it has none.
    ///
    /// # Errors
    /// When the file cannot be read or written; then it is as it was.
    pub fn erase(&self, month: &str, id: Uuid) -> Result<bool, ArchiveError> {
        let Some(lines) = self.open(month)? else { return Ok(false) };
        let (mut writer, mut erased) = (self.begin(month)?, false);
        for line in lines {
            let mut line = line.map_err(self.export_error(month))?;
            match &mut line {
                Line::Header { .. } => continue,
                Line::Entry(entry) if entry.seal.entry == id => erased |= entry.detail.take().is_some(),
                _ => {}
            }
            writer.push(&line)?;
        }
        if erased {
            writer.finish()?;
        }
        Ok(erased)
    }

    fn walk(
        &self,
        month: &str,
        mut is_it: impl FnMut(&SealedLine) -> bool,
    ) -> Result<Option<SealedLine>, ArchiveError> {
        let Some(lines) = self.open(month)? else { return Ok(None) };
        for line in lines {
            if let Line::Entry(entry) = line.map_err(self.export_error(month))?
                && is_it(&entry)
            {
                return Ok(Some(*entry));
            }
        }
        Ok(None)
    }

    fn open(&self, month: &str) -> Result<Option<export::Lines<impl io::BufRead + use<>>>, ArchiveError> {
        let path = self.path(month);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        let decoder = zstd::Decoder::new(file).map_err(io_error("decompress", &path))?;
        Ok(Some(export::read(BufReader::with_capacity(1 << 16, decoder))))
    }

    fn path(&self, month: &str) -> PathBuf {
        self.directory.join(format!("{month}{SUFFIX}"))
    }

    fn export_error(&self, month: &str) -> impl Fn(ExportError) -> ArchiveError + use<> {
        let path = self.path(month);
        move |source| ArchiveError::Export { path: path.clone(), source }
    }
}

impl ArchiveWriter {
    /// Adds a line.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn push(&mut self, line: &Line) -> Result<(), ArchiveError> {
        self.line.clear();
        let path = || self.path.clone();
        export::write_line(line, &mut self.line).map_err(|source| ArchiveError::Export { path: path(), source })?;
        self.entries += u64::from(matches!(line, Line::Entry(_)));
        self.encoder.write_all(&self.line).map_err(io_error("write", &self.path))
    }

    /// Makes it durable under its name, in place of one that was there; one that is the same already stays, with its
    /// date, which tells whether a backup has it.
    ///
    /// # Errors
    /// When the disk refuses; then nothing has changed.
    pub fn finish(self) -> Result<Written, ArchiveError> {
        let Self { encoder, path, entries, .. } = self;
        let file = encoder.finish().map_err(io_error("write", &path))?;
        file.as_file().sync_all().map_err(io_error("sync", &path))?;
        let (sha256, bytes) = hash_of(file.path()).map_err(io_error("read back", &path))?;
        let is_there = path.exists() && hash_of(&path).map_err(io_error("read", &path))? == (sha256, bytes);
        if !is_there {
            file.persist(&path).map_err(|error| io_error("write", &path)(error.error))?;
            let directory = path.parent().unwrap_or(Path::new("/"));
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error("sync", directory))?;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Written { name, sha256, bytes, entries })
    }
}

fn hash_of(path: &Path) -> io::Result<(Hash, u64)> {
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path)?);
    let (mut hasher, mut bytes) = (Hasher::new(), 0);
    loop {
        let piece = reader.fill_buf()?;
        if piece.is_empty() {
            return Ok((hasher.finish(), bytes));
        }
        let length = piece.len();
        hasher.update(piece);
        bytes += length as u64;
        reader.consume(length);
    }
}

fn io_error(act: &'static str, path: &Path) -> impl Fn(io::Error) -> ArchiveError + use<> {
    let path = path.to_owned();
    move |source| ArchiveError::Io { act, path: path.clone(), source }
}
