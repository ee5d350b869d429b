//! The node's CA and its server certificate: there at start, renewed 30 days before the end without a restart.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bib_core::PeerId;
use bib_identity::ca::{CaError, ServerSubject};
use bib_identity::sealed::SealError;
use bib_identity::server_certificate::{Renewal, ServerCertificate};
use bib_identity::server_tls::{ServerChain, ServerTls, ServerTlsError};
use bib_identity::{CertificateAuthority, SanName};
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Entropy};
use crate::config;
use crate::grpc::health::{Condition, HealthBoard};
use crate::secrets::Secrets;
use crate::supervisor::TaskResult;

/// How often the server certificate is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// The authority or its files.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// The secrets.
    #[error(transparent)]
    Sealed(#[from] SealError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] ServerTlsError),
}

impl CertificatesError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Authority(error) => error.hint(),
            Self::Sealed(error) => error.hint(),
            Self::Tls(_) => None,
        }
    }
}

/// What the server shows and who signs for it.
pub struct Certificates {
    /// The authority.
    pub authority: Arc<CertificateAuthority>,
    /// The exchangeable part of TLS.
    pub tls: Arc<ServerTls>,
    renewal: Renewing,
}

/// What is needed to renew.
#[derive(Clone)]
struct Renewing {
    directory: PathBuf,
    secrets: Secrets,
    peer: PeerId,
    names: Vec<SanName>,
    validity: Duration,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
}

/// What [`Certificates::ensure`] needs.
#[derive(Debug, Clone)]
pub struct CertificateSettings<'a> {
    /// `certs/`.
    pub directory: PathBuf,
    /// Who the node is.
    pub peer: PeerId,
    /// The configuration.
    pub tls: &'a config::Tls,
    /// Where TLS is served.
    pub addresses: &'a [SocketAddr],
}

impl Certificates {
    /// The CA and server certificate of this node, made or renewed where due.
    ///
    /// # Errors
    /// [`CertificatesError`]; a CA that is lost or does not fit is never made anew.
    pub fn ensure(
        settings: CertificateSettings<'_>,
        secrets: &Secrets,
        clock: &Arc<dyn Clock>,
        entropy: &Entropy,
    ) -> Result<Self, CertificatesError> {
        bib_identity::file::ensure_private_dir(&settings.directory).map_err(CaError::File)?;
        let authority = Arc::new(CertificateAuthority::ensure(
            &settings.directory,
            &secrets.directory()?,
            clock.now(),
            &mut entropy.clone(),
        )?);
        let renewal = Renewing {
            directory: settings.directory,
            secrets: secrets.clone(),
            peer: settings.peer,
            names: names(settings.tls, settings.addresses)?,
            validity: Duration::from_secs(u64::from(settings.tls.server_validity_days) * 86_400),
            clock: Arc::clone(clock),
            entropy: entropy.clone(),
        };
        let (certificate, _) = renewal.ensure(&authority)?;
        let tls = ServerTls::new(chain(&certificate, &authority))?;
        Ok(Self { authority, tls, renewal })
    }

    /// A task that looks every hour whether the certificate is due, and exchanges it.
    pub fn renewing(
        &self,
        health: HealthBoard,
    ) -> impl FnMut(CancellationToken) -> futures::future::BoxFuture<'static, TaskResult> + Send + 'static + use<> {
        let (authority, tls, renewal) = (Arc::clone(&self.authority), Arc::clone(&self.tls), self.renewal.clone());
        move |stop| {
            let (authority, tls, renewal, health) =
                (Arc::clone(&authority), Arc::clone(&tls), renewal.clone(), health.clone());
            Box::pin(async move {
                loop {
                    renew(&renewal, &authority, &tls, &health);
                    if stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
                        return Ok(());
                    }
                }
            })
        }
    }
}

fn renew(renewal: &Renewing, authority: &CertificateAuthority, tls: &ServerTls, health: &HealthBoard) {
    let outcome = renewal.ensure(authority).and_then(|(certificate, made)| {
        if made == Renewal::Issued {
            tls.replace(chain(&certificate, authority))?;
            let info = certificate.info();
            tracing::info!(certificate.sha256 = %info.sha256, not_after = %info.not_after, "the server certificate was renewed");
        }
        Ok(())
    });
    match outcome {
        Ok(()) => health.set("certificates", Condition::Serving),
        Err(error) => {
            tracing::error!(error.cause = %crate::grpc::error::chain(&error), "the server certificate cannot be renewed");
            health.set("certificates", Condition::Degraded("the server certificate cannot be renewed".to_owned()));
        }
    }
}

impl Renewing {
    fn ensure(&self, authority: &CertificateAuthority) -> Result<(ServerCertificate, Renewal), CertificatesError> {
        let subject = ServerSubject { peer: self.peer, names: &self.names, validity: self.validity };
        let sealed = self.secrets.directory()?;
        let mut entropy = self.entropy.clone();
        Ok(ServerCertificate::ensure(authority, &self.directory, &sealed, &subject, self.clock.now(), &mut entropy)?)
    }
}

fn chain<'a>(certificate: &'a ServerCertificate, authority: &'a CertificateAuthority) -> ServerChain<'a> {
    ServerChain { certificate, authority: authority.certificate_der(), cross: None, previous: None }
}

/// `localhost`, the host's name, the addresses that are listened on, and what is configured. Clients of ours do not
/// compare names; others may.
fn names(tls: &config::Tls, addresses: &[SocketAddr]) -> Result<Vec<SanName>, CaError> {
    let mut names = vec![SanName::Dns("localhost".to_owned())];
    // A host may have a name that is none; that is no reason not to start.
    names.extend(gethostname::gethostname().to_str().and_then(|name| name.parse().ok()));
    names.extend(addresses.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).map(SanName::Ip));
    for name in &tls.names {
        names.push(name.parse()?);
    }
    names.sort();
    names.dedup();
    Ok(names)
}
