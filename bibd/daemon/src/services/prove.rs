//! The proof of a version: everything that a stranger needs to check it with OpenSSH and Python, without this node.
//!
//! The files of a bundle, in this order; `docs/verify.md` checks them:
//!
//! | name | what |
//! |---|---|
//! | `README.txt` | what the files are, for people |
//! | `statement.json` | the statement, verbatim; its SHA-256 is the version |
//! | `statement.sig` | the author's SSHSIG over it, namespace `bib-version-v1` |
//! | `allowed_signers` | the author's key, as `ssh-keygen -Y verify` reads it; the principal is `author` |
//! | `version.record.json`, `version.record.sig` | the node's record of the version; Ed25519 over `bib-record-v1\0` and the body, 64 bytes |
//! | `person.record.json`, `person.record.sig` | the node's record of the author's key, likewise |
//! | `node.pub` | the node's public key, one OpenSSH line; the comment is its peer id |
//! | `successions.jsonl` | where other nodes follow the one of `node.pub`: each succession, as in an export of the audit log |
//! | `content/root.json` | the content root; its SHA-256 is the statement's `content` |
//! | `content/HASH` | each index object and page, named by its SHA-256 |
//! | `audit.json` | the entry of the publish in the node's audit log, its inclusion proof and the checkpoint |
//!
//! Bytes are streamed: a page at a time.

use std::time::Duration;

use bib_core::Hash;
use bib_core::record::SignedRecord;
use bibd_audit::export::write_line;
use bibd_audit::succession;
use bibd_catalog::audit::{self, Filter};
use bibd_catalog::pages::{self, PageKind};
use bibd_catalog::versions::Version;
use bibd_catalog::{records, users};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::audit::AuditService;
use super::base::Base;
use super::download::DownloadUseCases;
use super::error::ServiceError;
use super::page_list::{self, ordered};
use super::reference::{self, Found};
use crate::actor::Call;
use crate::errors::ErrorCode;

/// Bytes of a piece, at most.
const PIECE_BYTES: usize = 1 << 20;

/// How long a proof waits for a checkpoint that covers the publish.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(10);

/// How often it looks meanwhile.
const CHECKPOINT_LOOK: Duration = Duration::from_millis(50);

/// How far the time of an audit entry lies from that of its version, at most, unless the clock jumped.
const ENTRY_SECONDS: i64 = 600;

/// The use case of proving.
#[derive(Debug, Clone)]
pub struct ProveUseCases {
    base: Base,
    audit: AuditService,
    downloads: DownloadUseCases,
}

/// A piece of a file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProofPiece {
    /// The file's name in the bundle.
    pub name: String,
    /// At most 1 MiB.
    pub data: Bytes,
    /// The last piece of this file.
    pub last: bool,
}

type Out = mpsc::Sender<Result<ProofPiece, ServiceError>>;

impl ProveUseCases {
    /// Over the node's log and versions.
    #[must_use]
    pub fn new(base: Base, audit: AuditService, downloads: DownloadUseCases) -> Self {
        Self { base, audit, downloads }
    }

    /// Writes the bundle of a version that the caller may read into `out`. It ends early when nobody listens.
    ///
    /// # Errors
    /// When there is no such version for the caller, something that a version always has is missing, or no checkpoint
    /// covers its audit entry in time.
    pub async fn prove(&self, call: &Call, reference: &str, out: Out) -> Result<(), ServiceError> {
        let mut session = self.base.db.read().await?;
        let Found { seen, version } = reference::readable(&self.base, call, &mut session, reference).await?;
        let person = users::find_person(&mut session, &version.author_key).await?;
        let person = person.ok_or_else(|| missing("the author's key"))?;
        let own = records::find(&mut session, "version", &version.hash.to_string()).await?;
        let own = own.ok_or_else(|| missing("the version's record"))?.signed()?;
        let author = records::find(&mut session, "person", &version.author_key).await?;
        let author = author.ok_or_else(|| missing("the author's record"))?.signed()?;
        drop(session);
        self.downloads.enter(call, &version).await?;
        // First, as it may take a moment: nothing is sent of a bundle that cannot be completed.
        let proof = self.audit_proof(&version).await?;

        let allowed =
            format!("author namespaces=\"{}\" {}\n", bib_core::signature::VERSION_NAMESPACE, person.public_key);
        let node = bib_identity::node_key::public_openssh(&own.key).map_err(ServiceError::internal)?;
        let signer = own.key;
        let mut bundle = Bundle { out, open: true };
        bundle.file("README.txt", readme(&seen.dataset.name, &version).into()).await;
        bundle.file("statement.json", version.statement.clone().into()).await;
        bundle.file("statement.sig", version.signature.clone().into()).await;
        bundle.file("allowed_signers", allowed.into()).await;
        bundle.record("version", own).await;
        bundle.record("person", author).await;
        bundle.file("node.pub", format!("{} {}\n", node.trim_end(), signer).into()).await;
        let mut successions = Vec::new();
        for proof in self.base.inheritance.proofs_from(&signer) {
            write_line(&succession::line(&proof), &mut successions).map_err(ServiceError::internal)?;
        }
        if !successions.is_empty() {
            bundle.file("successions.jsonl", successions.into()).await;
        }
        self.send_content(&mut bundle, &version).await?;
        bundle.file("audit.json", proof.into()).await;
        Ok(())
    }

    async fn send_content(&self, bundle: &mut Bundle, version: &Version) -> Result<(), ServiceError> {
        let mut session = self.base.db.read().await?;
        let list = page_list::content(&mut session, &version.content).await?;
        let root = pages::get(&mut session, &[version.content]).await?.into_iter().next();
        bundle.file("content/root.json", root.ok_or_else(|| missing("the content root"))?.body.into()).await;
        let indexes = list.indexes.iter().map(|hash| (hash, PageKind::ContentIndex));
        for (hash, kind) in indexes.chain(list.pages.iter().map(|hash| (hash, PageKind::ContentPage))) {
            if !bundle.open {
                return Ok(());
            }
            // A connection is not held while the caller takes its time.
            let mut session = self.base.db.read().await?;
            let page = ordered(&mut session, std::slice::from_ref(hash), kind).await?;
            drop(session);
            let body = page.into_iter().next().map(|page| page.body).unwrap_or_default();
            bundle.file(&format!("content/{hash}"), body.into()).await;
        }
        Ok(())
    }

    /// The entry of the publish with its proof, once a checkpoint covers it.
    async fn audit_proof(&self, version: &Version) -> Result<Vec<u8>, ServiceError> {
        let wait = async {
            loop {
                if let Some((epoch, seq)) = self.publish_entry(version).await? {
                    match self.audit.proof(epoch, seq).await {
                        Ok(proof) => return proof.to_bytes().map_err(ServiceError::internal),
                        Err(error) if error.code() == ErrorCode::UNMET_CONDITION => {}
                        Err(error) => return Err(error),
                    }
                }
                self.base.journal.ask_for_checkpoint();
                tokio::time::sleep(CHECKPOINT_LOOK).await;
            }
        };
        match tokio::time::timeout(CHECKPOINT_DEADLINE, wait).await {
            Ok(result) => result,
            Err(_) => Err(ServiceError::unavailable(
                ErrorCode::AUDIT_UNAVAILABLE,
                "no checkpoint of the audit log covers the publish yet",
            )),
        }
    }

    /// Epoch and number of the publish's entry, once it is sealed.
    async fn publish_entry(&self, version: &Version) -> Result<Option<(u64, u64)>, ServiceError> {
        let near = Filter {
            since: version.created_at.plus_seconds(-ENTRY_SECONDS),
            until: version.created_at.plus_seconds(ENTRY_SECONDS),
            action: "dataset.publish".to_owned(),
            target: format!("version:{}", version.hash),
            limit: 1,
            ..Filter::default()
        };
        let anywhere = Filter { since: Filter::default().since, until: Filter::default().until, ..near.clone() };
        let mut session = self.base.db.read_audit().await?;
        for filter in [near, anywhere] {
            if let Some(entry) = audit::list(&mut session, &filter).await?.into_iter().next() {
                return Ok(entry.epoch.zip(entry.seq).map(|(epoch, seq)| (epoch.unsigned_abs(), seq.unsigned_abs())));
            }
        }
        Err(missing("the audit entry of the publish"))
    }
}

/// Where pieces go.
struct Bundle {
    out: Out,
    /// Somebody listens.
    open: bool,
}

impl Bundle {
    async fn file(&mut self, name: &str, mut data: Bytes) {
        loop {
            let piece = data.split_to(data.len().min(PIECE_BYTES));
            let last = data.is_empty();
            let sent = self.out.send(Ok(ProofPiece { name: name.to_owned(), data: piece, last })).await;
            self.open &= sent.is_ok();
            if last || !self.open {
                return;
            }
        }
    }

    async fn record(&mut self, kind: &str, record: SignedRecord) {
        self.file(&format!("{kind}.record.json"), record.body.into()).await;
        self.file(&format!("{kind}.record.sig"), record.sig.to_vec().into()).await;
    }
}

fn missing(what: &str) -> ServiceError {
    ServiceError::internal(format!("{what} is missing"))
}

fn readme(dataset: &str, version: &Version) -> String {
    let hash: Hash = version.hash;
    format!(
        "Proof of version {hash}\nof the dataset {dataset}.\n\n\
         statement.json      what was published; its SHA-256 is the version\n\
         statement.sig       the author's signature over it\n\
         allowed_signers     the author's public key\n\
         version.record.*    the node's record of the version, and its signature\n\
         person.record.*     the node's record of the author's key, and its signature\n\
         node.pub            the node's public key\n\
         successions.jsonl   who follows that node, if somebody does\n\
         content/            the list of all files with their SHA-256: root.json and pages named by their hash\n\
         audit.json          the publish in the node's audit log: entry, inclusion proof, checkpoint\n\n\
         The author's signature alone:\n\
         ssh-keygen -Y verify -f allowed_signers -I author -n bib-version-v1 -s statement.sig < statement.json\n\n\
         All of it, and a downloaded folder: the script of docs/verify.md, with OpenSSH and Python.\n"
    )
}
