//! `.bibignore`: what of a folder is not published. The syntax is gitignore's; a file counts for its directory and
//! below, deeper files win over higher ones. `.gitignore` means nothing here, and hidden files are published.

use std::path::Path;
use std::sync::Arc;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

/// The name of the file.
pub(crate) const FILE_NAME: &str = ".bibignore";

/// The largest such file that is read, in bytes.
pub(crate) const MAX_BYTES: u64 = 1024 * 1024;

/// The rules of one directory and of those above it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules(Option<Arc<Level>>);

#[derive(Debug)]
struct Level {
    own: Gitignore,
    above: Rules,
}

impl Rules {
    /// These rules and those that `text` adds for the directory at `dir` (relative to the folder).
    ///
    /// # Errors
    /// The line that cannot be read: a rule that is passed over would publish what was meant to stay.
    pub(crate) fn with(&self, dir: &str, text: &str) -> Result<Self, String> {
        let mut builder = GitignoreBuilder::new(Path::new("/").join(dir));
        for (number, line) in text.lines().enumerate() {
            builder.add_line(None, line).map_err(|error| format!("line {}: {error}", number + 1))?;
        }
        let own = builder.build().map_err(|error| error.to_string())?;
        Ok(Self(Some(Arc::new(Level { own, above: self.clone() }))))
    }

    /// Whether the entry at `path` (relative to the folder) is left out.
    pub(crate) fn ignores(&self, path: &str, is_dir: bool) -> bool {
        let mut next = self;
        while let Some(level) = &next.0 {
            match level.own.matched(Path::new("/").join(path), is_dir) {
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
                Match::None => next = &level.above,
            }
        }
        false
    }

    /// Whether there are no rules at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deeper_rules_win() {
        let top = Rules::default().with("", "*.tmp\n/build/\n# a comment\n").unwrap();
        let sub = top.with("keep", "!*.tmp\n").unwrap();
        assert!(top.ignores("a.tmp", false) && top.ignores("x/a.tmp", false));
        assert!(top.ignores("build", true) && !top.ignores("build", false) && !top.ignores("x/build", true));
        assert!(!sub.ignores("keep/a.tmp", false) && !sub.ignores("keep/b", false));
        assert!(!Rules::default().ignores(".hidden", false));
    }

    #[test]
    fn a_rule_that_cannot_be_read_is_an_error() {
        assert!(Rules::default().with("", "ok\n[z-a]\n").unwrap_err().contains("line 2"));
    }
}
