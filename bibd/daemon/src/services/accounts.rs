//! What the account services share: the node, its authority, the list of certificates, and who was recognised lately.
//!
//! A change that takes something away (a revocation, a suspension, a lesser role) goes to the catalog first and then to
//! memory. A call that is cut off in between is caught up with by [`Accounts::reconciling`], every two seconds; a
//! revocation in the catalog is final, so the reconciler only ever takes away.

use std::sync::Arc;
use std::time::Duration;

use bib_core::{Hash, KeyFingerprint, UserId};
use bib_identity::ca::{CaError, ClientSubject};
use bib_identity::server_tls::{RevocationCheck as _, RevocationStatus};
use bib_identity::{CertificateAuthority, IssuedCertificate};
use bibd_catalog::Tx;
use bibd_catalog::access::{self, Certificate};
use bibd_catalog::users::{self, User};
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::auth::cache::Recognised;
use super::base::Base;
use super::bootstrap;
use super::error::ServiceError;
use super::journal::Act;
use crate::actor::{Call, Via};
use crate::errors::ErrorCode;
use crate::foundation::Foundation;
use crate::grpc::connections::ConnectionRegistry;
use crate::grpc::revocation::CertificateList;
use crate::supervisor::{Policy, TaskKind, TaskResult};

/// How often memory catches up with revocations in the catalog; well below the five seconds that are promised.
const RECONCILE_EVERY: Duration = Duration::from_secs(2);
/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;
/// What every token begins with, so that scanners for leaked secrets find it.
const TOKEN_PREFIX: &str = "bib_";
/// The longest name of a certificate, in characters.
const MAX_NAME_CHARS: usize = 128;

/// The component that statements of these services run as.
pub(super) const COMPONENT: &str = "accounts";

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Accounts {
    pub(super) base: Base,
    pub(super) authority: Arc<CertificateAuthority>,
    pub(super) certificates: CertificateList,
    connections: ConnectionRegistry,
    pub(super) recognised: Recognised,
    pub(super) client_validity: Duration,
}

impl Accounts {
    /// `client_validity` is how long the certificate of a log-in counts.
    #[must_use]
    pub fn new(
        base: Base,
        authority: Arc<CertificateAuthority>,
        certificates: CertificateList,
        connections: ConnectionRegistry,
        client_validity: Duration,
    ) -> Self {
        let recognised = Recognised::new(Arc::clone(base.ids.clock()));
        Self { base, authority, certificates, connections, recognised, client_validity }
    }

    /// Fills the list of certificates from the catalog. Called once, before anything is served.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn load(&self) -> Result<(), ServiceError> {
        let mut session = self.base.db.read().await?;
        self.certificates.replace(access::standing(&mut session, self.base.now()).await?);
        Ok(())
    }

    /// A task that catches up with revocations that a call could not finish, or that were made in the database.
    pub fn reconciling(
        &self,
    ) -> impl FnMut(CancellationToken) -> BoxFuture<'static, TaskResult> + Send + 'static + use<> {
        let accounts = self.clone();
        move |stop| {
            let accounts = accounts.clone();
            Box::pin(async move {
                while stop.run_until_cancelled(tokio::time::sleep(RECONCILE_EVERY)).await.is_some() {
                    accounts.reconcile().await?;
                }
                Ok(())
            })
        }
    }

    /// Catches up once. Returns how many certificates were still counted that must not be.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn reconcile(&self) -> Result<usize, ServiceError> {
        let mut session = self.base.db.read().await?;
        let revoked = access::revoked(&mut session, self.base.now()).await?;
        drop(session);
        let mut late = 0;
        for serial in revoked.iter().filter(|serial| self.certificates.status(serial) == RevocationStatus::Good) {
            self.certificates.revoked(serial);
            late += 1;
        }
        if late > 0 {
            self.recognised.forget();
            tracing::info!(late, "certificates that had been revoked no longer count");
        }
        Ok(late)
    }

    /// Commits an act that changes who may do what. Whoever was recognised is recognised anew, however this ends.
    pub(super) async fn commit(&self, tx: Tx, call: &Call, act: Act) -> Result<(), ServiceError> {
        let _forget = self.recognised.forget_when_dropped();
        self.base.journal.commit(tx, call, act).await.map(|_| ())
    }

    /// As [`Accounts::commit`]; the certificates with these serials no longer count and their connections are cut. The
    /// caller's own connection is left to the reconciler, so that the answer arrives.
    pub(super) async fn commit_revoking(
        &self,
        tx: Tx,
        call: &Call,
        act: Act,
        serials: &[String],
    ) -> Result<(), ServiceError> {
        // On failure the reconciler decides by what the catalog says.
        self.commit(tx, call, act).await?;
        let own = own_serial(call);
        for serial in serials.iter().filter(|serial| Some(serial.as_str()) != own) {
            let cut = self.certificates.revoked(serial);
            tracing::info!(certificate.serial = %serial, connections = cut, "a certificate was revoked");
        }
        Ok(())
    }

    /// Cuts the connections of a user who may less than before, unless it is the caller: what they were allowed when
    /// they opened a stream, they would go on with.
    pub(super) fn cut(&self, call: &Call, user: &User) {
        if user.id != call.actor.user {
            let cut = self.connections.drop_user(user.id, &user.uids);
            tracing::info!(user.name = %user.name, connections = cut, "a user's connections were cut");
        }
    }

    /// Signs a certificate for the key in `csr` and enters it in the catalog. It counts only after
    /// [`CertificateList::issued`], which the caller tells when the transaction is committed.
    pub(super) async fn issue(&self, tx: &mut Tx, order: Order<'_>) -> Result<Issued, ServiceError> {
        let now = self.base.now();
        // Over the socket no SSH key vouches for the request; the certificate then names the request itself.
        let key = order.key.unwrap_or_else(|| KeyFingerprint::of_wire_key(order.csr));
        let subject = ClientSubject { user: order.user, key, validity: order.validity };
        let signed = self.authority.issue_client(order.csr, &subject, now, &mut self.base.ids.entropy().clone());
        let signed = signed.map_err(|error| match error {
            CaError::Request(error) => ServiceError::invalid("csr", error.to_string()),
            other => ServiceError::internal(other),
        })?;
        let row = Certificate {
            serial: signed.serial.clone(),
            user: order.user,
            name: order.name.to_owned(),
            key_fingerprint: order.key.map(|key| key.to_string()).unwrap_or_default(),
            fingerprint: *signed.sha256.hash(),
            spki: *signed.spki_sha256.hash(),
            not_before: signed.not_before,
            not_after: signed.not_after,
            revoked_at: None,
        };
        access::insert_certificate(tx, &row, now).await?;
        Ok(Issued { signed, row })
    }

    /// The user is active, and with a key, has it; both stay so until the transaction ends.
    pub(super) async fn lock(
        &self,
        tx: &mut Tx,
        user: UserId,
        key: Option<&KeyFingerprint>,
    ) -> Result<bool, ServiceError> {
        // The user first: in the order in which a removal takes them, so that both wait instead of colliding.
        let is_active = users::lock_active(tx, user).await?;
        Ok(match key {
            Some(key) if is_active => users::lock_key(tx, user, key).await?,
            _ => is_active,
        })
    }

    /// The SSH key that vouched for the caller's certificate; none over the socket.
    pub(super) async fn vouching_key(&self, tx: &mut Tx, call: &Call) -> Result<Option<KeyFingerprint>, ServiceError> {
        let (Via::Tls { key, .. }, Some(serial)) = (&call.actor.via, own_serial(call)) else { return Ok(None) };
        let certificate = access::find_certificate(tx, serial).await?;
        Ok(certificate.filter(|row| !row.key_fingerprint.is_empty()).map(|_| *key))
    }

    /// A new token and the hash that is stored of it.
    pub(super) fn new_token(&self) -> (String, Hash) {
        use base64::Engine as _;
        let bytes: [u8; TOKEN_BYTES] = self.base.ids.entropy().bytes();
        let text = format!("{TOKEN_PREFIX}{}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes));
        let hash = Hash::of(text.as_bytes());
        (text, hash)
    }

    /// The authority's certificate, PEM.
    pub(super) fn authority_pem(&self) -> String {
        self.authority.certificate_pem()
    }
}

/// Makes the accounts ready: the first start's admins, the list of certificates, the reconciler. Called before anything
/// is served.
///
/// # Errors
/// When the database does not answer, belongs to another node, or `--admin-key` is no key.
pub async fn start(foundation: &Foundation, base: &Base) -> Result<Accounts, ServiceError> {
    let uid = rustix::process::geteuid().as_raw();
    let owners = bootstrap::owners(uid, bootstrap::sudo_uid()).await;
    let version = env!("CARGO_PKG_VERSION");
    let done = bootstrap::bootstrap(base, &owners, foundation.admin_key.as_deref(), version).await?;
    for name in &done.admins {
        tracing::info!(user.name = %name, "the owner of this node is an admin on its socket");
    }
    let validity = Duration::from_secs(u64::from(foundation.config().tls.client_validity_days) * 86_400);
    let authority = Arc::clone(&foundation.certificates.authority);
    let (list, connections) = (foundation.certificate_list.clone(), foundation.connections.clone());
    let accounts = Accounts::new(base.clone(), authority, list, connections, validity);
    accounts.load().await?;
    let reconciling = accounts.reconciling();
    foundation.supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "revocations", reconciling);
    Ok(accounts)
}

/// What a certificate is issued for.
pub(super) struct Order<'a> {
    /// PKCS#10, DER.
    pub(super) csr: &'a [u8],
    /// Whose it is.
    pub(super) user: UserId,
    /// The SSH key that vouches for it, if one does.
    pub(super) key: Option<KeyFingerprint>,
    /// For people.
    pub(super) name: &'a str,
    /// How long it counts.
    pub(super) validity: Duration,
}

/// A certificate that was signed, and its row.
pub(super) struct Issued {
    pub(super) signed: IssuedCertificate,
    pub(super) row: Certificate,
}

/// A change to one's own keys, certificates, tokens or sessions: a narrowed token may not, since it could make itself
/// wider or lock its user out.
pub(super) fn need_full_scope(call: &Call) -> Result<(), ServiceError> {
    if call.actor.scopes.allow_admin() {
        return Ok(());
    }
    Err(ServiceError::Denied {
        code: ErrorCode::SCOPE_TOO_NARROW,
        sentence: "a token of narrower scope cannot change keys, certificates, tokens or sessions".to_owned(),
        hint: "log in with an SSH key (`bib login`), or use the node's socket".to_owned(),
    })
}

/// The serial of the caller's certificate, over TLS.
pub(super) fn own_serial(call: &Call) -> Option<&str> {
    match &call.actor.via {
        Via::Tls { serial, .. } => Some(serial),
        Via::Socket { .. } | Via::Internal { .. } => None,
    }
}

/// A name for people: one line, nothing that a terminal would act on, at most 128 characters.
pub(super) fn label(field: &str, text: &str) -> Result<String, ServiceError> {
    line(field, text, MAX_NAME_CHARS)
}

/// One line of text from outside: scrubbed, trimmed, of at most `max` characters.
pub(super) fn line(field: &str, text: &str, max: usize) -> Result<String, ServiceError> {
    // Before it is copied: eight bytes for each character that scrubbing may write out.
    if text.len() > max * 8 {
        return Err(ServiceError::invalid(field, format!("at most {max} characters are allowed")));
    }
    let clean = bib_core::text::scrub(text.trim()).into_owned();
    if clean.chars().count() > max {
        return Err(ServiceError::invalid(field, format!("at most {max} characters are allowed")));
    }
    Ok(clean)
}

/// An id in a request.
pub(super) fn id(field: &str, text: &str) -> Result<Uuid, ServiceError> {
    Uuid::try_parse(text).map_err(|_| ServiceError::invalid(field, "an id such as 0195d2a1-... is needed"))
}
