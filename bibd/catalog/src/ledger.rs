//! Statements of a call outside of its transactions: kept until the call's audit entry takes them.
//!
//! A use case reads before it writes, and what only reads has no transaction at all. Their statements belong to the act
//! all the same, so the edge opens a ledger around each call; what runs in other tasks is counted and not noted.

use std::cell::RefCell;

use bibd_audit::entry::StatementNote;

/// Statements that are noted; what is beyond is counted all the same ([`crate::statement_counts`]).
const MAX_NOTES: usize = 256;

tokio::task_local! {
    static LEDGER: RefCell<Vec<StatementNote>>;
}

/// Does `work` with a ledger of its own.
pub async fn with_ledger<F: Future>(work: F) -> F::Output {
    LEDGER.scope(RefCell::default(), work).await
}

pub(crate) fn note(note: StatementNote) {
    extend(std::iter::once(note));
}

pub(crate) fn extend(notes: impl IntoIterator<Item = StatementNote>) {
    // Outside of a call there is none, and nobody who would take them.
    let _ = LEDGER.try_with(|ledger| {
        let mut ledger = ledger.borrow_mut();
        let room = MAX_NOTES.saturating_sub(ledger.len());
        ledger.extend(notes.into_iter().take(room));
    });
}

/// What the ledger has, which then is empty.
pub(crate) fn take() -> Vec<StatementNote> {
    LEDGER.try_with(RefCell::take).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_note() -> StatementNote {
        StatementNote { class: "select".into(), table: "t".into(), hash: bib_core::Hash::of(b""), rows: 1, us: 1 }
    }

    #[tokio::test]
    async fn each_call_has_its_own_ledger_within_bounds() {
        note(a_note());
        assert_eq!(take().len(), 0, "outside of a call nothing is kept");
        let one = with_ledger(async {
            note(a_note());
            tokio::task::yield_now().await;
            (take().len(), take().len())
        });
        let other = with_ledger(async {
            extend((0..1_000).map(|_| a_note()));
            tokio::task::yield_now().await;
            take().len()
        });
        assert_eq!(tokio::join!(one, other), ((1, 0), MAX_NOTES));
    }
}
