//! Where chunks go that nobody has read for long.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::store::{self, S3, StoreLocation};
use super::units::{Size, Span};

/// Whether objects are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Seal {
    /// With age, to the node and its recovery key, under keyed names: the store learns sizes and times, and no content.
    #[default]
    Age,
    /// Not: as they lie on disk, under their hashes.
    Off,
}

/// Where chunks go that nobody has read for long. They come back when somebody reads them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tier {
    /// `s3://bucket/prefix`, for this node alone. Default: none, and chunks stay on disk.
    pub store: Option<StoreLocation>,
    /// How the bucket is reached. Its credentials: `bib admin storage credentials set`.
    pub s3: S3,
    /// A chunk that was not read for so long moves there; whole days count, 0s is at once.
    pub after: Span,
    /// `age` or `off`. Changed, objects that are there are sealed or opened in the background.
    pub seal: Seal,
    /// Bytes that reads bring back to disk in a day; others are read there each time. `0` is none.
    pub back_per_day: Size,
    /// Bytes of objects that are read again in a day to see whether they are whole. Stores charge for it; `0` is none.
    pub check_per_day: Size,
}

impl Default for Tier {
    fn default() -> Self {
        Self {
            store: None,
            s3: S3::default(),
            after: Span(Duration::from_secs(30 * 86_400)),
            seal: Seal::default(),
            back_per_day: Size(10 << 30),
            check_per_day: Size(1 << 30),
        }
    }
}

/// What types alone cannot say: key, sentence, hint.
pub(super) fn check(tier: &Tier) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    if matches!(tier.store, Some(StoreLocation::Directory(_))) {
        found.push(("blobs.tier.store", "must be s3://bucket/prefix", "chunks on disk are where `data_dir` is"));
    }
    if tier.after.0 > Duration::from_secs(3_650 * 86_400) {
        found.push(("blobs.tier.after", "must be 0s to 3650d", "30d is usual"));
    }
    let of_backup = |key: &str| key.replacen("backup.", "blobs.tier.", 1);
    let s3 = store::check_s3(&tier.s3).into_iter();
    let s3 = s3.map(|(key, message, hint)| (of_backup(key), message.to_owned(), of_backup(hint)));
    found.into_iter().map(|(key, message, hint)| (key.into(), message.into(), hint.into())).chain(s3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_the_keys_of_the_tier() {
        let mut tier = Tier::default();
        assert!(check(&tier).is_empty());
        tier.store = Some("/mnt/cold".parse().unwrap());
        tier.s3.endpoint = Some("http://minio:9000".to_owned());
        tier.s3.part_size = Size(1);
        let keys: Vec<String> = check(&tier).into_iter().map(|(key, _, _)| key).collect();
        assert_eq!(keys, ["blobs.tier.store", "blobs.tier.s3.endpoint", "blobs.tier.s3.part_size"]);
        assert!(check(&tier)[1].2.contains("blobs.tier.s3.allow_http"), "{:?}", check(&tier));
    }
}
