//! Nodes that tell the local network of themselves (multicast DNS, `_bib._tcp.local`). What they tell is no reason to
//! trust them: it only spares a person the typing of an address.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bib_core::PeerId;
use bib_identity::Fingerprint;
use mdns_sd::{ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent};

use crate::errors::{Failure, Result};
use crate::output::record;

/// The service's type.
const SERVICE: &str = "_bib._tcp.local.";
/// Answers come within a fraction of a second.
const LISTEN: Duration = Duration::from_secs(2);
/// More nodes than that are not one laboratory's.
const MAX_NODES: usize = 256;

record! {
    /// A node that told of itself.
    FoundRow { address: String = Text, node: String = Text, ca_fingerprint: String = Text, version: String = Text }
}

/// Listens for two seconds. Sorted by address.
///
/// # Errors
/// When multicast cannot be used here.
pub(crate) async fn discover() -> Result<Vec<FoundRow>> {
    let failed = |error: mdns_sd::Error| {
        Failure::failed(format!("the local network cannot be asked for nodes: {error}"))
            .with_hint("name the node: `bib connect HOST:PORT`")
    };
    let daemon = ServiceDaemon::new().map_err(failed)?;
    let events = daemon.browse(SERVICE).map_err(failed)?;
    let until = Instant::now() + LISTEN;
    let mut found = BTreeMap::new();
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        let Ok(Ok(event)) = tokio::time::timeout(left, events.recv_async()).await else { break };
        if let ServiceEvent::ServiceResolved(service) = event
            && let Some(row) = row(&service)
            && found.len() < MAX_NODES
        {
            found.insert((row.address.clone(), row.node.clone()), row);
        }
    }
    if let Ok(ended) = daemon.shutdown() {
        drop(ended.recv_async().await);
    }
    Ok(found.into_values().collect())
}

/// `None` for what no node of ours says.
fn row(service: &ResolvedService) -> Option<FoundRow> {
    let text = |key: &str| service.get_property_val_str(key).unwrap_or_default();
    let node: PeerId = text("node").parse().ok()?;
    let ca: Fingerprint = text("ca").parse().ok()?;
    // IPv4 first, and this machine's own address last; a link-local IPv6 address means nothing without its interface.
    let mut addresses: Vec<_> = service.addresses.iter().map(ScopedIp::to_ip_addr).collect();
    addresses.retain(|ip| !matches!(ip, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local()));
    addresses.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6(), *ip));
    let address = std::net::SocketAddr::new(*addresses.first()?, service.port);
    Some(FoundRow {
        address: address.to_string(),
        node: node.to_string(),
        ca_fingerprint: ca.to_string(),
        version: text("version").chars().filter(char::is_ascii_graphic).take(32).collect(),
    })
}
