//! Named places between two steps that touch the disk, where a test may end the process.

use std::fmt;
use std::sync::Arc;

/// Called with the name of each step that was just finished; by default does nothing.
///
/// Names: `put.verified`, `put.written`, `put.synced`, `put.renamed` (in this order per chunk), `put.durable` (per round),
/// `trash.marked`, `trash.renamed`, `trash.durable`, `restore.renamed`, `restore.durable`, `remove.unlinked`.
/// The hook runs on a blocking thread while no lock is held, except for `*.renamed`.
#[derive(Clone, Default)]
pub struct Failpoints(Option<Arc<dyn Fn(&'static str) + Send + Sync>>);

impl Failpoints {
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
