//! SCRAM-SHA-256 verifiers (RFC 5802, RFC 7677) in PostgreSQL's spelling:
//! `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, all three base64.
//!
//! The server is given these instead of passwords, so no statement, log or WAL record ever holds one. Passwords here
//! are our own ASCII: SASLprep leaves them as they are.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac as _};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::random::Randomness;

/// Rounds of PBKDF2. Cost matters little for 64 random characters; the checklist asks for 15,000 or more.
pub(crate) const ITERATIONS: u32 = 15_000;
/// Bytes of salt, as PostgreSQL itself uses.
const SALT_BYTES: usize = 16;
const PREFIX: &str = "SCRAM-SHA-256$";

/// A verifier for `password` with a fresh salt.
pub(crate) fn verifier(password: &SecretString, random: &Randomness) -> SecretString {
    let mut salt = [0_u8; SALT_BYTES];
    random.fill(&mut salt);
    SecretString::from(spelled(password, &salt, ITERATIONS))
}

/// Whether `stored` (as in `pg_authid.rolpassword`) is a verifier of `password` with [`ITERATIONS`] rounds.
pub(crate) fn matches(stored: &str, password: &SecretString) -> bool {
    let parsed = || {
        let rest = stored.strip_prefix(PREFIX)?;
        let (iterations, rest) = rest.split_once(':')?;
        let (salt, _) = rest.split_once('$')?;
        Some((iterations.parse::<u32>().ok()?, BASE64.decode(salt).ok()?))
    };
    let Some((iterations, salt)) = parsed() else { return false };
    iterations == ITERATIONS && spelled(password, &salt, iterations).as_bytes().ct_eq(stored.as_bytes()).into()
}

fn spelled(password: &SecretString, salt: &[u8], iterations: u32) -> String {
    let mut salted = Zeroizing::new([0_u8; 32]);
    pbkdf2::pbkdf2_hmac::<Sha256>(password.expose_secret().as_bytes(), salt, iterations, &mut salted[..]);
    let client_key = Zeroizing::new(hmac(&salted[..], b"Client Key"));
    let stored_key = Sha256::digest(&client_key[..]);
    let server_key = hmac(&salted[..], b"Server Key");
    format!("{PREFIX}{iterations}:{}${}:{}", BASE64.encode(salt), BASE64.encode(stored_key), BASE64.encode(server_key))
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    /// The exchange of RFC 7677, section 3: user `user`, password `pencil`. The RFC prints the server's signature;
    /// it follows from ServerKey and the messages, so agreeing on it shows that ServerKey is right.
    #[test]
    fn agrees_with_the_example_of_rfc_7677() {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let text = spelled(&SecretString::from("pencil"), &salt, 4096);
        let keys = text.rsplit('$').next().unwrap();
        let (stored_key, server_key) = keys.split_once(':').unwrap();
        let messages = "n=user,r=rOprNGfwEbeRWgbNEkqO,\
             r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,\
             c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let signature = hmac(&BASE64.decode(server_key).unwrap(), messages.as_bytes());
        assert_eq!(BASE64.encode(signature), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        // The client's proof of the RFC, with the signature by our StoredKey taken off, must hash to StoredKey.
        let stored_key = BASE64.decode(stored_key).unwrap();
        let proof = BASE64.decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=").unwrap();
        let mask = hmac(&stored_key, messages.as_bytes());
        let client_key: Vec<u8> = proof.iter().zip(mask).map(|(a, b)| a ^ b).collect();
        assert_eq!(Sha256::digest(client_key).as_slice(), stored_key);
    }

    #[test]
    fn recognises_its_own_verifiers_and_nothing_else() {
        let random = Randomness::new(rand::rngs::StdRng::seed_from_u64(7));
        let password = random.password();
        let stored = verifier(&password, &random);
        assert!(matches(stored.expose_secret(), &password));
        assert!(!matches(stored.expose_secret(), &random.password()));
        assert!(!matches("md5d41d8cd98f00b204e9800998ecf8427e", &password));
        assert!(!matches("SCRAM-SHA-256$x", &password));
    }
}
