//! Who is told when a grant is opened, used and ended: a webhook, and a mail through a command of the system.
//!
//! Nobody waits for it: notices wait in a short queue, each is tried a few times, and what became of it is an entry of the
//! audit log. What does not find room in the queue is an entry at once.

use std::sync::Arc;
use std::time::Duration;

use bibd_audit::Outcome;
use bibd_catalog::glass::Granted;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Notification;
use crate::errors::ErrorCode;
use crate::export::{CommandSink, Credentials, Endpoint, post_json};
use crate::secrets::Secrets;
use crate::services::base::Base;
use crate::services::journal::Act;
use crate::supervisor::{Policy, Supervisor, TaskKind, TaskResult};

/// Notices that wait to be told.
const QUEUE: usize = 64;
/// How often one is tried, with a pause that doubles.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long one attempt may take.
const WEBHOOK_DEADLINE: Duration = Duration::from_secs(10);
const MAIL_DEADLINE: Duration = Duration::from_secs(30);
/// How long the last notices are waited for when the daemon stops, and how long telling them may take.
const LAST_DEADLINE: Duration = Duration::from_secs(4);

/// Something to tell.
#[derive(Debug, Clone)]
struct Notice {
    event: &'static str,
    grant: String,
    body: Value,
}

/// Takes notices. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Notices {
    base: Base,
    /// Nobody is to be told where there is none.
    sender: Option<mpsc::Sender<Notice>>,
    /// Entries about notices that found no room.
    overflow: TaskTracker,
}

impl Notices {
    /// Starts the task that tells, where somebody is to be told.
    pub(super) fn start(base: &Base, supervisor: &Supervisor, secrets: &Secrets, config: &Notification) -> Self {
        let overflow = TaskTracker::new();
        if config.webhook.is_none() && config.email.is_none() {
            return Self { base: base.clone(), sender: None, overflow };
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        let teller = Teller {
            base: base.clone(),
            config: config.clone(),
            credentials: Credentials::new(secrets.clone()),
            receiver: Arc::new(Mutex::new(receiver)),
        };
        supervisor.spawn(TaskKind::Background, Policy::RestartWithBackoff, "break-glass-notices", move |stop| {
            teller.clone().telling(stop)
        });
        Self { base: base.clone(), sender: Some(sender), overflow }
    }

    /// Tells that something happened to a grant. Returns at once.
    pub(super) fn tell(&self, event: &'static str, granted: &Granted, more: Value) {
        let Some(sender) = &self.sender else { return };
        let mut body = json!({
            "format": "bib-break-glass-notice/1",
            "event": event,
            "time": self.base.now().to_string(),
            "node": self.base.peer.to_string(),
            "grant": granted.id.to_string(),
            "user": granted.user_name,
            "reason": granted.reason,
            "access": granted.access.as_str(),
            "key_name": granted.key_name,
            "expires_at": granted.expires_at.to_string(),
        });
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        let notice = Notice { event, grant: granted.id.to_string(), body };
        if let Err(error) = sender.try_send(notice) {
            let (base, notice) = (self.base.clone(), error.into_inner());
            self.overflow
                .spawn(async move { record(&base, &notice, "queue", Err("too many notices wait".to_owned())).await });
        }
    }
}

/// Tells. One at a time; when it fails as a whole, the next goes on with the same queue.
#[derive(Clone)]
struct Teller {
    base: Base,
    config: Notification,
    credentials: Credentials,
    receiver: Arc<Mutex<mpsc::Receiver<Notice>>>,
}

/// Whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Webhook,
    Mail,
}

impl Teller {
    async fn telling(self, stop: CancellationToken) -> TaskResult {
        let mut receiver = self.receiver.lock().await;
        while let Some(Some(notice)) = stop.run_until_cancelled(receiver.recv()).await {
            for way in self.ways() {
                self.persistently(way, &notice, &stop).await;
            }
        }
        // The end of a grant that the stop ended is told, too; once, for the daemon does not wait for long.
        while let Ok(Some(notice)) = tokio::time::timeout(LAST_DEADLINE, receiver.recv()).await {
            for way in self.ways() {
                let told = tokio::time::timeout(LAST_DEADLINE, self.once(way, &notice)).await;
                record(&self.base, &notice, way.word(), told.unwrap_or_else(|_| Err("no answer in time".to_owned())))
                    .await;
            }
        }
        Ok(())
    }

    fn ways(&self) -> Vec<Way> {
        let webhook = self.config.webhook.is_some().then_some(Way::Webhook);
        webhook.into_iter().chain(self.config.email.is_some().then_some(Way::Mail)).collect()
    }

    async fn persistently(&self, way: Way, notice: &Notice, stop: &CancellationToken) {
        let mut pause = FIRST_PAUSE;
        let mut told = Err(String::new());
        for attempt in 1..=ATTEMPTS {
            let attempted = stop.run_until_cancelled(self.once(way, notice)).await;
            told = attempted.unwrap_or_else(|| Err("the daemon stopped before it was told".to_owned()));
            let Err(reason) = &told else { break };
            tracing::warn!(way = way.word(), attempt, reason, "a notice of break-glass was not delivered");
            if attempt < ATTEMPTS && stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
            pause *= 2;
        }
        record(&self.base, notice, way.word(), told).await;
    }

    async fn once(&self, way: Way, notice: &Notice) -> Result<(), String> {
        let told = match (way, &self.config.webhook, &self.config.email) {
            (Way::Webhook, Some(url), _) => {
                let body = Bytes::from(notice.body.to_string());
                post_json(&Endpoint::json(url), body, &self.credentials, WEBHOOK_DEADLINE).await
            }
            (Way::Mail, _, Some(address)) => {
                let command = CommandSink::new(self.config.mail_command.clone(), MAIL_DEADLINE);
                command.run(letter(address, notice).as_bytes()).await
            }
            _ => Ok(()),
        };
        told.map_err(|error| error.to_string())
    }
}

impl Way {
    const fn word(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Mail => "mail",
        }
    }
}

/// A mail. Nothing that a person wrote stands in its head.
fn letter(address: &str, notice: &Notice) -> String {
    let mut text = format!(
        "To: {address}\nSubject: BIB: break-glass {} ({})\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\
         Content-Transfer-Encoding: 8bit\n\n",
        notice.event, notice.grant
    );
    for (name, value) in notice.body.as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.push_str(&format!("{name}: {}\n", bib_core::text::scrub(&value)));
    }
    text
}

async fn record(base: &Base, notice: &Notice, way: &'static str, told: Result<(), String>) {
    let call = base.internal_call("break-glass");
    let outcome = if told.is_ok() { Outcome::Ok } else { Outcome::Failed(ErrorCode::GLASS_NOTICE.to_string()) };
    let details = json!({ "break_glass": true, "event": notice.event, "way": way, "reason": told.err() });
    let act = Act::new("break_glass.notify", notice.grant.clone(), details);
    if let Err(error) = base.journal.record(&base.db, &call, act, outcome).await {
        tracing::error!(%error, "what became of a notice of break-glass could not be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_cannot_write_the_head_of_a_mail() {
        let body = json!({ "reason": "x\nBcc: eve@example.org\n\nhello", "statements": 3 });
        let notice = Notice { event: "enabled", grant: "g".to_owned(), body };
        let text = letter("a@example.org", &notice);
        let (head, rest) = text.split_once("\n\n").unwrap();
        assert!(!head.contains("Bcc") && head.lines().count() == 5, "{text}");
        assert!(rest.contains("reason: x") && rest.lines().count() == 2, "{text}");
    }
}
