//! PEM text (RFC 7468): the blocks of certificates, keys and token files. Bounded; never panics on foreign text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// The label of a certificate block.
pub const CERTIFICATE: &str = "CERTIFICATE";
/// The label of a PKCS#8 private key block.
pub const PRIVATE_KEY: &str = "PRIVATE KEY";
/// The most text that is parsed, in bytes.
pub const MAX_BYTES: usize = 256 * 1024;
/// The most blocks that are parsed.
const MAX_BLOCKS: usize = 16;

/// Why a text is not PEM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// More than [`MAX_BYTES`] or more than sixteen blocks.
    #[error("the text is too long to be a key or certificate file")]
    TooLong,
    /// The text is not UTF-8, or a block does not end or is not base64.
    #[error("the text is not PEM")]
    Malformed,
    /// No block has the label that was asked for.
    #[error("the text has no `{0}` block")]
    Missing(&'static str),
    /// There are several blocks where one is meant.
    #[error("the text has more than one `{0}` block")]
    Several(&'static str),
}

/// One block: its label and its bytes.
pub struct Block {
    /// What stands between `BEGIN` and the dashes.
    pub label: String,
    /// The decoded bytes, wiped when dropped.
    pub bytes: Zeroizing<Vec<u8>>,
}

/// A block as text, 64 characters a line.
#[must_use]
pub fn encode(label: &str, bytes: &[u8]) -> Zeroizing<String> {
    let encoded = Zeroizing::new(STANDARD.encode(bytes));
    // Sized beforehand, so that no reallocation leaves a copy of a key behind.
    let mut text = Zeroizing::new(String::with_capacity(encoded.len() + encoded.len() / 64 + 2 * label.len() + 64));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    for start in (0..encoded.len()).step_by(64) {
        text.push_str(&encoded[start..encoded.len().min(start + 64)]);
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

/// All blocks of a text, in order. Text between blocks is skipped, as RFC 7468 allows.
///
/// # Errors
/// [`PemError::TooLong`] or [`PemError::Malformed`].
pub fn decode(text: &[u8]) -> Result<Vec<Block>, PemError> {
    if text.len() > MAX_BYTES {
        return Err(PemError::TooLong);
    }
    let text = std::str::from_utf8(text).map_err(|_| PemError::Malformed)?;
    let mut blocks = Vec::new();
    let mut open: Option<(&str, Zeroizing<String>)> = None;
    for line in text.lines().map(str::trim) {
        let marker = |prefix: &str| line.strip_prefix(prefix).and_then(|rest| rest.strip_suffix("-----"));
        if let Some(label) = marker("-----BEGIN ") {
            if open.replace((label, Zeroizing::new(String::with_capacity(text.len())))).is_some() {
                return Err(PemError::Malformed);
            }
        } else if let Some(label) = marker("-----END ") {
            let (opened, body) = open.take().ok_or(PemError::Malformed)?;
            if opened != label {
                return Err(PemError::Malformed);
            }
            if blocks.len() == MAX_BLOCKS {
                return Err(PemError::TooLong);
            }
            let bytes = STANDARD.decode(body.as_bytes()).map_err(|_| PemError::Malformed)?;
            blocks.push(Block { label: label.to_owned(), bytes: Zeroizing::new(bytes) });
        } else if let Some((_, body)) = &mut open {
            body.push_str(line);
        }
    }
    if open.is_some() { Err(PemError::Malformed) } else { Ok(blocks) }
}

/// The bytes of the only block with this label; blocks with other labels are skipped.
///
/// # Errors
/// [`PemError::Missing`] or [`PemError::Several`], or what [`decode`] finds.
pub fn decode_one(text: &[u8], label: &'static str) -> Result<Zeroizing<Vec<u8>>, PemError> {
    take_one(&mut decode(text)?, label)
}

/// Takes the only block with this label out of `blocks`.
pub(crate) fn take_one(blocks: &mut Vec<Block>, label: &'static str) -> Result<Zeroizing<Vec<u8>>, PemError> {
    let position = blocks.iter().position(|b| b.label == label).ok_or(PemError::Missing(label))?;
    let block = blocks.remove(position);
    if blocks.iter().any(|b| b.label == label) {
        return Err(PemError::Several(label));
    }
    Ok(block.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_writes() {
        for length in [0, 1, 47, 48, 49, 1000] {
            let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let text = encode("THING", &bytes);
            assert!(text.lines().all(|l| l.len() <= 64));
            assert_eq!(decode_one(text.as_bytes(), "THING").unwrap().as_slice(), bytes);
        }
    }

    #[test]
    fn refuses_unended_nested_mislabelled_and_foreign_text() {
        let cases: [&[u8]; 5] = [
            b"-----BEGIN A-----\nAAAA\n",
            b"-----BEGIN A-----\n-----BEGIN A-----\n-----END A-----\n",
            b"-----BEGIN A-----\nAAAA\n-----END B-----\n",
            b"-----BEGIN A-----\n!!!!\n-----END A-----\n",
            b"\xff\xfe",
        ];
        for case in cases {
            assert_eq!(decode(case).err(), Some(PemError::Malformed));
        }
        assert_eq!(decode(&vec![b'x'; MAX_BYTES + 1]).err(), Some(PemError::TooLong));
        assert_eq!(decode_one(b"hello", CERTIFICATE).err(), Some(PemError::Missing(CERTIFICATE)));
        let twice = [encode("A", b"1").as_bytes(), encode("A", b"2").as_bytes()].concat();
        assert_eq!(decode_one(&twice, "A").err(), Some(PemError::Several("A")));
    }
}
