//! The columns that copy members of a body, compared with it.

use bib_core::Timestamp;
use uuid::Uuid;

use super::input::EntryRow;
use crate::body::{EntryView, column_text};

/// The name of the first column that differs.
pub(super) fn first_difference(view: &EntryView<'_>, row: &EntryRow<'_>) -> Option<&'static str> {
    let texts = [
        ("node", &view.node, row.node),
        ("actor", &view.actor, row.actor),
        ("via", &view.via, row.via),
        ("action", &view.action, row.action),
        ("target", &view.target, row.target),
        ("result", &view.result, row.result),
    ];
    if !is_uuid(&view.id, row.id) {
        return Some("id");
    }
    if !is_time(&view.time, row.time) {
        return Some("time");
    }
    if let Some((name, ..)) = texts.into_iter().find(|(_, member, column)| column_text(member) != *column) {
        return Some(name);
    }
    if !is_uuid(&view.operation, row.operation) {
        return Some("operation");
    }
    let same_job = match (&view.job, row.job) {
        (None, None) => true,
        (Some(member), Some(column)) => is_uuid(member, column),
        _ => false,
    };
    (!same_job).then_some("job")
}

fn is_uuid(text: &str, uuid: Uuid) -> bool {
    text == uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer())
}

fn is_time(text: &str, time: Timestamp) -> bool {
    text == time.to_string()
}
