use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

fn check(source: Source, text: &str, expected: Expect) {
    let shown = match read(source, text.as_bytes()) {
        Ok(import) => format!(
            "{}\nlicence {:?}\n{}",
            serde_json::to_string_pretty(&import.metadata).unwrap(),
            import.license,
            import.warnings.join("\n")
        ),
        Err(e) => format!("error: {e}"),
    };
    expected.assert_eq(&shown);
}

const DATACITE: &str = r#"{
  "doi": "10.5281/zenodo.1234", "publicationYear": 2024, "language": "en", "publisher": {"name": "Zenodo"},
  "titles": [{"title": "Hourly\n  weather"}],
  "descriptions": [{"description": "Methods.", "descriptionType": "Methods"}, {"description": "What it is.\r\nMore.", "descriptionType": "Abstract"}],
  "creators": [{"name": "Lovelace, Ada", "affiliation": [{"name": "Analytical Society"}],
    "nameIdentifiers": [{"nameIdentifier": "https://orcid.org/0000-0002-1825-0097", "nameIdentifierScheme": "ORCID"}]},
    {"name": "Babbage, Charles", "nameIdentifiers": [{"nameIdentifier": "0000-0002-1825-0098", "nameIdentifierScheme": "ORCID"}]}],
  "subjects": [{"subject": "weather"}], "fundingReferences": [{"funderName": "ERC", "awardNumber": 123.450}],
  "relatedIdentifiers": [{"relationType": "IsSupplementTo", "relatedIdentifier": "10.1000/x", "relatedIdentifierType": "DOI"}, {}],
  "rightsList": [{"rightsIdentifier": "cc-by-4.0"}]
}"#;

#[test]
fn reads_datacite() {
    check(
        Source::DataCite,
        DATACITE,
        expect![[r#"
        {
          "creators": [
            {
              "affiliation": "Analytical Society",
              "name": "Lovelace, Ada",
              "orcid": "0000-0002-1825-0097"
            },
            {
              "name": "Babbage, Charles"
            }
          ],
          "description": "What it is.\nMore.",
          "funders": [
            {
              "award": "123.450",
              "name": "ERC"
            }
          ],
          "identifier": "10.5281/zenodo.1234",
          "keywords": [
            "weather"
          ],
          "language": "en",
          "publication_year": 2024,
          "publisher": "Zenodo",
          "related": [
            {
              "identifier": "10.1000/x",
              "relation": "IsSupplementTo",
              "type": "DOI"
            }
          ],
          "title": "Hourly weather"
        }
        licence Some("CC-BY-4.0")
        `creators[1].nameIdentifiers`: `0000-0002-1825-0098` has a wrong check digit, a digit is mistyped, left out
        `relatedIdentifiers[1]`: has not all of relation, identifier and type, left out"#]],
    );
}

#[test]
fn reads_datacite_as_json_api() {
    let wrapped = format!("{{\"data\":{{\"id\":\"x\",\"attributes\":{DATACITE}}}}}");
    let plain = read(Source::DataCite, DATACITE.as_bytes()).unwrap();
    assert_eq!(read(Source::DataCite, wrapped.as_bytes()).unwrap(), plain);
}

#[test]
fn reads_ro_crate() {
    let text = r#"{"@context": "https://w3id.org/ro/crate/1.1/context", "@graph": [
      {"@id": "ro-crate-metadata.json", "@type": "CreativeWork", "about": {"@id": "./"}},
      {"@id": "./", "@type": "Dataset", "name": "Hourly weather", "description": "What it is.", "datePublished": "2024-05-01",
       "author": [{"@id": "https://orcid.org/0000-0002-1825-0097"}, "Babbage, Charles"], "keywords": "weather, hourly",
       "license": {"@id": "https://creativecommons.org/licenses/by/4.0/"}, "publisher": {"@id": "https://ror.org/1"},
       "identifier": "https://doi.org/10.5281/zenodo.1234", "isBasedOn": ["https://example.org/raw", "nowhere"]},
      {"@id": "https://orcid.org/0000-0002-1825-0097", "@type": "Person", "name": "Ada Lovelace", "affiliation": {"@id": "https://ror.org/1"}},
      {"@id": "https://ror.org/1", "@type": "Organization", "name": "Analytical Society"}]}"#;
    check(
        Source::RoCrate,
        text,
        expect![[r#"
        {
          "creators": [
            {
              "affiliation": "Analytical Society",
              "name": "Ada Lovelace",
              "orcid": "0000-0002-1825-0097"
            },
            {
              "name": "Babbage, Charles"
            }
          ],
          "description": "What it is.",
          "identifier": "10.5281/zenodo.1234",
          "keywords": [
            "weather",
            "hourly"
          ],
          "publication_year": 2024,
          "publisher": "Analytical Society",
          "related": [
            {
              "identifier": "https://example.org/raw",
              "relation": "IsDerivedFrom",
              "type": "URL"
            }
          ],
          "title": "Hourly weather"
        }
        licence Some("CC-BY-4.0")
        `isBasedOn`: is neither a DOI nor an address, left out"#]],
    );
}

#[test]
fn reads_cff() {
    let text = "cff-version: 1.2.0\nmessage: cite this\ntitle: 1.10\nabstract: >-\n  What it is,\n  in short.\nauthors:\n  - family-names: Lovelace\n    given-names: Ada\n    orcid: https://orcid.org/0000-0002-1825-0097\n  - name: Analytical Society\nkeywords: [no, 1.50, weather]\nlicense: [MIT, Apache-2.0]\ndoi: 10.5281/zenodo.1234\ndate-released: 2024-05-01\nversion: 2.0\n";
    check(
        Source::Cff,
        text,
        expect![[r#"
        {
          "creators": [
            {
              "name": "Lovelace, Ada",
              "orcid": "0000-0002-1825-0097"
            },
            {
              "name": "Analytical Society"
            }
          ],
          "description": "What it is, in short.",
          "identifier": "10.5281/zenodo.1234",
          "keywords": [
            "no",
            "1.50",
            "weather"
          ],
          "publication_year": 2024,
          "title": "1.10"
        }
        licence Some("MIT OR Apache-2.0")
    "#]],
    );
}

#[test]
fn errors_name_the_member() {
    check(
        Source::DataCite,
        r#"{"titles":[{"title":["x"]}]}"#,
        expect!["error: datacite.json: `titles[0].title`: a text is needed"],
    );
    check(Source::DataCite, r#"{"data":[]}"#, expect!["error: datacite.json: `data.attributes`: an object is needed"]);
    check(
        Source::RoCrate,
        r#"{"@graph":[{"@id":"./","name":{"a":1}}]}"#,
        expect!["error: ro-crate-metadata.json: `name`: a text is needed"],
    );
    check(Source::RoCrate, "{}", expect!["error: ro-crate-metadata.json: `@graph`: a list of entities is needed"]);
    check(
        Source::Cff,
        "title: [x]\n",
        expect!["error: CITATION.cff: title: invalid type: sequence, expected a string at line 1 column 8"],
    );
    check(
        Source::Cff,
        "title: \"a\\0b\"\n",
        expect!["error: CITATION.cff: the metadata's `title`: the control character U+0000 is not allowed"],
    );
    check(
        Source::DataCite,
        r#"{"größe":1}"#,
        expect!["error: datacite.json: keys must be ASCII, these are not: größe"],
    );
}

#[test]
fn refuses_bombs() {
    let mut yaml = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for i in 1..10 {
        let previous = vec![format!("*a{}", i - 1); 9].join(",");
        yaml.push_str(&format!("a{i}: &a{i} [{previous}]\n"));
    }
    yaml.push_str("keywords: *a9\n");
    assert!(read(Source::Cff, yaml.as_bytes()).is_err());
    let megabyte = |unit: &str| unit.repeat(MAX_FILE_BYTES / unit.len());
    for unit in ["[", "{", "- ", "? ", "a: ", "&a ", "*a ", "!a ", "\"", "- [\n"] {
        assert!(read(Source::Cff, megabyte(unit).as_bytes()).is_err(), "{unit:?}");
    }
    assert!(read(Source::RoCrate, "[".repeat(100_000).as_bytes()).is_err());
    assert!(matches!(read(Source::Cff, &vec![b' '; MAX_FILE_BYTES + 1]), Err(ImportError::TooLong { .. })));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for source in Source::ALL {
            let _outcome = read(source, &bytes);
        }
    }

    #[test]
    fn cut_files_never_panic(cut in 0..DATACITE.len()) {
        let _outcome = read(Source::DataCite, &DATACITE.as_bytes()[..cut]);
    }
}
