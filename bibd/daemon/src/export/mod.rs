//! Where sealed entries go: a file, a syslog receiver, an HTTP collector. A sink takes batches in order and says when
//! they are safe with it; it knows nothing of the log, and the shipper (`services/export.rs`) nothing of sockets.
//!
//! Every wait has a deadline, every failure says whether a pause alone may help, and no secret stands in an error.

mod command;
mod credentials;
mod file;
mod http;
mod syslog;
mod tls;

use std::time::Duration;

use async_trait::async_trait;
use bibd_audit::siem::Wire;
use bibd_catalog::audit::Place;
use bytes::Bytes;

use crate::config::audit::{Sink as Settings, Target};
use crate::secrets::Secrets;

pub use command::CommandSink;
pub use credentials::{Credentials, sealed_name};
pub use file::FileSink;
pub use http::{Endpoint, HttpSink, post_json};
pub use syslog::SyslogSink;

/// Entries encoded for one sink.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The bytes.
    pub bytes: Bytes,
    /// The place of the last entry.
    pub last: Place,
    /// How many entries.
    pub entries: u32,
}

/// What a sink says of a batch that it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Everything up to its end is safe there.
    Safe,
    /// It is on its way; [`Sink::confirm`] says whether it arrived.
    OnItsWay,
}

/// Why a sink did not take a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct SendError {
    /// A sentence without secrets.
    pub reason: String,
    /// What a person can do; `None` when time alone may help.
    pub hint: Option<&'static str>,
    /// The sink asked not to be tried before.
    pub retry_after: Option<Duration>,
    /// The sink wants smaller batches.
    pub is_too_large: bool,
}

impl SendError {
    /// Trying again may help.
    pub fn passing(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: None, retry_after: None, is_too_large: false }
    }

    /// Somebody has to do something, though it is tried again all the same.
    pub fn lasting(reason: impl Into<String>, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..Self::passing(reason) }
    }
}

/// A place that takes entries.
#[async_trait]
pub trait Sink: Send {
    /// Sends a batch. After an error nothing since the last confirmation counts as arrived.
    async fn send(&mut self, batch: &Batch) -> Result<Sent, SendError>;

    /// Waits until everything sent is safe there. Only for sinks that answer [`Sent::OnItsWay`].
    async fn confirm(&mut self) -> Result<(), SendError> {
        Ok(())
    }

    /// Lets go of connections after an error, so that the next attempt begins anew, secrets included.
    fn reset(&mut self) {}
}

/// The sink that the configuration describes. Nothing is opened yet.
#[must_use]
pub fn open(settings: &Settings, secrets: &Secrets) -> Box<dyn Sink> {
    let (timeout, credentials) = (settings.timeout.0, Credentials::new(secrets.clone()));
    match &settings.to {
        Target::File(file) => Box::new(FileSink::new(file)),
        Target::Syslog(syslog) => Box::new(SyslogSink::new(syslog, timeout)),
        Target::Elastic(elastic) => Box::new(HttpSink::new(Endpoint::elastic(elastic), timeout, credentials)),
        Target::Splunk(splunk) => Box::new(HttpSink::new(Endpoint::splunk(splunk), timeout, credentials)),
    }
}

/// How entries are written for this sink.
#[must_use]
pub fn wire(settings: &Settings, hostname: &str) -> Wire {
    match &settings.to {
        Target::File(_) => Wire::Lines,
        Target::Syslog(syslog) => Wire::Syslog {
            facility: syslog.facility,
            hostname: hostname.to_owned(),
            max_message_bytes: usize::try_from(syslog.max_message_bytes.0).unwrap_or(usize::MAX),
        },
        Target::Elastic(_) => Wire::Bulk,
        Target::Splunk(splunk) => {
            Wire::Collector { index: splunk.index.clone(), source_type: splunk.source_type.clone() }
        }
    }
}

/// What a sink is and where, for people.
#[must_use]
pub fn describe(settings: &Settings) -> (&'static str, String) {
    match &settings.to {
        Target::File(file) => ("file", file.path.display().to_string()),
        Target::Syslog(syslog) => ("syslog", syslog.address.clone()),
        Target::Elastic(elastic) => ("elastic", format!("{}/{}", elastic.url.trim_end_matches('/'), elastic.index)),
        Target::Splunk(splunk) => ("splunk", splunk.url.clone()),
    }
}
