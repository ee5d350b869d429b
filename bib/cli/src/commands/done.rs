//! What commands print that change one thing and get nothing back.

use crate::output::record;

record! {
    /// One thing was changed.
    Done { action: String = Text listed, subject: String = Text listed }
}

impl Done {
    /// `action` happened to `subject`.
    pub(crate) fn new(action: &str, subject: impl Into<String>) -> Self {
        Self { action: action.to_owned(), subject: subject.into() }
    }
}
