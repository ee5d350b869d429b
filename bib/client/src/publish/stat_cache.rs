//! What an earlier publish of the same folder hashed, so that a file whose status is unchanged is not read again.
//!
//! Key: device, inode, size, mtime, ctime. A file touched less than two seconds before the walk that hashed it is left
//! out: a change within one tick of the file system's clock would not show. The cache is two files in path order, a
//! base and an overlay of changes, so that one changed file of a million writes a few bytes. It is never needed: a
//! damaged or missing one is ignored, and anybody may delete it.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use bib_core::Hash;

use super::tree::{Stat, Tree};

/// The first bytes of either file.
const FORMAT: &[u8] = b"bib-stat-cache/1\n";
/// How long before the walk a file must have been left alone, in nanoseconds.
const SETTLED_NS: i64 = 2_000_000_000;
/// With at most so many changes, or a sixteenth of the base, only the overlay is written.
const OVERLAY_MIN: usize = 1024;
/// The longest path, from `bib-core`.
const MAX_PATH: usize = bib_core::path::MAX_PATH_BYTES;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    path: Vec<u8>,
    stat: Stat,
    hash: Hash,
}

/// The cache of one folder.
#[derive(Debug, Clone)]
pub(crate) struct StatCache {
    base: PathBuf,
    overlay: PathBuf,
}

/// What a lookup found, and what the next save must write.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    /// For each file whether its hash came from the cache.
    hits: Vec<bool>,
    base_rows: usize,
}

impl Lookup {
    /// A cache that knows nothing.
    pub(crate) fn nothing(files: usize) -> Self {
        Self { hits: vec![false; files], base_rows: 0 }
    }

    /// How many files need not be read.
    #[cfg(test)]
    fn hit_count(&self) -> usize {
        self.hits.iter().filter(|hit| **hit).count()
    }
}

impl StatCache {
    /// The cache at `base`; its overlay lies beside it.
    pub(crate) fn at(base: PathBuf) -> Self {
        let overlay = base.with_extension("overlay");
        Self { base, overlay }
    }

    /// Sets the hashes of files whose status is the cached one.
    pub(crate) fn fill(&self, tree: &mut Tree) -> Lookup {
        let mut lookup = Lookup::nothing(tree.files());
        for (path, is_base) in [(&self.base, true), (&self.overlay, false)] {
            match fill_from(path, tree, &mut lookup.hits) {
                Ok(rows) if is_base => lookup.base_rows = rows,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::debug!(path = %path.display(), %error, "a stat cache is ignored"),
            }
        }
        lookup
    }

    /// Writes what is known now. `walked_ns` is when the walk began, by the same clock as file times; `skip` names
    /// files whose hash must not be believed.
    pub(crate) fn save(&self, tree: &Tree, lookup: &Lookup, walked_ns: i64, skip: &[bool]) -> io::Result<()> {
        let settled = |file: usize| tree.stat(file).touched_ns() < walked_ns.saturating_sub(SETTLED_NS);
        let wanted = |file: usize| {
            tree.hash(file).is_some()
                && !skip.get(file).copied().unwrap_or(false)
                && (lookup.hits[file] || settled(file))
        };
        let changed = (0..tree.files()).filter(|file| !lookup.hits[*file] && wanted(*file)).count();
        if changed == 0 {
            return Ok(());
        }
        let overlay = read_all(&self.overlay).unwrap_or_default();
        if lookup.base_rows > 0 && changed + overlay.len() <= OVERLAY_MIN.max(lookup.base_rows / 16) {
            let mut rows: std::collections::BTreeMap<Vec<u8>, Row> =
                overlay.into_iter().map(|row| (row.path.clone(), row)).collect();
            for file in (0..tree.files()).filter(|file| !lookup.hits[*file] && wanted(*file)) {
                let row = row_of(tree, file);
                rows.insert(row.path.clone(), row);
            }
            return write_atomically(&self.overlay, rows.into_values());
        }
        write_atomically(&self.base, (0..tree.files()).filter(|file| wanted(*file)).map(|file| row_of(tree, file)))?;
        match std::fs::remove_file(&self.overlay) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn row_of(tree: &Tree, file: usize) -> Row {
    let hash = tree.hash(file).unwrap_or(Hash::from_bytes([0; 32]));
    Row { path: tree.file_path(file).into_bytes(), stat: *tree.stat(file), hash }
}

/// Walks cache and tree side by side, both in path order.
fn fill_from(path: &Path, tree: &mut Tree, hits: &mut [bool]) -> io::Result<usize> {
    let mut reader = Reader::open(path)?;
    let mut rows = 0;
    let mut file = 0;
    let mut name = String::new();
    if tree.files() > 0 {
        tree.write_file_path(0, &mut name);
    }
    while let Some(row) = reader.next()? {
        rows += 1;
        while file < tree.files() && name.as_bytes() < row.path.as_slice() {
            file += 1;
            if file < tree.files() {
                tree.write_file_path(file, &mut name);
            }
        }
        if file < tree.files() && name.as_bytes() == row.path.as_slice() && *tree.stat(file) == row.stat {
            tree.set_hash(file, row.hash);
            hits[file] = true;
        }
    }
    Ok(rows)
}

fn read_all(path: &Path) -> io::Result<Vec<Row>> {
    let mut reader = Reader::open(path)?;
    let mut rows = Vec::new();
    while let Some(row) = reader.next()? {
        rows.push(row.clone());
    }
    Ok(rows)
}

struct Reader {
    input: BufReader<File>,
    row: Row,
}

impl Reader {
    fn open(path: &Path) -> io::Result<Self> {
        let mut input = BufReader::with_capacity(256 * 1024, File::open(path)?);
        let mut format = [0; FORMAT.len()];
        input.read_exact(&mut format)?;
        if format != FORMAT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "another format"));
        }
        let row = Row { path: Vec::new(), stat: Stat::default(), hash: Hash::from_bytes([0; 32]) };
        Ok(Self { input, row })
    }

    /// The next row. A file that was cut off ends in an error; what came before it was whole.
    fn next(&mut self) -> io::Result<Option<&Row>> {
        let mut head = [0; 4];
        match self.input.read(&mut head[..1])? {
            0 => return Ok(None),
            _ => self.input.read_exact(&mut head[1..])?,
        }
        let shared = usize::from(u16::from_le_bytes([head[0], head[1]]));
        let fresh = usize::from(u16::from_le_bytes([head[2], head[3]]));
        if shared > self.row.path.len() || shared + fresh > MAX_PATH {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a row is damaged"));
        }
        self.row.path.resize(shared + fresh, 0);
        self.input.read_exact(&mut self.row.path[shared..])?;
        let mut rest = [0; 72 + 4];
        self.input.read_exact(&mut rest)?;
        let check = u32::from_le_bytes([rest[72], rest[73], rest[74], rest[75]]);
        if check != checksum(&self.row.path, &rest[..72]) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a row is damaged"));
        }
        let word = |at: usize| rest[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or(0);
        self.row.stat = Stat {
            device: word(0),
            inode: word(8),
            size: word(16),
            mtime_ns: word(24).cast_signed(),
            ctime_ns: word(32).cast_signed(),
        };
        self.row.hash = Hash::try_from(&rest[40..72]).map_err(io::Error::other)?;
        Ok(Some(&self.row))
    }
}

/// FNV-1a over words: against torn and rotten rows, not against an enemy, who could as well change the files.
fn checksum(path: &[u8], rest: &[u8]) -> u32 {
    let mut sum: u64 = 0xcbf2_9ce4_8422_2325;
    for piece in path.chunks(8).chain(rest.chunks(8)) {
        let mut word = [0; 8];
        word[..piece.len()].copy_from_slice(piece);
        sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3);
        sum ^= sum >> 29;
    }
    u32::try_from((sum ^ (sum >> 32)) & u64::from(u32::MAX)).unwrap_or(0)
}

fn write_atomically(path: &Path, rows: impl Iterator<Item = Row>) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    std::fs::create_dir_all(directory)?;
    let staged = tempfile::NamedTempFile::new_in(directory)?;
    let mut output = BufWriter::with_capacity(256 * 1024, staged.as_file());
    output.write_all(FORMAT)?;
    let mut before: Vec<u8> = Vec::new();
    for row in rows {
        let shared = before.iter().zip(&row.path).take_while(|(a, b)| a == b).count();
        let length = |n: usize| u16::try_from(n).map(u16::to_le_bytes).map_err(io::Error::other);
        output.write_all(&length(shared)?)?;
        output.write_all(&length(row.path.len() - shared)?)?;
        output.write_all(&row.path[shared..])?;
        let mut rest = [0; 72];
        let stat = row.stat;
        let words = [stat.device, stat.inode, stat.size, stat.mtime_ns.cast_unsigned(), stat.ctime_ns.cast_unsigned()];
        for (at, word) in words.into_iter().enumerate() {
            rest[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
        rest[40..].copy_from_slice(row.hash.as_bytes());
        output.write_all(&rest)?;
        output.write_all(&checksum(&row.path, &rest).to_le_bytes())?;
        before = row.path;
    }
    output.flush()?;
    drop(output);
    // Not synced: a cache that a crash takes is rebuilt, and its rows carry checksums.
    staged.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tree::Kind;
    use super::*;

    const NOW: i64 = 1_000_000_000_000;

    fn tree(files: usize) -> Tree {
        let mut tree = Tree::default();
        let dir = tree.push_dir("dir").unwrap();
        for i in 0..files {
            let stat = Stat { device: 1, inode: i as u64, size: 9, mtime_ns: 5, ctime_ns: 6 };
            tree.push(dir, &format!("file-{i:06}"), Kind::File, stat, "").unwrap();
        }
        tree
    }

    fn hashed(files: usize) -> Tree {
        let mut tree = tree(files);
        (0..files).for_each(|i| tree.set_hash(i, Hash::of(&i.to_le_bytes())));
        tree
    }

    fn cache() -> (tempfile::TempDir, StatCache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = StatCache::at(dir.path().join("stat/x"));
        (dir, cache)
    }

    #[test]
    fn unchanged_files_are_known() {
        let (_dir, cache) = cache();
        let full = hashed(5000);
        cache.save(&full, &cache.fill(&mut tree(5000)), NOW, &[]).unwrap();
        let mut again = tree(5000);
        assert_eq!(cache.fill(&mut again).hit_count(), 5000);
        assert_eq!(again.hash(4321), full.hash(4321));
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let (_dir, cache) = cache();
        cache.save(&hashed(5), &cache.fill(&mut tree(5)), NOW, &[]).unwrap();
        let mut changed = tree(5);
        let stat = *changed.stat(0);
        changed.set_stat(0, Stat { device: 2, ..stat });
        changed.set_stat(1, Stat { inode: 99, ..*tree(5).stat(1) });
        changed.set_stat(2, Stat { size: 8, ..*tree(5).stat(2) });
        changed.set_stat(3, Stat { mtime_ns: 4, ..*tree(5).stat(3) });
        changed.set_stat(4, Stat { ctime_ns: 7, ..*tree(5).stat(4) });
        assert_eq!(cache.fill(&mut changed).hit_count(), 0);
    }

    #[test]
    fn files_touched_just_before_the_walk_are_not_kept() {
        let (_dir, cache) = cache();
        let mut fresh = hashed(2);
        fresh.set_stat(0, Stat { ctime_ns: NOW - SETTLED_NS + 1, ..*fresh.stat(0) });
        cache.save(&fresh, &cache.fill(&mut tree(2)), NOW, &[]).unwrap();
        let mut again = hashed(0);
        assert_eq!(cache.fill(&mut again).hit_count(), 0);
        let mut again = tree(2);
        again.set_stat(0, *fresh.stat(0));
        let lookup = cache.fill(&mut again);
        assert_eq!(lookup.hits, [false, true]);
    }

    #[test]
    fn one_change_writes_a_small_overlay() {
        let (_dir, cache) = cache();
        cache.save(&hashed(3000), &cache.fill(&mut tree(3000)), NOW, &[]).unwrap();
        let base = std::fs::metadata(&cache.base).unwrap().modified().unwrap();
        let mut next = tree(3000);
        next.set_stat(7, Stat { size: 1, ..*next.stat(7) });
        let lookup = cache.fill(&mut next);
        assert_eq!(lookup.hit_count(), 2999);
        next.set_hash(7, Hash::of(b"new"));
        cache.save(&next, &lookup, NOW, &[]).unwrap();
        assert_eq!(std::fs::metadata(&cache.base).unwrap().modified().unwrap(), base);
        assert!(std::fs::metadata(&cache.overlay).unwrap().len() < 200);
        let mut last = tree(3000);
        last.set_stat(7, Stat { size: 1, ..*last.stat(7) });
        assert_eq!(cache.fill(&mut last).hit_count(), 3000);
        assert_eq!(last.hash(7), Some(Hash::of(b"new")));
    }

    #[test]
    fn a_damaged_cache_is_ignored_from_the_damage_on() {
        let (_dir, cache) = cache();
        cache.save(&hashed(100), &cache.fill(&mut tree(100)), NOW, &[]).unwrap();
        let whole = std::fs::read(&cache.base).unwrap();
        for at in [0, 20, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            std::fs::write(&cache.base, &bytes).unwrap();
            let mut tree = tree(100);
            let lookup = cache.fill(&mut tree);
            assert!(lookup.hit_count() < 100);
            for file in (0..100).filter(|file| lookup.hits[*file]) {
                assert_eq!(tree.hash(file), Some(Hash::of(&file.to_le_bytes())));
            }
        }
        for length in 0..whole.len().min(400) {
            std::fs::write(&cache.base, &whole[..length]).unwrap();
            cache.fill(&mut tree(100));
        }
    }
}
