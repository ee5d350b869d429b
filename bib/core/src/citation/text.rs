//! Citations for people and for BibTeX.

use super::{Citable, split_name};

/// One line: `Creators (Year). Title (version). Publisher. Address`.
#[must_use]
pub fn text(citable: &Citable) -> String {
    let names: Vec<&str> = citable.metadata.creators.iter().map(|creator| creator.name.as_str()).collect();
    let creators = match names.as_slice() {
        [] => citable.publisher(),
        names if names.len() > 10 => format!("{}; et al.", names[..10].join("; ")),
        names => names.join("; "),
    };
    let address = citable.doi_url().unwrap_or_else(|| citable.reference.clone());
    format!(
        "{creators} ({}). {} (version {}) [Data set]. {}. {address}",
        citable.year(),
        citable.title(),
        citable.version_name(),
        citable.publisher(),
    )
}

/// A BibTeX entry, `@misc`, which every style knows.
#[must_use]
pub fn bibtex(citable: &Citable) -> String {
    // A name without a comma would be cut at its spaces; braces keep institutions whole.
    let author = |creator: &crate::metadata::Creator| match split_name(creator) {
        Some(_) => escape(&creator.name),
        None => format!("{{{}}}", escape(&creator.name)),
    };
    let authors: Vec<String> = citable.metadata.creators.iter().map(author).collect();
    let mut fields = Vec::new();
    if !authors.is_empty() {
        fields.push(("author", authors.join(" and ")));
    }
    // Inner braces keep the capitals of the title.
    fields.push(("title", format!("{{{}}}", escape(citable.title()))));
    fields.push(("year", citable.year()));
    fields.push(("publisher", escape(&citable.publisher())));
    fields.push(("version", escape(&citable.version_name())));
    if let Some(doi) = &citable.metadata.identifier {
        fields.push(("doi", escape(doi)));
    }
    fields.push(("howpublished", escape(&citable.reference)));
    fields.push(("note", format!("Data set, licence {}", escape(&citable.license))));
    let lines: Vec<String> = fields.into_iter().map(|(name, value)| format!("  {name} = {{{value}}}")).collect();
    format!("@misc{{{},\n{}\n}}\n", key(citable), lines.join(",\n"))
}

/// First author's family name, year, and the beginning of the version: ASCII letters and digits alone.
fn key(citable: &Citable) -> String {
    let first = citable.metadata.creators.first();
    let family = first.map_or("bib", |creator| split_name(creator).map_or(creator.name.as_str(), |(family, _)| family));
    let letters: String = family.chars().filter(char::is_ascii_alphanumeric).take(24).collect();
    let letters = if letters.is_empty() { "bib" } else { &letters };
    format!("{}{}_{}", letters.to_lowercase(), citable.year(), &citable.short_version()[..8])
}

/// Escapes what TeX would take as its own. Braces as commands, since BibTeX counts even escaped ones.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\textbackslash{}"),
            '{' => out.push_str("\\textbraceleft{}"),
            '}' => out.push_str("\\textbraceright{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '$' | '&' | '%' | '#' | '_' => {
                out.push('\\');
                out.push(c);
            }
            '\n' => out.push(' '),
            _ => out.push(c),
        }
    }
    out
}
