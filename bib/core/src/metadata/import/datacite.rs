//! DataCite JSON 4.x: the attributes alone, or wrapped as JSON:API.

use serde_json::Value;

use super::{Import, items, line, paragraph, text};
use crate::fields::FieldError;
use crate::metadata::{Creator, Funder, Related};

/// Reads the attributes of one DOI.
pub(super) fn read(root: &Value, import: &mut Import) -> Result<(), FieldError> {
    let (attributes, at) = match root.get("data") {
        Some(data) => (data.get("attributes"), "data.attributes"),
        None => (Some(root), "."),
    };
    let Some(attributes @ Value::Object(_)) = attributes else {
        return Err(FieldError::new(at, "an object is needed"));
    };
    let get = |name: &str| attributes.get(name);

    if let Some(first) = items(get("titles")).first() {
        import.metadata.title = text(first.get("title"), "titles[0].title")?.as_deref().and_then(line);
    }
    let descriptions = items(get("descriptions"));
    let is_abstract = |item: &&Value| item.get("descriptionType").and_then(Value::as_str) == Some("Abstract");
    if let Some(item) = descriptions.iter().find(is_abstract).or(descriptions.first()) {
        let found = text(item.get("description"), "descriptions[].description")?;
        import.metadata.description = found.as_deref().and_then(paragraph);
    }
    for (i, item) in items(get("creators")).iter().enumerate() {
        let creator = creator(item, &format!("creators[{i}]"), import)?;
        import.metadata.creators.push(creator);
    }
    for (i, item) in items(get("subjects")).iter().enumerate() {
        let subject = text(item.get("subject"), &format!("subjects[{i}].subject"))?;
        import.metadata.keywords.extend(subject.as_deref().and_then(line));
    }
    for (i, item) in items(get("fundingReferences")).iter().enumerate() {
        let at = format!("fundingReferences[{i}]");
        let name = text(item.get("funderName"), &format!("{at}.funderName"))?;
        let award = item.get("awardNumber").or_else(|| item.get("awardUri"));
        let award = text(award, &format!("{at}.awardNumber"))?.as_deref().and_then(line);
        match name.as_deref().and_then(line) {
            Some(name) => import.metadata.funders.push(Funder { name, award, ..Funder::default() }),
            None => import.warn(&at, "has no funderName"),
        }
    }
    for (i, item) in items(get("relatedIdentifiers")).iter().enumerate() {
        let at = format!("relatedIdentifiers[{i}]");
        let part = |name: &str| Ok(text(item.get(name), &format!("{at}.{name}"))?.as_deref().and_then(line));
        match (part("relationType")?, part("relatedIdentifier")?, part("relatedIdentifierType")?) {
            (Some(relation), Some(identifier), Some(identifier_type)) => {
                let related = Related { relation, identifier, identifier_type, ..Related::default() };
                import.metadata.related.push(related);
            }
            _ => import.warn(&at, "has not all of relation, identifier and type"),
        }
    }
    // A text until 4.4, an object with a name since 4.5.
    let publisher = match get("publisher") {
        Some(Value::Object(publisher)) => text(publisher.get("name"), "publisher.name")?,
        other => text(other, "publisher")?,
    };
    import.metadata.publisher = publisher.as_deref().and_then(line);
    if let Some(year) = text(get("publicationYear"), "publicationYear")? {
        import.take_year("publicationYear", &year);
    }
    import.metadata.language = text(get("language"), "language")?.as_deref().and_then(line);
    if let Some(doi) = text(get("doi"), "doi")? {
        import.take_doi(&doi);
    }
    for item in items(get("identifiers")) {
        if item.get("identifierType").and_then(Value::as_str) == Some("DOI") {
            let doi = text(item.get("identifier"), "identifiers[].identifier")?;
            import.take_doi(doi.as_deref().unwrap_or_default());
        }
    }
    rights(items(get("rightsList")), import)
}

fn creator(item: &Value, at: &str, import: &mut Import) -> Result<Creator, FieldError> {
    let name = text(item.get("name"), &format!("{at}.name"))?.as_deref().and_then(line);
    let mut creator = Creator { name: name.ok_or_else(|| FieldError::new(at, "has no name"))?, ..Creator::default() };
    if let Some(affiliation) = items(item.get("affiliation")).first() {
        let value = affiliation.get("name").or(Some(affiliation));
        creator.affiliation = text(value, &format!("{at}.affiliation"))?.as_deref().and_then(line);
    }
    for identifier in items(item.get("nameIdentifiers")) {
        let scheme = identifier.get("nameIdentifierScheme").and_then(Value::as_str).unwrap_or_default();
        if scheme.eq_ignore_ascii_case("ORCID") {
            let at = format!("{at}.nameIdentifiers");
            let found = text(identifier.get("nameIdentifier"), &at)?;
            creator.orcid = found.and_then(|found| import.orcid(&at, &found));
        }
    }
    Ok(creator)
}

fn rights(list: &[Value], import: &mut Import) -> Result<(), FieldError> {
    let Some(first) = list.first() else { return Ok(()) };
    if list.len() > 1 {
        import.warn("rightsList", "more than one entry; all but the first are");
    }
    let named = first.get("rightsIdentifier").or_else(|| first.get("rightsUri")).or_else(|| first.get("rights"));
    if let Some(license) = text(named, "rightsList[0]")? {
        import.take_license("rightsList[0]", &license);
    }
    Ok(())
}
