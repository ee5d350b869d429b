//! A file system that forgets: what was not fsynced lives in memory only, and a power cut drops it.
//!
//! It is stricter than any real one: a file's bytes last after fsync(file), a name lasts after fsync(its
//! directory), nothing else does. It is mounted with FUSE, so the code under test runs as it is. Use it as
//! `mod forgetful;` from a test: [`Forgetful::new`], [`Forgetful::mount`], work in [`Mounted::path`], let
//! [`Forgetful::cut_power_after`] strike, unmount, [`Forgetful::forget`], mount again.

#![allow(dead_code, unreachable_pub)]

mod fuse;
mod state;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use state::Memory;
use state::State;

/// The disk. It outlives its mounts.
#[derive(Clone)]
pub struct Forgetful(Arc<Mutex<State>>);

/// A mounted [`Forgetful`]; unmounted when dropped.
pub struct Mounted {
    session: Option<fuser::BackgroundSession>,
    dir: tempfile::TempDir,
}

impl Forgetful {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State::new())))
    }

    /// Mounts the disk; `None`, said loudly, where FUSE cannot be had. There the test must return; in CI it fails.
    pub fn mount(&self) -> Option<Mounted> {
        let dir = tempfile::tempdir().unwrap();
        let options = [fuser::MountOption::FSName("forgetful".into()), fuser::MountOption::DefaultPermissions];
        match fuser::spawn_mount2(fuse::Glue(self.clone()), dir.path(), &options) {
            Ok(session) => Some(Mounted { session: Some(session), dir }),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "FUSE is needed in CI: {error}");
                let notice = format!("SKIPPED: no FUSE mount on this machine ({error}); power loss was not tested\n");
                std::io::Write::write_all(&mut std::io::stderr(), notice.as_bytes()).unwrap();
                None
            }
        }
    }

    /// The disk dies after `operations` more changes (writes, syncs, names): from then on every call fails with EIO.
    pub fn cut_power_after(&self, operations: u64) {
        self.state().operations_left = Some(operations);
    }

    /// Brings the disk back with what a power cut leaves. Call it unmounted.
    pub fn forget(&self, memory: Memory<'_>) {
        self.state().forget(memory);
    }

    /// Every fsync of a file fails with EIO while `broken`.
    pub fn break_file_syncs(&self, broken: bool) {
        self.state().file_syncs_fail = broken;
    }

    /// Every fsync of a directory fails with EIO while `broken`.
    pub fn break_dir_syncs(&self, broken: bool) {
        self.state().dir_syncs_fail = broken;
    }

    /// How often fsync was called on the file that was fsynced most often.
    pub fn most_syncs_of_one_file(&self) -> u64 {
        self.state().file_syncs.values().copied().max().unwrap_or(0)
    }

    /// Changes made so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mounted {
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        // Taking the thread's handle drops the rest, which unmounts. (`BackgroundSession::join` panics when the kernel
        // ends the connection with ECONNABORTED, which is a normal end here.)
        let thread = {
            let session = session;
            session.guard
        };
        // While panicking, files may still be open, and then the thread does not end.
        if !std::thread::panicking() {
            let _ = thread.join();
        }
    }
}
