//! Named places between the steps of a rotation, where a test may end the process.

use std::fmt;
use std::sync::Arc;

/// Called with the name of each step that was just finished; by default does nothing.
///
/// Names, in this order: `rotate.intent` (sealed and synced), `rotate.opened` (the next logins can log in),
/// `rotate.stored` (the document names them as those in use), `rotate.moved` (nobody uses the former ones any more),
/// `rotate.closed` (they cannot log in). The hook runs on an asynchronous thread while no lock of ours but that of the
/// rotation is held.
#[derive(Clone, Default)]
pub struct Failpoints(Option<Arc<dyn Fn(&'static str) + Send + Sync>>);

impl Failpoints {
    /// Every name, in order.
    pub const ALL: [&'static str; 5] =
        ["rotate.intent", "rotate.opened", "rotate.stored", "rotate.moved", "rotate.closed"];

    /// Calls `hook` at each point.
    pub fn new(hook: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    pub(crate) fn hit(&self, name: &'static str) {
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
