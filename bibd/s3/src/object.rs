//! Objects of a few megabytes, whole in memory, for who awaits them: chunks. Each call has a deadline over all its tries.

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::{ObjectStore as _, ObjectStoreExt as _};

use crate::{Bucket, Problem, S3Error, pieces};

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key, without the bucket's prefix.
    pub key: String,
    /// Its length.
    pub bytes: u64,
    /// When it was written, by the store's clock.
    pub modified: std::time::SystemTime,
}

impl Bucket {
    /// Writes an object, over one that is there.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn put_object(&self, key: &str, bytes: Bytes) -> Result<(), S3Error> {
        let path = self.path(key);
        self.ask("write", key, async { self.store.put(&path, pieces(bytes)).await }).await.map(drop)
    }

    /// Reads an object; `None` when there is none. One of more than `limit` bytes is not read.
    ///
    /// # Errors
    /// When the store does not give it, or it is longer.
    pub async fn get_object(&self, key: &str, limit: u64) -> Result<Option<Bytes>, S3Error> {
        let path = self.path(key);
        let read = self.ask("read", key, async {
            let answer = self.store.get(&path).await?;
            if answer.meta.size > limit { Ok(Err(answer.meta.size)) } else { answer.bytes().await.map(Ok) }
        });
        match read.await {
            Ok(Ok(bytes)) => Ok(Some(bytes)),
            Ok(Err(length)) => {
                Err(S3Error { act: "read", object: self.location(key), problem: Problem::Oversized(length) })
            }
            Err(error) if error.problem == Problem::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes an object. One that is gone is fine.
    ///
    /// # Errors
    /// When the store does not remove it.
    pub async fn remove_object(&self, key: &str) -> Result<(), S3Error> {
        let path = self.path(key);
        let removed = self.ask("remove", key, async { self.store.delete(&path).await }).await;
        removed.or_else(|error| if error.problem == Problem::NotFound { Ok(()) } else { Err(error) })
    }

    /// Up to `limit` objects below `directory` in the order of their keys, after `after`. A request for each thousand.
    ///
    /// # Errors
    /// When the store does not say.
    pub async fn page(&self, directory: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, S3Error> {
        let path = self.path(directory);
        let listed = match after {
            Some(after) => self.store.list_with_offset(Some(&path), &self.path(after)),
            None => self.store.list(Some(&path)),
        };
        let taken = futures::StreamExt::take(listed, limit).try_collect::<Vec<_>>();
        let listed = self.ask("list", directory, taken).await?;
        let prefix = self.path("").to_string();
        let plain = |key: String| match key.strip_prefix(prefix.as_str()) {
            Some(rest) => rest.trim_start_matches('/').to_owned(),
            None => key,
        };
        let listed = listed.into_iter().map(|meta| Listed {
            key: plain(meta.location.to_string()),
            bytes: meta.size,
            modified: meta.last_modified.into(),
        });
        Ok(listed.collect())
    }

    async fn ask<T>(
        &self,
        act: &'static str,
        key: &str,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, S3Error> {
        let bounded = tokio::time::timeout(self.longest, request);
        let problem = match self.closing.run_until_cancelled(bounded).await {
            Some(Ok(Ok(answer))) => return Ok(answer),
            Some(Ok(Err(error))) => {
                tracing::debug!(act, object = self.location(key), error.cause = %error, "a request failed");
                Problem::of(&error)
            }
            Some(Err(_)) => Problem::Slow(self.longest),
            None => Problem::Stopping,
        };
        Err(S3Error { act, object: self.location(key), problem })
    }
}
