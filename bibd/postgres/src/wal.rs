//! The write-ahead log on its way out of the server and back in: file names, the spool, and the two lines of `sh`
//! that the server runs.
//!
//! Out: the server copies each finished segment into the spool, durably, and somebody takes it from there. In: a
//! server that recovers asks for a file by name in a [`Feed`] and waits; who feeds it puts the file there or says
//! that there is none. So whoever holds the keys of the archive never hands them to the server.

use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::error::Error;
use crate::file;

/// `archive_command` of a server whose log nobody wants.
pub(crate) const KEEP_NOTHING: &str = "true";
/// Bytes of a segment: what `initdb` makes unless told otherwise, and we do not.
pub const SEGMENT_BYTES: u64 = 16 << 20;
/// Segments with the same upper half of their number.
const SEGMENTS_PER_HALF: u64 = (1 << 32) / SEGMENT_BYTES;
/// How often a waiting server looks, and for how long: 0.05 s, an hour.
const LOOKS: u32 = 72_000;

/// A path as part of one of the server's commands: quoted for `sh`, and safe from the server's own `%`.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''").replace('%', "%%"))
}

/// The longest command that every version of the server runs whole, names filled in.
#[cfg(test)]
const MAX_COMMAND_BYTES: usize = 1023;

/// Copies a segment into the spool: under another name, synced, renamed, synced. A file that is there already must be
/// the same. A full spool is a failure, and the server tries again; so is a disk with less than `reserve_kb` free, except
/// for an empty spool: one segment at a time must always get out, or the log could never shrink again. A copy that fails
/// leaves nothing.
pub(crate) fn archive_command(spool: &Path, max_files: u32, reserve_kb: u64) -> String {
    format!(
        "s={spool}; if [ -e \"$s/%f\" ]; then cmp -s \"%p\" \"$s/%f\"; exit; fi; n=$(ls \"$s\" | wc -l); \
         [ $n -lt {max_files} ] || exit 1; [ $n -eq 0 ] || {{ set -- $(df -Pk \"$s\" | tail -n 1); [ $4 -ge {reserve_kb} ]; }} \
         || exit 1; cp -p \"%p\" \"$s/.%f\" && sync \"$s/.%f\" && mv \"$s/.%f\" \"$s/%f\" && sync \"$s\" \
         || {{ rm -f \"$s/.%f\"; exit 1; }}",
        spool = quoted(spool)
    )
}

/// Finished segments that the server could not archive yet: they stay in its own directory.
#[must_use]
pub fn waiting(data: &Path) -> usize {
    // A server that is being made or restored has no such directory, and nothing waits in it.
    let entries = std::fs::read_dir(data.join("pg_wal/archive_status")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().as_encoded_bytes().ends_with(b".ready")).count()
}

/// Asks for a file and waits. Whoever should answer may be gone: then recovery is aborted (a status above 125) and
/// never taken for finished.
pub(crate) fn restore_command(feed: &Path) -> String {
    format!(
        "w={feed}; : > \"$w/want/%f\"; n=0; until [ -e \"$w/have/%f\" ]; do [ -e \"$w/none/%f\" ] && exit 1; \
         n=$((n+1)); [ $n -lt {LOOKS} ] || exit 255; sleep 0.05; done; mv \"$w/have/%f\" \"%p\"",
        feed = quoted(feed)
    )
}

/// The name of a segment: timeline and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    /// The timeline.
    pub timeline: u32,
    /// The number, counted over both halves of the name.
    pub number: u64,
}

impl Segment {
    /// Reads `TTTTTTTTHHHHHHHHLLLLLLLL`; `None` for histories, labels and anything else.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        if name.len() != 24 || !name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)) {
            return None;
        }
        let part = |range| name.get(range).and_then(|text| u32::from_str_radix(text, 16).ok());
        let (timeline, high, low) = (part(0..8)?, part(8..16)?, part(16..24)?);
        if u64::from(low) >= SEGMENTS_PER_HALF {
            return None;
        }
        Some(Self { timeline, number: u64::from(high) * SEGMENTS_PER_HALF + u64::from(low) })
    }

    /// The segment that holds the byte at `lsn` (`H/L`).
    #[must_use]
    pub fn at(timeline: u32, lsn: &str) -> Option<Self> {
        let (high, low) = lsn.split_once('/')?;
        let part = |text| u32::from_str_radix(text, 16).ok().map(u64::from);
        Some(Self { timeline, number: ((part(high)? << 32) | part(low)?) / SEGMENT_BYTES })
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> String {
        let (high, low) = (self.number / SEGMENTS_PER_HALF, self.number % SEGMENTS_PER_HALF);
        format!("{:08X}{high:08X}{low:08X}", self.timeline)
    }

    /// The one after it on the same timeline.
    #[must_use]
    pub fn next(&self) -> Self {
        Self { timeline: self.timeline, number: self.number + 1 }
    }
}

/// Whether the server archives files of this name: segments, histories, labels, the last piece of a timeline.
#[must_use]
pub fn is_archived_name(name: &str) -> bool {
    let base = name.split('.').next().unwrap_or_default();
    let hex = |text: &str, length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
    match name.strip_prefix(base).unwrap_or_default() {
        "" => Segment::parse(name).is_some(),
        ".history" => hex(base, 8),
        ".partial" => Segment::parse(base).is_some(),
        rest => {
            let offset = rest.strip_prefix('.').and_then(|rest| rest.strip_suffix(".backup"));
            Segment::parse(base).is_some() && offset.is_some_and(|offset| hex(offset, 8))
        }
    }
}

/// The finished files of a spool, in the order in which they must leave: histories before their timeline's segments.
///
/// # Errors
/// [`Error::Io`]. A spool that does not exist is empty.
pub fn spooled(spool: &Path) -> Result<Vec<String>, Error> {
    let entries = match std::fs::read_dir(spool) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", spool)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("list", spool))?.file_name();
        if let Some(name) = name.to_str().filter(|name| is_archived_name(name)) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The directory through which a recovering server asks for files: `want/`, `have/`, `none/`.
#[derive(Debug, Clone)]
pub struct Feed {
    directory: PathBuf,
    account: Account,
}

impl Feed {
    /// Makes the directories, for the server's user.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(directory: &Path, account: Account) -> Result<Self, Error> {
        for path in ["", "want", "have", "none"] {
            file::ensure_dir(&directory.join(path), account.uid, account.gid, 0o700)?;
        }
        Ok(Self { directory: directory.to_owned(), account })
    }

    /// What the server waits for. Names that it would not ask for are nobody's.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn wanted(&self) -> Result<Option<String>, Error> {
        Ok(spooled(&self.directory.join("want"))?.into_iter().next())
    }

    /// Gives the server what it waits for.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn give(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        file::replace(&self.directory.join("have").join(name), bytes, Some(self.account))?;
        file::remove(&self.directory.join("want").join(name))
    }

    /// Says that there is no such file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn deny(&self, name: &str) -> Result<(), Error> {
        file::replace(&self.directory.join("none").join(name), b"", Some(self.account))?;
        file::remove(&self.directory.join("want").join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_follow_one_another_over_the_half() {
        let last = Segment::parse("0000000100000000000000FF").unwrap();
        assert_eq!(last.next().name(), "000000010000000100000000");
        assert_eq!(Segment::at(1, "1/28").unwrap(), last.next());
        assert_eq!(Segment::at(2, "0/3000060").unwrap().name(), "000000020000000000000003");
        for name in
            ["", "00000001.history", "000000010000000000000100", "0000000100000000000000fF", "../0000000100000000000"]
        {
            assert_eq!(Segment::parse(name), None, "{name}");
        }
    }

    #[test]
    fn only_what_the_server_archives_is_taken() {
        for name in [
            "000000010000000000000001",
            "00000002.history",
            "000000010000000000000003.partial",
            "000000010000000000000003.00000028.backup",
        ] {
            assert!(is_archived_name(name), "{name}");
        }
        for name in [".000000010000000000000001", "x", "000000010000000000000001.x", "1.history", "a/b", ".."] {
            assert!(!is_archived_name(name), "{name}");
        }
    }

    #[test]
    fn the_spool_takes_a_file_once_whole_and_only_while_there_is_room() {
        let here = tempfile::tempdir().unwrap();
        let spool = here.path().join("it's 100% full");
        std::fs::create_dir(&spool).unwrap();
        let segment = here.path().join("segment");
        std::fs::write(&segment, "first").unwrap();
        let run_with = |name: &str, reserve_kb: u64| {
            let line = archive_command(&spool, 2, reserve_kb)
                .replace("%f", name)
                .replace("%p", &segment.display().to_string());
            let status = std::process::Command::new("/bin/sh").args(["-c", &line.replace("%%", "%")]).status();
            status.unwrap().success()
        };
        let run = |name: &str| run_with(name, 1);
        assert!(run("000000010000000000000001") && run("000000010000000000000001"));
        std::fs::write(&segment, "second").unwrap();
        assert!(!run("000000010000000000000001"), "another content under the same name");
        let all_there_is = u64::MAX >> 12;
        assert!(!run_with("000000010000000000000002", all_there_is), "a disk that is nearly full");
        assert!(run("000000010000000000000002") && !run("000000010000000000000003"), "two files are all it may hold");
        assert_eq!(spooled(&spool).unwrap(), ["000000010000000000000001", "000000010000000000000002"]);
        assert_eq!(std::fs::read_to_string(spool.join("000000010000000000000001")).unwrap(), "first");
        std::fs::remove_file(spool.join("000000010000000000000001")).unwrap();
        std::fs::remove_file(spool.join("000000010000000000000002")).unwrap();
        assert!(
            run_with("000000010000000000000003", all_there_is),
            "one at a time gets out of a disk that is nearly full"
        );
        std::fs::remove_file(spool.join("000000010000000000000003")).unwrap();
        std::fs::remove_file(&segment).unwrap();
        assert!(!run("000000010000000000000004"), "what cannot be read");
        assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 0, "a copy that failed leaves nothing");
    }

    #[test]
    fn the_longest_command_fits() {
        let longest = Path::new("/").join("d".repeat(200)).join("postgres/spool");
        let name = "000000010000000000000003.00000028.backup";
        let command = archive_command(&longest, u32::MAX, u64::MAX).replace("%f", name);
        let command = command.replace("%p", &format!("pg_wal/{name}"));
        assert!(command.len() <= MAX_COMMAND_BYTES, "{}", command.len());
    }
}
