//! The randomness this room draws from: passed in once, shared by everything that needs it.
//!
//! Owns no generator of its own. The composition root passes the operating system's; tests pass a seeded one.

use std::sync::{Arc, Mutex, PoisonError};

use rand::{CryptoRng, Rng, RngCore};
use secrecy::SecretString;

/// A generator fit for passwords.
trait SecretRng: RngCore + CryptoRng + Send {}
impl<T: RngCore + CryptoRng + Send> SecretRng for T {}

/// A shared generator, cheap to clone.
#[derive(Clone)]
pub struct Randomness(Arc<Mutex<dyn SecretRng>>);

/// Letters of a generated password: URL-safe, nothing that SASLprep or SQL quoting would touch.
const PASSWORD_LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Length of every generated password, in characters (384 bits).
pub const PASSWORD_CHARS: usize = 64;

impl Randomness {
    /// Shares `generator`.
    pub fn new(generator: impl RngCore + CryptoRng + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(generator)))
    }

    /// Fills `bytes`.
    pub(crate) fn fill(&self, bytes: &mut [u8]) {
        // A panic elsewhere cannot leave a generator half-drawn in a way that matters.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }

    /// A new password of [`PASSWORD_CHARS`] characters.
    pub(crate) fn password(&self) -> SecretString {
        let mut bytes = zeroize::Zeroizing::new([0_u8; PASSWORD_CHARS]);
        self.fill(&mut bytes[..]);
        // 64 letters: six bits of each byte choose one, without bias.
        let text: String = bytes.iter().map(|byte| char::from(PASSWORD_LETTERS[usize::from(byte & 63)])).collect();
        SecretString::from(text)
    }

    /// A factor between 0.5 and 1.5, to spread retries.
    pub(crate) fn jitter(&self) -> f64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).gen_range(0.5..1.5)
    }
}

impl std::fmt::Debug for Randomness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Randomness")
    }
}
