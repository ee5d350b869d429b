//! A named pipe between a program in a container and this process.

use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::account::Account;
use crate::error::Error;
use crate::file;

/// The pipe, whose reader sees no end while this exists: the program opens it later than the reader does.
pub(crate) struct Pipe {
    path: PathBuf,
    /// Our own end to write, through which nothing is written.
    _open: OwnedFd,
}

impl Pipe {
    /// Makes the pipe at `path`, for `account` alone. What lies there from an interrupted attempt is removed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn make(path: &Path, account: Account) -> Result<Self, Error> {
        file::remove(path)?;
        let made = rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
        made.map_err(|error| Error::io("make the pipe", path)(error.into()))?;
        if account.switch {
            std::os::unix::fs::chown(path, Some(account.uid), Some(account.gid))
                .map_err(Error::io("give away", path))?;
        }
        // Both ends at once, so that neither waits for the other.
        Ok(Self { path: path.to_owned(), _open: open(path, OFlags::RDWR)? })
    }

    /// The end to read.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn reader(&self) -> Result<PipeReader, Error> {
        Ok(open(&self.path, OFlags::RDONLY)?.into())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // In a directory of ours; the next one is made in its place.
        let _ = file::remove(&self.path);
    }
}

fn open(path: &Path, how: OFlags) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, how | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
        .map_err(|error| Error::io("open the pipe", path)(error.into()))
}
