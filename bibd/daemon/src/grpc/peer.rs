//! Who is at the other end of a connection, before anybody has logged in.

use std::net::{IpAddr, SocketAddr};

use bib_identity::{ClientIdentity, Fingerprint};

/// The other end of a connection, as the operating system or the TLS handshake vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A process on this machine, through the Unix socket.
    Socket {
        /// Its effective uid when it connected.
        uid: u32,
        /// Its effective gid.
        gid: u32,
        /// Its process id, where the system tells.
        pid: Option<i32>,
    },
    /// Somebody over TLS.
    Tls {
        /// Where from.
        remote: SocketAddr,
        /// Who, when a client certificate of this node's CA was shown; checked against the list of revoked ones.
        client: Option<ClientIdentity>,
        /// SHA-256 of the leaf certificate that this connection's handshake showed. A log-in is bound to it.
        server_leaf: Fingerprint,
    },
}

impl Peer {
    /// The remote address, when there is one.
    #[must_use]
    pub fn remote_ip(&self) -> Option<IpAddr> {
        match self {
            Self::Socket { .. } => None,
            Self::Tls { remote, .. } => Some(remote.ip().to_canonical()),
        }
    }

    /// The client certificate's identity, when one was shown.
    #[must_use]
    pub fn client(&self) -> Option<&ClientIdentity> {
        match self {
            Self::Socket { .. } => None,
            Self::Tls { client, .. } => client.as_ref(),
        }
    }
}

impl std::fmt::Display for Peer {
    /// For logs: `uid 1000`, `192.0.2.7:40112`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket { uid, .. } => write!(f, "uid {uid}"),
            Self::Tls { remote, .. } => remote.fmt(f),
        }
    }
}
