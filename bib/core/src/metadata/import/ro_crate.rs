//! RO-Crate 1.1 and 1.2: the root dataset entity of `ro-crate-metadata.json`.

use std::collections::HashMap;

use serde_json::Value;

use super::{Import, items, line, paragraph, text};
use crate::fields::FieldError;
use crate::metadata::{Creator, Funder, Orcid, Related};

/// The entities of a crate by their `@id`.
struct Crate<'a>(HashMap<&'a str, &'a Value>);

impl<'a> Crate<'a> {
    /// The entity that `value` refers to by `@id`, or `value` itself.
    fn resolve(&self, value: &'a Value) -> &'a Value {
        id_of(value).and_then(|id| self.0.get(id).copied()).unwrap_or(value)
    }

    /// The name of what stands there: a text, an entity, or a reference to one.
    fn name_of(&self, value: &'a Value, at: &str) -> Result<Option<String>, FieldError> {
        let named = match self.resolve(value) {
            entity @ Value::Object(_) => entity.get("name").or_else(|| entity.get("@id")),
            other => Some(other),
        };
        Ok(text(named, at)?.as_deref().and_then(line))
    }
}

fn id_of(value: &Value) -> Option<&str> {
    value.get("@id").and_then(Value::as_str)
}

/// Reads the root dataset.
pub(super) fn read(root: &Value, import: &mut Import) -> Result<(), FieldError> {
    let Some(Value::Array(graph)) = root.get("@graph") else {
        return Err(FieldError::new("@graph", "a list of entities is needed"));
    };
    let entities = Crate(graph.iter().filter_map(|entity| Some((id_of(entity)?, entity))).collect());
    let is_descriptor = |id: &str| id == "ro-crate-metadata.json" || id.ends_with("/ro-crate-metadata.json");
    let descriptor = graph.iter().find(|entity| id_of(entity).is_some_and(is_descriptor));
    let root_id = descriptor.and_then(|entity| entity.get("about")).and_then(id_of).unwrap_or("./");
    let Some(dataset) = entities.0.get(root_id).copied() else {
        return Err(FieldError::new("@graph", "the root dataset entity is missing"));
    };
    let get = |name: &str| dataset.get(name);

    import.metadata.title = text(get("name"), "name")?.as_deref().and_then(line);
    import.metadata.description = text(get("description"), "description")?.as_deref().and_then(paragraph);
    let authors = get("author").or_else(|| get("creator"));
    for (i, item) in items(authors).iter().enumerate() {
        let creator = creator(&entities, item, &format!("author[{i}]"), import)?;
        import.metadata.creators.push(creator);
    }
    keywords(get("keywords"), import)?;
    for (i, item) in items(get("funder")).iter().enumerate() {
        match entities.name_of(item, &format!("funder[{i}]"))? {
            Some(name) => import.metadata.funders.push(Funder { name, ..Funder::default() }),
            None => import.warn(&format!("funder[{i}]"), "has no name"),
        }
    }
    if let Some(publisher) = items(get("publisher")).first() {
        import.metadata.publisher = entities.name_of(publisher, "publisher")?;
    }
    if let Some(date) = text(get("datePublished"), "datePublished")? {
        import.take_year("datePublished", &date);
    }
    if let Some(language) = items(get("inLanguage")).first() {
        let entity = entities.resolve(language);
        import.metadata.language = text(entity.get("code").or(Some(language)), "inLanguage")?.as_deref().and_then(line);
    }
    for item in items(get("identifier")) {
        let entity = entities.resolve(item);
        let value = entity.get("value").or_else(|| entity.get("@id")).or(Some(entity));
        import.take_doi(&text(value, "identifier")?.unwrap_or_default());
    }
    import.take_doi(root_id);
    for (name, relation) in [("citation", "References"), ("isBasedOn", "IsDerivedFrom"), ("sameAs", "IsIdenticalTo")] {
        for item in items(get(name)) {
            related(item, name, relation, import)?;
        }
    }
    if let Some(license) = items(get("license")).first() {
        let entity = entities.resolve(license);
        let named = id_of(entity).map(str::to_owned).or(text(Some(license), "license").ok().flatten());
        import.take_license("license", &named.ok_or_else(|| FieldError::new("license", "a text or `@id` is needed"))?);
    }
    Ok(())
}

fn creator<'a>(entities: &Crate<'a>, item: &'a Value, at: &str, import: &mut Import) -> Result<Creator, FieldError> {
    let named = entities.resolve(item);
    let name = entities.name_of(item, &format!("{at}.name"))?;
    let name = name.ok_or_else(|| FieldError::new(at, "has no name"))?;
    let mut creator = Creator { name, ..Creator::default() };
    if let Some(id) = id_of(named).filter(|id| id.contains("orcid.org/")) {
        creator.orcid = import.orcid(&format!("{at}.@id"), id);
    } else if let Some(id) = named.get("identifier").and_then(Value::as_str) {
        creator.orcid = Orcid::from_any(id).ok();
    }
    if let Some(affiliation) = items(named.get("affiliation")).first() {
        creator.affiliation = entities.name_of(affiliation, &format!("{at}.affiliation"))?;
    }
    Ok(creator)
}

/// One text with commas, or a list of texts.
fn keywords(value: Option<&Value>, import: &mut Import) -> Result<(), FieldError> {
    match value {
        Some(Value::String(text)) => import.metadata.keywords.extend(text.split(',').filter_map(line)),
        other => {
            for (i, item) in items(other).iter().enumerate() {
                let at = format!("keywords[{i}]");
                let word = text(item.get("name").or(Some(item)), &at)?;
                import.metadata.keywords.extend(word.as_deref().and_then(line));
            }
        }
    }
    Ok(())
}

fn related(item: &Value, at: &str, relation: &str, import: &mut Import) -> Result<(), FieldError> {
    let named = text(item.get("@id").or(Some(item)), at)?.as_deref().and_then(line).unwrap_or_default();
    let (identifier, identifier_type) = match crate::metadata::find_doi(&named) {
        Some(doi) => (doi.to_owned(), "DOI"),
        None if named.starts_with("https://") || named.starts_with("http://") => (named, "URL"),
        None => {
            import.warn(at, "is neither a DOI nor an address");
            return Ok(());
        }
    };
    import.metadata.related.push(Related {
        relation: relation.to_owned(),
        identifier,
        identifier_type: identifier_type.to_owned(),
        ..Related::default()
    });
    Ok(())
}
