use std::sync::Arc;

use expect_test::{Expect, expect};

use super::*;

record! {
    /// A row.
    Row { name: String = Text listed, size_bytes: u64 = Bytes listed, version: String = Hash listed, tags: Vec<String> = Many, note: Option<String> = Lines }
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn printed(format: Format, exact_csv: bool, print: impl FnOnce(&Output)) -> String {
    let sink = Sink::default();
    let colours = Colours { stdout: false, stderr: false };
    let manner = Manner { format, colours, quiet: true, exact_csv };
    print(&Output::new(manner, Box::new(sink.clone()), false));
    let bytes = sink.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "climate/stations".into(),
            size_bytes: 3 << 20,
            version: "3f9a".repeat(16),
            tags: vec!["v1".into(), "v2".into()],
            note: Some("one\ntwo".into()),
        },
        Row { name: "=cmd|' /C calc'!A0\u{1b}[2J\u{202e}".into(), ..Row::default() },
    ]
}

fn check_list(format: Format, expected: &Expect) {
    expected.assert_eq(&printed(format, false, |output| {
        let mut list = output.list();
        for row in rows() {
            list.push(&row).unwrap();
        }
        list.finish("none").unwrap();
    }));
}

#[test]
fn a_list_in_every_format() {
    check_list(
        Format::Table,
        &expect![[r#"
            NAME                                 SIZE     VERSION
            climate/stations                     3.0 MiB  3f9a3f9a3f9a
            =cmd|' /C calc'!A0\u{1b}[2J\u{202e}  0 B      -
        "#]],
    );
    check_list(
        Format::Csv,
        &expect![[r#"
        name,size_bytes,version,tags,note
        climate/stations,3145728,3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a,v1 v2,one\u{a}two
        '=cmd|' /C calc'!A0\u{1b}[2J\u{202e},0,,,
    "#]],
    );
    check_list(
        Format::Yaml,
        &expect![[r#"
            - name: climate/stations
              size_bytes: 3145728
              version: 3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a
              tags:
              - v1
              - v2
              note: |-
                one
                two
            - name: =cmd|' /C calc'!A0\u{1b}[2J\u{202e}
              size_bytes: 0
              version: ''
              tags: []
              note: null
        "#]],
    );
}

#[test]
fn one_thing_in_every_format() {
    let row = &rows()[0];
    expect![[r#"
        name     climate/stations
        size     3.0 MiB
        version  3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a
        tags     v1, v2
        note     one
                 two
    "#]]
    .assert_eq(&printed(Format::Table, false, |output| output.one(row).unwrap()));
    expect![[r#"
        {
          "name": "climate/stations",
          "size_bytes": 3145728,
          "version": "3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a3f9a",
          "tags": [
            "v1",
            "v2"
          ],
          "note": "one\ntwo"
        }
    "#]]
    .assert_eq(&printed(Format::Json, false, |output| output.one(row).unwrap()));
}

#[test]
fn json_escapes_and_loses_nothing() {
    let text = printed(Format::Json, false, |output| {
        let mut list = output.list();
        for row in rows() {
            list.push(&row).unwrap();
        }
        list.finish("none").unwrap();
    });
    assert!(text.is_ascii(), "{text}");
    let back: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(back[1]["name"], rows()[1].name);
    assert_eq!(back[0]["note"], "one\ntwo");
    assert_eq!(escape_json("\"\u{e0001}\""), r#""\udb40\udc01""#);
}

#[test]
fn exact_csv_keeps_what_spreadsheets_would_run() {
    let text = printed(Format::Csv, true, |output| output.one(&rows()[1]).unwrap());
    assert!(text.contains("\n=cmd|"), "{text}");
    for first in ["=1", "+1", "-1", "@a", "\tx", "\rx"] {
        let row = Row { name: first.into(), ..Row::default() };
        let text = printed(Format::Csv, false, |output| output.one(&row).unwrap());
        assert!(text.lines().nth(1).unwrap().starts_with('\''), "{text}");
    }
}

#[test]
fn details_leave_out_what_has_no_value_and_programs_get_it() {
    let bare = Row { name: "a/b".into(), ..Row::default() };
    let text = printed(Format::Table, false, |output| output.one(&bare).unwrap());
    assert_eq!(text, "name  a/b\nsize  0 B\n");
    let json = printed(Format::Json, false, |output| output.one(&bare).unwrap());
    assert!(json.contains("\"note\": null") && json.contains("\"tags\": []"), "{json}");
}

#[test]
fn a_key_in_a_list_is_short_and_a_name_is_whole() {
    record! {
        /// Somebody.
        Who { author: String = Person listed }
    }
    let text = printed(Format::Table, false, |output| {
        let mut list = output.list();
        for author in ["SHA256:WAVhsjeo8oHjHGXZxrwyjAdzfWVwNmv/23yHcRhRxPM", "Ada Lovelace of the long name"] {
            list.push(&Who { author: author.into() }).unwrap();
        }
        list.finish("none").unwrap();
    });
    assert_eq!(text, "AUTHOR\nSHA256:WAVhsjeo8…\nAda Lovelace of the long name\n");
}

#[test]
fn empty_lists_are_still_of_their_format() {
    let empty = |format| {
        printed(format, false, |output| {
            output.list::<Row>().finish("none").unwrap();
        })
    };
    assert_eq!(empty(Format::Json), "[]\n");
    assert_eq!(empty(Format::Yaml), "[]\n");
    assert_eq!(empty(Format::Csv), "name,size_bytes,version,tags,note\n");
    assert_eq!(empty(Format::Table), "");
}
