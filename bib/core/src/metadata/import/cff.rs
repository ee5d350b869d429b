//! `CITATION.cff`, Citation File Format 1.2, which is YAML.
//!
//! Every scalar is read as text, so that a version `1.10` or a keyword `no` stays what was written.

use serde::Deserialize;

use super::{Import, line, paragraph};
use crate::fields::FieldError;
use crate::metadata::Creator;

/// The members that have a place here; others are skipped without being built.
#[derive(Debug, Deserialize)]
pub(super) struct File {
    title: Option<String>,
    #[serde(rename = "abstract")]
    summary: Option<String>,
    #[serde(default)]
    authors: Vec<Author>,
    #[serde(default)]
    keywords: Vec<String>,
    license: Option<OneOrMany>,
    doi: Option<String>,
    #[serde(default)]
    identifiers: Vec<Identifier>,
    #[serde(rename = "date-released")]
    date_released: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Author {
    family_names: Option<String>,
    given_names: Option<String>,
    name_particle: Option<String>,
    name: Option<String>,
    alias: Option<String>,
    orcid: Option<String>,
    affiliation: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Identifier {
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// Brackets nest at most this deep. The YAML scanner looks at every open one for each token, so that a file of
/// brackets alone would take hours.
const MAX_FLOW_DEPTH: usize = 64;

/// Parses the file. The error names the member and the line.
pub(super) fn parse(bytes: &[u8]) -> Result<File, String> {
    // Brackets inside texts are counted too: it takes 65 unclosed ones to be refused by mistake.
    let mut depth = 0_usize;
    for byte in bytes {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_FLOW_DEPTH {
            return Err(format!("brackets nest deeper than {MAX_FLOW_DEPTH} levels"));
        }
    }
    serde_yaml_ng::from_slice(bytes).map_err(|e| e.to_string().chars().take(300).collect())
}

/// Takes over what the file says.
pub(super) fn read(file: File, import: &mut Import) -> Result<(), FieldError> {
    import.metadata.title = file.title.as_deref().and_then(line);
    import.metadata.description = file.summary.as_deref().and_then(paragraph);
    for (i, author) in file.authors.iter().enumerate() {
        let at = format!("authors[{i}]");
        let name = author.full_name().ok_or_else(|| FieldError::new(at.as_str(), "has no name"))?;
        let orcid = author.orcid.as_deref().and_then(|orcid| import.orcid(&format!("{at}.orcid"), orcid));
        let affiliation = author.affiliation.as_deref().and_then(line);
        import.metadata.creators.push(Creator { name, orcid, affiliation, ..Creator::default() });
    }
    import.metadata.keywords = file.keywords.iter().filter_map(|word| line(word)).collect();
    match file.license {
        Some(OneOrMany::One(license)) => import.take_license("license", &license),
        // The format says that a list is a choice.
        Some(OneOrMany::Many(licenses)) => import.take_license("license", &licenses.join(" OR ")),
        None => {}
    }
    import.take_doi(file.doi.as_deref().unwrap_or_default());
    for identifier in file.identifiers.iter().filter(|identifier| identifier.kind == "doi") {
        import.take_doi(&identifier.value);
    }
    if let Some(date) = &file.date_released {
        import.take_year("date-released", date);
    }
    Ok(())
}

impl Author {
    fn full_name(&self) -> Option<String> {
        if let Some(name) = self.name.as_deref().and_then(line) {
            return Some(name);
        }
        let family = [self.name_particle.as_deref(), self.family_names.as_deref()];
        let family = line(&family.into_iter().flatten().collect::<Vec<_>>().join(" "));
        let given = self.given_names.as_deref().and_then(line);
        match (family, given) {
            (Some(family), Some(given)) => Some(format!("{family}, {given}")),
            (Some(one), None) | (None, Some(one)) => Some(one),
            (None, None) => self.alias.as_deref().and_then(line),
        }
    }
}
