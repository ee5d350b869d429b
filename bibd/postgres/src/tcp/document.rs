//! The sealed document of certificates, and when which of them is renewed: a function of the document and the time.
//!
//! An authority follows another in three steps, none of which refuses anybody. First both are trusted, by the server
//! and by clients, and the former one goes on signing. [`CLIENT_DAYS`] later, when nobody is left who does not know the
//! new one, that one signs: the server's certificate at once, each client's as it is made. After [`CLIENT_DAYS`] more
//! no certificate of the former one counts any more, and it goes. A node that was off meanwhile is only later with
//! each step.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, DnsName, PrivatePkcs8KeyDer};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::error::Error;
use crate::random::Randomness;
use crate::role::{GroupRole, Letter};
use crate::secrets::{SecretStore, Wiped};

/// The name under which the document is kept in the [`SecretStore`].
pub const DOCUMENT_NAME: &str = "db-tls";
const FORMAT: &str = "bib-db-tls/1";

/// How long an authority counts, days. Its successor is made after two thirds.
pub const CA_DAYS: i64 = 1095;
/// How long a server's certificate counts, days. It is renewed 30 days before its end.
pub const SERVER_DAYS: i64 = 100;
/// How long the certificate of a group role's login counts, days: longer than the longest interval of rotation
/// (90 days), with which it is renewed.
pub const CLIENT_DAYS: i64 = 100;
/// How long that of any other role counts, days: the superuser's acts, migrations and break-glass pass within hours.
pub const PASSING_DAYS: i64 = 2;

const DAY: i64 = 86_400;
const CA_FOLLOWED_AFTER: i64 = CA_DAYS * 2 / 3 * DAY;
const SERVER_RENEWED_BEFORE: i64 = 30 * DAY;
/// Certificates begin this long ago, because clocks differ, seconds.
const BACKDATE: i64 = 300;
/// What was made later than this from now was made by a clock that was wrong, and counts for nothing.
const FUTURE: i64 = DAY;

/// The opened document. Keys are wiped when it is dropped.
#[derive(Serialize, Deserialize)]
pub(super) struct Document {
    format: String,
    /// In the order in which they were made.
    authorities: Vec<Ca>,
    server: Option<Leaf>,
    /// That of the servers that follow, where an operator makes some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replica: Option<Leaf>,
}

#[derive(Serialize, Deserialize)]
struct Ca {
    /// Part of its subject, so that no two authorities are taken for one.
    id: String,
    /// PEM.
    certificate: String,
    /// PKCS#8 PEM.
    key: Wiped,
    made_s: i64,
    until_s: i64,
    /// Since when it signs.
    signs_since_s: Option<i64>,
}

#[derive(Serialize, Deserialize)]
struct Leaf {
    /// [`Ca::id`] of who signed it.
    issuer: String,
    names: Vec<String>,
    /// PEM.
    certificate: String,
    /// PKCS#8 PEM.
    key: Wiped,
    made_s: i64,
    until_s: i64,
}

/// A certificate and its key, PEM.
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: SecretString,
}

impl Document {
    /// A document with nothing in it.
    pub(super) fn empty() -> Self {
        Self { format: FORMAT.to_owned(), authorities: Vec::new(), server: None, replica: None }
    }

    /// Opens the document; `None` when there is none.
    pub(super) fn read(store: &dyn SecretStore) -> Result<Option<Self>, Error> {
        let Some(text) = store.read(DOCUMENT_NAME)? else { return Ok(None) };
        // serde_json's message may quote a value: keep only the place.
        let document: Self = serde_json::from_str(text.expose_secret())
            .map_err(|error| Error::CertificatesDamaged { line: error.line(), column: error.column() })?;
        if document.format != FORMAT {
            return Err(Error::CertificatesUnknownFormat);
        }
        Ok(Some(document))
    }

    /// Seals it.
    pub(super) fn write(&self, store: &dyn SecretStore) -> Result<(), Error> {
        let text = serde_json::to_string(self).expect("a document of strings and numbers serialises");
        Ok(store.write(DOCUMENT_NAME, &SecretString::from(text))?)
    }

    /// Takes every step that is due at `now_s`. Says whether anything changed.
    pub(super) fn renew(&mut self, names: &[String], now_s: i64, random: &Randomness) -> Result<bool, Error> {
        let counts = |made_s: i64, until_s: i64| made_s <= now_s + FUTURE && now_s < until_s;
        let before = self.authorities.len();
        self.authorities.retain(|ca| counts(ca.made_s, ca.until_s));
        let mut changed = self.authorities.len() != before;
        if self.authorities.last().is_none_or(|newest| now_s - newest.made_s >= CA_FOLLOWED_AFTER) {
            self.authorities.push(Ca::make(now_s, random)?);
            changed = true;
        }
        let only = self.authorities.len() == 1;
        let newest = self.authorities.last_mut().expect("one was made where there was none");
        if newest.signs_since_s.is_none() && (only || now_s - newest.made_s >= CLIENT_DAYS * DAY) {
            newest.signs_since_s = Some(now_s);
            changed = true;
        }
        // Whatever the former ones signed has ended by then.
        if !only && newest.signs_since_s.is_some_and(|since| now_s - since >= CLIENT_DAYS * DAY) {
            self.authorities.drain(..self.authorities.len() - 1);
            changed = true;
        }
        let signer = self.signer()?;
        if !self.server.as_ref().is_some_and(|server| server.holds(signer, names, now_s)) {
            self.server = Some(signer.server(names, now_s, random)?);
            changed = true;
        }
        Ok(changed)
    }

    /// Renews the certificate with which servers that follow log in as `role`, where it is due. Says whether it was.
    pub(super) fn renew_replica(&mut self, role: &str, now_s: i64, random: &Randomness) -> Result<bool, Error> {
        let (signer, names) = (self.signer()?, [role.to_owned()]);
        if self.replica.as_ref().is_some_and(|replica| replica.holds(signer, &names, now_s)) {
            return Ok(false);
        }
        let until_s = signer.end(now_s, SERVER_DAYS);
        let mut params = leaf_params(role, now_s, until_s, random)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let pair = signer.sign(params)?;
        self.replica = Some(signer.leaf(&names, &pair, now_s, until_s));
        Ok(true)
    }

    /// Every authority that is trusted, PEM.
    pub(super) fn trusted(&self) -> String {
        self.authorities.iter().map(|ca| ca.certificate.as_str()).collect()
    }

    /// The server's certificate.
    pub(super) fn server(&self) -> Option<Pair> {
        self.server.as_ref().map(Leaf::pair)
    }

    /// That of the servers that follow.
    pub(super) fn replica(&self) -> Option<Pair> {
        self.replica.as_ref().map(Leaf::pair)
    }

    /// A new certificate for the login role `role`.
    pub(super) fn client(&self, role: &str, now_s: i64, random: &Randomness) -> Result<Pair, Error> {
        let signer = self.signer()?;
        let is_login = GroupRole::ALL
            .into_iter()
            .any(|group| Letter::ALL.into_iter().any(|letter| group.login_name(letter) == role));
        let days = if is_login { CLIENT_DAYS } else { PASSING_DAYS };
        let mut params = leaf_params(role, now_s, signer.end(now_s, days), random)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        signer.sign(params)
    }

    /// Who signs.
    fn signer(&self) -> Result<&Ca, Error> {
        self.authorities.iter().rfind(|ca| ca.signs_since_s.is_some()).ok_or(Error::CertificatesMissing)
    }
}

impl Leaf {
    /// Whether it is to stay: of who signs now, with these names, and not near its end.
    fn holds(&self, signer: &Ca, names: &[String], now_s: i64) -> bool {
        self.issuer == signer.id
            && self.names == names
            && self.made_s <= now_s + FUTURE
            && now_s < self.until_s - SERVER_RENEWED_BEFORE
    }

    fn pair(&self) -> Pair {
        Pair { certificate: self.certificate.clone(), key: self.key.to_secret() }
    }
}

impl Ca {
    fn make(now_s: i64, random: &Randomness) -> Result<Self, Error> {
        let mut id = [0_u8; 4];
        random.fill(&mut id);
        let id = hex::encode(id);
        let until_s = now_s + CA_DAYS * DAY;
        let mut params = params(&format!("BIB database CA {id}"), now_s, until_s, random)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = new_key()?;
        let certificate = params.self_signed(&key).map_err(failed("make the database's authority"))?.pem();
        let key = Wiped::of(&SecretString::from(key.serialize_pem()));
        Ok(Self { id, certificate, key, made_s: now_s, until_s, signs_since_s: None })
    }

    /// When something that is made now for `days` ends: never after who signs it.
    fn end(&self, now_s: i64, days: i64) -> i64 {
        (now_s + days * DAY).min(self.until_s)
    }

    fn server(&self, names: &[String], now_s: i64, random: &Randomness) -> Result<Leaf, Error> {
        let first = names.first().ok_or_else(|| Error::BadServerName { name: String::new() })?;
        let until_s = self.end(now_s, SERVER_DAYS);
        // The name for people; the alternative names are what counts. 64 letters are all that fit.
        let shown: String = first.chars().take(64).collect();
        let mut params = leaf_params(&shown, now_s, until_s, random)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => {
                    let bad = || Error::BadServerName { name: name.clone() };
                    DnsName::try_from(name.as_str()).map_err(|_| bad())?;
                    SanType::DnsName(name.as_str().try_into().map_err(|_| bad())?)
                }
            });
        }
        let pair = self.sign(params)?;
        Ok(self.leaf(names, &pair, now_s, until_s))
    }

    fn leaf(&self, names: &[String], pair: &Pair, made_s: i64, until_s: i64) -> Leaf {
        let (certificate, key) = (pair.certificate.clone(), Wiped::of(&pair.key));
        Leaf { issuer: self.id.clone(), names: names.to_vec(), certificate, key, made_s, until_s }
    }

    fn sign(&self, params: CertificateParams) -> Result<Pair, Error> {
        const WHAT: &str = "sign a certificate of the database";
        let key = self.key.to_secret();
        let der = PrivatePkcs8KeyDer::from_pem_slice(key.expose_secret().as_bytes()).map_err(|_| Self::DAMAGED)?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256).map_err(failed(WHAT))?;
        let own = CertificateDer::from_pem_slice(self.certificate.as_bytes()).map_err(|_| Self::DAMAGED)?;
        let issuer = Issuer::from_ca_cert_der(&own, key).map_err(failed(WHAT))?;
        let leaf = new_key()?;
        let certificate = params.signed_by(&leaf, &issuer).map_err(failed(WHAT))?.pem();
        Ok(Pair { certificate, key: SecretString::from(leaf.serialize_pem()) })
    }

    const DAMAGED: Error = Error::CertificatesDamaged { line: 1, column: 0 };
}

/// P-256 with SHA-256: what rustls and OpenSSL both have, and whose hash SCRAM's channel binding can name. *ring* draws
/// it from the operating system.
fn new_key() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed("make a key"))
}

fn leaf_params(name: &str, now_s: i64, until_s: i64, random: &Randomness) -> Result<CertificateParams, Error> {
    let mut params = params(name, now_s, until_s, random)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn params(name: &str, now_s: i64, until_s: i64, random: &Randomness) -> Result<CertificateParams, Error> {
    let mut serial = [0_u8; 16];
    random.fill(&mut serial);
    // Positive and of one length: 126 random bits remain.
    serial[0] = (serial[0] & 0x3f) | 0x40;
    let at = |seconds| {
        OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| failed("date a certificate")(rcgen::Error::Time))
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = at(now_s - BACKDATE)?;
    params.not_after = at(until_s)?;
    Ok(params)
}

fn failed(what: &'static str) -> impl FnOnce(rcgen::Error) -> Error {
    move |source| Error::Certificate { what, source }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    const START: i64 = 1_800_000_000;

    fn random() -> Randomness {
        Randomness::new(rand::rngs::StdRng::seed_from_u64(11))
    }

    fn names() -> Vec<String> {
        vec!["bibd-postgres.bib.svc".to_owned(), "127.0.0.1".to_owned()]
    }

    fn renewed(document: &mut Document, day: i64) -> bool {
        // Two authorities do not have the same random bits.
        let random = Randomness::new(rand::rngs::StdRng::seed_from_u64(day.unsigned_abs()));
        document.renew(&names(), START + day * DAY, &random).unwrap()
    }

    /// Each authority with its state, and who signed the server's certificate.
    fn seen(document: &Document) -> (Vec<bool>, usize) {
        let signs = document.authorities.iter().map(|ca| ca.signs_since_s.is_some()).collect();
        let issuer = &document.server.as_ref().unwrap().issuer;
        (signs, document.authorities.iter().position(|ca| ca.id == *issuer).unwrap())
    }

    #[test]
    fn nothing_is_renewed_before_its_time() {
        let mut document = Document::empty();
        assert!(renewed(&mut document, 0) && !renewed(&mut document, 0));
        assert!(!renewed(&mut document, SERVER_DAYS - 31), "70 days old");
        let former = document.server().unwrap().certificate;
        assert!(renewed(&mut document, SERVER_DAYS - 30) && document.server().unwrap().certificate != former);
        assert!(document.renew(&["elsewhere".to_owned()], START, &random()).unwrap(), "another name");
        assert!(document.renew(&["not a name".to_owned()], START, &random()).is_err());
    }

    #[test]
    fn the_certificate_of_servers_that_follow_is_kept_and_renewed_with_the_server_s() {
        let mut document = Document::empty();
        assert!(document.replica().is_none() && document.renew_replica("r", START, &random()).is_err());
        renewed(&mut document, 0);
        let mut due = |day: i64| document.renew_replica("r", START + day * DAY, &random()).unwrap();
        assert_eq!([0, 0, SERVER_DAYS - 31, SERVER_DAYS - 30].map(&mut due), [true, false, false, true]);
        let made = document.replica().unwrap().certificate;
        assert!(!renewed(&mut document, 1) && document.replica().unwrap().certificate == made);
        // Its issuer went.
        renewed(&mut document, CA_DAYS);
        assert!(document.renew_replica("r", START + CA_DAYS * DAY, &random()).unwrap());
    }

    #[test]
    fn an_authority_follows_another_with_both_trusted_meanwhile() {
        let mut document = Document::empty();
        let days = |document: &mut Document, until: i64| {
            let mut states = Vec::new();
            for day in 0..=until {
                if renewed(document, day) {
                    let state = seen(document);
                    if states.last().is_none_or(|(_, last)| *last != state) {
                        states.push((day, state));
                    }
                }
            }
            states
        };
        let follow = CA_DAYS * 2 / 3;
        let expected = vec![
            (0, (vec![true], 0)),
            (follow, (vec![true, false], 0)),
            (follow + CLIENT_DAYS, (vec![true, true], 1)),
            (follow + 2 * CLIENT_DAYS, (vec![true], 0)),
        ];
        assert_eq!(days(&mut document, follow + 2 * CLIENT_DAYS + 10), expected);
        assert_eq!(document.trusted().matches("BEGIN CERTIFICATE").count(), 1);
    }

    #[test]
    fn a_node_that_was_off_for_years_or_had_a_wrong_clock_begins_anew() {
        for day in [CA_DAYS, 3 * CA_DAYS, -2] {
            let mut document = Document::empty();
            renewed(&mut document, 0);
            let former = document.trusted();
            assert!(renewed(&mut document, day), "{day}");
            assert_eq!(seen(&document), (vec![true], 0));
            assert!(!document.trusted().contains(&former));
        }
        // Off while the successor should have signed: that is later, and both stay trusted for as long.
        let mut document = Document::empty();
        let follow = CA_DAYS * 2 / 3;
        for (day, state) in [
            (0, vec![true]),
            (follow, vec![true, false]),
            (follow + 190, vec![true, true]),
            (follow + 280, vec![true, true]),
        ] {
            renewed(&mut document, day);
            assert_eq!(seen(&document).0, state, "{day}");
        }
    }

    #[test]
    fn a_document_is_read_back_and_nothing_else_is_taken_for_one() {
        struct Memory(std::sync::Mutex<Option<String>>);
        impl SecretStore for Memory {
            fn read(&self, _: &str) -> Result<Option<SecretString>, crate::SecretStoreError> {
                Ok(self.0.lock().unwrap().clone().map(SecretString::from))
            }
            fn write(&self, _: &str, secret: &SecretString) -> Result<(), crate::SecretStoreError> {
                *self.0.lock().unwrap() = Some(secret.expose_secret().to_owned());
                Ok(())
            }
        }
        let store = Memory(std::sync::Mutex::new(None));
        assert!(Document::read(&store).unwrap().is_none());
        let mut document = Document::empty();
        assert!(matches!(document.client("x", START, &random()), Err(Error::CertificatesMissing)));
        renewed(&mut document, 0);
        document.write(&store).unwrap();
        let again = Document::read(&store).unwrap().unwrap();
        assert_eq!(again.trusted(), document.trusted());
        let client = again.client("bibd_seal_a", START, &random()).unwrap();
        assert!(client.certificate.contains("BEGIN CERTIFICATE") && client.key.expose_secret().contains("PRIVATE KEY"));
        for (text, is_format) in [("{", false), (r#"{"format":"x","authorities":[],"server":null}"#, true)] {
            *store.0.lock().unwrap() = Some(text.to_owned());
            let error = Document::read(&store).err().unwrap();
            assert_eq!(matches!(error, Error::CertificatesUnknownFormat), is_format, "{error}");
        }
    }
}
