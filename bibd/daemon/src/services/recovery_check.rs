//! Is the recovery sheet the right one, and can it be read? Its holder opens something sealed to its age key and signs
//! it with its Ed25519 key; no secret of the sheet leaves the machine where it was typed in.

use std::sync::Arc;
use std::time::Duration;

use bib_core::PeerId;
use bib_core::access::Verb;
use bib_core::signature::Purpose;
use bib_identity::recovery::RecoveryPublic;
use bib_identity::sealed;
use bibd_audit::Outcome;
use serde_json::json;
use subtle::ConstantTimeEq as _;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::base::{Base, allow_node};
use super::error::ServiceError;
use super::journal::Act;
use super::recovery::find;
use crate::actor::Call;
use crate::errors::ErrorCode;
use crate::secrets::Secrets;

/// How long an answer is waited for: somebody may type the sheet in.
const LIFETIME: Duration = Duration::from_secs(600);

/// The act in the audit log.
const VERIFY: &str = "recovery.verify";

/// What the holder of the sheet is asked.
#[derive(Debug)]
pub struct Question {
    /// 32 random bytes, sealed to the age key.
    pub sealed: Vec<u8>,
    /// The public halves that the node keeps.
    pub public: RecoveryPublic,
    /// The node.
    pub peer: PeerId,
}

struct Asked {
    challenge: [u8; 32],
    public: RecoveryPublic,
    at: Instant,
}

/// The use case. Cheap to clone.
#[derive(Clone)]
pub struct RecoveryCheck {
    base: Base,
    secrets: Secrets,
    /// The last question: a second one makes the first void.
    asked: Arc<Mutex<Option<Asked>>>,
}

impl RecoveryCheck {
    /// Over the node's secrets.
    #[must_use]
    pub fn new(base: Base, secrets: Secrets) -> Self {
        Self { base, secrets, asked: Arc::default() }
    }

    /// Asks.
    ///
    /// # Errors
    /// When the caller may not, or no sheet was ever exported.
    pub async fn ask(&self, call: &Call) -> Result<Question, ServiceError> {
        allow_node(call, Verb::RecoveryExport)?;
        let public = find(&self.secrets).map_err(ServiceError::internal)?.ok_or_else(|| {
            ServiceError::conflict(
                ErrorCode::UNMET_CONDITION,
                "this node has no recovery keys",
                "make them with `bib admin recovery export`",
            )
        })?;
        let challenge: [u8; 32] = self.base.ids.entropy().bytes();
        let recipient = public.recipient().map_err(ServiceError::internal)?;
        let sealed = sealed::seal(&challenge, &[recipient]).map_err(ServiceError::internal)?;
        *self.asked.lock().await = Some(Asked { challenge, public: public.clone(), at: Instant::now() });
        Ok(Question { sealed, public, peer: self.base.peer })
    }

    /// Judges the answer: what was sealed, and a signature over it. Either way there is an entry.
    ///
    /// # Errors
    /// When the caller may not, nothing was asked in the last ten minutes, or the answer is wrong.
    pub async fn judge(&self, call: &Call, opened: &[u8], signature: &[u8]) -> Result<(), ServiceError> {
        allow_node(call, Verb::RecoveryExport)?;
        let asked = self.asked.lock().await.take().filter(|asked| asked.at.elapsed() < LIFETIME);
        let asked = asked.ok_or_else(|| {
            ServiceError::conflict(
                ErrorCode::UNMET_CONDITION,
                "nothing was asked, or too long ago, or somebody asked again",
                "run `bib admin recovery verify` once more",
            )
        })?;
        let opens = bool::from(asked.challenge.ct_eq(opened));
        let signs = asked.public.verify(Purpose::Recovery, &asked.challenge, signature).is_ok();
        let (outcome, verdict) = match (opens, signs) {
            (true, true) => (Outcome::Ok, Ok(())),
            (false, _) => (Outcome::Failed("age".to_owned()), Err("the age key of the sheet is not this node's")),
            (_, false) => {
                (Outcome::Failed("ed25519".to_owned()), Err("the Ed25519 key of the sheet is not this node's"))
            }
        };
        let details = json!({ "age": asked.public.age_recipient });
        let act = Act::new(VERIFY, self.base.peer.to_string(), details);
        self.base.journal.record(&self.base.db, call, act, outcome).await?;
        verdict.map_err(|sentence| {
            ServiceError::conflict(
                ErrorCode::UNMET_CONDITION,
                sentence,
                "it is an old sheet or another node's: find the right one, or make a new one with `bib admin recovery \
                 export --replace`",
            )
        })
    }
}

impl std::fmt::Debug for RecoveryCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecoveryCheck").finish_non_exhaustive()
    }
}
