//! One session once it is in: what is said is recorded and passed on, what is answered is noted and passed on.
//!
//! Three futures run until the first of them ends: what the person says, what the server answers, and the watch (cuts, and
//! a recorder that must live also while nothing is said). Then the recording gets its last line and the audit log its entry.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bib_core::Hash;
use bibd_catalog::glass::{self, SessionCounts};
use bibd_postgres::glass::backend::{self, Cutter, Piece, Told};
use bibd_postgres::glass::frontend::{self, Said};
use bibd_postgres::glass::{Entered, Malformed, Stream};
use bytes::BytesMut;
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::watch;
use uuid::Uuid;

use super::Cut;
use super::proxy::{Piped, Proxy, RECORD_DEADLINE};
use super::recorder::{Mark, RecordError, Recorder};
use super::transcript::{Line, Transcript, object};
use crate::services::ServiceError;
use crate::services::journal::Act;

/// How often a recorder shows that it lives.
const ALIVE_EVERY: Duration = Duration::from_millis(900);
/// How long the server may take to close after a goodbye.
const LEAVE_DEADLINE: Duration = Duration::from_millis(500);
/// What is read at once, and about what is sent at once.
const READ_BYTES: usize = 64 << 10;
/// Bytes of acts in one entry of the audit log; its details take 64 KiB as a whole.
const ENTRY_BYTES: usize = 40_000;
/// Bytes of a statement that an entry repeats; a longer one stands there by its hash, and in the recording.
const TEXT_BYTES: usize = 16_000;

/// Whatever keeps a statement from being recorded.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The person left.
    Left,
    /// The connection to the person broke: also when the person's certificate was revoked.
    Lost,
    /// The server closed it.
    Server,
    /// Something was said or answered that cannot be recorded.
    Malformed(&'static str),
    /// It was cut.
    Cut(Cut),
}

impl End {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Lost => "lost",
            Self::Server => "server",
            Self::Malformed(_) => "malformed",
            Self::Cut(cut) => cut.as_str(),
        }
    }
}

/// A session that is recorded.
pub(super) struct Session<'p> {
    pub(super) id: Uuid,
    proxy: &'p Proxy,
    transcript: std::sync::Mutex<Transcript>,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    pub(super) recorder: Arc<Recorder>,
}

impl<'p> Session<'p> {
    pub(super) fn new(proxy: &'p Proxy, id: Uuid, recorder: Recorder) -> Self {
        let level = proxy.glass.0.settings.as_ref().map(|settings| settings.audit_level).unwrap_or_default();
        Self {
            id,
            proxy,
            transcript: std::sync::Mutex::new(Transcript::new(level)),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            recorder: Arc::new(recorder),
        }
    }

    /// Relays until there is an end. Also says whether the server closed its side: then nothing runs there any more.
    pub(super) async fn relay(&self, entered: Entered, said: Piped, buffer: BytesMut) -> (End, bool) {
        let (reader, writer) = tokio::io::split(entered.stream);
        let has_left = AtomicBool::new(false);
        let downward = self.downward(Cutter::new(entered.rest), reader);
        tokio::pin!(downward);
        let end = tokio::select! {
            biased;
            end = self.watch() => end,
            end = self.upward(said, buffer, writer, &has_left) => end,
            end = &mut downward => end,
        };
        match end {
            End::Cut(cut) => self.proxy.farewell("57P01", cut.sentence(), "").await,
            End::Malformed(why) => self.proxy.farewell("08P01", why, "").await,
            End::Server if has_left.load(Ordering::Relaxed) => return (End::Left, true),
            End::Server => return (End::Server, true),
            End::Left => {
                let last = tokio::time::timeout(LEAVE_DEADLINE, downward).await;
                return (End::Left, matches!(last, Ok(End::Server)));
            }
            End::Lost => {}
        }
        (end, false)
    }

    /// Waits for a cut, and has the recorder show that it lives.
    async fn watch(&self) -> End {
        let mut cut = self.proxy.open.cut.subscribe();
        let stopping = &self.proxy.glass.0.stopping;
        loop {
            tokio::select! {
                biased;
                why = cut_of(&mut cut) => return End::Cut(why),
                () = stopping.cancelled() => return End::Cut(Cut::Stopping),
                () = tokio::time::sleep(ALIVE_EVERY) => {
                    let fields = object(json!({ "kind": "alive" }));
                    let line = Line { fields, is_durable: false, shown: String::new(), typed: String::new() };
                    let outcome = match self.recorder.add(line, self.proxy.now()) {
                        Ok(_) => self.recorder.commit().await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = outcome {
                        return self.dead(&error);
                    }
                }
            }
        }
    }

    /// From the person to the server: recorded, then passed on.
    async fn upward(
        &self,
        mut said: Piped,
        mut buffer: BytesMut,
        mut writer: WriteHalf<Stream>,
        has_left: &AtomicBool,
    ) -> End {
        loop {
            let mut lines = Vec::new();
            let mut through = Vec::new();
            let mut is_over = false;
            loop {
                let frame = match frontend::frame(&mut buffer) {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(Malformed(why)) => return End::Malformed(why),
                };
                let said = match frontend::read(&frame) {
                    Ok(said) => said,
                    Err(Malformed(why)) => return End::Malformed(why),
                };
                is_over |= said == Said::Terminate;
                lines.extend(self.transcript().said(&said));
                through.push(frame.raw);
            }
            if let Err(error) = self.take(lines).await {
                return self.dead(error.as_ref());
            }
            for bytes in &through {
                if writer.write_all(bytes).await.is_err() {
                    return End::Server;
                }
                self.bytes_in.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            // TLS may keep what it was given until it is told.
            if !through.is_empty() && writer.flush().await.is_err() {
                return End::Server;
            }
            if is_over {
                // Answers to what came before the goodbye may be on their way; the server closes after them.
                has_left.store(true, Ordering::Relaxed);
                while said.next().await.is_some() {}
                return End::Left;
            }
            match said.next().await {
                Some(bytes) => buffer.extend_from_slice(&bytes),
                None => return End::Lost,
            }
        }
    }

    /// From the server to the person: noted and passed on.
    async fn downward(&self, mut cutter: Cutter, mut reader: ReadHalf<Stream>) -> End {
        let mut long_bytes = 0_u64;
        loop {
            let mut through = BytesMut::new();
            loop {
                let line = match cutter.cut() {
                    Ok(Some(Piece::Whole(frame))) => match backend::read(&frame) {
                        Ok(told) => {
                            // A word to the record, not to the person.
                            if !matches!(told, Told::Nested(_)) {
                                through.extend_from_slice(&frame.raw);
                            }
                            self.transcript().told(&told)
                        }
                        Err(Malformed(why)) => return End::Malformed(why),
                    },
                    Ok(Some(Piece::Part { tag, raw, is_last })) => {
                        long_bytes += raw.len() as u64;
                        through.extend_from_slice(&raw);
                        let line = self.transcript().part(tag, long_bytes, is_last);
                        long_bytes = if is_last { 0 } else { long_bytes };
                        line
                    }
                    Ok(None) => break,
                    Err(Malformed(why)) => return End::Malformed(why),
                };
                if let Some(line) = line
                    && let Err(error) = self.recorder.add(line, self.proxy.now())
                {
                    return self.dead(&error);
                }
                if through.len() >= READ_BYTES {
                    break;
                }
            }
            if self.recorder.is_heavy()
                && let Err(error) = self.recorder.commit().await
            {
                return self.dead(&error);
            }
            if through.is_empty() {
                cutter.buffer().reserve(READ_BYTES);
                match reader.read_buf(cutter.buffer()).await {
                    Ok(0) | Err(_) => return End::Server,
                    Ok(_) => {}
                }
                continue;
            }
            self.bytes_out.fetch_add(through.len() as u64, Ordering::Relaxed);
            if self.proxy.out.send(through.freeze()).await.is_err() {
                return End::Lost;
            }
        }
    }

    /// Has the recording and the audit log take these lines, both at once. Returns when the former is on the disk and the
    /// latter committed, if there is one among them that demands it.
    async fn take(&self, lines: Vec<Line>) -> Result<(), Failure> {
        let (mut acts, now) = (Vec::new(), self.proxy.now());
        for line in lines {
            let act = line.is_durable.then(|| line.fields.clone());
            let number = self.recorder.add(line, now)?;
            if let Some(mut act) = act {
                act.insert("n".to_owned(), json!(number));
                acts.push(Value::Object(act));
            }
        }
        if acts.is_empty() {
            return if self.recorder.is_heavy() { Ok(self.recorder.commit().await?) } else { Ok(()) };
        }
        let mark = self.recorder.mark();
        let both = async {
            let (recorded, logged) = tokio::join!(self.recorder.commit(), self.log(acts, mark));
            recorded?;
            logged?;
            Ok::<_, Failure>(())
        };
        tokio::time::timeout(RECORD_DEADLINE, both).await.unwrap_or_else(|_| Err(RecordError::Hangs.into()))
    }

    /// Entries of the audit log for what is about to be run.
    async fn log(&self, acts: Vec<Value>, mark: Mark) -> Result<(), ServiceError> {
        let base = &self.proxy.glass.0.base;
        let mut entry: Vec<Value> = Vec::new();
        let mut bytes = 0;
        for act in acts.into_iter().map(shortened) {
            let size = act.to_string().len();
            if bytes + size > ENTRY_BYTES && !entry.is_empty() {
                self.enter(base, std::mem::take(&mut entry), mark).await?;
                bytes = 0;
            }
            bytes += size;
            entry.push(act);
        }
        self.enter(base, entry, mark).await
    }

    async fn enter(
        &self,
        base: &crate::services::base::Base,
        acts: Vec<Value>,
        mark: Mark,
    ) -> Result<(), ServiceError> {
        let details = json!({
            "break_glass": true,
            "grant": self.proxy.open.granted.id.to_string(),
            "recording": { "lines": mark.lines, "sha256": mark.head.to_string() },
            "acts": acts,
        });
        let act = Act::new("break_glass.statement", self.id.to_string(), details);
        base.journal.record_ahead(&base.db, &self.proxy.call, act).await.map(drop)
    }

    /// What cannot be recorded does not go on: not this session, and no other of the grant.
    fn dead(&self, error: &(dyn std::error::Error + 'static)) -> End {
        tracing::error!(error, session = %self.id, "a break-glass session is cut, for it cannot be recorded");
        self.proxy.open.cut(Cut::Recorder);
        End::Cut(Cut::Recorder)
    }

    /// The last line, the row, the entry.
    pub(super) async fn finish(&self, end: End) {
        let fields = object(json!({ "kind": "end", "reason": end.as_str() }));
        let line = Line { fields, is_durable: true, shown: format!("-- {}\n", end.as_str()), typed: String::new() };
        let recorded = match self.recorder.add(line, self.proxy.now()) {
            Ok(_) => self.recorder.commit().await,
            Err(error) => Err(error),
        };
        if let Err(error) = &recorded {
            tracing::error!(error = error as &dyn std::error::Error, "the end of a recording could not be written");
        }
        let mark = self.recorder.mark();
        let counts = SessionCounts {
            statements: self.transcript().statements(),
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.bytes_out.load(Ordering::Relaxed),
        };
        let written = tokio::time::timeout(RECORD_DEADLINE, self.close(end, counts, &mark.head)).await;
        match written {
            Ok(Ok(())) => {}
            // The end of the grant says it again.
            Ok(Err(error)) => tracing::error!(%error, "the end of a break-glass session could not be written"),
            Err(_) => tracing::error!("the end of a break-glass session was not written in time"),
        }
    }

    async fn close(&self, end: End, counts: SessionCounts, recording: &Hash) -> Result<(), ServiceError> {
        let base = &self.proxy.glass.0.base;
        let mut tx = base.begin(&self.proxy.call, "break-glass").await?;
        glass::end_session(&mut tx, self.id, base.now(), end.as_str(), counts, recording).await?;
        let details = json!({
            "break_glass": true,
            "grant": self.proxy.open.granted.id.to_string(),
            "end_reason": end.as_str(),
            "statements": counts.statements,
            "bytes_in": counts.bytes_in,
            "bytes_out": counts.bytes_out,
            "recording_sha256": recording.to_string(),
        });
        let act = Act::new("break_glass.leave", self.id.to_string(), details);
        base.journal.commit(tx, &self.proxy.call, act).await.map(drop)
    }

    fn transcript(&self) -> std::sync::MutexGuard<'_, Transcript> {
        // A panic while it is held leaves counts that are off by one, in a session that ends with it.
        self.transcript.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Waits until everything is to end.
async fn cut_of(cut: &mut watch::Receiver<Option<Cut>>) -> Cut {
    match cut.wait_for(Option::is_some).await {
        Ok(why) => (*why).unwrap_or(Cut::Stopping),
        // The sender lives as long as the grant, which the session holds.
        Err(_) => Cut::Stopping,
    }
}

/// A text that is too long for an entry stands there by its beginning and its hash.
fn shortened(act: Value) -> Value {
    let text = act.to_string();
    if text.len() <= TEXT_BYTES {
        return act;
    }
    let start: String = text.chars().take(TEXT_BYTES / 8).collect();
    json!({ "n": act["n"], "kind": act["kind"], "shortened": start, "bytes": text.len(), "sha256": Hash::of(text.as_bytes()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_never_outgrows_its_details() {
        let act = json!({ "kind": "query", "n": 3, "text": "x".repeat(1 << 20) });
        let short = shortened(act);
        assert!(short.to_string().len() < TEXT_BYTES && short["n"] == 3 && short["bytes"].as_u64() > Some(1 << 20));
        let small = json!({ "kind": "query", "text": "SELECT 1" });
        assert_eq!(shortened(small.clone()), small);
    }
}
