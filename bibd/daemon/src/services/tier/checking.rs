//! Whether object storage still has what it was given: its listing against the rows, and objects read again.
//!
//! A page of a listing is one request for a thousand objects. Reading objects is what stores charge for, so it has a
//! budget a day (`blobs.tier.check_per_day`); the longest unread comes first.

use bib_core::Hash;
use bibd_blobs::FoundObject;
use bibd_catalog::objects::{self, ObjectRow, Tiered};

use super::moving::{ROUNDS_A_DAY, TierUseCases};
use super::reading::fault;
use crate::services::collector::system_time;
use crate::services::error::ServiceError;
use crate::services::scrub::ScrubFinding;

/// Objects of one page.
const PAGE: usize = 1000;
/// An object without a row is left alone for so long: a move may be about to write the row.
const ORPHAN_SECONDS: i64 = 25 * 60 * 60;
/// Objects read again in one statement.
const SLICE: u32 = 16;
/// No object is read again sooner.
const CHECKED_SECONDS: i64 = 24 * 60 * 60;

/// How far a walk over the listing has come: the sealed ones after the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    sealed: bool,
    after: Option<Hash>,
}

/// A page of a walk.
#[derive(Debug, Default)]
pub(in crate::services) struct Checked {
    /// Objects that were looked at.
    pub(in crate::services) objects: u64,
    /// Bytes read.
    pub(in crate::services) bytes: u64,
    /// What is not as it should be.
    pub(in crate::services) findings: Vec<ScrubFinding>,
    /// Where the next page begins; `None`: the walk is complete.
    pub(in crate::services) next: Option<Cursor>,
}

impl TierUseCases {
    /// A page of the listing, and some objects read again.
    pub(super) async fn check_round(&self, cursor: &mut Cursor) -> Result<u64, ServiceError> {
        let page = self.check_page(*cursor).await?;
        *cursor = page.next.unwrap_or_default();
        let Some(parts) = &self.tier.0.parts else { return Ok(0) };
        let mut budget = parts.settings.check_per_day / ROUNDS_A_DAY;
        let before = self.tier.0.base.now().plus_seconds(-CHECKED_SECONDS);
        while budget > 0 {
            self.activity.step_aside().await;
            let mut session = self.tier.0.base.db.read().await?;
            let oldest = objects::longest_unchecked(&mut session, before, SLICE).await?;
            drop(session);
            if oldest.is_empty() {
                break;
            }
            for one in oldest {
                if budget == 0 {
                    break;
                }
                self.read_again(&one).await?;
                budget = budget.saturating_sub(one.object.bytes);
            }
        }
        Ok(page.objects)
    }

    /// Compares a page of the listing with the rows.
    ///
    /// # Errors
    /// When the store is away, or the database.
    pub(in crate::services) async fn check_page(&self, at: Cursor) -> Result<Checked, ServiceError> {
        let parts = self.tier.ready().await?;
        let listed = self.tier.judge(parts.objects.page(at.sealed, at.after, PAGE).await)?;
        let (found, strays) = listed.map_err(|error| self.tier.failed(&error))?;
        let is_last = found.len() + strays < PAGE;
        let up_to = if is_last { None } else { found.last().map(|one| one.name) };
        let mut rows = Vec::new();
        let mut after = at.after;
        loop {
            let mut session = self.tier.0.base.db.read().await?;
            let slice = objects::expected(&mut session, at.sealed, after.as_ref(), up_to.as_ref(), PAGE as u32).await?;
            after = slice.last().map(|one| one.object.name);
            let is_end = slice.len() < PAGE;
            rows.extend(slice);
            if is_end {
                break;
            }
        }
        let mut checked = Checked { objects: found.len() as u64, ..Checked::default() };
        let mut listed = found.iter().peekable();
        for row in &rows {
            while listed.next_if(|one| one.name < row.object.name).is_some() {}
            match listed.next_if(|one| one.name == row.object.name) {
                Some(one) if one.bytes == row.object.bytes => {}
                // A listing may be behind, and a length says nothing of the bytes: the object itself decides.
                _ => checked.findings.extend(self.read_again(row).await?),
            }
        }
        checked.findings.extend(self.orphans(at.sealed, &found).await?);
        checked.next = match (is_last, at.sealed) {
            (false, sealed) => Some(Cursor { sealed, after: up_to.or(at.after) }),
            (true, false) => Some(Cursor { sealed: true, after: None }),
            (true, true) => None,
        };
        Ok(checked)
    }

    /// Objects that no row names go once they are older than any move.
    async fn orphans(&self, sealed: bool, found: &[FoundObject]) -> Result<Vec<ScrubFinding>, ServiceError> {
        let before = system_time(self.tier.0.base.now().plus_seconds(-ORPHAN_SECONDS));
        let names: Vec<Hash> = found.iter().filter(|one| one.modified < before).map(|one| one.name).collect();
        let mut session = self.tier.0.base.db.read().await?;
        let known = objects::known_names(&mut session, sealed, &names).await?;
        drop(session);
        let mut findings = Vec::new();
        for one in found.iter().filter(|one| one.modified < before && !known.contains(&one.name)) {
            self.tier.remove(&ObjectRow { name: one.name, sealed, bytes: one.bytes }).await?;
            let explanation = "no row names this object in object storage; it was removed".to_owned();
            findings.push(ScrubFinding { kind: "orphan", chunk: one.name, explanation });
        }
        Ok(findings)
    }

    /// Reads an object, and says what is wrong with it.
    pub(in crate::services) async fn read_again(&self, one: &Tiered) -> Result<Option<ScrubFinding>, ServiceError> {
        let (base, hash) = (&self.tier.0.base, one.chunk.hash);
        match self.tier.get(&hash, one.object.sealed).await? {
            Ok(_) => {
                let mut tx = base.begin(&base.internal_call("tier"), "tier").await?;
                objects::set_checked(&mut tx, &hash, base.now()).await?;
                tx.commit().await?;
                Ok(None)
            }
            Err(error) => {
                let explanation = fault(&error);
                let kind = match error {
                    bibd_blobs::ObjectError::Missing { .. } => "missing",
                    _ => "corrupt",
                };
                // Brought back, moved or collected since the row was read, nothing is wrong.
                let mut session = base.db.read().await?;
                let now = objects::of(&mut session, &[hash]).await?;
                drop(session);
                if now.first().is_none_or(|(_, object)| *object != one.object) {
                    return Ok(None);
                }
                self.lost(one, &explanation).await?;
                Ok(Some(ScrubFinding { kind, chunk: hash, explanation }))
            }
        }
    }

    /// Reads the next objects again, behind `after`: where the next slice begins, how many, their bytes, what was found.
    pub(in crate::services) async fn read_slice(
        &self,
        after: Option<Hash>,
    ) -> Result<(Option<Hash>, Checked), ServiceError> {
        let mut session = self.tier.0.base.db.read().await?;
        let slice = objects::list(&mut session, after.as_ref(), SLICE).await?;
        drop(session);
        let mut checked = Checked::default();
        for one in &slice {
            checked.objects += 1;
            checked.bytes += one.object.bytes;
            checked.findings.extend(self.read_again(one).await?);
        }
        Ok((slice.last().map(|one| one.chunk.hash), checked))
    }
}
