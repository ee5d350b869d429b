//! The rules of a content tree, held against the summaries of its pages. Pure.
//!
//! `bib_core::content::TreeChecker` reads every page. A publish that changes one page of a thousand must not: here the
//! rules between pages are checked by what the catalog knows of each (first path, last path, entries, bytes), and the
//! few pages that decide are named, to be read. What a page says on its own was checked when it was kept.

use bib_core::Hash;
use bib_core::content::{
    Entry, INDEX_CUT_BITS, MAX_INDEX_PAGES, MAX_PAGE_BYTES, MAX_PAGE_ENTRIES, PAGE_CUT_BITS, Page,
};
use bibd_catalog::pages::Summary;

/// Every page of a content, in order.
#[derive(Debug)]
pub(super) struct Outline {
    pub(super) pages: Vec<(Hash, Summary)>,
    /// How many pages each index object lists; empty when there is one level.
    pub(super) index_lengths: Vec<usize>,
}

/// A question that only reading a page answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    /// Is this path an entry of this page? Then it is a file with entries below it.
    Holds(usize, String),
    /// Does this page hold an entry that begins so? Then it lies below something that is an entry itself.
    HoldsBelow(usize, String),
    /// Did the page before this one end because the first line here had no room there?
    NoRoomFor(usize),
}

impl Outline {
    /// Checks order, cuts and index objects. `kept(i)` says that the pages `i` and `i + 1` stood so in a version that was
    /// checked before. What has to be read is added to `questions`.
    pub(super) fn check(&self, kept: impl Fn(usize) -> bool, questions: &mut Vec<Question>) -> Result<(), String> {
        for (i, pair) in self.pages.windows(2).enumerate() {
            let [(hash, before), (_, after)] = pair else { continue };
            if before.last_path >= after.first_path {
                return Err(format!("`{}` comes after `{}`", clip(&after.first_path), clip(&before.last_path)));
            }
            let cut = ends(&before.last_path, PAGE_CUT_BITS) || before.entries as usize == MAX_PAGE_ENTRIES;
            if cut || kept(i) {
                continue;
            }
            // A line has 4 KiB of path or two, and less than 256 bytes around it.
            if before.body_bytes as usize + 32 * 1024 < MAX_PAGE_BYTES {
                return Err(format!("page {hash} ends before the rule ends it"));
            }
            questions.push(Question::NoRoomFor(i + 1));
        }
        self.check_indexes()
    }

    fn check_indexes(&self) -> Result<(), String> {
        if self.index_lengths.is_empty() {
            return Ok(());
        }
        if self.pages.len() <= MAX_INDEX_PAGES {
            return Err("one level is enough for 4,096 pages or fewer".to_owned());
        }
        let mut rest = self.pages.as_slice();
        for (i, length) in self.index_lengths.iter().enumerate() {
            let Some((own, after)) = rest.split_at_checked(*length) else {
                return Err("an index object lists more pages than there are".to_owned());
            };
            rest = after;
            let Some(((_, last), inner)) = own.split_last() else { return Err("an empty index object".to_owned()) };
            if inner.iter().any(|(_, page)| ends(&page.last_path, INDEX_CUT_BITS)) {
                return Err(format!("index object {i} goes on after a page that ends it"));
            }
            let is_last = i + 1 == self.index_lengths.len();
            if !is_last && *length < MAX_INDEX_PAGES && !ends(&last.last_path, INDEX_CUT_BITS) {
                return Err(format!("index object {i} ends before the rule ends it"));
            }
        }
        Ok(())
    }

    /// Checks that no entry of the new page number `i` is a directory of another page's entry, or lies below one.
    pub(super) fn check_parents(&self, i: usize, page: &Page, questions: &mut Vec<Question>) -> Result<(), String> {
        let Some((_, own)) = self.pages.get(i) else { return Err("a page that is not listed".to_owned()) };
        let mut asked = std::collections::HashSet::new();
        for entry in &page.entries {
            let path = entry.path().as_str();
            self.check_below(i, path, own, questions)?;
            for (at, _) in path.match_indices('/') {
                let dir = &path[..at];
                // Within the page itself it was checked when the page was read.
                if dir < own.first_path.as_str() && asked.insert(dir) {
                    self.check_dir(dir, questions)?;
                }
            }
        }
        Ok(())
    }

    /// Whether something lies below the entry `path`, on a later page.
    fn check_below(&self, i: usize, path: &str, own: &Summary, questions: &mut Vec<Question>) -> Result<(), String> {
        let below = format!("{path}/");
        if below.as_str() <= own.last_path.as_str() {
            return Ok(());
        }
        let later = self.pages[i..].partition_point(|(_, page)| page.last_path < below) + i;
        let Some((_, page)) = self.pages.get(later) else { return Ok(()) };
        if page.first_path.starts_with(&below) || page.last_path.starts_with(&below) {
            return Err(format!("`{}` is an entry and also a directory", clip(path)));
        }
        if page.first_path < below {
            questions.push(Question::HoldsBelow(later, below));
        }
        Ok(())
    }

    /// Whether the directory `dir` is an entry, on an earlier page.
    fn check_dir(&self, dir: &str, questions: &mut Vec<Question>) -> Result<(), String> {
        let after = self.pages.partition_point(|(_, page)| page.first_path.as_str() <= dir);
        let Some(earlier) = after.checked_sub(1) else { return Ok(()) };
        let (_, page) = &self.pages[earlier];
        if page.first_path == dir || page.last_path == dir {
            return Err(format!("`{}` is an entry and also a directory", clip(dir)));
        }
        if page.last_path.as_str() > dir {
            questions.push(Question::Holds(earlier, dir.to_owned()));
        }
        Ok(())
    }

    /// Answers a question with the page that it names.
    pub(super) fn answer(&self, question: &Question, page: &Page) -> Result<(), String> {
        let path = |entry: &Entry| entry.path().as_str().to_owned();
        match question {
            Question::Holds(_, dir) => match page.entries.binary_search_by(|entry| entry.path().as_str().cmp(dir)) {
                Ok(_) => Err(format!("`{}` is an entry and also a directory", clip(dir))),
                Err(_) => Ok(()),
            },
            Question::HoldsBelow(_, below) => {
                let at = page.entries.partition_point(|entry| entry.path().as_str() < below.as_str());
                match page.entries.get(at).map(path).filter(|path| path.starts_with(below)) {
                    Some(path) => Err(format!("`{}` lies below an entry", clip(&path))),
                    None => Ok(()),
                }
            }
            Question::NoRoomFor(i) => {
                let before = i.checked_sub(1).and_then(|i| self.pages.get(i));
                match before {
                    Some((_, before)) if before.body_bytes as usize + page.first_line_bytes > MAX_PAGE_BYTES => Ok(()),
                    _ => Err("a page ends before the rule ends it".to_owned()),
                }
            }
        }
    }
}

impl Question {
    /// The page to read.
    pub(super) const fn page(&self) -> usize {
        match self {
            Self::Holds(page, _) | Self::HoldsBelow(page, _) | Self::NoRoomFor(page) => *page,
        }
    }
}

fn ends(last_path: &str, bits: u32) -> bool {
    Hash::of(last_path.as_bytes()).has_leading_zero_bits(bits)
}

/// A path as it may be printed: strangers wrote it.
fn clip(text: &str) -> String {
    bib_core::text::scrub(&text.chars().take(120).collect::<String>()).into_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bib_core::content::{ContentRoot, TreeChecker};
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    /// Pages cut by the rule, whatever the paths say about each other.
    fn pages(paths: &BTreeSet<String>) -> Result<Vec<Page>, String> {
        let (mut pages, mut body, mut entries) = (Vec::new(), Vec::new(), 0);
        for path in paths {
            let bytes = path.as_bytes();
            let entry = Entry::File {
                path: path.parse().unwrap(),
                exec: false,
                sha256: Hash::of(bytes),
                size: path.len() as u64,
            };
            entry.write_line(&mut body).unwrap();
            entries += 1;
            if ends(path, PAGE_CUT_BITS) || entries == MAX_PAGE_ENTRIES {
                pages.push(std::mem::take(&mut body));
                entries = 0;
            }
        }
        pages.extend((!body.is_empty()).then_some(body));
        pages.iter().map(|body| Page::parse(body).map_err(|e| e.to_string())).collect()
    }

    fn summary(page: &Page) -> (Hash, Summary) {
        let path = |entry: Option<&Entry>| entry.unwrap().path().to_string();
        let summary = Summary {
            entries: u32::try_from(page.entries.len()).unwrap(),
            files: page.entries.len() as u64,
            size_bytes: 0,
            first_path: path(page.entries.first()),
            last_path: path(page.entries.last()),
            body_bytes: page.size_bytes as u64,
        };
        (page.hash, summary)
    }

    fn by_outline(old: &[Page], new: &[Page]) -> Result<(), String> {
        let outline = Outline { pages: new.iter().map(summary).collect(), index_lengths: Vec::new() };
        let known: BTreeSet<Hash> = old.iter().map(|page| page.hash).collect();
        let pairs: BTreeSet<(Hash, Hash)> = old.windows(2).map(|pair| (pair[0].hash, pair[1].hash)).collect();
        let mut questions = Vec::new();
        outline.check(|i| pairs.contains(&(new[i].hash, new[i + 1].hash)), &mut questions)?;
        for (i, page) in new.iter().enumerate().filter(|(_, page)| !known.contains(&page.hash)) {
            outline.check_parents(i, page, &mut questions)?;
        }
        questions.iter().try_for_each(|question| outline.answer(question, &new[question.page()]))
    }

    fn by_checker(new: &[Page]) -> Result<(), String> {
        let mut checker = TreeChecker::new(ContentRoot::Pages(new.iter().map(|page| page.hash).collect()));
        new.iter()
            .try_for_each(|page| checker.page(page))
            .and_then(|()| checker.finish().map(drop))
            .map_err(|e| e.to_string())
    }

    fn path(random: &mut StdRng) -> String {
        let dirs = ["a", "a-", "a.b", "ab", "b", "c0"];
        let mut path = String::new();
        for _ in 0..random.gen_range(0..3) {
            path.push_str(dirs[random.gen_range(0..dirs.len())]);
            path.push('/');
        }
        path + &format!("f{:05}", random.gen_range(0..40_000))
    }

    #[test]
    fn summaries_and_the_pages_they_name_decide_as_reading_everything_does() {
        let mut random = StdRng::seed_from_u64(5);
        let mut refused = 0;
        for round in 0..60 {
            let old_paths: BTreeSet<String> = (0..6_000).map(|_| path(&mut random)).collect();
            let old = pages(&old_paths).unwrap();
            assert!(old.len() > 1);
            let mut paths = old_paths.clone();
            // What lies below the last entry of a page lies on the next one.
            let some = summary(&old[random.gen_range(0..old.len() - 1)]).1.last_path;
            match round % 4 {
                // Something below a file; a file where a directory is; a file more; a file less.
                0 => drop(paths.insert(format!("{some}/below"))),
                1 => drop(paths.insert(["a", "a/a", "b/a-", "ab", "c0"][random.gen_range(0..5)].to_owned())),
                2 => drop(paths.insert(path(&mut random))),
                _ => drop(paths.remove(&some)),
            }
            // A page that contradicts itself never gets so far.
            let Ok(new) = pages(&paths) else { continue };
            let (outline, checker) = (by_outline(&old, &new), by_checker(&new));
            assert_eq!(outline.is_ok(), checker.is_ok(), "round {round}: {outline:?} {checker:?}");
            refused += usize::from(checker.is_err());
        }
        assert!(refused > 10, "only {refused} were refused");
    }

    #[test]
    fn pages_cut_elsewhere_or_swapped_are_refused() {
        let mut random = StdRng::seed_from_u64(6);
        let paths: BTreeSet<String> = (0..6_000).map(|_| path(&mut random)).collect();
        let old = pages(&paths).unwrap();
        let mut swapped = old.clone();
        swapped.swap(0, 1);
        assert!(by_outline(&old, &swapped).is_err());
        let first: Vec<u8> = old[0].entries[..2].iter().fold(Vec::new(), |mut body, entry| {
            entry.write_line(&mut body).unwrap();
            body
        });
        let mut early = old.clone();
        early[0] = Page::parse(&first).unwrap();
        assert!(by_outline(&old, &early).is_err());
        assert!(by_checker(&early).is_err());
    }
}
