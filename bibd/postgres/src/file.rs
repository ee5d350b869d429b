//! Directories and files of the server: made with the right owner and mode, replaced whole, made durable.
//!
//! Never follows a symbolic link to what it makes or checks, and never widens a mode.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::account::Account;
use crate::error::Error;

/// Makes `path` a directory of that owner and mode; repairs both on one that exists. Its parent must exist.
///
/// # Errors
/// [`Error::UnsafePath`] when it is something else or belongs to a third user; [`Error::Io`].
pub(crate) fn ensure_dir(path: &Path, uid: u32, gid: u32, mode: u32) -> Result<(), Error> {
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::io("create the directory", path)(error)),
    }
    let meta = std::fs::symlink_metadata(path).map_err(Error::io("look at", path))?;
    if !meta.is_dir() {
        return Err(Error::UnsafePath { path: path.to_path_buf(), problem: "is not a directory".to_owned() });
    }
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() != uid {
        if own != 0 || meta.uid() != 0 {
            let problem = format!("belongs to user {}, not to {uid}", meta.uid());
            return Err(Error::UnsafePath { path: path.to_path_buf(), problem });
        }
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(Error::io("give away", path))?;
    }
    if meta.mode() & 0o7777 != mode {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(Error::io("chmod", path))?;
    }
    Ok(())
}

/// Replaces `path` by a file of these bytes: 0600, durable, never half written. `owner` gets it.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn replace(path: &Path, bytes: &[u8], owner: Option<Account>) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::Builder::new()
        .prefix(".bib-")
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(directory)
        .map_err(Error::io("create a file in", directory))?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    give(file.as_file(), path, owner)?;
    file.as_file().sync_all().map_err(Error::io("fsync", path))?;
    file.persist(path).map_err(|error| Error::io("rename to", path)(error.error))?;
    sync_dir(directory)
}

/// Writes a new file of mode 0600 that is not expected to survive a crash.
///
/// # Errors
/// [`Error::Io`], also when it exists.
pub(crate) fn write_new(path: &Path, bytes: &[u8], owner: Option<Account>) -> Result<(), Error> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(Error::io("create", path))?;
    give(&file, path, owner)?;
    file.write_all(bytes).map_err(Error::io("write", path))
}

/// Opens a log of ours for appending, 0600, emptied first.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn fresh_log(path: &Path, owner: Option<Account>) -> Result<File, Error> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(Error::io("open", path))?;
    file.set_len(0).map_err(Error::io("empty", path))?;
    give(&file, path, owner)?;
    Ok(file)
}

fn give(file: &File, path: &Path, owner: Option<Account>) -> Result<(), Error> {
    match owner.filter(|owner| owner.switch) {
        Some(owner) => {
            std::os::unix::fs::fchown(file, Some(owner.uid), Some(owner.gid)).map_err(Error::io("give away", path))
        }
        None => Ok(()),
    }
}

/// Removes a file; one that does not exist is fine.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Makes the names in a directory durable.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn sync_dir(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(Error::io("fsync", path))
}

/// Whether [`sync_everything`] can be relied on: before 5.8 Linux kept errors of it to itself.
pub(crate) fn can_sync_everything() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|release| reports_errors(release.trim()))
}

fn reports_errors(release: &str) -> bool {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(8))
}

/// Makes everything durable that was written to the file system of `path`, in one go: a thousand small files one by
/// one would each wait for the disk.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn sync_everything(path: &Path) -> Result<(), Error> {
    let directory = File::open(path).map_err(Error::io("open", path))?;
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(&directory).map_err(|error| Error::io("sync the file system of", path)(error.into()))?;
    directory.sync_all().map_err(Error::io("fsync", path))
}

/// Whether something is there, a dangling link included.
///
/// # Errors
/// [`Error::Io`] when it cannot be told: unknown is never taken for absent.
pub(crate) fn exists(path: &Path) -> Result<bool, Error> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("look at", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_hides_errors_is_known_by_its_version() {
        for (release, reports) in [
            ("6.1.0-28-amd64", true),
            ("5.8.0", true),
            ("5.10", true),
            ("5.7.19", false),
            ("4.19.0-27", false),
            ("x", false),
        ] {
            assert_eq!(reports_errors(release), reports, "{release}");
        }
    }

    #[test]
    fn everything_is_synced_or_it_is_said() {
        let here = tempfile::tempdir().unwrap();
        sync_everything(here.path()).unwrap();
        assert!(matches!(sync_everything(&here.path().join("gone")), Err(Error::Io { .. })));
    }
}
