//! Tells the local network that a node is here: multicast DNS (RFC 6762) and DNS service discovery (RFC 6763), as
//! `<peer id>._bib._tcp.local`.
//!
//! What is told is what a node shows to whoever connects: its peer id, its CA's fingerprint, its version. Nothing of it
//! is believed by those who hear it: a client holds the node that answers against what its person was given.

use std::net::{IpAddr, SocketAddr};

use bib_core::PeerId;
use bib_identity::Fingerprint;
use mdns_sd::{IfKind, ServiceDaemon, ServiceInfo};
use tokio_util::sync::CancellationToken;

use crate::config::Mdns;
use crate::supervisor::TaskResult;

/// The service's type.
const SERVICE: &str = "_bib._tcp.local.";

/// What is told of a node.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// Its key.
    pub peer_id: PeerId,
    /// SHA-256 of its CA's key.
    pub ca: Fingerprint,
    /// Where it listens; unspecified addresses stand for every interface's.
    pub listens: Vec<SocketAddr>,
    /// How far it is told.
    pub mdns: Mdns,
}

impl Announcement {
    /// The addresses that are told, of one port: that of the first address that may be told. `None` when there is none.
    fn told(&self) -> Option<(Vec<IpAddr>, u16)> {
        let may = |address: &&SocketAddr| match self.mdns {
            Mdns::Off => false,
            Mdns::Network => !address.ip().is_loopback(),
            Mdns::Always => true,
        };
        let port = self.listens.iter().find(may)?.port();
        let addresses = self.listens.iter().filter(may).filter(|address| address.port() == port);
        Some((addresses.map(SocketAddr::ip).collect(), port))
    }

    /// Whether there is anything to tell.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.told().is_some()
    }

    /// Tells it until `stop`, and then says goodbye.
    ///
    /// # Errors
    /// When multicast cannot be used here.
    pub async fn run(self, stop: CancellationToken) -> TaskResult {
        let Some((addresses, port)) = self.told() else { return Ok(()) };
        let everywhere = addresses.iter().any(IpAddr::is_unspecified);
        let daemon = ServiceDaemon::new()?;
        let name = self.peer_id.to_string();
        let host = format!("bib-{}.local.", &name[name.len() - 12..].to_lowercase());
        let (ca, version) = (self.ca.to_string(), env!("CARGO_PKG_VERSION").to_owned());
        let facts = [("node", name.clone()), ("ca", ca), ("version", version)];
        let info = if everywhere {
            daemon.disable_interface(vec![IfKind::LoopbackV4, IfKind::LoopbackV6])?;
            ServiceInfo::new(SERVICE, &name, &host, "", port, &facts[..])?.enable_addr_auto()
        } else {
            daemon.disable_interface(IfKind::All)?;
            daemon.enable_interface(addresses.iter().copied().map(IfKind::Addr).collect::<Vec<_>>())?;
            ServiceInfo::new(SERVICE, &name, &host, &addresses[..], port, &facts[..])?
        };
        let full_name = info.get_fullname().to_owned();
        daemon.register(info)?;
        tracing::info!(service = full_name, port, "the local network is told of this node");
        stop.cancelled().await;
        // Answers come from a thread of the library; it says goodbye on the network before it ends.
        if let Ok(done) = daemon.unregister(&full_name) {
            drop(done.recv_async().await);
        }
        if let Ok(done) = daemon.shutdown() {
            drop(done.recv_async().await);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(mdns: Mdns, listens: &[&str]) -> Option<(Vec<IpAddr>, u16)> {
        let listens = listens.iter().map(|text| text.parse().unwrap()).collect();
        let peer_id = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X".parse().unwrap();
        Announcement { peer_id, ca: Fingerprint::of(b"a key"), listens, mdns }.told()
    }

    #[test]
    fn what_this_machine_alone_reaches_is_not_told_unless_somebody_means_it() {
        let outside: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap()];
        assert_eq!(told(Mdns::Network, &["127.0.0.1:4000", "192.0.2.1:4001"]), Some((outside.clone(), 4001)));
        assert_eq!(told(Mdns::Network, &["127.0.0.1:4000", "[::1]:4000"]), None);
        assert_eq!(told(Mdns::Always, &["127.0.0.1:4000"]).unwrap().1, 4000);
        assert_eq!(told(Mdns::Off, &["192.0.2.1:4000"]), None);
        // One service has one port.
        assert_eq!(told(Mdns::Network, &["192.0.2.1:4000", "192.0.2.2:5000"]), Some((outside, 4000)));
    }
}
