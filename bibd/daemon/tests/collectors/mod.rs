//! Log collectors for tests: real servers on real sockets that misbehave when told to, and remember what they took.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

pub mod http;
pub mod syslog;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bib_core::Hash;
use bib_core::canonical;
use bibd_audit::body;
use bibd_audit::chain::{HEAD_0, next_head};
use serde_json::Value;

/// What a collector took, in the order in which it did.
#[derive(Clone, Default)]
pub struct Taken(Arc<Mutex<Vec<Value>>>);

impl Taken {
    pub fn add(&self, events: impl IntoIterator<Item = Value>) {
        self.0.lock().unwrap().extend(events);
    }

    pub fn all(&self) -> Vec<Value> {
        self.0.lock().unwrap().clone()
    }

    /// The number of the newest entry.
    pub fn upto(&self) -> u64 {
        self.0.lock().unwrap().iter().map(seq).max().unwrap_or(0)
    }
}

pub fn seq(event: &Value) -> u64 {
    event["seq"].as_u64().unwrap()
}

/// Every entry is there, each after the one before it, repeated ones aside; and they are what was sealed: digests follow
/// from bodies and heads from digests, by nothing but what was received. Returns how many were repeated.
pub fn assert_complete(events: &[Value], upto: u64) -> u64 {
    let (mut last, mut head, mut repeated) = (0, HEAD_0, 0);
    let mut heads = vec![HEAD_0];
    for event in events {
        assert_eq!(event["epoch"], 1);
        assert_eq!(event["format"], "bib-audit-event/1");
        let seq = seq(event);
        assert!(seq <= last + 1, "{} is followed by {seq}", last);
        let digest = body::digest(&canonical::to_vec(&event["entry"]).unwrap());
        assert_eq!(event["digest"], digest.to_string());
        let before: Hash = heads[usize::try_from(seq).unwrap() - 1];
        head = if seq == last + 1 { next_head(&before, &digest) } else { head };
        if seq <= last {
            repeated += 1;
            assert_eq!(event["head"], heads[usize::try_from(seq).unwrap()].to_string());
        } else {
            heads.push(head);
            assert_eq!(event["head"], head.to_string());
            last = seq;
        }
    }
    assert!(last >= upto, "{last} of {upto}");
    repeated
}

/// A certificate authority and a server certificate for `localhost` under it.
pub struct Authority {
    pub ca_file: PathBuf,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub fn new(folder: &Path, name: &str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        let ca_file = folder.join(format!("{name}.pem"));
        std::fs::write(&ca_file, certificate.pem()).unwrap();
        Self { ca_file, issuer: rcgen::Issuer::new(params, key) }
    }

    /// What a server needs.
    pub fn server(&self) -> Arc<rustls::ServerConfig> {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let builder = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let private = rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let config = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        Arc::new(config.with_single_cert(vec![certificate.der().clone()], private).unwrap())
    }
}
