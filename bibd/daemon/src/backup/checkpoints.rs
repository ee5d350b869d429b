//! The file of checkpoints of a restored node.
//!
//! The file in a backup is that of the moment at which the backup began. The database goes on from there to the moment
//! that is restored, and its table of checkpoints with it, so that the file lacks what was signed in between. That is
//! taken over from the table: each note is signed by the node, and the verification that follows compares each with
//! the log. What the table itself lost in between nobody can tell any more; so it is said how many were taken over.

use bib_core::PeerId;
use bibd_audit::note::SignedNote;
use bibd_audit::{Checkpoint, CheckpointFile};
use bibd_catalog::{Db, audit};

use super::blocking;
use super::error::BackupError;

/// Adds to `file` the notes of `node` in the table that are newer than all in it; says how many.
///
/// # Errors
/// When the database or the file does not answer.
pub async fn take_over(db: &Db, node: &PeerId, file: &CheckpointFile) -> Result<usize, BackupError> {
    let unread = |error: bibd_catalog::Error| BackupError::Examine(Box::new(error));
    let mut session = db.read_audit().await.map_err(unread)?;
    let table = audit::checkpoints(&mut session).await.map_err(unread)?;
    drop(session);
    let (file, key) = (file.clone(), *node.public_key());
    blocking(move || {
        let broken = |error: bibd_audit::checkpoint_file::CheckpointFileError| BackupError::Examine(Box::new(error));
        let position = |text: &String| {
            let checkpoint = Checkpoint::open(text, &key).ok()?;
            Some((checkpoint.origin.epoch, checkpoint.size))
        };
        let newest = file.read().map_err(broken)?.notes.iter().filter_map(position).max();
        let mut later: Vec<((u64, u64), SignedNote)> = table
            .iter()
            .filter_map(|text| Some((position(text)?, text.parse().ok()?)))
            .filter(|(position, _)| Some(*position) > newest)
            .collect();
        later.sort_by_key(|(position, _)| *position);
        let notes: Vec<SignedNote> = later.into_iter().map(|(_, note)| note).collect();
        if !notes.is_empty() {
            file.append(&notes).map_err(broken)?;
        }
        Ok(notes.len())
    })
    .await
}
