//! A log for tests: built as the daemon builds one, changed as an attacker would, verified by both verifiers.
#![allow(unreachable_pub, reason = "a module of test binaries")]
#![allow(dead_code, reason = "each test file uses its own part")]

use std::process::Command;

use bib_core::record::{Body, LastMark, Node, Revision, SignedRecord, StepProof, Succession};
use bib_core::signature::{Purpose, signed_bytes};
use bib_core::{OperationId, PeerId, Timestamp, UserId};
use bibd_audit::entry::Entry;
use bibd_audit::export::{self, Bytes, DetailLine, EntryLine, Line, SealLine, SealedLine};
use bibd_audit::{
    Actor, ChainState, Checkpoint, EntryDraft, Outcome, StatementNote, TrustedInputs, Verdict, Via, action, body,
    chain, succession,
};
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};
use uuid::Uuid;

/// 2025-11-20T19:01:00Z.
const BEGIN_US: i64 = 1_763_665_260_000_000;

/// A log as its tables and the checkpoint file hold it.
#[derive(Clone)]
pub struct Log {
    pub key: SigningKey,
    /// What proves that this node follows another.
    pub successions: Vec<StepProof>,
    pub rows: Vec<SealedLine>,
    pub table: Vec<String>,
    pub external: Vec<String>,
    pub after: Vec<Line>,
    pub state: ChainState,
    made: u64,
}

impl Log {
    pub fn new() -> Self {
        let key = SigningKey::from_bytes(&[7; 32]);
        let state = ChainState::new(1);
        Self { key, successions: vec![], rows: vec![], table: vec![], external: vec![], after: vec![], state, made: 0 }
    }

    pub fn public_key(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    pub fn node(&self) -> PeerId {
        PeerId::from_public_key(self.public_key())
    }

    /// An entry that is not sealed yet.
    pub fn entry(&mut self, action: &str, target: &str) -> Entry {
        self.made += 1;
        let n = self.made;
        let id = |kind: u8| {
            let mut random = [kind; 10];
            random[2..].copy_from_slice(&n.to_be_bytes());
            uuid::Builder::from_unix_timestamp_millis(1_763_665_260_000 + n, &random).into_uuid()
        };
        let statement = |table: &str| StatementNote {
            class: "insert".into(),
            table: table.to_owned().into(),
            hash: bib_core::Hash::of(table.as_bytes()),
            rows: n,
            us: 100 + n,
        };
        EntryDraft {
            id: id(1),
            time: Timestamp::from_micros(BEGIN_US + i64::try_from(n).unwrap() * 1_000_003),
            node: self.node(),
            actor: Actor::User {
                id: UserId::from_uuid(id(2)),
                name: if n.is_multiple_of(2) { "ada" } else { "Zoë" }.into(),
            },
            via: if n.is_multiple_of(3) { Via::Tls } else { Via::Socket },
            action: action.into(),
            target: target.into(),
            result: Outcome::Ok,
            operation: OperationId::from_uuid(id(3)),
            job: (n.is_multiple_of(4)).then(|| id(4)),
            origin: None,
            statements: vec![statement("topics"), statement("audit_entry")],
            details: json!({"note": format!("act {n}"), "tags": ["a\nb", "\u{1b}[31m"]}),
            salt: [u8::try_from(n % 256).unwrap(); 32],
        }
        .build()
        .unwrap()
    }

    /// Writes and seals an entry.
    pub fn act(&mut self, action: &str, target: &str) -> Uuid {
        let entry = self.entry(action, target);
        let seal = self.state.seal([(entry.id, entry.digest)]).remove(0);
        self.rows.push(SealedLine {
            seal: SealLine {
                epoch: seal.epoch,
                seq: seal.seq,
                entry: seal.entry,
                digest: seal.digest.as_bytes().to_vec(),
                head: seal.head.as_bytes().to_vec(),
            },
            detail: Some(DetailLine { salt: entry.detail.salt.to_vec(), details: Bytes(entry.detail.bytes.clone()) }),
            entry: Some(entry_line(&entry)),
        });
        entry.id
    }

    pub fn acts(&mut self, count: u64) {
        for _ in 0..count {
            self.act("topic.create", "topic:climate");
        }
    }

    pub fn note(&self, key: &SigningKey) -> String {
        Checkpoint::of(self.node(), &self.state).sign(&|bytes| key.sign(bytes).to_bytes()).to_string()
    }

    /// Signs how the log stands, into both places.
    pub fn checkpoint(&mut self) {
        let note = self.note(&self.key);
        self.table.push(note.clone());
        self.external.push(note);
    }

    /// The node's identity is gone: `next` goes on with the log in the epoch `first`, as `recovery` says. Answers the
    /// proof, which is not yet among what is exported.
    pub fn succeed(&mut self, next: &SigningKey, recovery: &SigningKey, first: u64) -> StepProof {
        let proof = succession_proof(&self.key, next, recovery, first);
        let (state, target) = self.state.begin_epoch(first).unwrap();
        self.key = next.clone();
        self.state = state;
        self.act(action::EPOCH, &target);
        proof
    }

    pub fn next_epoch(&mut self) {
        let (state, target) = self.state.begin_epoch(self.state.epoch + 1).unwrap();
        self.state = state;
        self.act(action::EPOCH, &target);
    }

    /// Erases the details of the row at `index`, as the law asks.
    pub fn erase(&mut self, index: usize) {
        let id = self.rows[index].seal.entry;
        self.rows[index].detail = None;
        self.act(action::ERASE, &id.to_string());
    }

    /// Two epochs, an erasure, checkpoints: the golden log. Epoch 1 has 12 entries, epoch 2 has 8.
    pub fn golden() -> Self {
        let mut log = Self::new();
        log.acts(5);
        log.checkpoint();
        log.acts(4);
        log.checkpoint();
        log.acts(3);
        log.checkpoint();
        log.next_epoch();
        log.acts(2);
        log.erase(3);
        log.checkpoint();
        log.acts(4);
        log.checkpoint();
        log
    }

    /// The place in `rows` of (epoch, seq) in the golden log.
    pub fn at(epoch: u64, seq: usize) -> usize {
        if epoch == 1 { seq - 1 } else { 11 + seq }
    }

    /// Computes digests and heads anew from the row at `from`, to the end of its epoch: re-chaining.
    pub fn rechain(&mut self, from: usize) {
        let epoch = self.rows[from].seal.epoch;
        let mut state = ChainState::new(epoch);
        for row in self.rows.iter_mut().filter(|row| row.seal.epoch == epoch) {
            let digest = body::digest(&row.entry.as_ref().unwrap().body.0);
            let seal = state.seal([(row.seal.entry, digest)]).remove(0);
            row.seal.seq = seal.seq;
            row.seal.digest = digest.as_bytes().to_vec();
            row.seal.head = seal.head.as_bytes().to_vec();
        }
        self.state = state;
    }

    /// Gives every row its place again without touching digests and heads.
    pub fn renumber(&mut self) {
        let (mut epoch, mut seq) = (0, 0);
        for row in &mut self.rows {
            seq = if row.seal.epoch == epoch { seq + 1 } else { 1 };
            epoch = row.seal.epoch;
            row.seal.seq = seq;
        }
    }

    /// Changes a member of the body at `index`, and its column.
    pub fn forge_body(&mut self, index: usize, from: &str, to: &str) {
        let entry = self.rows[index].entry.as_mut().unwrap();
        let text = String::from_utf8(entry.body.0.clone()).unwrap();
        assert!(text.contains(from), "{text}");
        entry.body = Bytes(text.replace(from, to).into_bytes());
        entry.target = entry.target.replace(from, to);
    }

    pub fn head_before(&self, index: usize) -> bib_core::Hash {
        if self.rows[index].seal.seq == 1 {
            chain::HEAD_0
        } else {
            bib_core::Hash::try_from(self.rows[index - 1].seal.head.as_slice()).unwrap()
        }
    }

    /// The export.
    pub fn export(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let header = Line::Header { format: export::FORMAT.into(), node: self.node() };
        let successions = self.successions.iter().map(succession::line);
        let notes = self.table.iter().map(|note| Line::Checkpoint { note: note.clone() });
        let rows = self.rows.iter().map(|row| Line::Entry(Box::new(row.clone())));
        for line in
            std::iter::once(header).chain(successions).chain(notes).chain(rows).chain(self.after.iter().cloned())
        {
            export::write_line(&line, &mut out).unwrap();
        }
        out
    }

    /// The external file.
    pub fn checkpoint_file(&self) -> String {
        self.external.iter().map(|note| format!("{note}\n")).collect()
    }

    pub fn verify(&self) -> Verdict {
        self.verify_with(Some(self.public_key()), true)
    }

    pub fn verify_with(&self, public_key: Option<[u8; 32]>, external: bool) -> Verdict {
        let external = if external { self.external.clone() } else { vec![] };
        let trusted = TrustedInputs { public_key, external, ..TrustedInputs::default() };
        export::verify(self.export().as_slice(), trusted).unwrap()
    }

    /// The verdict of `python/verify_log.py`, reduced to what both tell: verdict, class, first bad, entries.
    pub fn verify_in_python(&self, public_key: Option<[u8; 32]>, external: bool) -> Value {
        let dir = tempfile::tempdir().unwrap();
        let (log, file) = (dir.path().join("log.jsonl"), dir.path().join("checkpoints.txt"));
        std::fs::write(&log, self.export()).unwrap();
        std::fs::write(&file, self.checkpoint_file()).unwrap();
        let mut command = Command::new("python3");
        command.arg(script()).arg(&log);
        if external {
            command.arg(&file)
        } else {
            command.arg("-")
        };
        command.arg(public_key.map_or("-".into(), hex::encode));
        let output = command.output().expect("python3 is needed: the second verifier is written in it");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("python said {text}{error}"))
    }
}

/// `from` named the recovery key `[5; 32]`; `by` signs that `next` follows it from the epoch `first` on, which accepts.
pub fn succession_proof(from: &SigningKey, next: &SigningKey, by: &SigningKey, first: u64) -> StepProof {
    let peer = |key: &SigningKey| PeerId::from_public_key(key.verifying_key().to_bytes());
    let sign = |key: &SigningKey, purpose, body: &[u8]| key.sign(&signed_bytes(purpose, body)).to_bytes();
    let record = |key: &SigningKey, body: Body| {
        let bytes = body.to_bytes().unwrap();
        SignedRecord { sig: sign(key, body.purpose(), &bytes), key: peer(key), body: bytes }
    };
    let time = Timestamp::from_micros(BEGIN_US);
    let node = Node {
        revision: Revision::first(1),
        time,
        id: peer(from),
        name: None,
        recovery: Some(peer(&SigningKey::from_bytes(&[5; 32]))),
        ca: None,
        extra: Default::default(),
    };
    let mut succession = Succession {
        revision: Revision::first(first),
        time,
        from: peer(from),
        to: peer(next),
        last: LastMark { epoch: 1, n: 9 },
        acceptance: None,
        extra: Default::default(),
    };
    succession.acceptance = Some(sign(next, Purpose::Transfer, &succession.offer_bytes().unwrap()));
    StepProof { node: record(from, node.into()), succession: record(by, succession.into()) }
}

pub fn script() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("python/verify_log.py")
}

/// What both verifiers tell of a verdict.
pub fn summary(verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Ok(ok) => {
            let mut said = json!({
                "verdict": "OK", "entries": ok.entries, "head": ok.head,
                "checkpoint": [ok.checkpoint.epoch, ok.checkpoint.seq],
            });
            if !ok.former.is_empty() {
                said["former"] = json!(ok.former);
            }
            said
        }
        Verdict::Tampered(tamper) => json!({
            "verdict": "TAMPERED", "first_bad": [tamper.first_bad.epoch, tamper.first_bad.seq], "class": tamper.class,
        }),
        Verdict::Unverified { entries, .. } => json!({"verdict": "UNVERIFIED", "entries": entries}),
    }
}

pub fn entry_line(entry: &Entry) -> EntryLine {
    let columns = entry.columns.clone();
    EntryLine {
        id: entry.id,
        time: entry.time,
        node: columns.node,
        actor: columns.actor,
        via: columns.via.into(),
        action: columns.action,
        target: columns.target,
        result: columns.result,
        operation: columns.operation,
        job: columns.job,
        body: Bytes(entry.body.clone()),
    }
}
