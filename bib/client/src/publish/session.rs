//! The upload session of an interrupted publish: kept in the cache, so that the next run sends only what is missing.
//! Losing it costs sending again, nothing else.

use std::path::PathBuf;

use bib_core::Hash;
use serde::{Deserialize, Serialize};

/// Sessions that are remembered, one file each.
#[derive(Debug)]
pub(crate) struct SessionFile(PathBuf);

#[derive(Serialize, Deserialize)]
struct Content {
    format: String,
    session_id: String,
}

const FORMAT: &str = "bib-upload-session/1";
const MAX_BYTES: u64 = 4096;

impl SessionFile {
    /// The file at this path.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The session of the last run, if it did not end.
    pub(crate) fn read(&self) -> Option<String> {
        if std::fs::metadata(&self.0).ok()?.len() > MAX_BYTES {
            return None;
        }
        let content: Content = serde_json::from_slice(&std::fs::read(&self.0).ok()?).ok()?;
        (content.format == FORMAT).then_some(content.session_id)
    }

    /// Remembers a session. A cache that cannot be written is no reason to fail.
    pub(crate) fn write(&self, session_id: &str) {
        let content = Content { format: FORMAT.to_owned(), session_id: session_id.to_owned() };
        let written = serde_json::to_vec(&content).map_err(std::io::Error::other).and_then(|bytes| {
            if let Some(directory) = self.0.parent() {
                std::fs::create_dir_all(directory)?;
            }
            std::fs::write(&self.0, bytes)
        });
        if let Err(error) = written {
            tracing::debug!(path = %self.0.display(), %error, "an upload session is not remembered");
        }
    }

    /// Forgets the session: it has ended.
    pub(crate) fn forget(&self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::debug!(path = %self.0.display(), %error, "an upload session stays remembered");
            }
            _ => {}
        }
    }
}

/// A file name for what belongs to these texts together.
pub(crate) fn cache_name(parts: &[&str]) -> String {
    Hash::of(parts.join("\0").as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_until_told_to_forget() {
        let dir = tempfile::tempdir().unwrap();
        let file = SessionFile::at(dir.path().join("uploads/x"));
        assert_eq!(file.read(), None);
        file.write("abc");
        assert_eq!(file.read().as_deref(), Some("abc"));
        std::fs::write(&file.0, "{\"format\":\"other/1\",\"session_id\":\"x\"}").unwrap();
        assert_eq!(file.read(), None);
        file.forget();
        file.forget();
        assert!(!file.0.exists());
    }
}
