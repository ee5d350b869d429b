//! Looks through a folder: every entry with its status, directories in parallel, the result in path order.
//!
//! Nothing is read but directories, links and `.bibignore` files. Names that a dataset cannot hold are collected and
//! refused all at once; sockets, devices and pipes are left out with a notice.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use bib_core::path::{EntryPath, LinkTarget, twins};
use bib_core::text::scrub;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use super::ignore::{FILE_NAME, MAX_BYTES, Rules};
use super::tree::{Kind, Stat, TooManyNames, Tree};
use crate::error::{Error, ErrorKind, Result, code};
use crate::progress::{Notice, Phase, Progress};

/// Refused names that are told.
const MAX_TOLD: usize = 100;

/// Entries looked at together before progress is told.
const TELL_EVERY: u64 = 1024;

/// A folder, opened once: everything below is opened relative to it.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    /// The one name that is looked at, when a file was named and not a folder.
    only: Option<String>,
}

impl Folder {
    /// Opens a folder, or the folder of a single file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|error| Error::local("open", path, error))?;
        let (dir, only) = if metadata.is_dir() {
            (path.to_owned(), None)
        } else {
            let name = path.file_name().and_then(OsStr::to_str).map(str::to_owned);
            let name = name.ok_or_else(|| refused(&[format!("{} (not UTF-8)", path.display())], 1))?;
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            (parent.unwrap_or(Path::new(".")).to_owned(), Some(name))
        };
        let fd = rustix::fs::open(&dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::local("open", &dir, error))?;
        Ok(Self { fd, only })
    }

    /// Opens a file of the folder for reading, never following a link in its last segment.
    pub(crate) fn open_file(&self, path: &str) -> std::io::Result<OwnedFd> {
        // NONBLOCK: a pipe put in the file's place must not hold the publish up.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(rustix::fs::openat(&self.fd, path, flags, Mode::empty())?)
    }
}

/// The status of an open file, and whether it is a regular one.
pub(crate) fn stat_of(fd: impl AsFd) -> std::io::Result<(Stat, bool)> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((convert(&stat), FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile))
}

#[allow(clippy::unnecessary_cast, clippy::cast_lossless, reason = "the widths differ between systems")]
fn convert(stat: &rustix::fs::Stat) -> Stat {
    let nanoseconds = |seconds: i64, part: i64| seconds.saturating_mul(1_000_000_000).saturating_add(part);
    Stat {
        device: stat.st_dev as u64,
        inode: stat.st_ino as u64,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: nanoseconds(stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        ctime_ns: nanoseconds(stat.st_ctime as i64, stat.st_ctime_nsec as i64),
    }
}

struct Child {
    name: Box<str>,
    what: What,
}

enum What {
    File {
        stat: Stat,
        exec: bool,
    },
    Link(Box<str>),
    /// Its number among the directories.
    Dir(usize),
}

struct Job {
    number: usize,
    path: String,
    rules: Rules,
}

#[derive(Default)]
struct Shared {
    queue: VecDeque<Job>,
    busy: usize,
    /// The children of each directory, sorted; taken when flattened.
    listed: Vec<Vec<Child>>,
    paths: Vec<String>,
    entries: usize,
    files: usize,
    name_bytes: usize,
    refused: Vec<String>,
    refused_count: usize,
    failed: Option<Error>,
}

/// Looks through `folder` with `threads` threads.
pub(crate) fn walk(folder: &Folder, threads: usize, progress: &dyn Progress) -> Result<Tree> {
    progress.total(Phase::Walk, None);
    let mut shared = Shared::default();
    shared.listed.push(Vec::new());
    shared.paths.push(String::new());
    shared.queue.push_back(Job { number: 0, path: String::new(), rules: Rules::default() });
    let state = (Mutex::new(shared), Condvar::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| work(folder, &state, progress));
        }
    });
    let shared = state.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = shared.failed {
        return Err(error);
    }
    if shared.refused_count > 0 {
        return Err(refused(&shared.refused, shared.refused_count));
    }
    let tree = flatten(shared).map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))?;
    if folder.only.is_some() && tree.files() == 0 {
        return Err(Error::new(ErrorKind::Local, "this is no regular file").with_code(code::LOCAL_FILE));
    }
    Ok(tree)
}

fn refused(names: &[String], count: usize) -> Error {
    let shown = names.iter().take(MAX_TOLD).cloned().collect::<Vec<_>>().join("\n  ");
    let more = if count > names.len() { format!("\n  and {} more", count - names.len()) } else { String::new() };
    Error::new(ErrorKind::Invalid, format!("{count} names cannot stand in a dataset:\n  {shown}{more}"))
        .with_code(code::UNNAMEABLE)
        .with_hint("rename them, or leave them out with a `.bibignore`")
        .with_detail("count", count.to_string())
}

fn lock(state: &(Mutex<Shared>, Condvar)) -> MutexGuard<'_, Shared> {
    state.0.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(folder: &Folder, state: &(Mutex<Shared>, Condvar), progress: &dyn Progress) {
    loop {
        let job = {
            let mut shared = lock(state);
            loop {
                if shared.failed.is_some() {
                    return;
                }
                if let Some(job) = shared.queue.pop_front() {
                    shared.busy += 1;
                    break job;
                }
                if shared.busy == 0 {
                    return;
                }
                shared = state.1.wait(shared).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let listing = list(folder, &job, progress);
        let mut shared = lock(state);
        shared.busy -= 1;
        match listing {
            Ok(listing) => shared.take(job, listing),
            Err(error) => shared.failed = Some(error),
        }
        state.1.notify_all();
    }
}

/// One directory, before its subdirectories have numbers.
#[derive(Default)]
struct Listing {
    children: Vec<Child>,
    rules: Rules,
    refused: Vec<String>,
}

impl Shared {
    fn take(&mut self, job: Job, mut listing: Listing) {
        for child in &mut listing.children {
            self.entries += 1;
            self.name_bytes += child.name.len();
            match &mut child.what {
                What::File { .. } => self.files += 1,
                What::Link(target) => self.name_bytes += target.len(),
                What::Dir(number) => {
                    *number = self.listed.len();
                    let path = join(&job.path, &child.name);
                    self.name_bytes += path.len();
                    self.listed.push(Vec::new());
                    self.paths.push(path.clone());
                    self.queue.push_back(Job { number: *number, path, rules: listing.rules.clone() });
                }
            }
        }
        self.refused_count += listing.refused.len();
        let room = MAX_TOLD.saturating_sub(self.refused.len());
        self.refused.extend(listing.refused.into_iter().take(room));
        self.listed[job.number] = listing.children;
    }
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

fn list(folder: &Folder, job: &Job, progress: &dyn Progress) -> Result<Listing> {
    let failed = |error: rustix::io::Errno| Error::local("list", Path::new(&shown(&job.path)), error);
    let at = if job.path.is_empty() { "." } else { &job.path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(&folder.fd, at, flags, Mode::empty()).map_err(failed)?;
    let mut listing = Listing { rules: rules_of(&dir, job, folder)?, ..Listing::default() };
    let mut seen = 0;
    for entry in Dir::read_from(&dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." || folder.only.as_ref().is_some_and(|only| only.as_bytes() != name) {
            continue;
        }
        look_at(&dir, job, name, &mut listing, progress)?;
        seen += 1;
        if seen % TELL_EVERY == 0 {
            progress.advance(Phase::Walk, TELL_EVERY);
        }
    }
    progress.advance(Phase::Walk, seen % TELL_EVERY);
    listing.children.sort_unstable_by(|a, b| sort_key(a).cmp(sort_key(b)));
    for pair in twins(listing.children.iter().map(|child| &*child.name)) {
        progress.notice(Notice::Twins { first: join(&job.path, pair.first), second: join(&job.path, pair.second) });
    }
    Ok(listing)
}

/// Paths are ordered by bytes, so a directory stands where its name and `/` would.
fn sort_key(child: &Child) -> impl Iterator<Item = u8> + '_ {
    child.name.bytes().chain(matches!(child.what, What::Dir(_)).then_some(b'/'))
}

fn look_at(dir: &OwnedFd, job: &Job, name: &[u8], listing: &mut Listing, progress: &dyn Progress) -> Result<()> {
    let text = match std::str::from_utf8(name) {
        Ok(text) => text,
        Err(_) => {
            let lossy = String::from_utf8_lossy(name);
            listing.refused.push(format!("{} (not UTF-8)", scrub(&join(&job.path, &lossy))));
            return Ok(());
        }
    };
    let path = join(&job.path, text);
    let stat = match rustix::fs::statat(dir, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        // Gone since the directory was read: as if it had never been.
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(Error::local("look at", Path::new(&shown(&path)), error)),
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    if !listing.rules.is_empty() && listing.rules.ignores(&path, kind == FileType::Directory) {
        return Ok(());
    }
    let entry_path = match EntryPath::new(path.as_str()) {
        Ok(path) => path,
        Err(error) => {
            listing.refused.push(error.to_string());
            return Ok(());
        }
    };
    let what = match kind {
        FileType::RegularFile => What::File { stat: convert(&stat), exec: stat.st_mode & 0o100 != 0 },
        FileType::Directory => What::Dir(0),
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(dir, OsStr::from_bytes(name), Vec::new())
                .map_err(|error| Error::local("read the link", Path::new(&shown(&path)), error))?;
            let target = target
                .to_str()
                .map_err(|_| "is not UTF-8".to_owned())
                .and_then(|target| LinkTarget::new(target, &entry_path).map_err(|error| error.to_string()));
            match target {
                Ok(target) => What::Link(target.as_str().into()),
                Err(error) => {
                    listing.refused.push(format!("{}: {error}", scrub(&path)));
                    return Ok(());
                }
            }
        }
        other => {
            let what = match other {
                FileType::Socket => "socket",
                FileType::Fifo => "pipe",
                _ => "device",
            };
            progress.notice(Notice::Skipped { path, what });
            return Ok(());
        }
    };
    listing.children.push(Child { name: text.into(), what });
    Ok(())
}

fn shown(path: &str) -> String {
    if path.is_empty() { ".".to_owned() } else { scrub(path).into_owned() }
}

fn rules_of(dir: &OwnedFd, job: &Job, folder: &Folder) -> Result<Rules> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let path = join(&job.path, FILE_NAME);
    // A single file that somebody names is published, whatever lies beside it.
    let opened = if folder.only.is_some() {
        Err(rustix::io::Errno::NOENT)
    } else {
        rustix::fs::openat(dir, FILE_NAME, flags, Mode::empty())
    };
    let file = match opened {
        Ok(fd) => std::fs::File::from(fd),
        Err(rustix::io::Errno::NOENT) => return Ok(job.rules.clone()),
        Err(error) => return Err(Error::local("open", Path::new(&path), error)),
    };
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(|error| Error::local("read", Path::new(&path), error))?;
    job.rules.with(&job.path, &text).map_err(|reason| {
        Error::new(ErrorKind::Invalid, format!("`{path}` cannot be used: {reason}")).with_code(code::LOCAL_FILE)
    })
}

/// Depth first along the sorted children is path order.
fn flatten(mut shared: Shared) -> Result<Tree, TooManyNames> {
    let mut tree = Tree::default();
    tree.reserve(shared.entries, shared.files, shared.name_bytes);
    let root = tree.push_dir("")?;
    let first = std::mem::take(&mut shared.listed[0]);
    let mut stack = vec![(root, first.into_iter())];
    while let Some((dir, children)) = stack.last_mut() {
        let dir = *dir;
        let Some(child) = children.next() else {
            stack.pop();
            continue;
        };
        match child.what {
            What::File { stat, exec } => {
                tree.push(dir, &child.name, if exec { Kind::Exec } else { Kind::File }, stat, "")?;
            }
            What::Link(target) => tree.push(dir, &child.name, Kind::Link, Stat::default(), &target)?,
            What::Dir(number) => {
                let children = std::mem::take(&mut shared.listed[number]);
                if children.is_empty() {
                    tree.push(dir, &child.name, Kind::Dir, Stat::default(), "")?;
                } else {
                    let path = std::mem::take(&mut shared.paths[number]);
                    stack.push((tree.push_dir(&path)?, children.into_iter()));
                }
            }
        }
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::sync::Mutex;

    use super::*;
    use crate::progress::Silent;

    fn paths(tree: &Tree) -> Vec<String> {
        let mut path = String::new();
        (0..tree.len())
            .map(|entry| {
                tree.write_path(entry, &mut path);
                path.clone()
            })
            .collect()
    }

    fn walk_dir(path: &Path) -> Result<Tree> {
        walk(&Folder::open(path).unwrap(), 3, &Silent)
    }

    #[test]
    fn finds_everything_in_the_order_of_path_bytes() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a/b", "a.txt", "a-b", "a0", ".hidden", "d/e/f", "z"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        fs::create_dir_all(dir.path().join("empty/inner")).unwrap();
        symlink("../a.txt", dir.path().join("d/link")).unwrap();
        fs::set_permissions(dir.path().join("z"), fs::Permissions::from_mode(0o755)).unwrap();
        let tree = walk_dir(dir.path()).unwrap();
        let found = paths(&tree);
        let mut sorted = found.clone();
        sorted.sort();
        assert_eq!(found, sorted);
        assert_eq!(found, [".hidden", "a-b", "a.txt", "a/b", "a0", "d/e/f", "d/link", "empty/inner", "z"]);
        let kinds: Vec<_> = (0..tree.len()).map(|i| tree.entry(i).unwrap().kind()).collect();
        assert_eq!(kinds[6..], ["link", "dir", "exec"]);
    }

    #[test]
    fn refuses_all_bad_names_at_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(OsStr::from_bytes(b"bad\xff")), "").unwrap();
        fs::write(dir.path().join("tab\there"), "").unwrap();
        symlink("/etc/passwd", dir.path().join("absolute")).unwrap();
        symlink("../outside", dir.path().join("outside")).unwrap();
        let error = walk_dir(dir.path()).unwrap_err();
        assert_eq!((error.kind(), error.detail("count")), (ErrorKind::Invalid, Some("4")));
        assert!(!error.message().contains('\t') && error.message().contains("passwd"), "{error}");
    }

    #[test]
    fn a_bibignore_leaves_out_and_a_gitignore_does_not() {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [(".bibignore", "*.tmp\nskip/\n"), (".gitignore", "*\n"), ("a.tmp", ""), ("b", "")] {
            fs::write(dir.path().join(path), text).unwrap();
        }
        fs::create_dir(dir.path().join("skip")).unwrap();
        fs::write(dir.path().join("skip/c"), "").unwrap();
        assert_eq!(paths(&walk_dir(dir.path()).unwrap()), [".bibignore", ".gitignore", "b"]);
    }

    #[derive(Default)]
    struct Heard(Mutex<Vec<Notice>>);

    impl Progress for Heard {
        fn total(&self, _: Phase, _: Option<u64>) {}
        fn advance(&self, _: Phase, _: u64) {}
        fn notice(&self, notice: Notice) {
            self.0.lock().unwrap().push(notice);
        }
    }

    #[test]
    fn skips_sockets_and_names_twins() {
        let dir = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        for name in ["README", "readme"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let heard = Heard::default();
        let tree = walk(&Folder::open(dir.path()).unwrap(), 2, &heard).unwrap();
        assert_eq!(tree.len(), 2);
        let heard = heard.0.into_inner().unwrap();
        assert!(heard.contains(&Notice::Skipped { path: "s".to_owned(), what: "socket" }));
        assert!(heard.contains(&Notice::Twins { first: "README".to_owned(), second: "readme".to_owned() }));
    }

    #[test]
    fn a_single_file_is_a_folder_with_one_entry() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("one"), "1").unwrap();
        fs::write(dir.path().join("two"), "2").unwrap();
        assert_eq!(paths(&walk_dir(&dir.path().join("two")).unwrap()), ["two"]);
    }

    #[test]
    fn an_empty_folder_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(walk_dir(dir.path()).unwrap().len(), 0);
    }
}
