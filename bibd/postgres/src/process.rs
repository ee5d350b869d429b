//! The process provisioner (API first, see the modules below).
use std::sync::Arc;

use crate::random::Randomness;
use crate::secrets::SecretStore;
use crate::settings::Settings;

/// A PostgreSQL that runs as a process beside the daemon.
pub struct ProcessPostgres {
    pub(crate) settings: Settings,
    pub(crate) secrets: Arc<dyn SecretStore>,
    pub(crate) random: Randomness,
}

impl ProcessPostgres {
    /// A server under `settings`; touches nothing yet.
    pub fn new(settings: Settings, secrets: Arc<dyn SecretStore>, random: Randomness) -> Self {
        Self { settings, secrets, random }
    }
}
