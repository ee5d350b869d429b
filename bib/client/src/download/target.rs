//! The folder that is written into. Every directory is opened relative to the one before it and never through a link,
//! so that neither a hostile tree nor a link put there meanwhile leads out of it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use bib_core::Hash;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result, code};

const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The folder, opened once.
#[derive(Debug, Clone)]
pub(crate) struct Target(Arc<OwnedFd>);

/// When what is written becomes durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sync {
    /// Each file before it gets its name, then the directories: for a few files, since `syncfs` also waits for what
    /// other programs have written.
    Each,
    /// All at the end, by one `syncfs`: for many files, where one call for each would take hours on a disk.
    AtEnd,
}

/// What lies at a path already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum There {
    Nothing,
    File { size: u64, executable: bool },
    Dir,
    Link,
    Other,
}

impl Target {
    /// Opens the folder, making it and the directories above it when they are missing. What the person named may be
    /// reached through links; what is below may not.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(|error| Error::local("make", path, error))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| Error::local("open", path, error))?;
        Ok(Self(Arc::new(fd)))
    }

    /// Whether nothing lies in the folder.
    pub(crate) fn is_empty(&self) -> io::Result<bool> {
        for entry in rustix::fs::Dir::read_from(&*self.0)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes everything that was written durable: one call for the whole file system, whatever the number of files.
    pub(crate) fn sync(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        rustix::fs::syncfs(&*self.0)?;
        #[cfg(not(target_os = "linux"))]
        rustix::fs::sync();
        Ok(())
    }

    /// Whether the file system takes names for one that differ in case or in Unicode normalisation.
    pub(crate) fn confuses_names(&self, unique: &str) -> io::Result<bool> {
        let (written, asked) = (format!(".bib-{unique}-Probe\u{e9}"), format!(".bib-{unique}-probee\u{301}"));
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        drop(rustix::fs::openat(&*self.0, &written, flags, Mode::from(0o600))?);
        let mut found = false;
        for other in [asked, format!(".bib-{unique}-probe\u{e9}"), format!(".bib-{unique}-Probee\u{301}")] {
            found |= rustix::fs::statat(&*self.0, &other, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        }
        rustix::fs::unlinkat(&*self.0, &written, AtFlags::empty())?;
        Ok(found)
    }

    /// A cursor with its own place in the folder; one for each thread.
    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { root: Arc::clone(&self.0), at: String::new(), dir: None }
    }
}

/// Walks about in the folder, keeping the directory it was in last open.
#[derive(Debug)]
pub(crate) struct Cursor {
    root: Arc<OwnedFd>,
    at: String,
    dir: Option<OwnedFd>,
}

impl Cursor {
    /// Goes to a directory, making what is missing on the way.
    fn enter(&mut self, dir: &str) -> Result<&OwnedFd> {
        if dir.is_empty() {
            return Ok(&self.root);
        }
        if self.dir.is_none() || self.at != dir {
            self.dir = None;
            let mut open: Option<OwnedFd> = None;
            for segment in dir.split('/') {
                let parent = open.as_ref().unwrap_or(&self.root);
                let next = match rustix::fs::openat(parent, segment, DIR_FLAGS, Mode::empty()) {
                    Err(Errno::NOENT) => {
                        match rustix::fs::mkdirat(parent, segment, Mode::from(0o777)) {
                            // Another thread was faster.
                            Ok(()) | Err(Errno::EXIST) => {}
                            Err(error) => return Err(failed("make", dir, error)),
                        }
                        rustix::fs::openat(parent, segment, DIR_FLAGS, Mode::empty())
                    }
                    other => other,
                };
                open = Some(next.map_err(|error| in_the_way(dir, error))?);
            }
            self.dir = open;
            dir.clone_into(&mut self.at);
        }
        match &self.dir {
            Some(dir) => Ok(dir),
            None => Ok(&self.root),
        }
    }

    fn enter_parent<'a, 'b>(&'a mut self, path: &'b str) -> Result<(&'a OwnedFd, &'b str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.enter(dir)?, name))
    }

    /// Makes a directory.
    pub(crate) fn make_dir(&mut self, path: &str) -> Result<()> {
        self.enter(path).map(|_| ())
    }

    /// What lies at a path, links not followed.
    pub(crate) fn look(&mut self, path: &str) -> Result<There> {
        let (dir, name) = self.enter_parent(path)?;
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(There::Nothing),
            Err(error) => Err(failed("look at", path, error)),
            Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => There::File {
                    size: u64::try_from(stat.st_size).unwrap_or(0),
                    executable: stat.st_mode & 0o100 != 0,
                },
                FileType::Directory => There::Dir,
                FileType::Symlink => There::Link,
                _ => There::Other,
            }),
        }
    }

    /// Opens a file that lies there for reading.
    pub(crate) fn open_file(&mut self, path: &str) -> Result<std::fs::File> {
        let (dir, name) = self.enter_parent(path)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(|error| in_the_way(path, error))?;
        Ok(fd.into())
    }

    /// Opens the temporary file for `path`: new, or what an earlier download left of it when `keep` says so.
    pub(crate) fn open_part(&mut self, path: &str, executable: bool, keep: bool) -> Result<Part> {
        let (dir, name) = self.enter_parent(path)?;
        let part = part_name(name);
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // The umask takes away what the person does not want to give.
        let mode = Mode::from(if executable { 0o777 } else { 0o666 });
        if keep && let Ok(fd) = rustix::fs::openat(dir, &part, flags | OFlags::NONBLOCK, Mode::empty()) {
            let stat = rustix::fs::fstat(&fd).map_err(|error| failed("look at", path, error))?;
            // A file with two names could be somebody else's.
            let is_own = stat.st_nlink == 1 && stat.st_uid == rustix::process::geteuid().as_raw();
            let same_mode = (stat.st_mode & 0o100 != 0) == executable;
            if is_own && same_mode && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                return Ok(Part { file: fd.into(), left_over_bytes: size });
            }
        }
        let create = flags | OFlags::CREATE | OFlags::EXCL;
        let opened = match rustix::fs::openat(dir, &part, create, mode) {
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(dir, &part, AtFlags::empty()).map_err(|error| failed("remove", path, error))?;
                rustix::fs::openat(dir, &part, create, mode)
            }
            other => other,
        };
        let file = opened.map_err(|error| failed("make", path, error))?.into();
        Ok(Part { file, left_over_bytes: 0 })
    }

    /// Gives the temporary file its name.
    pub(crate) fn finish_part(&mut self, path: &str) -> Result<()> {
        let (dir, name) = self.enter_parent(path)?;
        rustix::fs::renameat(dir, part_name(name), dir, name).map_err(|error| in_the_way(path, error))
    }

    /// Removes the temporary file, whose bytes turned out wrong.
    pub(crate) fn discard_part(&mut self, path: &str) -> Result<()> {
        let (dir, name) = self.enter_parent(path)?;
        match rustix::fs::unlinkat(dir, part_name(name), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed("remove", path, error)),
        }
    }

    /// Makes the names in a directory durable.
    pub(crate) fn sync_dir(&mut self, dir: &str) -> Result<()> {
        let fd = self.enter(dir)?;
        rustix::fs::fsync(fd).map_err(|error| failed("sync", dir, error))
    }

    /// Sets or clears the executable bits of a file that is right otherwise: for those who may read it.
    pub(crate) fn set_executable(&mut self, path: &str, executable: bool) -> Result<()> {
        let file = self.open_file(path)?;
        let stat = rustix::fs::fstat(&file).map_err(|error| failed("look at", path, error))?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        let readers = Mode::from_raw_mode((stat.st_mode & 0o444) >> 2);
        let all = Mode::XUSR | Mode::XGRP | Mode::XOTH;
        let mode = if executable { mode | readers | Mode::XUSR } else { mode - all };
        rustix::fs::fchmod(&file, mode).map_err(|error| failed("change", path, error))
    }

    /// Makes a link; one that is there already and points elsewhere is replaced only when `replace` says so.
    pub(crate) fn make_link(&mut self, path: &str, target: &str, replace: bool) -> Result<()> {
        let (dir, name) = self.enter_parent(path)?;
        match rustix::fs::readlinkat(dir, name, Vec::new()) {
            Ok(found) if found.as_bytes() == target.as_bytes() => return Ok(()),
            Ok(_) if !replace => return Err(in_use(path)),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(in_the_way(path, error)),
        }
        let part = part_name(name);
        match rustix::fs::unlinkat(dir, &part, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed("remove", path, error)),
        }
        rustix::fs::symlinkat(target, dir, &part).map_err(|error| failed("make", path, error))?;
        rustix::fs::renameat(dir, &part, dir, name).map_err(|error| in_the_way(path, error))
    }
}

/// A temporary file.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) file: std::fs::File,
    /// How many bytes an earlier download left in it.
    pub(crate) left_over_bytes: u64,
}

/// The temporary name for a name: the same each time, so that a download can go on.
fn part_name(name: &str) -> String {
    let hash = Hash::of(name.as_bytes()).to_string();
    format!(".bib-{}.part", &hash[..24])
}

fn failed(action: &str, path: &str, error: Errno) -> Error {
    Error::local(action, Path::new(bib_core::text::scrub(path).as_ref()), error)
}

fn in_the_way(path: &str, error: Errno) -> Error {
    match error {
        // What should be a directory is a link or a file, or the other way round.
        Errno::LOOP | Errno::NOTDIR | Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY | Errno::MLINK | Errno::INVAL => {
            in_use(path)
        }
        other => failed("write", path, other),
    }
}

pub(crate) fn in_use(path: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("something else lies at `{}`", bib_core::text::scrub(path)))
        .with_code(code::TARGET_IN_USE)
        .with_hint("download into an empty folder, or move it away")
}
