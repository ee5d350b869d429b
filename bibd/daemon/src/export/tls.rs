//! Connections to receivers: TCP, and TLS with the authorities that the configuration names.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bib_identity::file;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::SendError;
use super::credentials::{blocking, of_file, read_file};
use crate::config::audit::TlsTrust;
use crate::grpc::error::chain;

/// The most certificates of authorities, in bytes.
const MAX_CA_BYTES: u64 = 1 << 20;

/// A TCP connection within `timeout`. Every address of the host is tried.
///
/// # Errors
/// When no address answers.
pub(super) async fn connect_tcp(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, SendError> {
    let failed = |why: String| SendError::passing(format!("connect to {host}:{port}: {why}"));
    let bare = host.trim_matches(['[', ']']);
    let stream = tokio::time::timeout(timeout, TcpStream::connect((bare, port)))
        .await
        .map_err(|_| failed(format!("no answer within {} s", timeout.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    stream.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
    Ok(stream)
}

/// The same with TLS on it.
///
/// # Errors
/// When no address answers, or the receiver is not who it should be.
pub(super) async fn connect_tls(
    host: &str,
    port: u16,
    trust: &TlsTrust,
    timeout: Duration,
) -> Result<TlsStream<TcpStream>, SendError> {
    let config = client_config(trust.clone()).await?;
    let name = trust.server_name.as_deref().unwrap_or(host).trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(name)
        .map_err(|_| SendError::lasting("the receiver's name is not one", "set `tls.server_name`"))?;
    let stream = connect_tcp(host, port, timeout).await?;
    let handshake = TlsConnector::from(config).connect(name, stream);
    match tokio::time::timeout(timeout, handshake).await {
        Err(_) => Err(SendError::passing(format!("{host}:{port}: no TLS within {} s", timeout.as_secs()))),
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(refused_tls(host, port, &error)),
    }
}

fn refused_tls(host: &str, port: u16, error: &io::Error) -> SendError {
    let reason = format!("TLS with {host}:{port}: {}", chain(error));
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(_)) => SendError::lasting(
            reason,
            "nothing was sent: see whether the receiver's certificate was changed on purpose, then `tls.ca_file`",
        ),
        Some(rustls::Error::AlertReceived(_)) => {
            SendError::lasting(reason, "the receiver refuses: see whether it wants `tls.certificate_file`")
        }
        _ => SendError::passing(reason),
    }
}

/// Read anew for every connection: files may have been replaced.
async fn client_config(trust: TlsTrust) -> Result<Arc<ClientConfig>, SendError> {
    blocking(move || {
        let roots = match &trust.ca_file {
            Some(path) => {
                let text = file::read_public(path, MAX_CA_BYTES).map_err(|error| of_file(&error))?;
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(&text) {
                    let added =
                        certificate.map_err(|e| e.to_string()).and_then(|c| roots.add(c).map_err(|e| e.to_string()));
                    added.map_err(|error| bad_pem(path, &error))?;
                }
                if roots.is_empty() {
                    return Err(bad_pem(path, "it holds no certificate"));
                }
                roots
            }
            None => machine_roots()?,
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| SendError::passing(format!("prepare TLS: {error}")))?
            .with_root_certificates(roots);
        let config = match trust.certificate_file.as_ref().zip(trust.key_file.as_ref()) {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let text = file::read_public(certificate, MAX_CA_BYTES).map_err(|error| of_file(&error))?;
                let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
                    .collect::<Result<_, _>>()
                    .map_err(|error| bad_pem(certificate, &error.to_string()))?;
                let private = PrivateKeyDer::from_pem_slice(&read_file(key)?)
                    .map_err(|_| bad_pem(key, "it holds no private key"))?;
                builder
                    .with_client_auth_cert(chain, private)
                    .map_err(|error| bad_pem(certificate, &error.to_string()))?
            }
        };
        Ok(Arc::new(config))
    })
    .await
}

fn machine_roots() -> Result<RootCertStore, SendError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(SendError::lasting(
            "this machine has no list of certificate authorities",
            "install `ca-certificates`, or name the receiver's with `tls.ca_file`",
        ));
    }
    Ok(roots)
}

fn bad_pem(path: &std::path::Path, why: &str) -> SendError {
    SendError::lasting(format!("`{}`: {why}", path.display()), "it must be a PEM file")
}
