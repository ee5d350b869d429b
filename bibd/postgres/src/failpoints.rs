//! Named places between the steps of what must survive a death, where a test may end the process.

use std::fmt;
use std::sync::Arc;

/// Called with the name of each step that was just finished; by default does nothing. The hook runs on an asynchronous
/// thread while no lock of ours but that of the work itself is held.
#[derive(Clone, Default)]
pub struct Failpoints(Option<Arc<dyn Fn(&'static str) + Send + Sync>>);

impl Failpoints {
    /// The steps of a rotation, in order: sealed and synced; the next logins can log in; the document names them as
    /// those in use; nobody uses the former ones any more; they cannot log in.
    pub const ROTATION: [&'static str; 5] =
        ["rotate.intent", "rotate.opened", "rotate.stored", "rotate.moved", "rotate.closed"];

    /// The steps of a break-glass grant, in order: decided and in the log; its role can log in; it is open; sessions were
    /// told to end; the role is gone; so it says in the log.
    pub const GLASS: [&'static str; 6] =
        ["glass.intent", "glass.opened", "glass.open", "glass.cut", "glass.closed", "glass.ended"];

    /// The steps of a move to another provisioner, in order: PROVISIONER names it; the server runs there; the plan says so.
    pub const MOVE: [&'static str; 3] = ["move.recorded", "move.started", "move.ended"];

    /// The steps of an upgrade to another major version, in order: a start has begun it; the new cluster is there, empty;
    /// the old one is dumped and stopped; the new one has everything and is stopped; the file says so; the old one is out
    /// of its place; the new one is in it; PROVISIONER says so; and so does the file.
    pub const UPGRADE: [&'static str; 9] = [
        "upgrade.begun",
        "upgrade.made",
        "upgrade.dumped",
        "upgrade.loaded",
        "upgrade.built",
        "upgrade.aside",
        "upgrade.placed",
        "upgrade.recorded",
        "upgrade.ended",
    ];

    /// Calls `hook` at each point.
    pub fn new(hook: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    /// Says that a step is finished.
    pub fn hit(&self, name: &'static str) {
        if let Some(hook) = &self.0 {
            hook(name);
        }
    }
}

impl fmt::Debug for Failpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Failpoints(hook)" } else { "Failpoints(none)" })
    }
}
