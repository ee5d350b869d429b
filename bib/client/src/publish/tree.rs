//! A folder as it was found: every entry in path order, about 100 bytes each, a million of them in 100 MiB.
//!
//! Names lie in one arena; what only files have lies beside in columns. Nothing here touches a file system.

use bib_core::Hash;
use bib_core::content::Entry;
use bib_core::path::{EntryPath, LinkTarget, PathError};

/// What of a file's status says whether it changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stat {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size: u64,
    pub(crate) mtime_ns: i64,
    pub(crate) ctime_ns: i64,
}

impl Stat {
    /// The later of the two times: a change that neither shows is a change that happened within one tick.
    pub(crate) fn touched_ns(&self) -> i64 {
        self.mtime_ns.max(self.ctime_ns)
    }
}

/// What lies at a path, beside a file's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Exec,
    Dir,
    Link,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    /// Where in the arena the name begins.
    name: u32,
    name_length: u16,
    kind: Kind,
    /// Which directory holds it.
    dir: u32,
    /// A file's place in the columns, or a link's in `targets`.
    slot: u32,
}

/// Where text lies in the arena.
type Span = (u32, u16);

/// A folder as it was found.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    arena: Vec<u8>,
    records: Vec<Record>,
    dirs: Vec<Span>,
    targets: Vec<Span>,
    stats: Vec<Stat>,
    hashes: Vec<Hash>,
    /// Whether the hash is known.
    known: Vec<bool>,
    /// The record of each file.
    file_records: Vec<u32>,
}

/// More names than the arena can count: 4 GiB of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the names in this folder have more than 4 GiB; split the dataset")]
pub(crate) struct TooManyNames;

impl Tree {
    /// Takes a directory's full path (empty for the root); entries name it by the number this gives.
    pub(crate) fn push_dir(&mut self, path: &str) -> Result<u32, TooManyNames> {
        let span = self.intern(path.as_bytes())?;
        self.dirs.push(span);
        u32::try_from(self.dirs.len() - 1).map_err(|_| TooManyNames)
    }

    /// Takes the next entry in path order.
    pub(crate) fn push(
        &mut self,
        dir: u32,
        name: &str,
        kind: Kind,
        stat: Stat,
        target: &str,
    ) -> Result<(), TooManyNames> {
        let (name, name_length) = self.intern(name.as_bytes())?;
        let record = u32::try_from(self.records.len()).map_err(|_| TooManyNames)?;
        let slot = match kind {
            Kind::Dir => 0,
            Kind::Link => {
                let span = self.intern(target.as_bytes())?;
                self.targets.push(span);
                u32::try_from(self.targets.len() - 1).map_err(|_| TooManyNames)?
            }
            Kind::File | Kind::Exec => {
                self.stats.push(stat);
                self.hashes.push(Hash::from_bytes([0; 32]));
                self.known.push(false);
                self.file_records.push(record);
                u32::try_from(self.stats.len() - 1).map_err(|_| TooManyNames)?
            }
        };
        self.records.push(Record { name, name_length, kind, dir, slot });
        Ok(())
    }

    /// Makes room, so that columns do not grow by copying.
    pub(crate) fn reserve(&mut self, entries: usize, files: usize, name_bytes: usize) {
        self.records.reserve_exact(entries);
        self.arena.reserve_exact(name_bytes);
        self.stats.reserve_exact(files);
        self.hashes.reserve_exact(files);
        self.known.reserve_exact(files);
        self.file_records.reserve_exact(files);
    }

    fn intern(&mut self, text: &[u8]) -> Result<Span, TooManyNames> {
        let start = u32::try_from(self.arena.len()).map_err(|_| TooManyNames)?;
        let length = u16::try_from(text.len()).map_err(|_| TooManyNames)?;
        self.arena.extend_from_slice(text);
        Ok((start, length))
    }

    fn text(&self, (start, length): Span) -> &str {
        let bytes = &self.arena[start as usize..start as usize + usize::from(length)];
        // Only whole texts are interned.
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// How many regular files there are; they are numbered in path order.
    pub(crate) fn files(&self) -> usize {
        self.stats.len()
    }

    /// Writes the path of the entry into `path`.
    pub(crate) fn write_path(&self, entry: usize, path: &mut String) {
        let record = self.records[entry];
        path.clear();
        let dir = self.text(self.dirs[record.dir as usize]);
        if !dir.is_empty() {
            path.push_str(dir);
            path.push('/');
        }
        path.push_str(self.text((record.name, record.name_length)));
    }

    /// The path of a file.
    pub(crate) fn file_path(&self, file: usize) -> String {
        let mut path = String::new();
        self.write_path(self.file_records[file] as usize, &mut path);
        path
    }

    /// Writes the path of a file into `path`.
    pub(crate) fn write_file_path(&self, file: usize, path: &mut String) {
        self.write_path(self.file_records[file] as usize, path);
    }

    /// The number of the file at this entry, if it is one.
    pub(crate) fn file_at(&self, entry: usize) -> Option<usize> {
        let record = self.records[entry];
        matches!(record.kind, Kind::File | Kind::Exec).then_some(record.slot as usize)
    }

    pub(crate) fn stat(&self, file: usize) -> &Stat {
        &self.stats[file]
    }

    pub(crate) fn set_stat(&mut self, file: usize, stat: Stat) {
        self.stats[file] = stat;
    }

    /// The file's hash, when it is known.
    pub(crate) fn hash(&self, file: usize) -> Option<Hash> {
        self.known[file].then(|| self.hashes[file])
    }

    pub(crate) fn set_hash(&mut self, file: usize, hash: Hash) {
        self.hashes[file] = hash;
        self.known[file] = true;
    }

    /// The entry as content has it. The hash of a file must be known.
    pub(crate) fn entry(&self, entry: usize) -> Result<Entry, PathError> {
        let record = self.records[entry];
        let mut path = String::with_capacity(96);
        self.write_path(entry, &mut path);
        let path = EntryPath::new(path)?;
        Ok(match record.kind {
            Kind::Dir => Entry::Dir { path },
            Kind::Link => {
                let target = LinkTarget::new(self.text(self.targets[record.slot as usize]), &path)?;
                Entry::Link { path, target }
            }
            Kind::File | Kind::Exec => Entry::File {
                path,
                exec: record.kind == Kind::Exec,
                sha256: self.hashes[record.slot as usize],
                size: self.stats[record.slot as usize].size,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_put_in() {
        let mut tree = Tree::default();
        let root = tree.push_dir("").unwrap();
        let sub = tree.push_dir("d/e").unwrap();
        let stat = Stat { size: 3, ..Stat::default() };
        tree.push(root, "a", Kind::Exec, stat, "").unwrap();
        tree.push(sub, "f", Kind::Dir, Stat::default(), "").unwrap();
        tree.push(sub, "l", Kind::Link, Stat::default(), "../../a").unwrap();
        tree.set_hash(0, Hash::of(b"abc"));
        let lines: Vec<_> = (0..tree.len()).map(|i| tree.entry(i).unwrap()).collect();
        assert_eq!(lines[0].kind(), "exec");
        assert_eq!(lines[1].path().as_str(), "d/e/f");
        assert!(matches!(&lines[2], Entry::Link { target, .. } if target.as_str() == "../../a"));
        assert_eq!((tree.files(), tree.stat(0).size, tree.file_path(0)), (1, 3, "a".to_owned()));
    }

    #[test]
    fn a_record_stays_small() {
        assert!(size_of::<Record>() <= 16 && size_of::<Stat>() <= 40);
    }
}
