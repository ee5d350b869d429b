//! Changes of topics and datasets, told to whoever listens. Nothing depends on them: a listener that is too slow is
//! told how many it missed and lists again.

use bib_core::{Timestamp, TopicId, UserId};
use tokio::sync::broadcast;

/// Listeners may be this many changes behind.
const BUFFER: usize = 1024;

/// A change that has been committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// `topic.created`, `version.published` ... as in the `.proto`.
    pub kind: &'static str,
    /// The topic it is about, for the listener's right to see it.
    pub topic_id: TopicId,
    /// Its full name.
    pub topic: String,
    /// Full name of the dataset, or empty.
    pub dataset: String,
    /// The version, or empty.
    pub version: String,
    /// When.
    pub time: Timestamp,
    /// Who could see the topic, where it is gone and cannot be asked any more.
    pub gone: Option<Readers>,
}

/// Who could see a topic that is gone. Admins always could.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readers {
    /// It was not private.
    pub everybody: bool,
    /// Who made it and who held a grant.
    pub users: Vec<UserId>,
}

/// Where changes are told.
#[derive(Debug, Clone)]
pub struct Updates(broadcast::Sender<Update>);

impl Default for Updates {
    fn default() -> Self {
        Self(broadcast::Sender::new(BUFFER))
    }
}

impl Updates {
    /// Tells a change to whoever listens now.
    pub fn tell(&self, update: Update) {
        // An error means that nobody listens, which is fine.
        if self.0.send(update).is_err() {
            tracing::trace!("nobody listens to updates");
        }
    }

    /// Listens from now on.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Update> {
        self.0.subscribe()
    }
}
