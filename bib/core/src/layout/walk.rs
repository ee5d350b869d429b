//! A content page and its layout pages, side by side.

use super::{Extent, LayoutError, LayoutLine, LayoutPage};
use crate::content::{Entry, Page};

/// Holds layout pages against the content page they belong to: each regular file has its line, in the same order,
/// with the same hash, and extents that make up its size.
#[derive(Debug)]
pub struct LayoutWalk<'a> {
    rest: &'a [Entry],
    /// The file that the last line left unfinished, and how many of its bytes are laid out.
    open: Option<(&'a Entry, u64)>,
}

impl<'a> LayoutWalk<'a> {
    /// A walk along this content page.
    #[must_use]
    pub fn new(page: &'a Page) -> Self {
        Self { rest: &page.entries, open: None }
    }

    /// Takes the next layout page and calls `each` with the file, where in it the run begins in bytes, and the run's
    /// extents. A file whose line continues on the next page is met again there.
    ///
    /// # Errors
    /// When a line is of another file than the content's next, or its extents are more or fewer than the file's bytes.
    pub fn page(
        &mut self,
        page: &LayoutPage,
        mut each: impl FnMut(&'a Entry, u64, &[Extent]),
    ) -> Result<(), LayoutError> {
        for (i, line) in page.lines.iter().enumerate() {
            let error = |why| LayoutError::File { file: line.sha256, why };
            let entry = self.entry_of(line)?;
            let covered = line.from.saturating_add(super::size_of_extents(&line.extents));
            if covered > entry.size() {
                return Err(error("its extents have more bytes than the file"));
            }
            let is_last = i + 1 == page.lines.len();
            if covered < entry.size() && (!is_last || line.extents.is_empty()) {
                return Err(error("its extents have fewer bytes than the file"));
            }
            self.open = (covered < entry.size()).then_some((entry, covered));
            each(entry, line.from, &line.extents);
        }
        Ok(())
    }

    /// Ends the walk.
    ///
    /// # Errors
    /// When a file has no line, or not all of its bytes.
    pub fn finish(mut self) -> Result<(), LayoutError> {
        if let Some((Entry::File { sha256, .. }, _)) = self.open {
            return Err(LayoutError::File { file: *sha256, why: "its extents have fewer bytes than the file" });
        }
        match self.next_file() {
            Some(Entry::File { sha256, .. }) => Err(LayoutError::File { file: *sha256, why: "it has no line" }),
            _ => Ok(()),
        }
    }

    fn entry_of(&mut self, line: &LayoutLine) -> Result<&'a Entry, LayoutError> {
        let error = |why| LayoutError::File { file: line.sha256, why };
        let entry = match (self.open.take(), line.from) {
            (Some((entry, covered)), from) if covered == from => entry,
            (None, 0) => self.next_file().ok_or(error("the content page has no more files"))?,
            (Some(_), _) => return Err(error("it does not go on where the page before ended")),
            (None, _) => return Err(error("it continues a file that was complete")),
        };
        match entry {
            Entry::File { sha256, .. } if *sha256 == line.sha256 => Ok(entry),
            _ => Err(error("the content names another file here")),
        }
    }

    fn next_file(&mut self) -> Option<&'a Entry> {
        let at = self.rest.iter().position(|entry| matches!(entry, Entry::File { .. }))?;
        let file = &self.rest[at];
        self.rest = &self.rest[at + 1..];
        Some(file)
    }
}

/// Every regular file of a content page with its extents, from all of its layout pages.
///
/// # Errors
/// As [`LayoutWalk`].
pub fn join<'a>(page: &'a Page, layout: &[LayoutPage]) -> Result<Vec<(&'a Entry, Vec<Extent>)>, LayoutError> {
    let mut files: Vec<(&Entry, Vec<Extent>)> = Vec::new();
    let mut walk = LayoutWalk::new(page);
    for layout_page in layout {
        walk.page(layout_page, |entry, from, extents| match files.last_mut().filter(|_| from > 0) {
            Some((_, before)) => before.extend_from_slice(extents),
            None => files.push((entry, extents.to_vec())),
        })?;
    }
    walk.finish()?;
    Ok(files)
}
