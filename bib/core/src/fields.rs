//! Reading and writing the members of a canonical JSON object by name, with errors that name the member.
//!
//! Every format in this crate keeps members it does not know: `Fields::rest` is what is left after the known ones
//! were taken, and `put` writes known members over it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::canonical::CanonicalError;

/// The members of an object that the format does not know. They are kept and written again.
pub type Extra = Map<String, Value>;

/// A member is missing, or says what it may not say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: {problem}")]
pub struct FieldError {
    /// Where: a dotted path such as `metadata.creators[2].orcid`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl FieldError {
    /// An error about `field`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

/// The members of one object that were not taken yet.
pub(crate) struct Fields {
    at: String,
    members: Map<String, Value>,
}

impl Fields {
    /// The members of `value`, which stands at the dotted path `at` (empty for the outermost object).
    pub(crate) fn of(value: Value, at: &str) -> Result<Self, FieldError> {
        match value {
            Value::Object(members) => Ok(Self { at: at.to_owned(), members }),
            _ => Err(FieldError::new(if at.is_empty() { "." } else { at }, "an object is needed")),
        }
    }

    /// The dotted path of the member `name`.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.at.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at) }
    }

    /// An error about the member `name`.
    pub(crate) fn error(&self, name: &str, problem: impl Into<String>) -> FieldError {
        FieldError::new(self.path(name), problem)
    }

    /// Takes a member as it is.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.members.remove(name)
    }

    /// Takes a member that may be absent.
    pub(crate) fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, FieldError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        T::deserialize(value).map(Some).map_err(|e| self.error(name, e.to_string()))
    }

    /// Takes a member that must be there.
    pub(crate) fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, FieldError> {
        self.optional(name)?.ok_or_else(|| self.error(name, "missing"))
    }

    /// Takes a text of one line that may be absent.
    pub(crate) fn optional_line(&mut self, name: &str, max_bytes: usize) -> Result<Option<String>, FieldError> {
        let text: Option<String> = self.optional(name)?;
        if let Some(text) = &text {
            check_line(text, max_bytes).map_err(|problem| self.error(name, problem))?;
        }
        Ok(text)
    }

    /// Takes a text of one line that must be there.
    pub(crate) fn line(&mut self, name: &str, max_bytes: usize) -> Result<String, FieldError> {
        self.optional_line(name, max_bytes)?.ok_or_else(|| self.error(name, "missing"))
    }

    /// Takes an object that must be there.
    pub(crate) fn object(&mut self, name: &str) -> Result<Self, FieldError> {
        let value = self.take(name).ok_or_else(|| self.error(name, "missing"))?;
        Self::of(value, &self.path(name))
    }

    /// Takes a list that may be absent, as values with their dotted paths. At most `max` items.
    pub(crate) fn list(&mut self, name: &str, max: usize) -> Result<Vec<(String, Value)>, FieldError> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) if items.len() <= max => {
                let path = self.path(name);
                Ok(items.into_iter().enumerate().map(|(i, item)| (format!("{path}[{i}]"), item)).collect())
            }
            Some(Value::Array(_)) => Err(self.error(name, format!("more than {max} items"))),
            Some(_) => Err(self.error(name, "a list is needed")),
        }
    }

    /// What was not taken: members that the format does not know.
    pub(crate) fn rest(self) -> Extra {
        self.members
    }
}

/// Whether `text` is one line: 1..`max_bytes` bytes without control characters.
pub(crate) fn check_line(text: &str, max_bytes: usize) -> Result<(), String> {
    check_text(text, max_bytes, |c| c.is_control())
}

/// Whether `text` is a paragraph: 1..`max_bytes` bytes without control characters other than newline.
pub(crate) fn check_paragraph(text: &str, max_bytes: usize) -> Result<(), String> {
    check_text(text, max_bytes, |c| c.is_control() && c != '\n')
}

fn check_text(text: &str, max_bytes: usize, refused: impl Fn(char) -> bool) -> Result<(), String> {
    if text.is_empty() {
        return Err("empty".to_owned());
    }
    if text.len() > max_bytes {
        return Err(format!("{} bytes, at most {max_bytes} are allowed", text.len()));
    }
    match text.chars().find(|c| refused(*c)) {
        Some(c) => Err(format!("the control character U+{:04X} is not allowed", u32::from(c))),
        None => Ok(()),
    }
}

/// Writes the member `name` over what `map` holds.
pub(crate) fn put<T: Serialize + ?Sized>(map: &mut Extra, name: &str, value: &T) -> Result<(), CanonicalError> {
    let value = serde_json::to_value(value).map_err(|e| CanonicalError::Syntax(e.to_string()))?;
    map.insert(name.to_owned(), value);
    Ok(())
}

/// Writes the member `name`, or leaves it out when there is no value.
pub(crate) fn put_some<T: Serialize>(map: &mut Extra, name: &str, value: Option<&T>) -> Result<(), CanonicalError> {
    match value {
        Some(value) => put(map, name, value),
        None => {
            map.remove(name);
            Ok(())
        }
    }
}
