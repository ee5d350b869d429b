use expect_test::expect;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::metadata::{Funder, Related, import};

fn citable() -> Citable {
    Citable {
        reference: "weather:climate/stations/hourly@3f".into(),
        name: "climate/stations/hourly".into(),
        version: Hash::of(b"statement"),
        label: Some("2024 release".into()),
        owner: PeerId::from_public_key([7; 32]),
        metadata: Metadata {
            title: Some("100% {Hourly} \"weather\": a_b & c\\d".into()),
            description: Some("What it is.\nno: yes # not a comment".into()),
            creators: vec![
                Creator {
                    name: "Lovelace, Ada".into(),
                    orcid: Some("0000-0002-1825-0097".parse().unwrap()),
                    affiliation: Some("Analytical Society".into()),
                    ..Creator::default()
                },
                Creator { name: "Deutscher Wetterdienst".into(), ..Creator::default() },
            ],
            keywords: vec!["no".into(), "weather".into()],
            funders: vec![Funder { name: "ERC".into(), award: Some("123.450".into()), ..Funder::default() }],
            related: vec![Related {
                relation: "IsSupplementTo".into(),
                identifier: "10.1000/x".into(),
                identifier_type: "DOI".into(),
                ..Related::default()
            }],
            publication_year: Some(2024),
            identifier: Some("10.5281/zenodo.1234".into()),
            ..Metadata::default()
        },
        license: "CC-BY-4.0".into(),
        message: "first".into(),
        time: "2024-05-01T10:00:00Z".parse().unwrap(),
        size_bytes: 12,
        files: 2,
    }
}

fn bare() -> Citable {
    Citable { metadata: Metadata::default(), label: None, license: "MIT AND LicenseRef-x".into(), ..citable() }
}

fn files() -> Vec<ListedFile> {
    let file = |path: &str| ListedFile { path: path.into(), sha256: Hash::of(path.as_bytes()), size_bytes: 6 };
    vec![file("data/größe 1.csv"), file("read me#1")]
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

#[test]
fn cites_in_text() {
    expect![[r#"Lovelace, Ada; Deutscher Wetterdienst (2024). 100% {Hourly} "weather": a_b & c\d (version 2024 release (b111c6e1d318)) [Data set]. BIB node 12D3KooWAHoEkEqnKzM5PXFygh2movVBCSX3k8tDsT2cneU68Gyt. https://doi.org/10.5281/zenodo.1234"#]].assert_eq(&text(&citable()));
    expect!["BIB node 12D3KooWAHoEkEqnKzM5PXFygh2movVBCSX3k8tDsT2cneU68Gyt (2024). climate/stations/hourly (version b111c6e1d318) [Data set]. BIB node 12D3KooWAHoEkEqnKzM5PXFygh2movVBCSX3k8tDsT2cneU68Gyt. weather:climate/stations/hourly@3f"].assert_eq(&text(&bare()));
}

#[test]
fn cites_in_bibtex() {
    expect![[r#"
        @misc{lovelace2024_b111c6e1,
          author = {Lovelace, Ada and {Deutscher Wetterdienst}},
          title = {{100\% \textbraceleft{}Hourly\textbraceright{} "weather": a\_b \& c\textbackslash{}d}},
          year = {2024},
          publisher = {BIB node 12D3KooWAHoEkEqnKzM5PXFygh2movVBCSX3k8tDsT2cneU68Gyt},
          version = {2024 release (b111c6e1d318)},
          doi = {10.5281/zenodo.1234},
          howpublished = {weather:climate/stations/hourly@3f},
          note = {Data set, licence CC-BY-4.0}
        }
    "#]]
    .assert_eq(&bibtex(&citable()));
    expect![[r#"
        @misc{bib2024_b111c6e1,
          title = {{climate/stations/hourly}},
          year = {2024},
          publisher = {BIB node 12D3KooWAHoEkEqnKzM5PXFygh2movVBCSX3k8tDsT2cneU68Gyt},
          version = {b111c6e1d318},
          howpublished = {weather:climate/stations/hourly@3f},
          note = {Data set, licence MIT AND LicenseRef-x}
        }
    "#]]
    .assert_eq(&bibtex(&bare()));
}

#[test]
fn cites_in_cff() {
    expect![[r#"
        cff-version: 1.2.0
        type: dataset
        message: "If you use this data set, please cite it as below."
        title: "100% {Hourly} \"weather\": a_b & c\\d"
        abstract: "What it is.\nno: yes # not a comment"
        version: "2024 release (b111c6e1d318)"
        date-released: "2024-05-01"
        doi: "10.5281/zenodo.1234"
        license: "CC-BY-4.0"
        authors:
          - family-names: "Lovelace"
            given-names: "Ada"
            affiliation: "Analytical Society"
            orcid: "https://orcid.org/0000-0002-1825-0097"
          - name: "Deutscher Wetterdienst"
        identifiers:
          - type: other
            value: "b111c6e1d318f203063e5c16bab43c108326af0aa2f7b65760c95547a43dbe52"
            description: "BIB version (SHA-256 of the statement)"
        keywords:
          - "no"
          - "weather"
    "#]]
    .assert_eq(&cff(&citable()));
    expect![[r#"
        cff-version: 1.2.0
        type: dataset
        message: "If you use this data set, please cite it as below. Its licence is MIT AND LicenseRef-x."
        title: "climate/stations/hourly"
        abstract: "first"
        version: "b111c6e1d318"
        date-released: "2024-05-01"
        authors:
          - name: "BIB node 12D3KooWAHoEkEqnKzM5PXFygh2movVBCSX3k8tDsT2cneU68Gyt"
        identifiers:
          - type: other
            value: "b111c6e1d318f203063e5c16bab43c108326af0aa2f7b65760c95547a43dbe52"
            description: "BIB version (SHA-256 of the statement)"
    "#]]
    .assert_eq(&cff(&bare()));
}

#[test]
fn exports_datacite() {
    expect![[r#"
        {
          "alternateIdentifiers": [
            {
              "alternateIdentifier": "weather:climate/stations/hourly@3f",
              "alternateIdentifierType": "BIB reference"
            },
            {
              "alternateIdentifier": "b111c6e1d318f203063e5c16bab43c108326af0aa2f7b65760c95547a43dbe52",
              "alternateIdentifierType": "BIB version (SHA-256)"
            }
          ],
          "creators": [
            {
              "affiliation": [
                {
                  "name": "Analytical Society"
                }
              ],
              "familyName": "Lovelace",
              "givenName": "Ada",
              "name": "Lovelace, Ada",
              "nameIdentifiers": [
                {
                  "nameIdentifier": "https://orcid.org/0000-0002-1825-0097",
                  "nameIdentifierScheme": "ORCID",
                  "schemeUri": "https://orcid.org"
                }
              ],
              "nameType": "Personal"
            },
            {
              "name": "Deutscher Wetterdienst"
            }
          ],
          "dates": [
            {
              "date": "2024-05-01T10:00:00.000000Z",
              "dateType": "Created"
            }
          ],
          "descriptions": [
            {
              "description": "What it is.\nno: yes # not a comment",
              "descriptionType": "Abstract"
            }
          ],
          "doi": "10.5281/zenodo.1234",
          "fundingReferences": [
            {
              "awardNumber": "123.450",
              "funderName": "ERC"
            }
          ],
          "identifiers": [
            {
              "identifier": "10.5281/zenodo.1234",
              "identifierType": "DOI"
            }
          ],
          "publicationYear": 2024,
          "publisher": {
            "name": "BIB node 12D3KooWAHoEkEqnKzM5PXFygh2movVBCSX3k8tDsT2cneU68Gyt"
          },
          "relatedIdentifiers": [
            {
              "relatedIdentifier": "10.1000/x",
              "relatedIdentifierType": "DOI",
              "relationType": "IsSupplementTo"
            }
          ],
          "rightsList": [
            {
              "rights": "CC-BY-4.0",
              "rightsIdentifier": "CC-BY-4.0",
              "rightsIdentifierScheme": "SPDX",
              "rightsUri": "https://spdx.org/licenses/CC-BY-4.0",
              "schemeUri": "https://spdx.org/licenses/"
            }
          ],
          "schemaVersion": "http://datacite.org/schema/kernel-4.5",
          "sizes": [
            "12 bytes",
            "2 files"
          ],
          "subjects": [
            {
              "subject": "no"
            },
            {
              "subject": "weather"
            }
          ],
          "titles": [
            {
              "title": "100% {Hourly} \"weather\": a_b & c\\d"
            }
          ],
          "types": {
            "resourceType": "Dataset",
            "resourceTypeGeneral": "Dataset"
          },
          "version": "2024 release (b111c6e1d318)"
        }"#]]
    .assert_eq(&pretty(&datacite(&citable())));
}

#[test]
fn exports_schema_org() {
    expect![[r#"
        {
          "@context": "https://schema.org/",
          "@type": "Dataset",
          "creator": [
            {
              "@id": "https://orcid.org/0000-0002-1825-0097",
              "@type": "Person",
              "affiliation": {
                "@type": "Organization",
                "name": "Analytical Society"
              },
              "familyName": "Lovelace",
              "givenName": "Ada",
              "name": "Lovelace, Ada"
            },
            {
              "@type": "Organization",
              "name": "Deutscher Wetterdienst"
            }
          ],
          "dateCreated": "2024-05-01T10:00:00.000000Z",
          "datePublished": "2024",
          "description": "What it is.\nno: yes # not a comment",
          "funder": [
            {
              "@type": "Organization",
              "name": "ERC"
            }
          ],
          "identifier": [
            "ni:///sha-256;sRHG4dMY8gMGPlwWurQ8EIMmrwqi97ZXYMlVR6Q9vlI",
            "weather:climate/stations/hourly@3f",
            "https://doi.org/10.5281/zenodo.1234"
          ],
          "keywords": [
            "no",
            "weather"
          ],
          "license": "https://spdx.org/licenses/CC-BY-4.0",
          "name": "100% {Hourly} \"weather\": a_b & c\\d",
          "publisher": {
            "@type": "Organization",
            "name": "BIB node 12D3KooWAHoEkEqnKzM5PXFygh2movVBCSX3k8tDsT2cneU68Gyt"
          },
          "size": "12 bytes",
          "url": "https://doi.org/10.5281/zenodo.1234",
          "version": "b111c6e1d318f203063e5c16bab43c108326af0aa2f7b65760c95547a43dbe52"
        }"#]]
    .assert_eq(&pretty(&schema_org(&citable())));
}

#[test]
fn exports_ro_crate() {
    expect![[r##"
        {
          "@context": [
            "https://w3id.org/ro/crate/1.1/context",
            {
              "sha256": "https://w3id.org/ro/terms/workflow-run#sha256"
            }
          ],
          "@graph": [
            {
              "@id": "ro-crate-metadata.json",
              "@type": "CreativeWork",
              "about": {
                "@id": "./"
              },
              "conformsTo": {
                "@id": "https://w3id.org/ro/crate/1.1"
              }
            },
            {
              "@id": "./",
              "@type": "Dataset",
              "author": [
                {
                  "@id": "https://orcid.org/0000-0002-1825-0097"
                },
                {
                  "@id": "#creator-2"
                }
              ],
              "dateCreated": "2024-05-01T10:00:00.000000Z",
              "datePublished": "2024",
              "description": "What it is.\nno: yes # not a comment",
              "funder": [
                {
                  "@type": "Organization",
                  "name": "ERC"
                }
              ],
              "hasPart": [
                {
                  "@id": "data/gr%C3%B6%C3%9Fe%201.csv"
                },
                {
                  "@id": "read%20me%231"
                }
              ],
              "identifier": [
                "ni:///sha-256;sRHG4dMY8gMGPlwWurQ8EIMmrwqi97ZXYMlVR6Q9vlI",
                "weather:climate/stations/hourly@3f",
                "https://doi.org/10.5281/zenodo.1234"
              ],
              "keywords": [
                "no",
                "weather"
              ],
              "license": {
                "@id": "https://spdx.org/licenses/CC-BY-4.0"
              },
              "name": "100% {Hourly} \"weather\": a_b & c\\d",
              "publisher": {
                "@type": "Organization",
                "name": "BIB node 12D3KooWAHoEkEqnKzM5PXFygh2movVBCSX3k8tDsT2cneU68Gyt"
              },
              "url": "https://doi.org/10.5281/zenodo.1234",
              "version": "b111c6e1d318f203063e5c16bab43c108326af0aa2f7b65760c95547a43dbe52"
            },
            {
              "@id": "data/gr%C3%B6%C3%9Fe%201.csv",
              "@type": "File",
              "contentSize": "6",
              "name": "data/größe 1.csv",
              "sha256": "911c6a9cf2c26fa76d4f9af3a3495b5fa902394167de63d22e4a3a2fa7c1bf6c"
            },
            {
              "@id": "read%20me%231",
              "@type": "File",
              "contentSize": "6",
              "name": "read me#1",
              "sha256": "93c02c2eb36033f232a7f8bcfdf17d14ddaf2a7d7682c701a1894b437fdaa403"
            },
            {
              "@id": "https://orcid.org/0000-0002-1825-0097",
              "@type": "Person",
              "affiliation": {
                "@type": "Organization",
                "name": "Analytical Society"
              },
              "familyName": "Lovelace",
              "givenName": "Ada",
              "name": "Lovelace, Ada"
            },
            {
              "@id": "#creator-2",
              "@type": "Organization",
              "name": "Deutscher Wetterdienst"
            },
            {
              "@id": "https://spdx.org/licenses/CC-BY-4.0",
              "@type": "CreativeWork",
              "name": "CC-BY-4.0"
            }
          ]
        }"##]]
    .assert_eq(&pretty(&ro_crate(&citable(), files())));
}

#[test]
fn exports_croissant_files() {
    let value = croissant(&citable(), files());
    assert_eq!(value["conformsTo"], "http://mlcommons.org/croissant/1.0");
    expect![[r#"
        [
          {
            "@id": "data/gr%C3%B6%C3%9Fe%201.csv",
            "@type": "cr:FileObject",
            "contentSize": "6 B",
            "contentUrl": "data/gr%C3%B6%C3%9Fe%201.csv",
            "encodingFormat": "text/csv",
            "name": "data/größe 1.csv",
            "sha256": "911c6a9cf2c26fa76d4f9af3a3495b5fa902394167de63d22e4a3a2fa7c1bf6c"
          },
          {
            "@id": "read%20me%231",
            "@type": "cr:FileObject",
            "contentSize": "6 B",
            "contentUrl": "read%20me%231",
            "encodingFormat": "application/octet-stream",
            "name": "read me#1",
            "sha256": "93c02c2eb36033f232a7f8bcfdf17d14ddaf2a7d7682c701a1894b437fdaa403"
          }
        ]"#]]
    .assert_eq(&pretty(&value["distribution"]));
}

#[test]
fn exports_can_be_imported_again() {
    let citable = citable();
    let datacite = import::read(import::Source::DataCite, &serde_json::to_vec(&datacite(&citable)).unwrap()).unwrap();
    assert_eq!(datacite.license.as_deref(), Some("CC-BY-4.0"));
    let expected = Metadata { publisher: Some(citable.publisher()), ..citable.metadata.clone() };
    assert_eq!(datacite.metadata, expected);
    let written = serde_json::to_vec(&ro_crate(&citable, files())).unwrap();
    let crate_ = import::read(import::Source::RoCrate, &written).unwrap();
    assert_eq!(crate_.license.as_deref(), Some("CC-BY-4.0"));
    assert_eq!(crate_.metadata.creators[0].orcid, citable.metadata.creators[0].orcid);
    assert_eq!(crate_.metadata.identifier, citable.metadata.identifier);
}

proptest! {
    #[test]
    fn any_title_survives_cff_and_keeps_bibtex_braces_balanced(title in "[^\\p{Cc}]{1,40}") {
        let mut citable = citable();
        let joined = title.split_whitespace().collect::<Vec<_>>().join(" ");
        prop_assume!(!joined.is_empty());
        citable.metadata.title = Some(title);
        let read = import::read(import::Source::Cff, cff(&citable).as_bytes()).unwrap();
        prop_assert_eq!(read.metadata.title, Some(joined));
        let entry = bibtex(&citable);
        let depth = entry.chars().try_fold(0_i32, |depth, c| match c {
            '{' => Some(depth + 1),
            '}' if depth == 0 => None,
            '}' => Some(depth - 1),
            _ => Some(depth),
        });
        prop_assert_eq!(depth, Some(0));
    }
}
