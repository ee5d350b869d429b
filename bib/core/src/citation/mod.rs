//! What others read about a version: citations, and metadata in the formats of DataCite, RO-Crate, Croissant and
//! schema.org.
//!
//! All of it is written from a [`Citable`], which is bounded and checked already; each writer escapes for its format.

mod cff;
mod datacite;
mod linked;
mod text;

pub use cff::cff;
pub use datacite::datacite;
pub use linked::{croissant, ro_crate, schema_org};
pub use text::{bibtex, text};

use crate::metadata::{Creator, Metadata};
use crate::{Hash, PeerId, Timestamp};

/// A version, as the exports need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Citable {
    /// The full reference, such as `12D3KooW..:climate/stations@3f9a…`.
    pub reference: String,
    /// The dataset's full name, the title when the metadata has none.
    pub name: String,
    /// The version.
    pub version: Hash,
    /// The label of the version, for people.
    pub label: Option<String>,
    /// The node that owns the dataset.
    pub owner: PeerId,
    /// What the data is.
    pub metadata: Metadata,
    /// The SPDX licence expression.
    pub license: String,
    /// What changed in this version.
    pub message: String,
    /// When the version was made.
    pub time: Timestamp,
    /// The bytes of its files.
    pub size_bytes: u64,
    /// Its regular files.
    pub files: u64,
}

/// A file of a version, for the exports that list files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// The path inside the dataset.
    pub path: String,
    /// The file's hash.
    pub sha256: Hash,
    /// Its length.
    pub size_bytes: u64,
}

impl Citable {
    fn title(&self) -> &str {
        self.metadata.title.as_deref().unwrap_or(&self.name)
    }

    /// DataCite and schema.org demand a description; the message of the version is the next best.
    fn description(&self) -> &str {
        self.metadata.description.as_deref().unwrap_or(&self.message)
    }

    fn publisher(&self) -> String {
        self.metadata.publisher.clone().unwrap_or_else(|| format!("BIB node {}", self.owner))
    }

    fn year(&self) -> String {
        self.metadata.publication_year.map_or_else(|| self.time.to_string()[..4].to_owned(), |year| year.to_string())
    }

    /// The day on which the version was made, `YYYY-MM-DD`.
    fn day(&self) -> String {
        self.time.to_string()[..10].to_owned()
    }

    fn version_name(&self) -> String {
        let short = self.short_version();
        self.label.as_ref().map_or_else(|| short.clone(), |label| format!("{label} ({short})"))
    }

    fn short_version(&self) -> String {
        self.version.to_string()[..12].to_owned()
    }

    fn doi_url(&self) -> Option<String> {
        self.metadata.identifier.as_ref().map(|doi| format!("https://doi.org/{}", percent_encode(doi)))
    }

    /// The address of the licence's text when it is one SPDX id.
    fn license_url(&self) -> Option<String> {
        let is_id = crate::metadata::license::ids().any(|id| id == self.license);
        is_id.then(|| format!("https://spdx.org/licenses/{}", self.license))
    }

    /// A name for the version that is the same everywhere, as RFC 6920 writes hashes.
    fn version_uri(&self) -> String {
        use base64::Engine as _;
        format!("ni:///sha-256;{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(self.version.as_bytes()))
    }
}

/// Family and given names, when the name is written `Family, Given`.
fn split_name(creator: &Creator) -> Option<(&str, &str)> {
    creator.name.split_once(", ").filter(|(family, given)| !family.is_empty() && !given.is_empty())
}

/// Percent-encodes what may not stand in the path of an address; `/` stays.
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests;
