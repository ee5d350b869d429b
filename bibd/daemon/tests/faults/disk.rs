//! A small disk: an ext4 file system in a file, mounted through a loop device. Only root can make one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// Of this many MiB; `None`, said loudly, where this user or machine cannot mount.
    pub fn new(mib: u64) -> Option<Self> {
        Self::with(mib, &[])
    }

    /// As [`SmallDisk::new`], whose file system can encrypt.
    pub fn encrypting(mib: u64) -> Option<Self> {
        Self::with(mib, &["-O", "encrypt"])
    }

    fn with(mib: u64, features: &[&str]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return Self::skipped("only root can mount a disk");
        }
        let dir = tempfile::tempdir().unwrap();
        let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        fs::create_dir(&mount).unwrap();
        let run = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        if !run(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-F"]).args(features).arg(&image)) {
            return Self::skipped("there is no mkfs.ext4");
        }
        if !run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount)) {
            return Self::skipped("this machine has no loop devices");
        }
        Some(Self { dir })
    }

    fn skipped(reason: &str) -> Option<Self> {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have disks of its own: {reason}");
        eprintln!("\n==== SKIPPED, NOTHING TESTED: {reason}\n");
        None
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    /// Whether this text stands anywhere on the disk: what a thief of it would find.
    pub fn holds(&self, wanted: &str) -> bool {
        let mount = File::open(self.path()).unwrap();
        rustix::fs::syncfs(&mount).unwrap();
        let searched = Command::new("grep").args(["-qaF", wanted]).arg(self.dir.path().join("image")).status().unwrap();
        searched.success()
    }

    /// Fills the disk until this many bytes are left; returns the file that does it.
    pub fn fill(&self, leave: u64) -> PathBuf {
        let path = self.path().join("filler");
        let file = File::options().create(true).append(true).open(&path).unwrap();
        loop {
            let more = free(&self.path()).saturating_sub(leave);
            if more < 4_096 {
                return path;
            }
            let length = file.metadata().unwrap().len();
            let flags = rustix::fs::FallocateFlags::empty();
            // What is left may be too scattered for the whole: then by halves.
            let mut step = more;
            while rustix::fs::fallocate(&file, flags, length, step).is_err() {
                step /= 2;
                if step < 4_096 {
                    return path;
                }
            }
        }
    }
}

/// Free bytes of the disk that `path` lies on.
pub fn free(path: &Path) -> u64 {
    let disk = rustix::fs::statvfs(path).unwrap();
    disk.f_bavail * disk.f_frsize
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: what a failed test left running must not keep the directory.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
