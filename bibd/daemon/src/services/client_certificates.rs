//! Client certificates: issued for a key that the client made, listed, revoked. (The server's own certificate is in
//! `crate::certificates`.)

use bib_core::Timestamp;
use bib_core::access::Verb;
use bib_identity::Fingerprint;
use bibd_catalog::access::{self, Certificate};
use serde_json::json;

use super::accounts::{Accounts, COMPONENT, Order, label, line, need_full_scope};
use super::base::allow_node;
use super::error::ServiceError;
use super::journal::Act;
use super::sessions::may_end;
use super::tokens::gone;
use super::users::MAX_REASON_CHARS;
use crate::actor::Call;

/// The longest serial number, in hex digits.
const MAX_SERIAL_DIGITS: usize = 40;

/// A certificate that was issued.
#[derive(Debug, Clone)]
pub struct IssuedToCaller {
    /// PEM.
    pub pem: String,
    /// The authority's certificate, PEM.
    pub authority_pem: String,
    /// Its row.
    pub certificate: Certificate,
}

/// Whether a certificate counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Valid,
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
}

impl Standing {
    /// Of a certificate, at this moment.
    #[must_use]
    pub fn of(certificate: &Certificate, now: Timestamp) -> Self {
        match certificate.revoked_at {
            Some(_) => Self::Revoked,
            None if certificate.not_after < now => Self::Expired,
            None => Self::Valid,
        }
    }

    /// The word in the `.proto`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// Whose certificates are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The caller's.
    Mine,
    /// Everybody's; for admins.
    Everybodys,
}

/// The use cases about client certificates.
#[derive(Debug, Clone)]
pub struct ClientCertificates {
    accounts: Accounts,
}

impl ClientCertificates {
    /// Certificates of these accounts.
    #[must_use]
    pub fn new(accounts: Accounts) -> Self {
        Self { accounts }
    }

    /// Issues a certificate to the caller, for the key in the request.
    ///
    /// # Errors
    /// A token of narrower scope; a certificate request that is none.
    pub async fn issue(&self, call: &Call, csr: &[u8], name: &str) -> Result<IssuedToCaller, ServiceError> {
        allow_node(call, Verb::SelfManage)?;
        need_full_scope(call)?;
        let name = label("name", name)?;
        let mut tx = self.accounts.base.begin(call, COMPONENT).await?;
        let key = self.accounts.vouching_key(&mut tx, call).await?;
        if !self.accounts.lock(&mut tx, call.actor.user, key.as_ref()).await? {
            return Err(gone());
        }
        let validity = self.accounts.client_validity;
        let order = Order { csr, user: call.actor.user, key, name: &name, validity };
        let issued = self.accounts.issue(&mut tx, order).await?;
        let details = json!({
            "name": issued.row.name,
            "key": issued.row.key_fingerprint,
            "fingerprint": issued.row.fingerprint.to_string(),
            "not_after": issued.row.not_after.to_string(),
        });
        let act = Act::new("cert.issue", issued.row.serial.clone(), details);
        self.accounts.base.journal.commit(tx, call, act).await?;
        self.accounts.certificates.issued(&issued.row.serial);
        let authority_pem = self.accounts.authority_pem();
        Ok(IssuedToCaller { pem: issued.signed.pem, authority_pem, certificate: issued.row })
    }

    /// A page of certificates by serial number, with their standing.
    ///
    /// # Errors
    /// Denied for who is no admin and asks for everybody's.
    pub async fn list(
        &self,
        call: &Call,
        whose: Whose,
        after: &str,
        limit: u32,
    ) -> Result<Vec<(Certificate, Standing)>, ServiceError> {
        allow_node(call, if whose == Whose::Everybodys { Verb::UserRead } else { Verb::SelfManage })?;
        let user = (whose == Whose::Mine).then_some(call.actor.user);
        let mut session = self.accounts.base.db.read().await?;
        let found = access::list_certificates(&mut session, user, after, limit).await?;
        let now = self.accounts.base.now();
        Ok(found.into_iter().map(|row| with_standing(row, now)).collect())
    }

    /// Revokes a certificate of the caller's, or for an admin anybody's, by serial number or SHA-256 fingerprint. Its
    /// sessions and tokens end with it, and its live connections within five seconds. Doing it twice is no error.
    ///
    /// # Errors
    /// Not found, also for a certificate of somebody else's when the caller is no admin.
    pub async fn revoke(&self, call: &Call, name: &str, reason: &str) -> Result<(Certificate, Standing), ServiceError> {
        allow_node(call, Verb::SelfManage)?;
        need_full_scope(call)?;
        let wanted = parse_name(name)?;
        let reason = line("reason", reason, MAX_REASON_CHARS)?;
        let now = self.accounts.base.now();
        let mut tx = self.accounts.base.begin(call, COMPONENT).await?;
        let found = access::find_certificate(&mut tx, &wanted).await?;
        let Some(found) = found.filter(|row| may_end(call, row.user)) else {
            return Err(ServiceError::not_found("certificate", wanted));
        };
        if !access::revoke_certificate(&mut tx, &found.serial, &reason, now).await? {
            return Ok(with_standing(found, now));
        }
        let details = json!({ "user": found.user.to_string(), "name": found.name, "reason": reason });
        let act = Act::new("cert.revoke", found.serial.clone(), details);
        self.accounts.commit_revoking(tx, call, act, std::slice::from_ref(&found.serial)).await?;
        Ok(with_standing(Certificate { revoked_at: Some(now), ..found }, now))
    }
}

fn with_standing(row: Certificate, now: Timestamp) -> (Certificate, Standing) {
    let standing = Standing::of(&row, now);
    (row, standing)
}

/// A serial number, or a fingerprint in any of the usual spellings, as the catalog has it.
fn parse_name(text: &str) -> Result<String, ServiceError> {
    let text = text.trim();
    if let Ok(fingerprint) = text.parse::<Fingerprint>() {
        return Ok(fingerprint.to_string());
    }
    let digits: String = text.chars().take(200).filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
    if (2..=MAX_SERIAL_DIGITS).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(digits);
    }
    Err(ServiceError::invalid("serial_or_fingerprint", "a serial number or a SHA-256 fingerprint in hex is needed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_serial_numbers_and_fingerprints_as_tools_print_them() {
        assert_eq!(parse_name("0A:1B:2c").unwrap(), "0a1b2c");
        let digits = "AB".repeat(32);
        assert_eq!(parse_name(&format!("SHA256:{digits}")).unwrap(), "ab".repeat(32));
        for text in ["", "a", "xyz", "../../etc", &"a".repeat(41)] {
            assert!(parse_name(text).is_err(), "{text}");
        }
    }
}
