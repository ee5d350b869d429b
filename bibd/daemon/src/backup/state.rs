//! What of the data directory is in a backup: who the node is and everything that cannot be made anew.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::services::archive;

/// Directories of plain files.
const DIRECTORIES: [&str; 3] = ["identity", "certs", "secrets"];
/// Where the configuration lies in a restored data directory.
pub const CONFIGURATION: &str = "config";

/// Where the parts are.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The data directory.
    pub data: PathBuf,
    /// The file of checkpoints.
    pub checkpoints: PathBuf,
    /// Months of the audit log that left the database, where there are any.
    pub audit_archive: PathBuf,
    /// The configuration file, when there is one.
    pub configuration: Option<PathBuf>,
}

/// Writes the tar file.
///
/// # Errors
/// When a part cannot be read or the tar cannot be written.
pub fn write(sources: &Sources, to: &mut dyn Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(to);
    tar.follow_symlinks(false);
    add(&mut tar, &sources.data.join("FORMAT"), Path::new("FORMAT"))?;
    for directory in DIRECTORIES {
        let mut names: Vec<_> = fs::read_dir(sources.data.join(directory))?.collect::<io::Result<Vec<_>>>()?;
        names.sort_by_key(fs::DirEntry::file_name);
        for entry in names.into_iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())) {
            add(&mut tar, &entry.path(), &Path::new(directory).join(entry.file_name()))?;
        }
    }
    if sources.audit_archive.is_dir() {
        add_archives(&mut tar, &sources.audit_archive)?;
    }
    if sources.checkpoints.is_file() {
        add(&mut tar, &sources.checkpoints, Path::new("checkpoints"))?;
    }
    if let Some(path) = sources.configuration.as_ref().filter(|path| path.is_file())
        && let Some(name) = path.file_name()
    {
        add(&mut tar, path, &Path::new(CONFIGURATION).join(name))?;
    }
    tar.into_inner().map(drop)
}

/// Wherever they lie on this node, in a restored one they lie in its data directory.
fn add_archives(tar: &mut tar::Builder<&mut dyn Write>, directory: &Path) -> io::Result<()> {
    let mut names: Vec<_> = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    names.retain(|name| name == "FORMAT" || name.to_string_lossy().ends_with(archive::SUFFIX));
    names.sort();
    names.iter().try_for_each(|name| add(tar, &directory.join(name), &Path::new(archive::DIRECTORY).join(name)))
}

/// Adds a file as it is now: one that grows while it is read is taken at the length that it had.
fn add(tar: &mut tar::Builder<&mut dyn Write>, path: &Path, name: &Path) -> io::Result<()> {
    use io::Read as _;
    let file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    let mut header = tar::Header::new_gnu();
    header.set_size(length);
    header.set_mode(0o600);
    header.set_entry_type(tar::EntryType::Regular);
    tar.append_data(&mut header, name, file.take(length))
}
