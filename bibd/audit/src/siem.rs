//! Events in the words of log collectors: JSON lines, syslog (RFC 5424 in the frames of RFC 5425), Elasticsearch's
//! `_bulk`, Splunk's HTTP Event Collector. Pure: bytes in, bytes out.

use std::io::Write as _;

use bib_core::{PeerId, Timestamp};

use crate::event::{DetailsForm, EventWriter, push_ascii};
use crate::verify::Row;

/// RFC 5424, 6.2.1: "log audit".
pub const FACILITY_AUDIT: u8 = 13;

/// What an entry looks like on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wire {
    /// One event a line.
    Lines,
    /// A `create` action and a document for each event. The id makes a repeated document a conflict instead of a copy.
    Bulk,
    /// Events for `/services/collector/event`.
    Collector {
        /// The index, when it is not the token's.
        index: Option<String>,
        /// The source type.
        source_type: String,
    },
    /// Frames of RFC 5425: length, space, message of RFC 5424.
    Syslog {
        /// 0 to 23.
        facility: u8,
        /// The machine's name, printable ASCII.
        hostname: String,
        /// The longest message that the receiver takes whole, in bytes.
        max_message_bytes: usize,
    },
}

/// Encodes rows for one receiver.
#[derive(Debug)]
pub struct Encoder {
    node: PeerId,
    wire: Wire,
    events: EventWriter,
    message: Vec<u8>,
}

impl Encoder {
    /// For the log of `node`.
    #[must_use]
    pub fn new(node: PeerId, wire: Wire, details: DetailsForm) -> Self {
        Self { node, wire, events: EventWriter::new(details), message: Vec::new() }
    }

    /// Appends one row. Writing to a vector does not fail.
    pub fn encode(&mut self, row: &Row<'_>, out: &mut Vec<u8>) {
        let time = row.entry.as_ref().map_or(Timestamp::from_micros(0), |entry| entry.time);
        match &self.wire {
            Wire::Lines => {
                self.events.write(row, out);
                out.push(b'\n');
            }
            Wire::Bulk => {
                let (epoch, seq) = (row.seal.epoch, row.seal.seq);
                let _ = write!(out, "{{\"create\":{{\"_id\":\"{}-{epoch}-{seq}\"}}}}\n{{", self.node);
                // Data streams want the time under this name.
                let _ = write!(out, "\"@timestamp\":\"{time}\",");
                self.message.clear();
                self.events.write(row, &mut self.message);
                out.extend_from_slice(self.message.get(1..).unwrap_or_default());
                out.push(b'\n');
            }
            Wire::Collector { index, source_type } => {
                out.extend_from_slice(b"{\"event\":");
                self.events.write(row, out);
                let _ = write!(out, ",\"host\":\"{}\"", self.node);
                if let Some(index) = index {
                    out.extend_from_slice(b",\"index\":");
                    push_ascii(&serde_json::Value::from(index.as_str()).to_string(), out);
                }
                out.extend_from_slice(b",\"source\":\"bibd\",\"sourcetype\":");
                push_ascii(&serde_json::Value::from(source_type.as_str()).to_string(), out);
                let micros = time.as_micros();
                let (seconds, fraction) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
                let _ = write!(out, ",\"time\":{seconds}.{fraction:06}}}");
            }
            Wire::Syslog { facility, hostname, max_message_bytes } => {
                let priority = u32::from(*facility) * 8 + severity(row);
                let action = row.entry.as_ref().map_or("-", |entry| entry.action);
                self.message.clear();
                let version = env!("CARGO_PKG_VERSION");
                let _ = write!(
                    self.message,
                    "<{priority}>1 {time} {hostname} bibd - {} [origin software=\"bibd\" swVersion=\"{version}\"] ",
                    message_id(action),
                );
                let room = max_message_bytes.saturating_sub(self.message.len());
                self.events.write_within(row, room, &mut self.message);
                let _ = write!(out, "{} ", self.message.len());
                out.extend_from_slice(&self.message);
            }
        }
    }
}

/// RFC 5424, 6.2.1: what was done is informational, what was announced a notice, what was refused or failed a warning,
/// and an alert an alert.
fn severity(row: &Row<'_>) -> u32 {
    let Some(entry) = &row.entry else { return 5 };
    match entry.result {
        _ if entry.action == crate::action::ALERT => 1,
        "ok" => 6,
        "intent" => 5,
        _ => 4,
    }
}

/// RFC 5424, 6.2.7: at most 32 printable ASCII characters. The column of a tampered row may hold anything.
fn message_id(action: &str) -> &str {
    let is_printable = !action.is_empty() && action.bytes().all(|byte| byte.is_ascii_graphic());
    if is_printable { &action[..action.len().min(32)] } else { "-" }
}

#[cfg(test)]
mod tests {
    use bib_core::canonical;
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;
    use crate::action::{Actor, Outcome, Via};
    use crate::chain::{ChainState, HEAD_0, next_head};
    use crate::entry::{Entry, EntryDraft};
    use crate::verify::{DetailRow, EntryRow, SealRow};

    fn node() -> PeerId {
        PeerId::from_public_key([7; 32])
    }

    fn entry(actor: &str, target: &str, details: Value) -> Entry {
        let id = Uuid::from_u128(7 << 76 | 2 << 62);
        let draft = EntryDraft {
            id,
            time: Timestamp::from_micros(1_763_665_260_000_001),
            node: node(),
            actor: Actor::Anonymous(actor.to_owned()),
            via: Via::Tls,
            action: "call.refused".to_owned(),
            target: target.to_owned(),
            result: Outcome::Denied,
            operation: bib_core::OperationId::from_uuid(id),
            job: None,
            origin: None,
            statements: Vec::new(),
            details,
            salt: [9; 32],
        };
        draft.build().unwrap()
    }

    /// What an encoder makes of an entry, sealed as the first of epoch 3.
    fn encoded(entry: &Entry, wire: Wire, details: DetailsForm) -> String {
        let seal = ChainState::new(3).seal([(entry.id, entry.digest)]).remove(0);
        let columns = &entry.columns;
        let row = Row {
            seal: SealRow {
                epoch: seal.epoch,
                seq: seal.seq,
                entry: seal.entry,
                digest: seal.digest.as_bytes(),
                head: seal.head.as_bytes(),
            },
            entry: Some(EntryRow {
                id: entry.id,
                time: entry.time,
                node: &columns.node,
                actor: &columns.actor,
                via: columns.via,
                action: &columns.action,
                target: &columns.target,
                result: &columns.result,
                operation: columns.operation,
                job: columns.job,
                body: &entry.body,
            }),
            detail: Some(DetailRow { salt: &entry.detail.salt, details: &entry.detail.bytes }),
        };
        let mut out = Vec::new();
        Encoder::new(node(), wire, details).encode(&row, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn syslog(max_message_bytes: usize) -> Wire {
        Wire::Syslog { facility: FACILITY_AUDIT, hostname: "node.example.org".to_owned(), max_message_bytes }
    }

    /// security.md, B-AUD 55.
    const HOSTILE: &str = "a\0b\nforged line\r\n\u{1b}]52;c;x\u{7}\u{9b}31m\u{2028}\u{85}\u{202e}\u{e0001}\"\\ Жук 🐞";

    #[test]
    fn nothing_in_a_name_splits_a_record_or_reaches_a_terminal() {
        let entry = entry(HOSTILE, HOSTILE, json!({ "said": HOSTILE }));
        for wire in [Wire::Lines, Wire::Bulk, syslog(65_536)] {
            for details in [DetailsForm::Text, DetailsForm::Object] {
                let text = encoded(&entry, wire.clone(), details);
                let lines = if wire == Wire::Bulk { 2 } else { 1 };
                assert!(text.trim_end_matches('\n').bytes().all(|b| b == b'\n' || (0x20..0x7f).contains(&b)), "{text}");
                assert_eq!(text.lines().count(), lines, "{text}");
                let json = &text[text.rfind("{\"details\"").unwrap_or_else(|| text.rfind("{\"@").unwrap())..];
                let event: Value = serde_json::from_str(json.trim_end()).unwrap();
                assert_eq!(event["entry"]["actor"], format!("anonymous:{HOSTILE}"));
            }
        }
    }

    #[test]
    fn who_receives_an_event_can_check_it() {
        let entry = entry("Ünal", "topic:x", json!({ "n": 1 }));
        let event: Value = serde_json::from_str(&encoded(&entry, Wire::Lines, DetailsForm::Object)).unwrap();
        let digest = crate::body::digest(&canonical::to_vec(&event["entry"]).unwrap());
        assert_eq!(event["digest"], digest.to_string());
        assert_eq!(event["head"], next_head(&HEAD_0, &digest).to_string());
        let salt = hex::decode(event["salt"].as_str().unwrap()).unwrap();
        let details = crate::body::details_hash(&salt, &canonical::to_vec(&event["details"]).unwrap());
        assert_eq!(event["entry"]["details"], details.to_string());
        let text: Value = serde_json::from_str(&encoded(&entry, Wire::Lines, DetailsForm::Text)).unwrap();
        assert_eq!(text["details"], r#"{"n":1}"#);
        let omitted: Value = serde_json::from_str(&encoded(&entry, Wire::Lines, DetailsForm::Omit)).unwrap();
        assert!(omitted.get("details").is_none() && omitted.get("salt").is_none() && omitted.get("reduced").is_none());
    }

    #[test]
    fn a_syslog_frame_is_as_long_as_it_says_and_no_longer_than_the_receiver_takes() {
        for (details, target) in [(10, 10), (20_000, 10), (20_000, 2_000)] {
            let entry = entry("eve", &"ж".repeat(target), json!({ "text": "d".repeat(details) }));
            let frame = encoded(&entry, syslog(2_048), DetailsForm::Text);
            let (length, message) = frame.split_once(' ').unwrap();
            assert_eq!(length.parse::<usize>().unwrap(), message.len());
            assert!(message.len() <= 2_048, "{}", message.len());
            let head = "<108>1 2025-11-20T19:01:00.000001Z node.example.org bibd - call.refused \
                        [origin software=\"bibd\" swVersion=\"";
            assert!(message.starts_with(head), "{message}");
            let event: Value = serde_json::from_str(message.split_once("\"] ").unwrap().1).unwrap();
            assert_eq!(event["entry"]["action"], "call.refused");
            let reduced = match (details, target) {
                (10, _) => Value::Null,
                (_, 10) => json!("details"),
                _ => json!("details, entry"),
            };
            assert_eq!(event["reduced"], reduced);
        }
    }

    #[test]
    fn bulk_and_collector_say_what_their_receivers_want() {
        let entry = entry("eve", "x", json!({}));
        let bulk = encoded(&entry, Wire::Bulk, DetailsForm::Text);
        let (action, document) = bulk.split_once('\n').unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(action).unwrap(),
            json!({ "create": { "_id": format!("{}-3-1", node()) } })
        );
        let document: Value = serde_json::from_str(document).unwrap();
        assert_eq!(document["@timestamp"], "2025-11-20T19:01:00.000001Z");
        assert_eq!((&document["epoch"], &document["seq"]), (&json!(3), &json!(1)));
        let wire = Wire::Collector { index: Some("audit \"x\"".to_owned()), source_type: "bib:audit".to_owned() };
        let text = encoded(&entry, wire, DetailsForm::Text);
        assert!(text.ends_with(",\"time\":1763665260.000001}"), "{text}");
        let event: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&event["index"], &event["sourcetype"]), (&json!("audit \"x\""), &json!("bib:audit")));
        assert_eq!(event["event"]["seq"], 1);
    }
}
