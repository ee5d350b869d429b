//! `CITATION.cff`, Citation File Format 1.2.

use super::{Citable, split_name};

/// The version as a CFF file. Every text is double-quoted as JSON is, which YAML 1.2 reads as it stands.
#[must_use]
pub fn cff(citable: &Citable) -> String {
    let mut out = String::from("cff-version: 1.2.0\ntype: dataset\n");
    let mut line = |name: &str, value: &str| out.push_str(&format!("{name}: {}\n", quote(value)));
    let licenses = license_ids(&citable.license);
    match &licenses {
        Some(_) => line("message", "If you use this data set, please cite it as below."),
        None => line(
            "message",
            &format!("If you use this data set, please cite it as below. Its licence is {}.", citable.license),
        ),
    }
    line("title", citable.title());
    line("abstract", citable.description());
    line("version", &citable.version_name());
    line("date-released", &citable.day());
    if let Some(doi) = &citable.metadata.identifier {
        line("doi", doi);
    }
    match licenses.as_deref() {
        Some([one]) => line("license", one),
        Some(many) => out.push_str(&list("license", many)),
        None => {}
    }
    out.push_str("authors:\n");
    if citable.metadata.creators.is_empty() {
        out.push_str(&format!("  - name: {}\n", quote(&citable.publisher())));
    }
    for creator in &citable.metadata.creators {
        match split_name(creator) {
            Some((family, given)) => {
                out.push_str(&format!("  - family-names: {}\n    given-names: {}\n", quote(family), quote(given)));
                if let Some(affiliation) = &creator.affiliation {
                    out.push_str(&format!("    affiliation: {}\n", quote(affiliation)));
                }
            }
            // An entity has no affiliation in this format.
            None => out.push_str(&format!("  - name: {}\n", quote(&creator.name))),
        }
        if let Some(orcid) = &creator.orcid {
            out.push_str(&format!("    orcid: {}\n", quote(&orcid.to_url())));
        }
    }
    out.push_str(&format!(
        "identifiers:\n  - type: other\n    value: {}\n    description: \"BIB version (SHA-256 of the statement)\"\n",
        quote(&citable.version.to_string())
    ));
    if !citable.metadata.keywords.is_empty() {
        out.push_str(&list("keywords", &citable.metadata.keywords));
    }
    out
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn list<T: AsRef<str>>(name: &str, items: &[T]) -> String {
    let lines: String = items.iter().map(|item| format!("  - {}\n", quote(item.as_ref()))).collect();
    format!("{name}:\n{lines}")
}

/// The ids of a licence that CFF can say: one, or a choice of several. No `AND`, `WITH` or `LicenseRef-`.
fn license_ids(expression: &str) -> Option<Vec<&str>> {
    let ids: Vec<&str> = expression.split(" OR ").map(str::trim).collect();
    let known = |id: &&str| crate::metadata::license::ids().any(|known| known == *id);
    ids.iter().all(known).then_some(ids)
}
