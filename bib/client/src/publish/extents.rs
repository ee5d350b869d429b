//! Where each file's bytes will lie: 16 bytes for a file in one pack, however many files there are.

use std::collections::HashMap;

use bib_core::Hash;
use bib_core::layout::Extent;

#[derive(Debug, Clone, Copy)]
struct Run {
    chunk: u32,
    offset: u32,
    length: u32,
}

/// Where a file's runs lie; `NONE` while nobody knows.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: u32,
    count: u32,
}

const NONE: Span = Span { first: u32::MAX, count: 0 };

/// The extents of every file that is laid out.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    chunks: Vec<Hash>,
    numbers: HashMap<Hash, u32>,
    runs: Vec<Run>,
    spans: Vec<Span>,
}

/// More runs than can be counted: about four thousand million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this folder has too many chunks; split the dataset")]
pub(crate) struct TooManyRuns;

impl Extents {
    /// No file is laid out yet.
    pub(crate) fn for_files(files: usize) -> Self {
        Self { spans: vec![NONE; files], ..Self::default() }
    }

    /// Lays a file out.
    pub(crate) fn set(&mut self, file: usize, extents: &[Extent]) -> Result<(), TooManyRuns> {
        let count = |n: usize| u32::try_from(n).ok().filter(|n| *n < u32::MAX).ok_or(TooManyRuns);
        let span = Span { first: count(self.runs.len())?, count: count(extents.len())? };
        for extent in extents {
            let fresh = count(self.chunks.len())?;
            let chunk = *self.numbers.entry(extent.chunk).or_insert(fresh);
            if chunk == fresh {
                self.chunks.push(extent.chunk);
            }
            self.runs.push(Run { chunk, offset: extent.offset, length: extent.length });
        }
        self.spans[file] = span;
        Ok(())
    }

    /// Lays a file out like another, which has the same bytes.
    pub(crate) fn copy(&mut self, file: usize, like: usize) {
        self.spans[file] = self.spans[like];
    }

    /// Forgets where a file lies.
    pub(crate) fn clear(&mut self, file: usize) {
        self.spans[file] = NONE;
    }

    /// Whether the file is laid out.
    pub(crate) fn has(&self, file: usize) -> bool {
        self.spans[file].first != u32::MAX
    }

    /// The file's extents, when it is laid out.
    pub(crate) fn get(&self, file: usize) -> Option<Vec<Extent>> {
        self.has(file).then(|| self.runs_of(file).map(|run| self.extent(run)).collect())
    }

    /// Whether one of the file's extents lies in one of these chunks.
    pub(crate) fn touches(&self, file: usize, chunks: &std::collections::HashSet<Hash>) -> bool {
        self.has(file) && self.runs_of(file).any(|run| chunks.contains(&self.chunks[run.chunk as usize]))
    }

    /// How many different chunks there are.
    pub(crate) fn chunk_count(&self) -> u64 {
        self.chunks.len() as u64
    }

    fn runs_of(&self, file: usize) -> impl Iterator<Item = &Run> {
        let span = self.spans[file];
        self.runs[span.first as usize..span.first as usize + span.count as usize].iter()
    }

    fn extent(&self, run: &Run) -> Extent {
        Extent { chunk: self.chunks[run.chunk as usize], offset: run.offset, length: run.length }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_set() {
        let extent = |n: u8, offset| Extent { chunk: Hash::of(&[n]), offset, length: 5 };
        let mut extents = Extents::for_files(4);
        extents.set(0, &[extent(1, 0), extent(2, 0), extent(1, 9)]).unwrap();
        extents.set(1, &[]).unwrap();
        extents.copy(2, 0);
        assert_eq!(extents.get(0).unwrap(), [extent(1, 0), extent(2, 0), extent(1, 9)]);
        assert_eq!((extents.get(1), extents.get(2), extents.get(3)), (Some(vec![]), extents.get(0), None));
        assert_eq!(extents.chunk_count(), 2);
        let gone = [Hash::of(&[2])].into();
        assert!(extents.touches(0, &gone) && !extents.touches(1, &gone) && !extents.touches(3, &gone));
        extents.clear(0);
        assert!(!extents.has(0) && extents.has(2));
    }
}
