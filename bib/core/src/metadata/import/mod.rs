//! Reads what other formats say about a dataset: RO-Crate, DataCite JSON, `CITATION.cff`.
//!
//! Each reader takes the bytes of a file that anybody may have written: at most 1 MiB, bounded depth, no network. A
//! member of the wrong shape is an error that names it; what is right but has no place here is a warning.

mod cff;
mod datacite;
mod ro_crate;

use serde_json::Value;

use super::{MAX_FILE_BYTES, Metadata, MetadataError, NormaliseError, Orcid, license};
use crate::fields::FieldError;

/// What a file said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Import {
    /// What the data is.
    pub metadata: Metadata,
    /// The licence, when the file names one that SPDX knows.
    pub license: Option<String>,
    /// What was left out and why, a sentence each.
    pub warnings: Vec<String>,
}

/// The files that are read, in the order in which they are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// `ro-crate-metadata.json`, RO-Crate 1.1 or 1.2.
    RoCrate,
    /// `datacite.json`, DataCite 4.x, plain or as JSON:API.
    DataCite,
    /// `CITATION.cff`, CFF 1.2.
    Cff,
}

impl Source {
    /// Every source, the preferred first.
    pub const ALL: [Self; 3] = [Self::RoCrate, Self::DataCite, Self::Cff];

    /// The name of the file at the top of the published folder.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::RoCrate => "ro-crate-metadata.json",
            Self::DataCite => "datacite.json",
            Self::Cff => "CITATION.cff",
        }
    }
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// More than [`MAX_FILE_BYTES`].
    #[error("{file} has {size} bytes, at most {MAX_FILE_BYTES} are read")]
    TooLong {
        /// The file's name.
        file: &'static str,
        /// Its size, in bytes.
        size: usize,
    },
    /// Not JSON, or keys beyond ASCII.
    #[error("{file}: {source}")]
    Json {
        /// The file's name.
        file: &'static str,
        /// What is wrong.
        source: NormaliseError,
    },
    /// Not YAML of the shape that CFF has; the message names the place.
    #[error("{file}: {problem}")]
    Yaml {
        /// The file's name.
        file: &'static str,
        /// What is wrong, and where.
        problem: String,
    },
    /// A member has another shape than the format says.
    #[error("{file}: {source}")]
    Field {
        /// The file's name.
        file: &'static str,
        /// Which, and what is wrong.
        source: FieldError,
    },
    /// What was read does not fit into a statement.
    #[error("{file}: {source}")]
    Metadata {
        /// The file's name.
        file: &'static str,
        /// What is wrong.
        source: MetadataError,
    },
}

/// Reads the file of `source` from its bytes.
///
/// # Errors
/// When it is too long, not of its format, or a member has a wrong shape.
pub fn read(source: Source, bytes: &[u8]) -> Result<Import, ImportError> {
    let file = source.file_name();
    if bytes.len() > MAX_FILE_BYTES {
        return Err(ImportError::TooLong { file, size: bytes.len() });
    }
    let json = |bytes| super::normalise(bytes).map_err(|source| ImportError::Json { file, source });
    let mut import = Import::default();
    match source {
        Source::RoCrate => ro_crate::read(&json(bytes)?, &mut import),
        Source::DataCite => datacite::read(&json(bytes)?, &mut import),
        Source::Cff => {
            let parsed = cff::parse(bytes).map_err(|problem| ImportError::Yaml { file, problem })?;
            cff::read(parsed, &mut import)
        }
    }
    .map_err(|source| ImportError::Field { file, source })?;
    import.metadata.check().map_err(|source| ImportError::Metadata { file, source })?;
    Ok(import)
}

impl Import {
    fn warn(&mut self, at: &str, what: impl std::fmt::Display) {
        // A hostile file could hold many; a person reads few.
        if self.warnings.len() < 50 {
            self.warnings.push(format!("`{at}`: {what}, left out"));
        }
    }

    fn orcid(&mut self, at: &str, text: &str) -> Option<Orcid> {
        Orcid::from_any(text).map_err(|e| self.warn(at, e)).ok()
    }

    fn take_license(&mut self, at: &str, text: &str) {
        match license::from_id_or_url(text) {
            Some(id) => self.license = Some(id),
            None => {
                let shown: String = text.chars().take(80).collect();
                self.warn(at, format_args!("the licence `{shown}` is not known to SPDX"));
            }
        }
    }

    fn take_doi(&mut self, text: &str) {
        if let Some(doi) = super::find_doi(text) {
            self.metadata.identifier.get_or_insert_with(|| doi.to_owned());
        }
    }

    fn take_year(&mut self, at: &str, date: &str) {
        let year = date.trim().get(..4).filter(|_| date.trim().get(4..5).is_none_or(|c| c == "-"));
        match year.and_then(|text| text.parse().ok()).filter(|year| (1000..=9999).contains(year)) {
            Some(year) => self.metadata.publication_year = Some(year),
            None => self.warn(at, "is not a date"),
        }
    }
}

/// One line: white space of any kind becomes one space. Empty texts are absent.
fn line(text: &str) -> Option<String> {
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Some(joined).filter(|text| !text.is_empty())
}

/// Paragraphs: line ends become newlines, tabs spaces.
fn paragraph(text: &str) -> Option<String> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n").replace('\t', " ");
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The text of a value that is a text or an integer.
fn text(value: Option<&Value>, at: &str) -> Result<Option<String>, FieldError> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(_) => Err(FieldError::new(at, "a text is needed")),
    }
}

/// A value that may stand alone or in a list, as a list.
fn items(value: Option<&Value>) -> &[Value] {
    match value {
        None => &[],
        Some(Value::Array(items)) => items,
        Some(one) => std::slice::from_ref(one),
    }
}

#[cfg(test)]
mod tests;
