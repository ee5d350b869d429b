//! The way from a person's program to a session: the opening of PostgreSQL's protocol, who is let in, and the end.
//!
//! The proxy speaks for the server at first: there is no encryption inside, what a session may ask for is a short list, and
//! nobody is asked for a password, because who it is was settled before the first byte. Only when recording and audit log
//! know of the session does it log in to the server, as the grant's role. [`super::session`] is what follows.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bibd_catalog::glass;
use bibd_postgres::glass::frontend::{self, Answer, Opening, Startup};
use bibd_postgres::glass::{BackendKey, Entered, MAX_SESSIONS, Malformed};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use super::recorder::Recorder;
use super::session::{End, Session};
use super::transcript::{Line, object};
use super::{BreakGlass, Cut, Live, Open};
use crate::actor::Call;
use crate::services::ServiceError;
use crate::services::journal::Act;

/// Bytes of one direction of a connection. It ends when the other side does.
pub type Piped = BoxStream<'static, Bytes>;

/// How long a program may take to begin its session.
const OPENING_DEADLINE: Duration = Duration::from_secs(15);
/// How long a statement may wait for being recorded: then the recorder is dead.
pub(super) const RECORD_DEADLINE: Duration = Duration::from_millis(1_800);
/// How long the last word to the person may take.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(1);
/// Pieces of answers between the server and the person.
const ANSWERS: usize = 8;

/// What a session may ask to be set for it. Nothing that would load or hide anything.
const PARAMETERS: &[&str] =
    &["application_name", "client_encoding", "datestyle", "extra_float_digits", "geqo", "intervalstyle", "timezone"];

impl BreakGlass {
    /// Begins a session and returns what it answers.
    pub(super) fn piped(&self, open: Arc<Open>, call: Call, said: Piped) -> Piped {
        let (out, answers) = mpsc::channel(ANSWERS); // pieces that the person's program has not taken yet
        let tasks = open.tasks.clone();
        let proxy = Proxy { glass: self.clone(), open, call, out };
        tasks.spawn(proxy.run(said));
        ReceiverStream::new(answers).boxed()
    }
}

/// A connection.
pub(super) struct Proxy {
    pub(super) glass: BreakGlass,
    pub(super) open: Arc<Open>,
    pub(super) call: Call,
    pub(super) out: mpsc::Sender<Bytes>,
}

impl Proxy {
    async fn run(self, mut said: Piped) {
        let mut buffer = BytesMut::new();
        let opening = tokio::time::timeout(OPENING_DEADLINE, self.opening(&mut said, &mut buffer)).await;
        let refusal = match opening {
            Ok(Ok(Some(Opening::Start(startup)))) => match refused_parameter(&startup) {
                None => return self.session(startup, said, buffer).await,
                Some(name) => format!("the parameter `{name}` cannot be set in a break-glass session"),
            },
            Ok(Ok(Some(Opening::Cancel(key)))) => return self.cancel(key).await,
            Ok(Ok(_)) => return,
            Ok(Err(Malformed(why))) => why.to_owned(),
            Err(_) => "no session was begun in time".to_owned(),
        };
        self.farewell("08P01", &refusal, "").await;
    }

    /// Reads until the program says what it wants, past its wish for encryption.
    async fn opening(&self, said: &mut Piped, buffer: &mut BytesMut) -> Result<Option<Opening>, Malformed> {
        loop {
            match frontend::opening(buffer)? {
                Some(Opening::Tls | Opening::Gss) => {
                    if !buffer.is_empty() {
                        // Sent before the answer was there: what would be inside of TLS is not taken from outside of it.
                        return Err(Malformed("something was sent before encryption was settled"));
                    }
                    if self.out.send(Answer::no_encryption()).await.is_err() {
                        return Ok(None);
                    }
                }
                Some(opening) => return Ok(Some(opening)),
                None => match said.next().await {
                    Some(bytes) => buffer.extend_from_slice(&bytes),
                    None => return Ok(None),
                },
            }
        }
    }

    /// Somebody pressed Ctrl-C: another connection of the same program names the session.
    async fn cancel(&self, key: BackendKey) {
        let Some(live) = self.open.live().get(&key).cloned() else { return };
        let fields = object(json!({ "kind": "cancel" }));
        let line = Line { fields, is_durable: true, shown: "^C\n".to_owned(), typed: "\u{3}".to_owned() };
        let recorded = live.recorder.add(line, self.now()).is_ok() && live.recorder.commit().await.is_ok();
        if !recorded {
            return self.open.cut(Cut::Recorder);
        }
        if let Err(error) = self.open.door.cancel(live.backend).await {
            tracing::warn!(%error, "a cancel request did not reach PostgreSQL");
        }
    }

    async fn session(&self, startup: Startup, said: Piped, buffer: BytesMut) {
        let id = self.glass.0.base.ids.uuid();
        let Some(recorder) = self.begin(id, &startup).await else {
            return self.farewell("58030", Cut::Recorder.sentence(), "").await;
        };
        let session = Session::new(self, id, recorder);
        let (end, backend) = match self.enter(&startup, &session.recorder).await {
            Ok((entered, our_key)) => {
                let backend = entered.key.pid;
                let (end, is_gone) = session.relay(entered, said, buffer).await;
                // Ended before it is forgotten: what is not in the table and still in the server is a stranger.
                if !is_gone {
                    self.terminate(backend).await;
                }
                self.open.live().remove(&our_key);
                (end, Some(backend))
            }
            Err(end) => (end, None),
        };
        tracing::info!(session = %id, end = end.as_str(), backend, "a break-glass session has ended");
        session.finish(end).await;
    }

    /// The recording and the audit log know of the session before the server does.
    async fn begin(&self, id: Uuid, startup: &Startup) -> Option<Recorder> {
        let (inner, granted) = (&self.glass.0, &self.open.granted);
        let base = &inner.base;
        let now = base.now();
        let application = application_of(startup);
        let parameters: Map<String, Value> =
            startup.parameters.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        let head = object(json!({
            "format": "bib-break-glass-recording/1",
            "kind": "begin",
            "session": id.to_string(),
            "grant": granted.id.to_string(),
            "node": base.peer.to_string(),
            "user": self.call.actor.name,
            "via": self.call.actor.via.to_string(),
            "role": self.open.name.as_str(),
            "access": granted.access.as_str(),
            "reason": granted.reason,
            "time": now.to_string(),
            "parameters": parameters,
        }));
        let max_bytes = inner.settings.as_ref().map(|settings| settings.max_recording).unwrap_or_default();
        let recording = async {
            let recorder = Recorder::begin(&self.open.shelf, id, head, now.as_seconds(), max_bytes, self.now()).await;
            let recorder = recorder.map_err(|error| super::no_recorder(&error))?;
            let mut tx = base.begin(&self.call, "break-glass").await?;
            glass::begin_session(&mut tx, id, granted.id, &application, now).await?;
            let details = json!({
                "break_glass": true, "grant": granted.id.to_string(), "application": application,
            });
            base.journal.commit(tx, &self.call, Act::new("break_glass.connect", id.to_string(), details)).await?;
            Ok::<_, ServiceError>(recorder)
        };
        match tokio::time::timeout(2 * RECORD_DEADLINE, recording).await {
            Ok(Ok(recorder)) => {
                let more = json!({ "session": id.to_string(), "application": application });
                inner.notices.tell("connected", granted, more);
                Some(recorder)
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "a break-glass session cannot be recorded");
                self.open.cut(Cut::Recorder);
                None
            }
            Err(_) => {
                tracing::error!("a break-glass session was not recorded in time");
                self.open.cut(Cut::Recorder);
                None
            }
        }
    }

    /// Logs in and tells the program that it is in.
    async fn enter(&self, startup: &Startup, recorder: &Arc<Recorder>) -> Result<(Entered, BackendKey), End> {
        let is_known = |name: &str| PARAMETERS.iter().any(|known| name.eq_ignore_ascii_case(known));
        let parameters: Vec<_> = startup.parameters.iter().filter(|(name, _)| is_known(name)).cloned().collect();
        self.open.entering.fetch_add(1, Ordering::SeqCst);
        let entered = match self.open.door.enter(&parameters).await {
            Ok(entered) => entered,
            Err(error) => {
                self.open.entering.fetch_sub(1, Ordering::SeqCst);
                tracing::warn!(%error, "PostgreSQL did not let a break-glass session in");
                self.farewell("08004", &error.to_string(), "").await;
                return Err(End::Server);
            }
        };
        // The number is the server's, as the person can ask it for; the secret is ours.
        let secret = i32::from_be_bytes(self.glass.0.base.ids.entropy().bytes());
        let our_key = BackendKey { pid: entered.key.pid, secret };
        let live = Live { backend: entered.key, recorder: Arc::clone(recorder) };
        let is_full = {
            let mut table = self.open.live();
            let is_full = table.len() >= usize::try_from(MAX_SESSIONS).unwrap_or(usize::MAX);
            if !is_full {
                table.insert(our_key, live);
            }
            is_full
        };
        self.open.entering.fetch_sub(1, Ordering::SeqCst);
        if is_full {
            let hint = "leave one of them first";
            self.farewell("53300", &format!("a grant has at most {MAX_SESSIONS} sessions at once"), hint).await;
            return Err(End::Server);
        }
        let mut answer = Answer::default();
        let unknown: Vec<&str> =
            startup.parameters.iter().map(|(name, _)| name.as_str()).filter(|name| name.starts_with("_pq_.")).collect();
        if startup.minor > 0 || !unknown.is_empty() {
            answer.negotiate(&unknown);
        }
        answer.authenticated();
        entered.parameters.iter().for_each(|(name, value)| answer.parameter(name, value));
        answer.key(our_key);
        answer.ready();
        // Who has left already is found by the relay.
        let _ = self.out.send(answer.into_bytes()).await;
        Ok((entered, our_key))
    }

    /// Ends the backend: a server that is in the middle of something does not look whether anybody listens.
    async fn terminate(&self, backend: i32) {
        if let Err(error) = self.open.door.terminate(backend).await {
            // The role is closed already, which ends its sessions too; else the keeper finds it and closes the role.
            tracing::info!(%error, "a break-glass session is left to the end of its role");
        }
    }

    pub(super) async fn farewell(&self, sqlstate: &str, sentence: &str, hint: &str) {
        let mut answer = Answer::default();
        answer.fatal(sqlstate, sentence, hint);
        // Who does not listen does not hear it.
        let _ = tokio::time::timeout(FAREWELL_DEADLINE, self.out.send(answer.into_bytes())).await;
    }

    pub(super) fn now(&self) -> std::time::Instant {
        self.glass.0.base.ids.clock().monotonic()
    }
}

/// A parameter that a break-glass session does not pass on, because it would change what a session is.
fn refused_parameter(startup: &Startup) -> Option<&str> {
    let is_allowed = |(name, value): &&(String, String)| match name.as_str() {
        // Who it is and where it goes is the grant's to say, whatever the program thinks.
        "user" | "database" => true,
        "options" => value.trim().is_empty(),
        "replication" => matches!(value.as_str(), "false" | "off" | "no" | "0"),
        name if name.starts_with("_pq_.") => true,
        name => PARAMETERS.iter().any(|known| name.eq_ignore_ascii_case(known)),
    };
    startup.parameters.iter().find(|parameter| !is_allowed(parameter)).map(|(name, _)| name.as_str())
}

fn application_of(startup: &Startup) -> String {
    let found = startup.parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case("application_name"));
    let text: String = found.map(|(_, value)| value.chars().take(64).collect()).unwrap_or_default();
    bib_core::text::scrub(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn startup(parameters: &[(&str, &str)]) -> Startup {
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Startup { minor: 0, parameters }
    }

    #[test]
    fn a_session_cannot_ask_for_what_would_escape_the_record() {
        let usual = [("user", "x"), ("database", "y"), ("application_name", "psql"), ("client_encoding", "UTF8")];
        assert_eq!(refused_parameter(&startup(&usual)), None);
        assert_eq!(refused_parameter(&startup(&[("DateStyle", "ISO"), ("TimeZone", "UTC"), ("options", "")])), None);
        assert_eq!(refused_parameter(&startup(&[("_pq_.command_tag_format", "x")])), None);
        for (name, value) in [
            ("replication", "database"),
            ("replication", "true"),
            ("options", "-c session_preload_libraries=x"),
            ("session_preload_libraries", "x"),
            ("search_path", "x"),
        ] {
            assert_eq!(refused_parameter(&startup(&[(name, value)])), Some(name));
        }
    }
}
