//! Named pipes between PostgreSQL's programs, wherever they run, and this process: [`Pipe`] to read what one prints,
//! [`Fifo`] to write what one reads.

use std::fs::File;
use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::account::Account;
use crate::error::Error;
use crate::file;

/// A named pipe; gone when dropped.
pub(crate) struct Fifo(PathBuf);

impl Fifo {
    /// Makes it at `path`, for `account` alone. What lies there from an interrupted attempt is removed.
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
        Ok(Self(path.to_owned()))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        // In a directory of ours; the next one is made in its place.
        let _ = file::remove(&self.0);
    }
}

/// The end to write of the pipe at `path`; `None` while nobody has opened it for reading.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn writer(path: &Path) -> Result<Option<File>, Error> {
    let failed = |error: Errno| Error::io("open the pipe", path)(error.into());
    // Without NONBLOCK this would wait for a reader that may never come.
    let how = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let end = match rustix::fs::open(path, how, Mode::empty()) {
        Err(Errno::NXIO) => return Ok(None),
        other => other.map_err(failed)?,
    };
    // From here on writing waits for the reader.
    rustix::fs::fcntl_setfl(&end, OFlags::empty()).map_err(failed)?;
    Ok(Some(end.into()))
}

/// A pipe to read from, whose reader sees no end while this exists: the program opens it later than the reader does.
pub(crate) struct Pipe {
    fifo: Fifo,
    /// Our own end to write, through which nothing is written.
    _open: OwnedFd,
}

impl Pipe {
    /// As [`Fifo::make`].
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn make(path: &Path, account: Account) -> Result<Self, Error> {
        let fifo = Fifo::make(path, account)?;
        // Both ends at once, so that neither waits for the other.
        Ok(Self { _open: open(path, OFlags::RDWR)?, fifo })
    }

    /// The end to read.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn reader(&self) -> Result<PipeReader, Error> {
        Ok(open(self.fifo.path(), OFlags::RDONLY)?.into())
    }
}

fn open(path: &Path, how: OFlags) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, how | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
        .map_err(|error| Error::io("open the pipe", path)(error.into()))
}
