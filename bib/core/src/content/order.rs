//! The order of entries: strictly ascending by path bytes, none the directory of another.

use super::ContentError;
use crate::text::clip;

/// Watches paths go by. Constant time per path beyond comparing it with the one before.
#[derive(Debug, Default)]
pub(super) struct PathOrder {
    previous: String,
    /// Lengths of the earlier entries that are proper prefixes of `previous`, ascending: between `a` and `a/b` may
    /// stand `a-b`, so the entry before is not enough to see that `a` is a directory.
    prefixes: Vec<usize>,
}

impl PathOrder {
    pub(super) fn next(&mut self, path: &str) -> Result<(), ContentError> {
        if path <= self.previous.as_str() {
            return Err(ContentError::Order { previous: clip(&self.previous), path: clip(path) });
        }
        let common = self.previous.bytes().zip(path.bytes()).take_while(|(a, b)| a == b).count();
        if common == self.previous.len() && common > 0 {
            self.prefixes.push(common);
        } else {
            while self.prefixes.last().is_some_and(|length| *length > common) {
                self.prefixes.pop();
            }
        }
        // A shorter prefix is followed by the same byte as in `previous`, where it was looked at.
        if self.prefixes.last() == Some(&common) && path.as_bytes()[common] == b'/' {
            return Err(ContentError::Parent { parent: clip(&path[..common]), path: clip(path) });
        }
        self.previous.clear();
        self.previous.push_str(path);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(paths: &[&str]) -> Result<(), ContentError> {
        let mut order = PathOrder::default();
        paths.iter().try_for_each(|path| order.next(path))
    }

    #[test]
    fn ascending_paths_pass() {
        for paths in [&["a", "a-b", "aa", "b/a", "b/b", "b0"][..], &["a.b", "a/b"], &["x", "xé", "é"]] {
            assert_eq!(watch(paths), Ok(()), "{paths:?}");
        }
    }

    #[test]
    fn descending_and_repeated_paths_do_not() {
        for paths in [&["b", "a"][..], &["a", "a"], &["a/b", "a-b"], &["é", "z"]] {
            assert!(matches!(watch(paths), Err(ContentError::Order { .. })), "{paths:?}");
        }
    }

    #[test]
    fn an_entry_is_no_directory_however_far_before() {
        for paths in [
            &["a", "a/b"][..],
            &["a", "a-b", "a/b"],
            &["a", "a-b", "a-bc", "a-bc!", "a.", "a/b"],
            &["d/a", "d/a b", "d/a/b/c"],
        ] {
            assert!(matches!(watch(paths), Err(ContentError::Parent { .. })), "{paths:?}");
        }
    }
}
