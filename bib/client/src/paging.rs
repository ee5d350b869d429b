//! Long lists as streams: the next page is fetched when the one before is used up.

use std::collections::VecDeque;
use std::future::Future;

use bib_proto::v1 as pb;
use futures::stream::{self, BoxStream, StreamExt as _};

use crate::error::{Error, Result};

/// Rows asked for at once.
const PAGE_ROWS: u32 = 500;

struct State<T, F> {
    rows: VecDeque<T>,
    cursor: Option<String>,
    fetch: F,
}

/// All rows of a list. `fetch` gets one page.
pub(crate) fn rows<T, F, Fut>(fetch: F) -> BoxStream<'static, Result<T>>
where
    T: Send + 'static,
    F: Fn(pb::PageRequest) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(Vec<T>, Option<pb::PageInfo>)>> + Send,
{
    let state = State { rows: VecDeque::new(), cursor: Some(String::new()), fetch };
    stream::try_unfold(state, |mut state| async move {
        loop {
            if let Some(row) = state.rows.pop_front() {
                return Ok(Some((row, state)));
            }
            let Some(cursor) = state.cursor.take() else { return Ok(None) };
            let (rows, info) = (state.fetch)(pb::PageRequest { limit: PAGE_ROWS, cursor: cursor.clone() }).await?;
            let next = info.map(|info| info.next_cursor).filter(|next| !next.is_empty());
            if next.as_ref() == Some(&cursor) {
                return Err(Error::bad_answer("a list goes round in circles"));
            }
            state.rows = rows.into();
            state.cursor = next;
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    async fn page(request: pb::PageRequest) -> Result<(Vec<u32>, Option<pb::PageInfo>)> {
        let first: u32 = request.cursor.parse().unwrap_or(0);
        let next_cursor = if first < 6 { (first + 3).to_string() } else { String::new() };
        Ok((vec![first, first + 1, first + 2], Some(pb::PageInfo { next_cursor, ..Default::default() })))
    }

    #[tokio::test]
    async fn follows_the_cursor_to_the_end() {
        let all: Vec<u32> = rows(page).try_collect().await.unwrap();
        assert_eq!(all, (0..9).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_cursor_that_does_not_move_is_an_error() {
        let stuck =
            |_| async { Ok((vec![1], Some(pb::PageInfo { next_cursor: "a".to_owned(), ..Default::default() }))) };
        assert!(rows::<u32, _, _>(stuck).try_collect::<Vec<_>>().await.is_err());
    }
}
