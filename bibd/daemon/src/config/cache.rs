//! What a node that is never authoritative keeps, and for how long.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::{Size, Span};

/// What a node that is never authoritative keeps of others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// How long what was fetched is given out, 1 minute to 30 days.
    pub ttl: Span,
    /// How much is kept, at least 16 MiB; the oldest goes first.
    pub max_size: Size,
}

impl Default for Cache {
    fn default() -> Self {
        Self { ttl: Span(Duration::from_secs(86_400)), max_size: Size(1 << 30) }
    }
}
