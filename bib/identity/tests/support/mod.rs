//! What the tests share: seeded randomness, a fixed clock, and TLS handshakes in memory.
#![allow(dead_code, unreachable_pub)]

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use bib_core::{KeyFingerprint, PeerId, Timestamp, UserId};
use bib_identity::ca::{CA_VALIDITY, CLIENT_VALIDITY, ClientSubject, SERVER_VALIDITY, ServerSubject};
use bib_identity::certificate::ClientIdentity;
use bib_identity::credentials::{ClientCredentials, Loaded};
use bib_identity::request::CertificateRequest;
use bib_identity::server_tls::{RevocationCheck, RevocationStatus, ServerChain, ServerTls, client_identity};
use bib_identity::token_file::TokenFile;
use bib_identity::trust::{Pin, ServerVerifier, client_config, server_name};
use bib_identity::{CertificateAuthority, SanName, ServerCertificate, TimeSource};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use secrecy::SecretString;

pub const DAY: i64 = 86_400;

pub fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

pub fn now() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

pub fn days(count: i64) -> Timestamp {
    now().plus_seconds(count * DAY)
}

pub fn peer() -> PeerId {
    "12D3KooWHk6NPSsLiRYwrtG2t7FwM9G6b1XoH3t6dFy8ZwXNQqJr".parse().unwrap_or(PeerId::from_public_key([7; 32]))
}

pub fn user() -> UserId {
    "019a9f3c-5a00-7000-8000-000000000001".parse().unwrap()
}

pub fn ssh_key() -> KeyFingerprint {
    KeyFingerprint::of_wire_key(b"somebody's key")
}

pub fn names() -> Vec<SanName> {
    vec!["node.example.org".parse().unwrap(), "127.0.0.1".parse().unwrap(), "::1".parse().unwrap()]
}

/// An authority and a server certificate by it, made at `now()`.
pub struct Node {
    pub authority: CertificateAuthority,
    pub certificate: ServerCertificate,
}

impl Node {
    pub fn new(seed: u64) -> Self {
        Self::of(CertificateAuthority::create(&mut rng(seed), now(), CA_VALIDITY).unwrap(), peer())
    }

    pub fn of(authority: CertificateAuthority, peer: PeerId) -> Self {
        let subject = ServerSubject { names: &names(), peer, validity: SERVER_VALIDITY };
        let certificate = ServerCertificate::issue(&authority, &subject, now(), &mut rng(99)).unwrap();
        Self { authority, certificate }
    }

    pub fn chain(&self) -> ServerChain<'_> {
        ServerChain {
            certificate: &self.certificate,
            authority: self.authority.certificate_der(),
            cross: None,
            previous: None,
        }
    }

    pub fn server(&self, at: Timestamp) -> Arc<ServerConfig> {
        let tls = ServerTls::new(self.chain()).unwrap();
        tls.config(all_good(), clock(at)).unwrap()
    }

    pub fn pin(&self) -> Pin {
        Pin {
            peer_id: peer(),
            alias: None,
            addresses: vec!["node.example.org:7700".to_owned()],
            ca_spki_sha256: self.authority.fingerprint(),
            ca_certificate_pem: Some(self.authority.certificate_pem()),
            first_seen: now(),
            last_seen: None,
        }
    }

    /// Credentials as a log-in would leave them, and their serial number.
    pub fn credentials(&self, validity: Duration) -> (TokenFile, String) {
        let request = CertificateRequest::generate().unwrap();
        let subject = ClientSubject { user: user(), key: ssh_key(), validity };
        let issued = self.authority.issue_client(&request.der, &subject, now(), &mut rng(5)).unwrap();
        let file = TokenFile::new(&request.key_pem, &issued.der, SecretString::from("bibt-abc")).unwrap();
        (file, issued.serial)
    }

    pub fn client_credentials(&self) -> ClientCredentials {
        valid(self.credentials(CLIENT_VALIDITY).0)
    }
}

pub fn valid(file: TokenFile) -> ClientCredentials {
    match ClientCredentials::judge(file, now()) {
        Loaded::Valid(credentials) => credentials,
        other => panic!("{other:?}"),
    }
}

pub fn clock(at: Timestamp) -> TimeSource {
    TimeSource::new(move || at)
}

pub fn all_good() -> Arc<dyn RevocationCheck> {
    Arc::new(|_: &str| RevocationStatus::Good)
}

pub fn client(verifier: Arc<ServerVerifier>, credentials: Option<&ClientCredentials>, at: Timestamp) -> ClientConfig {
    client_config(verifier, credentials, clock(at)).unwrap()
}

/// How a handshake ended on each side; a byte has travelled both ways when both are well.
pub struct Outcome {
    pub client: Result<(), rustls::Error>,
    pub server: Result<Option<ClientIdentity>, rustls::Error>,
    pub alpn: Option<Vec<u8>>,
    pub version: Option<rustls::ProtocolVersion>,
}

/// A whole TLS handshake between two real connections, bytes carried in memory.
pub fn handshake(server: Arc<ServerConfig>, client: ClientConfig) -> Outcome {
    let mut server = ServerConnection::new(server).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), server_name()).unwrap();
    client.writer().write_all(b"?").unwrap();
    let (mut client_result, mut server_result) = (Ok(()), Ok(()));
    for _ in 0..20 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() && server_result.is_ok() {
            server.read_tls(&mut rest).unwrap();
            server_result = server.process_new_packets().map(|_| ());
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() && client_result.is_ok() {
            client.read_tls(&mut rest).unwrap();
            client_result = client.process_new_packets().map(|_| ());
        }
    }
    let mut byte = [0];
    let server_result = server_result.and_then(|()| {
        server.reader().read_exact(&mut byte).map_err(|e| rustls::Error::General(e.to_string()))?;
        Ok(client_identity(server.peer_certificates()).unwrap())
    });
    Outcome {
        client: client_result,
        server: server_result,
        alpn: client.alpn_protocol().map(<[u8]>::to_vec),
        version: client.protocol_version(),
    }
}
