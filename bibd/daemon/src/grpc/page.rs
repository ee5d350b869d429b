//! Pages: how many rows, and where the next page begins. A cursor is the last key of the page before, base64url, so
//! that nobody builds one by hand.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bib_proto::v1::{PageInfo, PageRequest};

use crate::services::ServiceError;

/// Rows of a page when none are asked for.
const DEFAULT_ROWS: u32 = 100;

/// Rows of a page, at most.
const MAX_ROWS: u32 = 1000;

/// The longest cursor that is read.
const MAX_CURSOR_BYTES: usize = 8 * 1024;

/// Which page is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Rows, 1 to 1000.
    pub limit: u32,
    /// The last key of the page before; empty for the first page.
    pub after: String,
}

impl Page {
    /// Reads what a client asks for.
    ///
    /// # Errors
    /// When the cursor is not one of ours.
    pub fn of(request: Option<PageRequest>) -> Result<Self, ServiceError> {
        let PageRequest { limit, cursor } = request.unwrap_or_default();
        let limit = if limit == 0 { DEFAULT_ROWS } else { limit.min(MAX_ROWS) };
        if cursor.len() > MAX_CURSOR_BYTES {
            return Err(not_ours());
        }
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| not_ours())?;
        let after = String::from_utf8(bytes).map_err(|_| not_ours())?;
        Ok(Self { limit, after })
    }

    /// The key as another type; `None` on the first page.
    ///
    /// # Errors
    /// When the cursor is not one of this list.
    pub fn after_as<T: std::str::FromStr>(&self) -> Result<Option<T>, ServiceError> {
        if self.after.is_empty() {
            return Ok(None);
        }
        self.after.parse().map(Some).map_err(|_| not_ours())
    }

    /// Where the list goes on, given the rows of this page and the key of its last.
    #[must_use]
    pub fn info(&self, rows: usize, last_key: Option<String>) -> PageInfo {
        let full = u32::try_from(rows).is_ok_and(|rows| rows >= self.limit);
        let next = last_key.filter(|_| full).map(|key| URL_SAFE_NO_PAD.encode(key)).unwrap_or_default();
        PageInfo { has_more: !next.is_empty(), next_cursor: next, estimated_total: None }
    }
}

fn not_ours() -> ServiceError {
    ServiceError::invalid("page.cursor", "is not a cursor of this list; begin without one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_page_leads_to_the_next_one() {
        let page = Page::of(Some(PageRequest { limit: 2, cursor: String::new() })).unwrap();
        let info = page.info(2, Some("climate/é".to_owned()));
        let next = Page::of(Some(PageRequest { limit: 2, cursor: info.next_cursor })).unwrap();
        assert_eq!(next.after, "climate/é");
        assert!(info.has_more);
        assert!(!next.info(1, Some("z".to_owned())).has_more);
    }

    #[test]
    fn rubbish_is_refused_and_limits_hold() {
        assert!(Page::of(Some(PageRequest { limit: 0, cursor: "%%%".to_owned() })).is_err());
        assert_eq!(Page::of(Some(PageRequest { limit: 9_999, cursor: String::new() })).unwrap().limit, 1000);
        assert_eq!(Page::of(None).unwrap().limit, 100);
    }
}
