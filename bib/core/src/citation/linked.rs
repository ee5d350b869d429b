//! The JSON-LD exports: schema.org, RO-Crate 1.1, Croissant 1.0.

use serde_json::{Map, Value, json};

use super::{Citable, ListedFile, percent_encode, split_name};
use crate::metadata::Creator;

/// A schema.org `Dataset`, as search engines for data read it.
#[must_use]
pub fn schema_org(citable: &Citable) -> Value {
    let mut out = common(citable);
    out.insert("@context".to_owned(), json!("https://schema.org/"));
    out.insert("@type".to_owned(), json!("Dataset"));
    out.insert("creator".to_owned(), citable.metadata.creators.iter().map(|creator| agent(creator, "@id")).collect());
    out.insert("size".to_owned(), json!(format!("{} bytes", citable.size_bytes)));
    Value::Object(out)
}

/// An RO-Crate 1.1 of the version, with an entity for each of `files`.
#[must_use]
pub fn ro_crate(citable: &Citable, files: impl IntoIterator<Item = ListedFile>) -> Value {
    let mut parts = Vec::new();
    let mut entities = Vec::new();
    for file in files {
        let id = percent_encode(&file.path);
        parts.push(json!({"@id": id}));
        entities.push(json!({
            "@id": id,
            "@type": "File",
            "name": file.path,
            "contentSize": file.size_bytes.to_string(),
            "sha256": file.sha256.to_string(),
        }));
    }
    let mut root = common(citable);
    let mut authors = Vec::new();
    for (i, creator) in citable.metadata.creators.iter().enumerate() {
        let mut entity = agent(creator, "@id");
        let id = entity.get("@id").cloned().unwrap_or_else(|| json!(format!("#creator-{}", i + 1)));
        if let (Value::Object(entity), false) = (&mut entity, authors.contains(&json!({"@id": id}))) {
            entity.insert("@id".to_owned(), id.clone());
            entities.push(Value::Object(std::mem::take(entity)));
        }
        authors.push(json!({"@id": id}));
    }
    if let Some(url) = citable.license_url() {
        entities.push(json!({"@id": url, "@type": "CreativeWork", "name": citable.license}));
        root.insert("license".to_owned(), json!({"@id": url}));
    }
    if !authors.is_empty() {
        root.insert("author".to_owned(), authors.into());
    }
    root.insert("@id".to_owned(), json!("./"));
    root.insert("@type".to_owned(), json!("Dataset"));
    root.insert("hasPart".to_owned(), parts.into());
    let descriptor = json!({
        "@id": "ro-crate-metadata.json",
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        "about": {"@id": "./"},
    });
    let graph: Vec<Value> = [descriptor, Value::Object(root)].into_iter().chain(entities).collect();
    // RO-Crate's own context has no term for hashes.
    let context =
        json!(["https://w3id.org/ro/crate/1.1/context", {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}]);
    json!({"@context": context, "@graph": graph})
}

/// A Croissant 1.0 description of the version: its metadata and a file object for each of `files`.
#[must_use]
pub fn croissant(citable: &Citable, files: impl IntoIterator<Item = ListedFile>) -> Value {
    let mut out = common(citable);
    out.insert("@context".to_owned(), croissant_context());
    out.insert("@type".to_owned(), json!("sc:Dataset"));
    out.insert("conformsTo".to_owned(), json!("http://mlcommons.org/croissant/1.0"));
    out.insert("citeAs".to_owned(), json!(super::bibtex(citable)));
    out.insert("creator".to_owned(), citable.metadata.creators.iter().map(|creator| agent(creator, "url")).collect());
    let objects = files.into_iter().map(|file| {
        json!({
            "@type": "cr:FileObject",
            "@id": percent_encode(&file.path),
            "name": file.path,
            "contentUrl": percent_encode(&file.path),
            "contentSize": format!("{} B", file.size_bytes),
            "encodingFormat": media_type(&file.path),
            "sha256": file.sha256.to_string(),
        })
    });
    out.insert("distribution".to_owned(), objects.collect());
    Value::Object(out)
}

/// What schema.org, RO-Crate and Croissant say with the same terms.
fn common(citable: &Citable) -> Map<String, Value> {
    let metadata = &citable.metadata;
    let mut out = Map::new();
    let mut set = |name: &str, value: Value| out.insert(name.to_owned(), value);
    set("name", json!(citable.title()));
    set("description", json!(citable.description()));
    set("version", json!(citable.version.to_string()));
    set("dateCreated", json!(citable.time.to_string()));
    let year = metadata.publication_year.map(|year| year.to_string());
    set("datePublished", json!(year.unwrap_or_else(|| citable.day())));
    set("license", json!(citable.license_url().unwrap_or_else(|| citable.license.clone())));
    set("publisher", json!({"@type": "Organization", "name": citable.publisher()}));
    set("url", json!(citable.doi_url().unwrap_or_else(|| citable.version_uri())));
    let mut identifiers = vec![json!(citable.version_uri()), json!(citable.reference)];
    identifiers.extend(citable.doi_url().map(Value::from));
    set("identifier", identifiers.into());
    if !metadata.keywords.is_empty() {
        set("keywords", json!(metadata.keywords));
    }
    if let Some(language) = &metadata.language {
        set("inLanguage", json!(language));
    }
    if !metadata.funders.is_empty() {
        let funders = metadata.funders.iter().map(|funder| json!({"@type": "Organization", "name": funder.name}));
        set("funder", funders.collect());
    }
    if let Some(embargo) = metadata.embargo {
        set("conditionsOfAccess", json!(format!("embargoed until {embargo}")));
    }
    out
}

/// A person or organisation; `orcid` stands under the name `id_term`.
fn agent(creator: &Creator, id_term: &str) -> Value {
    let mut out = Map::new();
    let mut set = |name: &str, value: Value| out.insert(name.to_owned(), value);
    set("name", json!(creator.name));
    let person = split_name(creator);
    // An ORCID iD is a person's; without one only the comma tells people from institutions.
    let kind = if person.is_some() || creator.orcid.is_some() { "Person" } else { "Organization" };
    set("@type", json!(kind));
    if let Some((family, given)) = person {
        set("familyName", json!(family));
        set("givenName", json!(given));
    }
    if let Some(orcid) = &creator.orcid {
        set(id_term, json!(orcid.to_url()));
    }
    if let Some(affiliation) = &creator.affiliation {
        set("affiliation", json!({"@type": "Organization", "name": affiliation}));
    }
    Value::Object(out)
}

fn media_type(path: &str) -> &'static str {
    let extension = path.rsplit('/').next().and_then(|name| name.rsplit_once('.')).map_or("", |(_, end)| end);
    match extension.to_ascii_lowercase().as_str() {
        "csv" => "text/csv",
        "tsv" => "text/tab-separated-values",
        "json" => "application/json",
        "jsonl" | "ndjson" => "application/jsonlines",
        "parquet" => "application/vnd.apache.parquet",
        "arrow" => "application/vnd.apache.arrow.file",
        "txt" => "text/plain",
        "md" => "text/markdown",
        "pdf" => "application/pdf",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "tif" | "tiff" => "image/tiff",
        "nc" => "application/netcdf",
        "h5" | "hdf5" => "application/x-hdf5",
        "zip" => "application/zip",
        "gz" => "application/gzip",
        _ => "application/octet-stream",
    }
}

/// The context that Croissant 1.0 prescribes.
fn croissant_context() -> Value {
    json!({
        "@language": "en",
        "@vocab": "https://schema.org/",
        "citeAs": "cr:citeAs",
        "column": "cr:column",
        "conformsTo": "dct:conformsTo",
        "cr": "http://mlcommons.org/croissant/",
        "data": {"@id": "cr:data", "@type": "@json"},
        "dataBiases": "cr:dataBiases",
        "dataCollection": "cr:dataCollection",
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        "dct": "http://purl.org/dc/terms/",
        "extract": "cr:extract",
        "field": "cr:field",
        "fileObject": "cr:fileObject",
        "fileProperty": "cr:fileProperty",
        "fileSet": "cr:fileSet",
        "format": "cr:format",
        "includes": "cr:includes",
        "isLiveDataset": "cr:isLiveDataset",
        "jsonPath": "cr:jsonPath",
        "key": "cr:key",
        "md5": "cr:md5",
        "parentField": "cr:parentField",
        "path": "cr:path",
        "personalSensitiveInformation": "cr:personalSensitiveInformation",
        "recordSet": "cr:recordSet",
        "references": "cr:references",
        "regex": "cr:regex",
        "repeated": "cr:repeated",
        "replace": "cr:replace",
        "sc": "https://schema.org/",
        "separator": "cr:separator",
        "source": "cr:source",
        "subField": "cr:subField",
        "transform": "cr:transform",
    })
}
