//! The client against a node in memory: there and back, and against one that lies.
#![allow(clippy::unwrap_used)]

mod hostile;
mod round_trip;
mod support;
