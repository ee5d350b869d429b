//! The commit of a publish: a signed statement becomes a version, in one transaction with its audit entry.
//!
//! Everything that can be checked before is checked before, without holding the dataset: the statement, the signature,
//! the content and its layout. Then, under the dataset's lock: is the parent still the latest, are all chunks still
//! here. A version is visible only after all its chunks are durable; what is missing is named, and nothing is done.

use bib_core::access::{Embargo, Verb};
use bib_core::metadata::license;
use bib_core::signature::VERSION_NAMESPACE;
use bib_core::statement::{Author, MAX_STATEMENT_BYTES, Statement};
use bib_core::{Hash, KeyFingerprint, SessionId};
use bib_identity::ssh;
use bibd_catalog::datasets::{self, SeenDataset};
use bibd_catalog::leases::{self, Upload};
use bibd_catalog::users::UserKey;
use bibd_catalog::versions::{self, Version, VersionState};
use bibd_catalog::{Tx, chunks, node, pages, users};
use bytes::Bytes;
use serde_json::json;

use super::check::{self, Checked, Roots};
use super::dataset::{DatasetUseCases, latest_of};
use super::error::ServiceError;
use super::journal::Act;
use super::publish_records;
use super::reference;
use super::upload::{UploadUseCases, over_quota};
use super::verifier::VerifierPoke;
use crate::actor::Call;
use crate::errors::ErrorCode;

/// First answers are given again for this long.
const ANSWER_SECONDS: i64 = 24 * 60 * 60;

/// Chunks named in one statement, at most.
const SLICE: usize = 16_384;

/// Chunks that are asked for again in one answer.
const MAX_RESEND: usize = 16_384;

/// The use case of committing a version.
#[derive(Debug, Clone)]
pub struct CommitUseCases {
    uploads: UploadUseCases,
    datasets: DatasetUseCases,
    verifier: VerifierPoke,
}

/// What a client commits.
#[derive(Debug, Clone)]
pub struct CommitVersion {
    /// The upload session.
    pub session: SessionId,
    /// The statement's bytes.
    pub statement: Bytes,
    /// The SSHSIG over them, as PEM text.
    pub signature: String,
    /// Hash of the content root.
    pub content_root: Hash,
    /// Hash of the layout root.
    pub layout_root: Hash,
    /// Names the request, so that a repetition gets the first answer; or empty.
    pub idempotency_key: String,
}

/// How a commit ended.
#[derive(Debug, Clone)]
pub enum Committed {
    /// The version stands.
    Version {
        /// The dataset.
        seen: Box<SeenDataset>,
        /// The version.
        version: Box<Version>,
        /// False: content, licence, metadata and label equal the parent's, which is the version.
        created: bool,
    },
    /// These chunks went away: to be sent, and then committed again. Nothing was done.
    Resend(Vec<Hash>),
}

/// A statement that was read and whose signature holds.
struct Signed {
    statement: Statement,
    bytes: Bytes,
    pem: String,
    version: Hash,
    key: UserKey,
    name: Option<String>,
}

impl CommitUseCases {
    /// For upload sessions of `uploads`. `verifier` is told of each new version.
    #[must_use]
    pub fn new(uploads: UploadUseCases, datasets: DatasetUseCases, verifier: VerifierPoke) -> Self {
        Self { uploads, datasets, verifier }
    }

    /// Commits a version.
    ///
    /// # Errors
    /// [`ErrorCode::STATEMENT_REFUSED`], [`ErrorCode::LATEST_MOVED`] with both versions, [`ErrorCode::UPLOAD_EXPIRED`],
    /// [`ErrorCode::QUOTA_EXCEEDED`]; and when content or layout break a rule.
    pub async fn commit(&self, call: &Call, wanted: CommitVersion) -> Result<Committed, ServiceError> {
        let base = &self.uploads.base;
        let mut session = base.db.read().await?;
        if let Some(answer) = self.earlier(&mut session, call, &wanted).await? {
            return Ok(answer);
        }
        let upload = self.uploads.live(&mut session, call, wanted.session).await?;
        let seen = datasets::find(&mut session, call.actor.user, base.now(), upload.dataset).await?;
        let seen = seen.ok_or_else(|| ServiceError::not_found("dataset", upload.dataset.to_string()))?;
        let name = seen.dataset.name.clone();
        reference::allow(call, &seen, Verb::DatasetPublish, Embargo::Over, ("dataset", &name))?;
        let signed = self.read_statement(&mut session, call, &upload, &wanted).await?;

        let parent = match &seen.dataset.latest {
            Some(latest) => versions::find(&mut session, latest).await?,
            None => None,
        };
        if let Some(parent) = &parent {
            // The same bytes again, without an idempotency key.
            if parent.hash == signed.version {
                return Ok(Committed::Version {
                    seen: Box::new(seen),
                    version: Box::new(parent.clone()),
                    created: false,
                });
            }
        }
        check_parents(&signed.statement, seen.dataset.latest)?;
        if let Some(parent) = parent.as_ref().filter(|parent| says_the_same(parent, &signed.statement)) {
            let parent = parent.clone();
            return self.answer_unchanged(call, &wanted, seen, parent).await;
        }
        drop(session);
        self.keep_alive(call, wanted.session).await?;
        let mut session = base.db.read().await?;
        let roots = Roots { content: wanted.content_root, layout: wanted.layout_root };
        let checked = check::check(&mut session, &upload, roots, parent.as_ref()).await?;
        drop(session);
        self.write(call, &wanted, &seen, &upload, parent.as_ref(), signed, checked).await
    }

    /// The transaction.
    #[allow(clippy::too_many_arguments, reason = "the parts of one act, each made by its own step")]
    async fn write(
        &self,
        call: &Call,
        wanted: &CommitVersion,
        seen: &SeenDataset,
        upload: &Upload,
        parent: Option<&Version>,
        signed: Signed,
        checked: Checked,
    ) -> Result<Committed, ServiceError> {
        let base = &self.uploads.base;
        let (now, id) = (base.now(), seen.dataset.id);
        let mut tx = base.begin(call, "commit").await?;
        let Some((latest, last_n)) = datasets::lock(&mut tx, id).await? else {
            return Err(ServiceError::not_found("dataset", &seen.dataset.name));
        };
        check_parents(&signed.statement, latest)?;
        self.still_may(&mut tx, call, seen, &signed.key).await?;
        // Read again under the lock: bytes may have come since the session was looked up.
        let staged = self.uploads.live(&mut tx, call, wanted.session).await?.staged_bytes;
        let resend = lock_chunks(&mut tx, upload, parent, &checked).await?;
        if !resend.is_empty() {
            tx.rollback().await?;
            return Ok(Committed::Resend(resend));
        }
        // What the author is called is the author's to say; without a word of theirs it is the node's.
        let vouched = publish_records::person(base, &mut tx, call, &signed.key).await?;
        let signed = Signed { name: signed.name.clone().or(Some(vouched)), ..signed };
        let version = new_version(call, wanted, seen, &signed, &checked, last_n + 1, now);
        versions::insert(&mut tx, &version, staged).await.map_err(|error| match error {
            error if error.is_conflict_on("versions_pkey") => {
                ServiceError::already_exists("version", &version.hash.to_string())
            }
            other => other.into(),
        })?;
        pages::set_spans(&mut tx, id, &checked.pages, version.n).await?;
        let unsaid = (seen.dataset.title.as_str(), seen.dataset.description.as_str());
        let latest = latest_of(&version, &signed.statement.metadata, unsaid)?;
        datasets::set_latest(&mut tx, id, &latest, now).await?;
        publish_records::dataset(base, &mut tx, &seen.dataset, version.hash).await?;
        publish_records::version(base, &mut tx, seen.dataset.origin, &version).await?;
        // What was staged becomes what is stored.
        leases::end(&mut tx, wanted.session, now).await?;
        let bytes = i64::try_from(staged).unwrap_or(i64::MAX);
        let subject = call.actor.user.to_string();
        let charged = leases::charge(&mut tx, &subject, "storage", base.quotas.storage_bytes, bytes, now).await?;
        if let Some(over) = charged {
            return Err(over_quota("of published data", over));
        }
        self.keep_answer(&mut tx, call, wanted, &version.hash, true).await?;
        let details = json!({
            "dataset": id.to_string(), "name": seen.dataset.name, "n": version.n, "content": version.content.to_string(),
            "layout": version.layout.to_string(), "files": version.files, "bytes": version.size_bytes,
            "author": version.author_key,
        });
        let act = Act::new("dataset.publish", format!("version:{}", version.hash), details);
        base.journal.commit(tx, call, act).await?;
        self.datasets.tell("version.published", seen, &version.hash.to_string());
        self.verifier.poke();
        Ok(Committed::Version { seen: Box::new(seen.clone()), version: Box::new(version), created: true })
    }

    /// Reads the statement and checks that its author is the caller and signed it.
    async fn read_statement(
        &self,
        session: &mut bibd_catalog::Read,
        call: &Call,
        upload: &Upload,
        wanted: &CommitVersion,
    ) -> Result<Signed, ServiceError> {
        if wanted.statement.len() > MAX_STATEMENT_BYTES {
            return Err(refused(format!("a statement has at most {MAX_STATEMENT_BYTES} bytes")));
        }
        let statement = Statement::parse(&wanted.statement).map_err(|e| refused(e.to_string()))?;
        if statement.dataset != upload.dataset {
            return Err(refused("the statement is about another dataset than the upload".to_owned()));
        }
        if statement.content != wanted.content_root {
            return Err(refused("the statement names another content than the upload".to_owned()));
        }
        license::check(&statement.license).map_err(|e| ServiceError::invalid("license", e.to_string()))?;
        let (fingerprint, name) = match &statement.author {
            Author::Person { key, name } => (*key, name.clone()),
            Author::Service { .. } => {
                return Err(refused("a version that is published over the API has a person as its author".to_owned()));
            }
        };
        let key = users::find_key(session, &fingerprint).await?.filter(|key| key.user == call.actor.user);
        let key = key.ok_or_else(|| unknown_key(&fingerprint))?;
        let public: ssh::PublicKey = key.public_key.parse().map_err(ServiceError::internal)?;
        ssh::verify(&public, VERSION_NAMESPACE, &wanted.statement, &wanted.signature)
            .map_err(|e| refused(format!("the signature: {e}")))?;
        let (bytes, pem, version) = (wanted.statement.clone(), wanted.signature.clone(), Hash::of(&wanted.statement));
        Ok(Signed { statement, bytes, pem, version, key, name })
    }

    /// The check of a large content takes its time: a grant taken back or a key removed meanwhile counts.
    async fn still_may(&self, tx: &mut Tx, call: &Call, seen: &SeenDataset, key: &UserKey) -> Result<(), ServiceError> {
        let now = datasets::find(tx, call.actor.user, self.uploads.base.now(), seen.dataset.id).await?;
        let now = now.ok_or_else(|| ServiceError::not_found("dataset", &seen.dataset.name))?;
        reference::allow(call, &now, Verb::DatasetPublish, Embargo::Over, ("dataset", &seen.dataset.name))?;
        match users::find_key(tx, &key.fingerprint).await? {
            Some(found) if found.user == call.actor.user => Ok(()),
            _ => Err(unknown_key(&key.fingerprint)),
        }
    }

    /// Content, licence, metadata and label equal the parent's: there is nothing to publish.
    async fn answer_unchanged(
        &self,
        call: &Call,
        wanted: &CommitVersion,
        seen: SeenDataset,
        parent: Version,
    ) -> Result<Committed, ServiceError> {
        let base = &self.uploads.base;
        let mut tx = base.begin(call, "commit").await?;
        leases::end(&mut tx, wanted.session, base.now()).await?;
        self.keep_answer(&mut tx, call, wanted, &parent.hash, false).await?;
        tx.commit().await?;
        Ok(Committed::Version { seen: Box::new(seen), version: Box::new(parent), created: false })
    }

    /// A check of a large content takes its time; meanwhile the session must not end.
    async fn keep_alive(&self, call: &Call, session: SessionId) -> Result<(), ServiceError> {
        let base = &self.uploads.base;
        let mut tx = base.begin(call, "commit").await?;
        self.uploads.live(&mut tx, call, session).await?;
        self.uploads.beat(&mut tx, session, 0, base.now()).await?;
        Ok(tx.commit().await?)
    }

    async fn earlier(
        &self,
        session: &mut bibd_catalog::Read,
        call: &Call,
        wanted: &CommitVersion,
    ) -> Result<Option<Committed>, ServiceError> {
        let key = &wanted.idempotency_key;
        if key.is_empty() {
            return Ok(None);
        }
        if key.len() > 128 {
            return Err(ServiceError::invalid("idempotency_key", "at most 128 bytes"));
        }
        let since = self.uploads.base.now().plus_seconds(-ANSWER_SECONDS);
        let Some((method, answer)) = node::find_answer(session, call.actor.user, key, since).await? else {
            return Ok(None);
        };
        // Content, version, created. A repeated publish signs another statement (time, parent) about the same content.
        let text = String::from_utf8(answer).unwrap_or_default();
        let mut parts = text.split(' ');
        let content = parts.next().and_then(|part| part.parse::<Hash>().ok());
        let version = parts.next().and_then(|part| part.parse::<Hash>().ok());
        let created = parts.next() == Some("created");
        let (true, Some(version)) = (method == METHOD && content == Some(wanted.content_root), version) else {
            return Err(ServiceError::invalid("idempotency_key", "was used for another request"));
        };
        let gone =
            || ServiceError::conflict(ErrorCode::CONFLICT, "the version of the first answer is gone", "publish again");
        let version = versions::find(session, &version).await?.ok_or_else(gone)?;
        // The same bytes for another dataset are another request.
        if !Statement::parse(&wanted.statement).is_ok_and(|statement| statement.dataset == version.dataset) {
            return Err(ServiceError::invalid("idempotency_key", "was used for another request"));
        }
        let now = self.uploads.base.now();
        let seen = datasets::find(session, call.actor.user, now, version.dataset).await?.ok_or_else(gone)?;
        reference::allow(call, &seen, Verb::DatasetShow, Embargo::Over, ("dataset", &seen.dataset.name))?;
        Ok(Some(Committed::Version { seen: Box::new(seen), version: Box::new(version), created }))
    }

    async fn keep_answer(
        &self,
        tx: &mut Tx,
        call: &Call,
        wanted: &CommitVersion,
        version: &Hash,
        created: bool,
    ) -> Result<(), ServiceError> {
        if wanted.idempotency_key.is_empty() {
            return Ok(());
        }
        let word = if created { "created" } else { "unchanged" };
        let answer = format!("{} {version} {word}", wanted.content_root);
        let now = self.uploads.base.now();
        let key = &wanted.idempotency_key;
        Ok(node::keep_answer(tx, call.actor.user, key, METHOD, answer.as_bytes(), now).await?)
    }
}

/// Under which first answers are kept.
const METHOD: &str = "dataset.publish";

/// Locks every chunk that new pages name until the transaction ends, and says which have to be sent again: those that
/// are not here, are damaged, or are neither held by the session nor named by the parent. The three are not told apart.
async fn lock_chunks(
    tx: &mut Tx,
    upload: &Upload,
    parent: Option<&Version>,
    checked: &Checked,
) -> Result<Vec<Hash>, ServiceError> {
    let mut wanted: Vec<Hash> = checked.chunks.keys().copied().collect();
    // Always in the same order, so that two commits do not wait for each other.
    wanted.sort_unstable();
    let mut resend = Vec::new();
    for slice in wanted.chunks(SLICE) {
        let mut held: std::collections::HashSet<Hash> =
            chunks::lock_leased(tx, upload.id, slice).await?.into_iter().collect();
        let rest: Vec<Hash> = slice.iter().filter(|chunk| !held.contains(*chunk)).copied().collect();
        if let (Some(parent), false) = (parent, rest.is_empty()) {
            held.extend(pages::chunks_in_version(tx, upload.dataset, parent.n, &rest).await?);
        }
        let mut whole = std::collections::HashSet::with_capacity(slice.len());
        for located in chunks::locate(tx, slice).await? {
            let (hash, length) = (located.chunk.hash, located.chunk.raw_length);
            if !held.contains(&hash) || located.damaged {
                continue;
            }
            if checked.chunks.get(&hash).is_some_and(|reach| *reach > length) {
                return Err(ServiceError::invalid(
                    "layout_root",
                    format!("an extent reaches past the end of chunk {hash}"),
                ));
            }
            whole.insert(hash);
        }
        resend.extend(slice.iter().filter(|chunk| !whole.contains(*chunk)));
    }
    resend.truncate(MAX_RESEND);
    Ok(resend)
}

fn new_version(
    call: &Call,
    wanted: &CommitVersion,
    seen: &SeenDataset,
    signed: &Signed,
    checked: &Checked,
    n: u64,
    now: bib_core::Timestamp,
) -> Version {
    let statement = &signed.statement;
    Version {
        hash: signed.version,
        dataset: seen.dataset.id,
        n,
        content: wanted.content_root,
        layout: wanted.layout_root,
        parents: statement.parents.clone(),
        label: statement.label.clone().unwrap_or_default(),
        message: statement.message.clone(),
        license: statement.license.clone(),
        author_kind: "person".to_owned(),
        author_key: signed.key.fingerprint.to_string(),
        author_name: signed.name.clone().unwrap_or_default(),
        time: statement.time,
        statement: signed.bytes.to_vec(),
        signature: signed.pem.clone(),
        files: checked.files,
        size_bytes: checked.size_bytes,
        state: VersionState::Pending,
        withdrawal_reason: String::new(),
        published_by: Some(call.actor.user),
        created_at: now,
    }
}

fn says_the_same(parent: &Version, statement: &Statement) -> bool {
    let Ok(before) = Statement::parse(&parent.statement) else { return false };
    (&before.content, &before.license, &before.metadata, &before.label)
        == (&statement.content, &statement.license, &statement.metadata, &statement.label)
}

/// The statement builds upon the latest version, or is the first.
fn check_parents(statement: &Statement, latest: Option<Hash>) -> Result<(), ServiceError> {
    if statement.parents.iter().copied().eq(latest) {
        return Ok(());
    }
    let text = |hash: Option<&Hash>| hash.map_or_else(String::new, Hash::to_string);
    let said = |text: &str| if text.is_empty() { "nothing".to_owned() } else { text.to_owned() };
    let (parent, latest) = (text(statement.parents.first()), text(latest.as_ref()));
    Err(ServiceError::Conflict {
        code: ErrorCode::LATEST_MOVED,
        sentence: format!("the version builds upon {}, but the latest is {}", said(&parent), said(&latest)),
        hint: "look at what was published in between; `--rebase` publishes on top of it".to_owned(),
        values: vec![("parent", parent), ("latest", latest)],
    })
}

fn refused(reason: String) -> ServiceError {
    ServiceError::Integrity {
        code: ErrorCode::STATEMENT_REFUSED,
        sentence: reason,
        hint: "publish again with a client of this release; `bib user key add` registers a key".to_owned(),
    }
}

fn unknown_key(key: &KeyFingerprint) -> ServiceError {
    ServiceError::Denied {
        code: ErrorCode::STATEMENT_REFUSED,
        sentence: format!("the key {key} is not one of yours on this node"),
        hint: "`bib user key add` registers a key; `bib whoami` lists yours".to_owned(),
    }
}
