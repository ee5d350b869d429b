//! Until `bib_core::signature` is in the tree.
/// What a node's Ed25519 signature is for. Part of the signed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A record, other than a grant or a succession.
    Record,
    /// A grant record.
    Grant,
    /// A gossip message.
    Gossip,
    /// A node's answer in a log-in.
    Login,
    /// A succession record, signed by the node key or the recovery key.
    Succession,
    /// The next owner's acceptance of a transfer.
    Transfer,
    /// A version's statement whose author is a service.
    Version,
}
impl Purpose {
    /// The word that stands in the signed bytes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Grant => "grant",
            Self::Gossip => "gossip",
            Self::Login => "login",
            Self::Succession => "succession",
            Self::Transfer => "transfer",
            Self::Version => "version",
        }
    }
}
/// The bytes that a node key signs for `body`: `bib-<purpose>-v1`, a zero byte, the body.
#[must_use]
pub fn signed_bytes(purpose: Purpose, body: &[u8]) -> Vec<u8> {
    [b"bib-", purpose.as_str().as_bytes(), b"-v1\0", body].concat()
}
