//! Trust on first use: what an unknown node shows is compared by the person, or by a flag. Never by default.

use bib_client::{Client, ErrorKind, Options, Target, TlsOptions};
use bib_core::PeerId;
use bib_identity::Fingerprint;
use bib_identity::trust::FirstUse;

use crate::context::Context;
use crate::errors::{Exit, Failure, Result};

/// How a script answers the question whether a new node is trusted.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct FirstUseArgs {
    /// Trust the node if its CA key has this SHA-256 fingerprint (64 hex digits; spaces and colons may stand between)
    #[arg(long, value_name = "SHA256", value_parser = parse_fingerprint)]
    pub(crate) fingerprint: Option<Fingerprint>,
    /// Trust whichever node answers; later connections are held against what it shows now
    #[arg(long, conflicts_with = "fingerprint")]
    pub(crate) accept_new: bool,
}

/// Reads a fingerprint as it is printed, grouped or not.
///
/// # Errors
/// A sentence for the command line's error.
pub(crate) fn parse_fingerprint(text: &str) -> Result<Fingerprint, String> {
    let digits: String = text.chars().filter(|c| !matches!(c, ' ' | ':')).collect::<String>().to_lowercase();
    digits.parse().map_err(|_| format!("`{text}` is no SHA-256 fingerprint of 64 hex digits"))
}

/// What a node shows before it is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    /// The node that its certificate names.
    pub(crate) peer_id: PeerId,
    /// SHA-256 of its CA's public key.
    pub(crate) ca: Fingerprint,
}

/// Asks what `target` shows, without trusting or keeping anything.
///
/// # Errors
/// When it cannot be reached or shows nothing that makes sense.
pub(crate) async fn look(context: &Context, target: &Target) -> Result<Shown> {
    // An empty trust store: whatever is known plays no part, nothing is written where it would count.
    let nowhere =
        tempfile::tempdir().map_err(|error| Failure::failed(format!("make a temporary directory: {error}")))?;
    let config_dir = nowhere.path().join("config");
    bib_identity::file::ensure_private_dir(&config_dir)?;
    let (first_use, keys, tls) = (FirstUse::Refuse, None, TlsOptions::default());
    let options = Options { config_dir, first_use, keys, tls, token_file: None, ..context.options(target)? };
    let target = match target.clone() {
        Target::Tls { host, port, .. } => Target::Tls { host, port, peer: None },
        socket @ Target::Socket(_) => socket,
    };
    let client = Client::connect(target, options)?;
    match client.health().node_info().await {
        Err(error) if error.kind() == ErrorKind::Untrusted => {
            let peer_id = error.detail("peer_id").and_then(|text| text.parse().ok());
            let ca = error.detail("ca_fingerprint").and_then(|text| text.parse().ok());
            match (peer_id, ca) {
                (Some(peer_id), Some(ca)) => Ok(Shown { peer_id, ca }),
                _ => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
        Ok(_) => Err(Failure::usage("on the Unix socket there is nothing to trust")
            .with_hint("only nodes that are reached over TLS are trusted by their CA")),
    }
}

/// What to do about `target` if it is not known yet. A node that is known is left to the connection, which stops hard
/// when the CA has changed.
///
/// # Errors
/// When the person says no.
pub(crate) async fn decide(context: &Context, target: &Target, args: &FirstUseArgs) -> Result<FirstUse> {
    if matches!(target, Target::Socket(_)) || context.pin_of(target)?.is_some() {
        return Ok(FirstUse::Refuse);
    }
    if args.fingerprint.is_some() || args.accept_new {
        return Ok(FirstUse::Accept { expected: args.fingerprint });
    }
    // The configuration has answered already.
    let tls = context.tls_options()?;
    if tls.skip_verify || tls.ca_file.is_some() || !context.asker.is_interactive() {
        return Ok(FirstUse::Refuse);
    }
    let shown = look(context, target).await?;
    context.output.say(&question(target, &shown));
    context.asker.insist("Is this the fingerprint that the node's administrator gave you?").map_err(|failure| {
        match failure.exit() {
            Exit::Failed => {
                Failure::new(Exit::Denied, format!("the node at {target} is not trusted; nothing was sent"))
                    .with_code(bib_client::error::code::UNTRUSTED)
                    .with_hint("`bibd` prints the fingerprint at start, and `bib status` on its machine shows it")
            }
            _ => failure,
        }
    })?;
    Ok(FirstUse::Accept { expected: Some(shown.ca) })
}

/// What is shown before the question.
fn question(target: &Target, shown: &Shown) -> String {
    format!(
        "The node at {target} is not known yet.\n  node            {}\n  CA fingerprint  {}",
        shown.peer_id,
        shown.ca.grouped()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_it_is_shown() {
        let fingerprint = Fingerprint::of(b"a key");
        for text in [fingerprint.to_string(), fingerprint.grouped(), fingerprint.to_string().to_uppercase()] {
            assert_eq!(parse_fingerprint(&text), Ok(fingerprint), "{text}");
        }
        assert!(parse_fingerprint("abc").is_err());
        let target = Target::Tls { host: "lab".into(), port: 4000, peer: None };
        let peer_id = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X".parse().unwrap();
        let text = question(&target, &Shown { peer_id, ca: fingerprint });
        assert!(text.contains(&fingerprint.grouped()) && text.contains("lab:4000"), "{text}");
    }
}
