//! What a dataset is: the DataCite core, as a statement carries it.
//!
//! [`Metadata::from_json`] makes it of JSON that a person or program wrote; [`import`] reads the files of other
//! formats. Nothing here fetches anything or guesses a licence.

pub mod import;
pub mod license;
mod normalise;
mod orcid;

use serde::Serialize;
use serde_json::Value;

pub use normalise::{NormaliseError, normalise};
pub use orcid::{Orcid, OrcidError};

use crate::Timestamp;
use crate::canonical::{self, CanonicalError};
use crate::fields::{Extra, FieldError, Fields, check_line, check_paragraph, put, put_some};

/// The largest metadata, in bytes of canonical JSON.
pub const MAX_METADATA_BYTES: usize = 24 * 1024;
/// The largest metadata file that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;
/// The most creators, keywords, funders or related things.
pub const MAX_ITEMS: usize = 256;

/// The longest title, name, keyword or identifier, in bytes.
const MAX_LINE_BYTES: usize = 1024;
/// The longest description, in bytes.
const MAX_DESCRIPTION_BYTES: usize = 16 * 1024;

/// What a dataset is. Everything may be absent; what is empty is left out of the JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// The title.
    pub title: Option<String>,
    /// A description, of one or more paragraphs.
    pub description: Option<String>,
    /// Who made the data, in the order of the citation.
    pub creators: Vec<Creator>,
    /// Free keywords.
    pub keywords: Vec<String>,
    /// Who paid for it.
    pub funders: Vec<Funder>,
    /// What it is related to.
    pub related: Vec<Related>,
    /// Who publishes it: an institution, a repository.
    pub publisher: Option<String>,
    /// The year of publication, 1000 to 9999.
    pub publication_year: Option<u16>,
    /// The language, as a BCP 47 tag such as `en`.
    pub language: Option<String>,
    /// The dataset's DOI, such as `10.5281/zenodo.1234`.
    pub identifier: Option<String>,
    /// Until then the bytes are for grantees only.
    pub embargo: Option<Timestamp>,
    /// Members that this version does not know.
    pub extra: Extra,
}

/// A person or institution that made the data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Creator {
    /// The name, `Family, Given` for people.
    pub name: String,
    /// The ORCID iD.
    pub orcid: Option<Orcid>,
    /// The affiliation.
    pub affiliation: Option<String>,
    /// Members that this version does not know.
    pub extra: Extra,
}

/// A funder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Funder {
    /// The funder's name.
    pub name: String,
    /// The award's number or address.
    pub award: Option<String>,
    /// Members that this version does not know.
    pub extra: Extra,
}

/// Something that the dataset is related to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Related {
    /// A DataCite relation type, such as `IsSupplementTo`.
    pub relation: String,
    /// The identifier.
    pub identifier: String,
    /// A DataCite identifier type, such as `DOI` or `URL`. Written as `type`.
    pub identifier_type: String,
    /// Members that this version does not know.
    pub extra: Extra,
}

/// Why JSON is not metadata.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// More than [`MAX_FILE_BYTES`] in a file, or [`MAX_METADATA_BYTES`] in canonical form.
    #[error("metadata of {size} bytes, at most {max} are allowed")]
    TooLong {
        /// The size found, in bytes.
        size: usize,
        /// The size allowed, in bytes.
        max: usize,
    },
    /// Not JSON, or keys beyond ASCII.
    #[error("the metadata: {0}")]
    Normalise(#[from] NormaliseError),
    /// Something that canonical JSON cannot say.
    #[error("the metadata: {0}")]
    Canonical(#[from] CanonicalError),
    /// A member is out of its bounds.
    #[error("the metadata's {0}")]
    Field(#[from] FieldError),
}

impl Metadata {
    /// Makes metadata of JSON that a person or program wrote, by [`normalise`]. Members that are not known are kept.
    ///
    /// # Errors
    /// When it is not an object, holds keys beyond ASCII, is too long, or a known member is out of its bounds.
    pub fn from_json(bytes: &[u8]) -> Result<Self, MetadataError> {
        if bytes.len() > MAX_FILE_BYTES {
            return Err(MetadataError::TooLong { size: bytes.len(), max: MAX_FILE_BYTES });
        }
        let metadata = Self::read(normalise(bytes)?, "")?;
        metadata.check()?;
        Ok(metadata)
    }

    /// Whether the metadata can stand in a statement.
    ///
    /// # Errors
    /// When a member is out of its bounds, or the whole is longer than [`MAX_METADATA_BYTES`].
    pub fn check(&self) -> Result<(), MetadataError> {
        let value = self.to_value()?;
        let size = canonical::to_vec(&value)?.len();
        if size > MAX_METADATA_BYTES {
            return Err(MetadataError::TooLong { size, max: MAX_METADATA_BYTES });
        }
        Self::read(value, "")?;
        Ok(())
    }

    /// The metadata as a JSON object.
    ///
    /// # Errors
    /// When a member has no JSON form, which only `extra` could cause.
    pub fn to_value(&self) -> Result<Value, CanonicalError> {
        let mut map = self.extra.clone();
        put_some(&mut map, "title", self.title.as_ref())?;
        put_some(&mut map, "description", self.description.as_ref())?;
        put_list(&mut map, "creators", self.creators.iter().map(Creator::to_value))?;
        put_list(&mut map, "keywords", self.keywords.iter().map(|word| Ok(Value::from(word.as_str()))))?;
        put_list(&mut map, "funders", self.funders.iter().map(Funder::to_value))?;
        put_list(&mut map, "related", self.related.iter().map(Related::to_value))?;
        put_some(&mut map, "publisher", self.publisher.as_ref())?;
        put_some(&mut map, "publication_year", self.publication_year.as_ref())?;
        put_some(&mut map, "language", self.language.as_ref())?;
        put_some(&mut map, "identifier", self.identifier.as_ref())?;
        put_some(&mut map, "embargo", self.embargo.as_ref())?;
        Ok(Value::Object(map))
    }

    /// Reads the object that stands at the dotted path `at`.
    pub(crate) fn read(value: Value, at: &str) -> Result<Self, FieldError> {
        let mut fields = Fields::of(value, at)?;
        let metadata = Self {
            title: fields.optional_line("title", MAX_LINE_BYTES)?,
            description: fields.optional("description")?,
            creators: fields.list("creators", MAX_ITEMS)?.into_iter().map(Creator::read).collect::<Result<_, _>>()?,
            keywords: fields.list("keywords", MAX_ITEMS)?.into_iter().map(read_line).collect::<Result<_, _>>()?,
            funders: fields.list("funders", MAX_ITEMS)?.into_iter().map(Funder::read).collect::<Result<_, _>>()?,
            related: fields.list("related", MAX_ITEMS)?.into_iter().map(Related::read).collect::<Result<_, _>>()?,
            publisher: fields.optional_line("publisher", MAX_LINE_BYTES)?,
            publication_year: fields.optional("publication_year")?,
            language: fields.optional_line("language", 64)?,
            identifier: fields.optional_line("identifier", MAX_LINE_BYTES)?,
            embargo: fields.optional("embargo")?,
            extra: Extra::new(),
        };
        if let Some(text) = &metadata.description {
            check_paragraph(text, MAX_DESCRIPTION_BYTES).map_err(|p| fields.error("description", p))?;
        }
        if metadata.publication_year.is_some_and(|year| !(1000..=9999).contains(&year)) {
            return Err(fields.error("publication_year", "four digits are needed"));
        }
        if metadata.identifier.as_ref().is_some_and(|doi| find_doi(doi) != Some(doi)) {
            return Err(fields.error("identifier", "is not a DOI such as 10.5281/zenodo.1234"));
        }
        Ok(Self { extra: fields.rest(), ..metadata })
    }
}

impl Creator {
    fn to_value(&self) -> Result<Value, CanonicalError> {
        let mut map = self.extra.clone();
        put(&mut map, "name", &self.name)?;
        put_some(&mut map, "orcid", self.orcid.as_ref())?;
        put_some(&mut map, "affiliation", self.affiliation.as_ref())?;
        Ok(Value::Object(map))
    }

    fn read((at, value): (String, Value)) -> Result<Self, FieldError> {
        let mut fields = Fields::of(value, &at)?;
        Ok(Self {
            name: fields.line("name", MAX_LINE_BYTES)?,
            orcid: fields.optional("orcid")?,
            affiliation: fields.optional_line("affiliation", MAX_LINE_BYTES)?,
            extra: fields.rest(),
        })
    }
}

impl Funder {
    fn to_value(&self) -> Result<Value, CanonicalError> {
        let mut map = self.extra.clone();
        put(&mut map, "name", &self.name)?;
        put_some(&mut map, "award", self.award.as_ref())?;
        Ok(Value::Object(map))
    }

    fn read((at, value): (String, Value)) -> Result<Self, FieldError> {
        let mut fields = Fields::of(value, &at)?;
        Ok(Self {
            name: fields.line("name", MAX_LINE_BYTES)?,
            award: fields.optional_line("award", MAX_LINE_BYTES)?,
            extra: fields.rest(),
        })
    }
}

impl Related {
    fn to_value(&self) -> Result<Value, CanonicalError> {
        let mut map = self.extra.clone();
        put(&mut map, "relation", &self.relation)?;
        put(&mut map, "identifier", &self.identifier)?;
        put(&mut map, "type", &self.identifier_type)?;
        Ok(Value::Object(map))
    }

    fn read((at, value): (String, Value)) -> Result<Self, FieldError> {
        let mut fields = Fields::of(value, &at)?;
        Ok(Self {
            relation: fields.line("relation", 64)?,
            identifier: fields.line("identifier", MAX_LINE_BYTES)?,
            identifier_type: fields.line("type", 64)?,
            extra: fields.rest(),
        })
    }
}

fn read_line((at, value): (String, Value)) -> Result<String, FieldError> {
    match value {
        Value::String(text) => check_line(&text, MAX_LINE_BYTES).map(|()| text).map_err(|p| FieldError::new(at, p)),
        _ => Err(FieldError::new(at, "a text is needed")),
    }
}

/// Lists that are empty are left out, so that there is one spelling.
fn put_list(
    map: &mut Extra,
    name: &str,
    items: impl Iterator<Item = Result<Value, CanonicalError>>,
) -> Result<(), CanonicalError> {
    let items: Vec<Value> = items.collect::<Result<_, _>>()?;
    let items = Some(items).filter(|items| !items.is_empty());
    put_some(map, name, items.as_ref())
}

/// The DOI in `text`, which may be a `doi:` or `https://doi.org/` form of it.
pub(crate) fn find_doi(text: &str) -> Option<&str> {
    let text = text.trim();
    let bare = ["https://doi.org/", "http://doi.org/", "https://dx.doi.org/", "http://dx.doi.org/", "doi:", "DOI:"]
        .into_iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .unwrap_or(text);
    let (prefix, suffix) = bare.strip_prefix("10.")?.split_once('/')?;
    let is_prefix = prefix.len() >= 4 && prefix.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    (is_prefix && !suffix.is_empty() && !suffix.contains(char::is_whitespace)).then_some(bare)
}

impl Serialize for Metadata {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}
