//! What every use case stands on: the node, its database, its store, its journal. Built once by `app.rs`.

use std::sync::Arc;

use bib_core::access::{Caller, Decision, Embargo, Needs, Place, Standing, Verb, Visibility, decide};
use bib_core::record::{Body, Kind, Revision, SignedRecord};
use bib_core::{PeerId, Timestamp};
use bib_identity::NodeKey;
use bibd_blobs::BlobStore;
use bibd_catalog::records::StoredRecord;
use bibd_catalog::{Context, Db, Error as CatalogError, Tx, records};

use super::error::ServiceError;
use super::journal::Journal;
use super::updates::Updates;
use crate::actor::{Actor, Call};
use crate::clock::Ids;
use crate::errors::ErrorCode;
use crate::foundation::Foundation;
use crate::grpc::error::chain;
use crate::inheritance::Inheritance;

/// Bytes that a user's uploads and versions may take; `None` is no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quotas {
    /// Staged by uploads that have not committed.
    pub staging_bytes: Option<u64>,
    /// Published.
    pub storage_bytes: Option<u64>,
}

/// What a record is about, as far as its revision needs it.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: &'a str,
    /// The node at which the ownership begins: that which made the topic or dataset, or the node itself.
    pub origin: PeerId,
}

/// The node as its use cases see it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Base {
    /// The catalog.
    pub db: Db,
    /// The chunks.
    pub blobs: BlobStore,
    /// Signs records and checkpoints.
    pub key: Arc<NodeKey>,
    /// Who this node is.
    pub peer: PeerId,
    /// The number that every restore raises.
    pub epoch: u64,
    /// Clock, ids, randomness.
    pub ids: Ids,
    /// Whom this node follows.
    pub inheritance: Arc<Inheritance>,
    /// The audit log.
    pub journal: Journal,
    /// Who listens to changes of topics.
    pub updates: Updates,
    /// Limits for users without their own.
    pub quotas: Quotas,
}

impl Base {
    /// On what the composition root opened.
    #[must_use]
    pub fn of(foundation: &Foundation) -> Self {
        let blobs = &foundation.config().blobs;
        Self {
            db: foundation.db.clone(),
            blobs: foundation.blobs.clone(),
            key: Arc::clone(&foundation.key),
            peer: foundation.peer_id,
            epoch: foundation.epoch,
            inheritance: Arc::clone(&foundation.inheritance),
            ids: foundation.ids.clone(),
            journal: Journal::new(foundation.peer_id, foundation.ids.clone()),
            updates: Updates::default(),
            quotas: Quotas {
                staging_bytes: Some(blobs.staging_quota_bytes.0),
                storage_bytes: blobs.quota_bytes.map(|size| size.0),
            },
        }
    }

    /// Now, by the node's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.ids.clock().now()
    }

    /// On whose behalf the statements of this call run.
    #[must_use]
    pub fn context(&self, call: &Call, component: &'static str) -> Context {
        let user = call.actor.user.as_uuid();
        Context { operation: call.operation, user: (!user.is_nil()).then_some(user), component }
    }

    /// Begins the transaction of a use case.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn begin(&self, call: &Call, component: &'static str) -> Result<Tx, ServiceError> {
        Ok(self.db.begin(&self.context(call, component)).await?)
    }

    /// A call of the node itself.
    #[must_use]
    pub fn internal_call(&self, component: &'static str) -> Call {
        let operation = self.ids.operation();
        Call { operation, request_id: operation.to_string(), actor: Actor::internal(component), time: self.now() }
    }

    /// Signs the next revision of a record. `make` writes the body for the revision it is given. Its tenure is one
    /// higher for each succession that lies between whoever signed last, or else the origin, and this node.
    ///
    /// # Errors
    /// When this node does not follow whoever signed before, the revision cannot grow, or the body breaks a limit of
    /// its format.
    pub async fn sign_next(
        &self,
        tx: &mut Tx,
        about: About<'_>,
        make: impl FnOnce(Revision) -> Body,
    ) -> Result<StoredRecord, ServiceError> {
        let before = records::find(tx, about.kind.as_str(), about.id).await?;
        let revision = match &before {
            None => Revision { tenure: self.steps_from(&about.origin)?, ..Revision::first(self.epoch) },
            Some(record) => {
                let (revision, signer) = (record.revision(), record.signed()?.key);
                let tenure = revision.tenure + self.steps_from(&signer)?;
                revision.next(tenure, self.epoch).map_err(ServiceError::internal)?
            }
        };
        self.sign(&make(revision))
    }

    /// How many successions lead from `node` to this one.
    fn steps_from(&self, node: &PeerId) -> Result<u64, ServiceError> {
        let steps = self.inheritance.lineage().distance(node, &self.peer);
        steps.ok_or_else(|| ServiceError::internal(format!("this node does not follow {node}, which owns the record")))
    }

    /// Whether `node` is this one, or one that it follows.
    #[must_use]
    pub fn is_own(&self, node: &PeerId) -> bool {
        self.inheritance.lineage().distance(node, &self.peer).is_some()
    }

    /// Signs a record's body as it is.
    ///
    /// # Errors
    /// When the body breaks a limit of its format.
    pub fn sign(&self, body: &Body) -> Result<StoredRecord, ServiceError> {
        let bytes = body.to_bytes().map_err(|e| ServiceError::invalid("record", e.to_string()))?;
        let sig = self.key.sign(body.purpose(), &bytes);
        let record = SignedRecord { body: bytes, key: self.peer, sig };
        Ok(StoredRecord::new(&record, body.revision())?)
    }
}

/// Who asks, for the policy. The node itself may what an admin may.
#[must_use]
pub fn caller(actor: &Actor) -> Caller {
    Caller::User(actor.role)
}

/// Asks the policy about the node as such.
///
/// # Errors
/// When the actor may not, or the session's scope does not reach that far.
pub fn allow_node(call: &Call, verb: Verb) -> Result<(), ServiceError> {
    let decision = decide(verb, caller(&call.actor), Place::Node);
    settle(decision, verb, "node", "")?;
    let narrow = match verb {
        Verb::NodeRead => false,
        // A token never makes tokens, keys or certificates wider than itself; the services check that.
        Verb::SelfManage => false,
        Verb::TopicCreate => !call.actor.scopes.allow_admin(),
        _ => !call.actor.scopes.allow_admin(),
    };
    if narrow { Err(scope(verb)) } else { Ok(()) }
}

/// Asks the policy about a topic or what lies in it. What the caller may not see is answered as not there.
///
/// # Errors
/// When the actor may not, or the session's scope does not reach that far.
pub fn allow_topic(
    call: &Call,
    verb: Verb,
    topic: &str,
    visibility: Visibility,
    standing: Standing,
    embargo: Embargo,
    what: (&'static str, &str),
) -> Result<(), ServiceError> {
    let scopes = &call.actor.scopes;
    // Whatever is asked: outside its scope a token does not even learn that a topic exists.
    if !scopes.allow_read(topic) {
        return Err(ServiceError::not_found(what.0, what.1));
    }
    let place = Place::Topic { visibility, standing, embargo };
    settle(decide(verb, caller(&call.actor), place), verb, what.0, what.1)?;
    let reaches = match verb {
        Verb::TopicRead | Verb::DatasetShow | Verb::DatasetRead => true,
        Verb::DatasetPublish | Verb::Tag => scopes.allow_write(topic),
        _ => scopes.allow_admin(),
    };
    if reaches { Ok(()) } else { Err(scope(verb)) }
}

fn settle(decision: Decision, verb: Verb, what: &'static str, name: &str) -> Result<(), ServiceError> {
    match decision {
        Decision::Allow => Ok(()),
        Decision::Hidden => Err(ServiceError::not_found(what, name)),
        Decision::Denied(Needs::Role(role)) => Err(ServiceError::denied(
            format!("{verb} needs the role {role}"),
            "ask an admin of this node; `bib whoami` shows your role",
        )),
        Decision::Denied(Needs::Grant(level)) => Err(ServiceError::denied(
            format!("{verb} needs a {level} grant on the topic of `{name}`"),
            "ask its creator for `bib topic grant`; `bib topic show` says what you may do there",
        )),
        Decision::Denied(Needs::User) => {
            Err(ServiceError::denied(format!("{verb} is for users of this node"), "log in with `bib login`"))
        }
    }
}

fn scope(verb: Verb) -> ServiceError {
    ServiceError::Denied {
        code: ErrorCode::SCOPE_TOO_NARROW,
        sentence: format!("the token's scope does not allow {verb}"),
        hint: "`bib token create --scope` makes one that does, if you may".to_owned(),
    }
}

impl From<CatalogError> for ServiceError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Unavailable(_) | CatalogError::Collision => {
                // The caller hears that it may try again; whoever runs the node wants to know why.
                tracing::warn!(error.cause = %chain(&error), "a call is told to try again");
                Self::unavailable(ErrorCode::DATABASE_UNAVAILABLE, "the database does not answer at the moment")
            }
            CatalogError::Full => Self::unavailable(ErrorCode::DISK_FULL, "the database has no space left"),
            CatalogError::Conflict { constraint } => Self::conflict(
                ErrorCode::CONFLICT,
                format!("somebody else changed this at the same time ({constraint})"),
                "try again",
            ),
            CatalogError::Refused { constraint } => {
                Self::invalid("value", format!("the catalog does not accept it ({constraint})"))
            }
            other => Self::internal(other),
        }
    }
}
