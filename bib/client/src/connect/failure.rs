//! Why there is no connection. Travels through tonic as a source and is taken out again in `error.rs`.

use std::fmt;
use std::io;
use std::sync::Arc;

use bib_identity::trust::{StoreError, TrustError};

use crate::error::{Error, ErrorKind, code};

/// Why there is no connection.
#[derive(Debug, Clone)]
pub(crate) enum ConnectFailure {
    /// Nobody answers there.
    Unreachable { address: String, source: Arc<io::Error> },
    /// Whoever answers is not believed.
    Untrusted { address: String, source: Arc<TrustError> },
    /// The trust store cannot be used.
    Store(Arc<StoreError>),
    /// TLS failed for another reason, such as a certificate that the node refuses.
    Tls { address: String, source: Arc<io::Error> },
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { address, .. } => write!(f, "the node at {address} cannot be reached"),
            Self::Untrusted { address, .. } => write!(f, "the node at {address} is not trusted"),
            Self::Store(error) => write!(f, "{error}"),
            Self::Tls { address, .. } => write!(f, "no TLS connection to {address}"),
        }
    }
}

impl std::error::Error for ConnectFailure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreachable { source, .. } | Self::Tls { source, .. } => Some(source.as_ref()),
            Self::Untrusted { source, .. } => Some(source.as_ref()),
            Self::Store(error) => Some(error.as_ref()),
        }
    }
}

impl ConnectFailure {
    /// An error of the handshake, which carries the verifier's reason when it had one.
    pub(crate) fn of_handshake(address: &str, error: io::Error) -> Self {
        match TrustError::find(&error) {
            Some(reason) => Self::untrusted(address, reason.clone()),
            None => Self::Tls { address: address.to_owned(), source: Arc::new(error) },
        }
    }

    /// Whoever answers at `address` is not believed.
    pub(crate) fn untrusted(address: &str, reason: TrustError) -> Self {
        Self::Untrusted { address: address.to_owned(), source: Arc::new(reason) }
    }

    /// Whether trying again could help.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// The same for a person.
    pub(crate) fn to_error(&self) -> Error {
        let message = self.to_string();
        match self {
            Self::Unreachable { address, source } => {
                let hint = match (address.starts_with("unix:"), source.kind()) {
                    (true, io::ErrorKind::PermissionDenied) => {
                        "this user may not open the socket: see `grpc.socket_mode`"
                    }
                    (true, _) => "start the node with `bibd run`",
                    (false, io::ErrorKind::ConnectionRefused) => "check the port, and that the node runs",
                    (false, _) => "check the address and the network between",
                };
                Error::new(ErrorKind::Unavailable, message)
                    .with_code(code::NOT_REACHED)
                    .with_hint(hint)
                    .into_transport()
            }
            Self::Untrusted { source, .. } => {
                let error = Error::new(ErrorKind::Untrusted, message).with_code(code::UNTRUSTED);
                let hint = source.hint().unwrap_or("ask the node's administrator");
                match source.as_ref() {
                    TrustError::NotPinned(shown) => error
                        .with_detail("peer_id", shown.peer_id.to_string())
                        .with_detail("ca_fingerprint", shown.ca_spki_sha256.to_string()),
                    TrustError::CaChanged { peer_id, old, new } => error
                        .with_detail("peer_id", peer_id.to_string())
                        .with_detail("trusted", old.to_string())
                        .with_detail("ca_fingerprint", new.to_string()),
                    TrustError::OtherNode { expected, found } => {
                        error.with_detail("trusted", expected.to_string()).with_detail("peer_id", found.to_string())
                    }
                    _ => error,
                }
                .with_hint(hint)
            }
            Self::Store(source) => {
                let error = Error::new(ErrorKind::Local, message).with_code(code::LOCAL_FILE);
                match source.hint() {
                    Some(hint) => error.with_hint(hint),
                    None => error,
                }
            }
            Self::Tls { .. } => Error::new(ErrorKind::Unavailable, message).with_code(code::NOT_REACHED).with_hint(
                "log in again if the node may have revoked the certificate; else check that this is a BIB node",
            ),
        }
        .with_source(self.clone().into_cause())
    }

    /// The inner error, so that a sentence is not told twice.
    fn into_cause(self) -> Box<dyn std::error::Error + Send + Sync> {
        match self {
            Self::Unreachable { source, .. } | Self::Tls { source, .. } => Box::new(source),
            Self::Untrusted { source, .. } => Box::new(source),
            Self::Store(source) => Box::new(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_node_is_shown_with_what_a_person_compares() {
        let peer: bib_core::PeerId = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X".parse().unwrap();
        let found = bib_identity::Fingerprint::of(b"a key");
        let source = TrustError::OtherNode { expected: peer, found: peer };
        let error = ConnectFailure::untrusted("a:1", source).to_error();
        assert_eq!((error.kind(), error.kind().exit_code()), (ErrorKind::Untrusted, 4));
        let source = TrustError::CaChanged { peer_id: peer, old: found, new: found };
        let error = ConnectFailure::untrusted("a:1", source).to_error();
        assert_eq!(error.detail("ca_fingerprint"), Some(found.to_string().as_str()));
        assert!(error.hint().unwrap().contains("trust replace"));
    }

    #[test]
    fn a_refused_connection_is_unavailable() {
        let source = Arc::new(io::Error::from(io::ErrorKind::ConnectionRefused));
        let error = ConnectFailure::Unreachable { address: "a:1".to_owned(), source }.to_error();
        assert_eq!(error.kind().exit_code(), 5);
        assert!(error.is_transport());
        assert_eq!(error.chain(), "the node at a:1 cannot be reached: connection refused");
    }
}
