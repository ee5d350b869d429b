//! What rules see of an entry.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use bib_core::{Hash, Timestamp};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use serde_json::Value as Json;

use crate::body::{BodyError, EntryView};
use crate::entry::MAX_DETAILS_BYTES;
use crate::verify::Position;

/// The names that a rule may use.
pub(super) const VARIABLES: &[&str] = &[
    "action",
    "actor",
    "component",
    "details",
    "epoch",
    "hour",
    "job",
    "node",
    "operation",
    "result",
    "role",
    "rows",
    "seq",
    "source",
    "statements",
    "target",
    "time",
    "unknown_statements",
    "us",
    "via",
];

/// A list or a map of CEL, made when a rule first asks for it.
type Made = OnceLock<Option<Box<dyn Val>>>;

/// An entry as rules see it. Values are made when a rule asks for them.
#[derive(Debug)]
pub struct Facts<'a> {
    view: EntryView<'a>,
    details: Json,
    /// Where it stands.
    pub at: Position,
    /// When it was.
    pub time: Timestamp,
    unknown_statements: u64,
    made_details: Made,
    made_statements: Made,
}

impl<'a> Facts<'a> {
    /// Of a sealed entry: its body, its details if they are there, and the statements that the program is known to make.
    /// Details that no entry of ours can have, being larger, are as if they were not there.
    ///
    /// # Errors
    /// When the body is not one, or larger than one can be.
    pub fn read(
        body: &'a [u8],
        details: Option<&[u8]>,
        at: Position,
        known: &HashSet<String>,
    ) -> Result<Self, BodyError> {
        let view = EntryView::parse(body)?;
        let details = details.filter(|bytes| bytes.len() <= MAX_DETAILS_BYTES);
        let details = details.and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or(Json::Null);
        let time = view.time.parse().unwrap_or(Timestamp::from_micros(0));
        let foreign = view.statements.iter().filter(|s| s.class != "rest" && !known.contains(s.hash.as_ref())).count();
        Ok(Self {
            view,
            details,
            at,
            time,
            unknown_statements: foreign as u64,
            made_details: Made::new(),
            made_statements: Made::new(),
        })
    }

    /// The action.
    #[must_use]
    pub fn action(&self) -> &str {
        &self.view.action
    }

    /// Who acted.
    #[must_use]
    pub fn actor(&self) -> &str {
        &self.view.actor
    }

    /// What was acted upon.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.view.target
    }

    /// How it ended.
    #[must_use]
    pub fn result(&self) -> &str {
        &self.view.result
    }

    /// The address that the call came from, without its port, where the details tell one; else the actor.
    #[must_use]
    pub fn source(&self) -> Cow<'_, str> {
        let peer = ["peer", "address"].iter().find_map(|name| self.details.get(name)?.as_str());
        match peer.map(|text| text.parse::<SocketAddr>().map(|a| a.ip()).or_else(|_| text.parse::<IpAddr>())) {
            Some(Ok(address)) => Cow::Owned(address.to_canonical().to_string()),
            _ => Cow::Borrowed(self.actor()),
        }
    }

    /// An entry with something of everything, for trying out.
    pub(super) fn sample() -> Facts<'static> {
        let hash = Hash::of(b"").to_string();
        let statement = crate::body::StatementView {
            class: "select".into(),
            hash: hash.clone().into(),
            rows: 1,
            table: "topics".into(),
            us: 1,
        };
        let view = EntryView {
            action: "topic.create".into(),
            actor: "user:00000000-0000-7000-8000-000000000000:ada".into(),
            component: Some("grpc".into()),
            details: hash.into(),
            format: crate::body::FORMAT.into(),
            id: "00000000-0000-7000-8000-000000000000".into(),
            job: None,
            node: "12D3KooW".into(),
            operation: "00000000-0000-7000-8000-000000000000".into(),
            result: "ok".into(),
            role: Some("bibd_service".into()),
            statements: vec![statement],
            target: "topic:x".into(),
            time: "2026-01-01T00:00:00.000000Z".into(),
            via: "socket".into(),
        };
        let time = Timestamp::from_micros(0);
        let at = Position { epoch: 1, seq: 1 };
        Facts {
            view,
            details: Json::Object(serde_json::Map::new()),
            at,
            time,
            unknown_statements: 0,
            made_details: Made::new(),
            made_statements: Made::new(),
        }
    }

    fn value(&self, name: &str) -> Option<cel::Value> {
        let text = |text: &str| cel::Value::from(text.to_owned());
        let number = |number: u64| cel::Value::Int(i64::try_from(number).unwrap_or(i64::MAX));
        let sum = |of: fn(&crate::body::StatementView<'_>) -> u64| {
            number(self.view.statements.iter().map(of).fold(0, u64::saturating_add))
        };
        Some(match name {
            "action" => text(&self.view.action),
            "actor" => text(&self.view.actor),
            "component" => text(self.view.component.as_deref().unwrap_or_default()),
            "epoch" => number(self.at.epoch),
            "hour" => number(u64::from(self.time.to_offset().hour())),
            "job" => text(self.view.job.as_deref().unwrap_or_default()),
            "node" => text(&self.view.node),
            "operation" => text(&self.view.operation),
            "result" => text(&self.view.result),
            "role" => text(self.view.role.as_deref().unwrap_or_default()),
            "rows" => sum(|statement| statement.rows),
            "seq" => number(self.at.seq),
            "source" => text(&self.source()),
            "target" => text(&self.view.target),
            "time" => text(&self.view.time),
            "unknown_statements" => number(self.unknown_statements),
            "us" => sum(|statement| statement.us),
            "via" => text(&self.view.via),
            _ => return None,
        })
    }
}

fn made(from: &impl serde::Serialize) -> Option<Box<dyn Val>> {
    integers(cel::to_value(from).ok()?).try_into().ok()
}

/// JSON has one kind of number, canonical JSON only integers: all are `int`, so that `details.n > 5` compares.
fn integers(value: cel::Value) -> cel::Value {
    match value {
        cel::Value::UInt(n) => cel::Value::Int(i64::try_from(n).unwrap_or(i64::MAX)),
        cel::Value::List(items) => cel::Value::List(Arc::new(items.iter().cloned().map(integers).collect())),
        cel::Value::Map(map) => {
            let pairs = map.map.iter().map(|(key, value)| (key.clone(), integers(value.clone())));
            cel::Value::Map(cel::objects::Map { map: Arc::new(pairs.collect()) })
        }
        other => other,
    }
}

impl VariableResolver for Facts<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        let made = match name {
            "details" => self.made_details.get_or_init(|| match &self.details {
                object @ Json::Object(_) => made(object),
                _ => made(&serde_json::Map::new()),
            }),
            "statements" => self.made_statements.get_or_init(|| made(&self.view.statements)),
            _ => return Some(CowVal::Owned(self.value(name)?.try_into().ok()?)),
        };
        made.as_deref().map(CowVal::Borrowed)
    }
}
