//! `bib status`: whether the node is well, and what it holds.

use bib_client::{ErrorKind, pb};
use clap::Args;

use crate::context::Context;
use crate::errors::{Exit, Failure, Result};
use crate::output::record;

/// Shows whether the node is well and, to those who are logged in, what it holds
#[derive(Debug, Args)]
pub(crate) struct Status {}

record! {
    /// The state of the node. What needs a log-in is null without one.
    StatusRow {
        status: String = Text, node: String = Text, address: String = Text, version: String = Text, mode: String = Text,
        uptime_ms: u64 = Millis, ca_fingerprint: String = Text, problems: Vec<String> = Many,
        topics: Option<u64> = Text, datasets: Option<u64> = Text, versions: Option<u64> = Text,
        chunks: Option<u64> = Text, stored_bytes: Option<u64> = Bytes, raw_bytes: Option<u64> = Bytes,
        disk_free_bytes: Option<u64> = Bytes, database: Option<String> = Text, schema: Option<u32> = Text,
        epoch: Option<u64> = Text, listen_addresses: Option<Vec<String>> = Many, socket: Option<String> = Text,
    }
}

impl Status {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<()> {
        let client = context.client().await?;
        let info = client.health().node_info().await?;
        let health = client.health().check("").await?;
        let node = match client.node().get_self().await {
            Ok(node) => Some(node),
            Err(error) if matches!(error.kind(), ErrorKind::Unauthenticated | ErrorKind::Denied) => None,
            Err(error) if health.status() != pb::ServingStatus::Serving => {
                context.output.note(&format!("what it holds is not known: {}", error.chain()));
                None
            }
            Err(error) => return Err(error.into()),
        };
        let logged_in = node.is_some();
        let row = StatusRow {
            status: status_name(health.status()).to_owned(),
            node: info.peer_id,
            address: client.target().address(),
            version: info.version,
            mode: info.mode,
            uptime_ms: info.uptime_ms,
            ca_fingerprint: info.ca_fingerprint,
            problems: problems(&health.components),
            ..node.map(held).unwrap_or_default()
        };
        context.output.one(&row)?;
        if !logged_in && !client.is_logged_in() {
            context.output.note("log in to see what the node holds: bib login");
        }
        match health.status() {
            pb::ServingStatus::NotServing => Err(Failure::said(Exit::Unavailable)),
            _ => Ok(()),
        }
    }
}

fn held(node: pb::GetSelfNodeResponse) -> StatusRow {
    let storage = node.storage.unwrap_or_default();
    let database = node.database.unwrap_or_default();
    StatusRow {
        topics: Some(node.topics),
        datasets: Some(node.datasets),
        versions: Some(node.versions),
        chunks: Some(storage.chunks),
        stored_bytes: Some(storage.stored_bytes),
        raw_bytes: Some(storage.raw_bytes),
        disk_free_bytes: Some(storage.disk_free_bytes),
        database: Some(match database.provisioner.as_str() {
            "sqlite" => format!("SQLite {} (a cache)", database.version),
            provisioner => format!("PostgreSQL {} ({provisioner})", database.version),
        }),
        schema: Some(database.schema),
        epoch: Some(node.epoch),
        listen_addresses: Some(node.listen_addresses),
        socket: Some(node.socket),
        ..StatusRow::default()
    }
}

fn problems(components: &[pb::ComponentHealth]) -> Vec<String> {
    let unwell = components.iter().filter(|component| component.status() != pb::ServingStatus::Serving);
    unwell.map(|component| format!("{}: {}", component.name, component.message)).collect()
}

const fn status_name(status: pb::ServingStatus) -> &'static str {
    match status {
        pb::ServingStatus::Serving => "well",
        pb::ServingStatus::Degraded => "degraded",
        pb::ServingStatus::NotServing => "not-serving",
        pb::ServingStatus::Unspecified => "unknown",
    }
}
