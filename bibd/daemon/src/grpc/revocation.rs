//! Which client certificates count, in memory: asked at each handshake, filled from the catalog at start.
//!
//! A serial that is not in the list is unknown, and unknown means deny. Revoking also cuts live connections.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use bib_identity::server_tls::{RevocationCheck, RevocationStatus};

use crate::grpc::connections::ConnectionRegistry;

/// The list of issued certificates. Cheap to clone.
#[derive(Clone)]
pub struct CertificateList {
    serials: Arc<RwLock<HashMap<String, RevocationStatus>>>,
    connections: ConnectionRegistry,
}

impl std::fmt::Debug for CertificateList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateList")
    }
}

impl CertificateList {
    /// An empty list: nobody with a certificate gets in until [`CertificateList::replace`].
    #[must_use]
    pub fn new(connections: ConnectionRegistry) -> Self {
        Self { serials: Arc::default(), connections }
    }

    /// What the catalog says, at start and at each reconciliation: `(serial, counts)` of every certificate that has
    /// not expired. Connections of certificates that no longer count are cut.
    pub fn replace(&self, rows: impl IntoIterator<Item = (String, bool)>) {
        let state = |counts| if counts { RevocationStatus::Good } else { RevocationStatus::Revoked };
        let fresh: HashMap<_, _> = rows.into_iter().map(|(serial, counts)| (serial, state(counts))).collect();
        let revoked: Vec<String> = fresh
            .iter()
            .filter(|(_, status)| **status == RevocationStatus::Revoked)
            .map(|(serial, _)| serial.clone())
            .collect();
        *self.serials.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        for serial in revoked {
            self.connections.drop_serial(&serial);
        }
    }

    /// A certificate was issued, and its row is committed.
    pub fn issued(&self, serial: &str) {
        self.set(serial, RevocationStatus::Good);
    }

    /// A certificate was revoked, or its user suspended: refuses new handshakes and cuts live connections. Returns how
    /// many were cut.
    pub fn revoked(&self, serial: &str) -> usize {
        self.set(serial, RevocationStatus::Revoked);
        self.connections.drop_serial(serial)
    }

    fn set(&self, serial: &str, status: RevocationStatus) {
        self.serials.write().unwrap_or_else(PoisonError::into_inner).insert(serial.to_owned(), status);
    }
}

impl RevocationCheck for CertificateList {
    fn status(&self, serial: &str) -> RevocationStatus {
        let serials = self.serials.read().unwrap_or_else(PoisonError::into_inner);
        serials.get(serial).copied().unwrap_or(RevocationStatus::Unknown)
    }
}
