//! DataCite JSON 4.5: the attributes that a registration takes.

use serde_json::{Map, Value, json};

use super::{Citable, split_name};
use crate::metadata::Creator;

/// The attributes of the version in DataCite 4.5. What DataCite demands and nobody said is `:unav`, as it asks for.
#[must_use]
pub fn datacite(citable: &Citable) -> Value {
    let metadata = &citable.metadata;
    let mut out = Map::new();
    let mut set = |name: &str, value: Value| out.insert(name.to_owned(), value);
    set("schemaVersion", json!("http://datacite.org/schema/kernel-4.5"));
    set("types", json!({"resourceTypeGeneral": "Dataset", "resourceType": "Dataset"}));
    set("titles", json!([{"title": citable.title()}]));
    set("descriptions", json!([{"description": citable.description(), "descriptionType": "Abstract"}]));
    let creators: Vec<Value> = metadata.creators.iter().map(creator).collect();
    set("creators", if creators.is_empty() { json!([{"name": ":unav"}]) } else { creators.into() });
    set("publisher", json!({"name": citable.publisher()}));
    set("publicationYear", citable.year().parse::<u16>().map_or(Value::Null, Value::from));
    set("version", json!(citable.version_name()));
    set("sizes", json!([format!("{} bytes", citable.size_bytes), format!("{} files", citable.files)]));
    let mut dates = vec![json!({"date": citable.time.to_string(), "dateType": "Created"})];
    if let Some(embargo) = metadata.embargo {
        dates.push(json!({"date": embargo.to_string(), "dateType": "Available"}));
    }
    set("dates", dates.into());
    let mut rights = Map::new();
    rights.insert("rights".to_owned(), json!(citable.license));
    if let Some(url) = citable.license_url() {
        rights.insert("rightsUri".to_owned(), json!(url));
        rights.insert("rightsIdentifier".to_owned(), json!(citable.license));
        rights.insert("rightsIdentifierScheme".to_owned(), json!("SPDX"));
        rights.insert("schemeUri".to_owned(), json!("https://spdx.org/licenses/"));
    }
    set("rightsList", json!([rights]));
    set(
        "alternateIdentifiers",
        json!([
            {"alternateIdentifier": citable.reference, "alternateIdentifierType": "BIB reference"},
            {"alternateIdentifier": citable.version.to_string(), "alternateIdentifierType": "BIB version (SHA-256)"},
        ]),
    );
    if let Some(doi) = &metadata.identifier {
        set("doi", json!(doi));
        set("identifiers", json!([{"identifier": doi, "identifierType": "DOI"}]));
    }
    if let Some(language) = &metadata.language {
        set("language", json!(language));
    }
    if !metadata.keywords.is_empty() {
        set("subjects", metadata.keywords.iter().map(|word| json!({"subject": word})).collect());
    }
    if !metadata.funders.is_empty() {
        let funders = metadata.funders.iter().map(|funder| match &funder.award {
            Some(award) => json!({"funderName": funder.name, "awardNumber": award}),
            None => json!({"funderName": funder.name}),
        });
        set("fundingReferences", funders.collect());
    }
    if !metadata.related.is_empty() {
        let related = metadata.related.iter().map(|related| {
            json!({
                "relationType": related.relation,
                "relatedIdentifier": related.identifier,
                "relatedIdentifierType": related.identifier_type,
            })
        });
        set("relatedIdentifiers", related.collect());
    }
    Value::Object(out)
}

fn creator(creator: &Creator) -> Value {
    let mut out = Map::new();
    let mut set = |name: &str, value: Value| out.insert(name.to_owned(), value);
    set("name", json!(creator.name));
    if let Some((family, given)) = split_name(creator) {
        set("nameType", json!("Personal"));
        set("familyName", json!(family));
        set("givenName", json!(given));
    }
    if let Some(orcid) = &creator.orcid {
        set(
            "nameIdentifiers",
            json!([{
                "nameIdentifier": orcid.to_url(),
                "nameIdentifierScheme": "ORCID",
                "schemeUri": "https://orcid.org",
            }]),
        );
    }
    if let Some(affiliation) = &creator.affiliation {
        set("affiliation", json!([{"name": affiliation}]));
    }
    Value::Object(out)
}
