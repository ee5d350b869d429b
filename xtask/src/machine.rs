//! What must be on the machine besides Rust, and how it gets there.
//!
//! Installs only where it may: as root, through apt or dnf, or through cargo. Elsewhere it names the one command.

use std::process::Command;

use anyhow::bail;

use crate::process::{cargo, find_program, run};

/// A program that tests or builds use, with the packages that bring it.
struct Part {
    /// The program whose presence is looked at.
    program: &'static str,
    apt: &'static str,
    dnf: &'static str,
}

/// Everything that the complete checks use. PostgreSQL stands in [`crate::postgres`], because its programs lie off PATH.
const PARTS: &[Part] = &[
    Part { program: "cc", apt: "gcc", dnf: "gcc" },
    Part { program: "git", apt: "git", dnf: "git" },
    Part { program: "ssh-keygen", apt: "openssh-client", dnf: "openssh-clients" },
    Part { program: "age", apt: "age", dnf: "age" },
    Part { program: "strace", apt: "strace", dnf: "strace" },
    Part { program: "fusermount3", apt: "fuse3", dnf: "fuse3" },
    Part { program: "mkfs.ext4", apt: "e2fsprogs", dnf: "e2fsprogs" },
    Part { program: "losetup", apt: "mount", dnf: "util-linux" },
    Part { program: "python3", apt: "python3", dnf: "python3" },
];

/// What the tests of the container provisioner use. `cargo xtask ci` installs them; where they are missing elsewhere,
/// those tests say so.
const CONTAINER_PARTS: &[Part] = &[
    Part { program: "docker", apt: "docker.io", dnf: "moby-engine" },
    Part { program: "dockerd", apt: "docker.io", dnf: "moby-engine" },
    Part { program: "podman", apt: "podman", dnf: "podman" },
    Part { program: "runc", apt: "runc", dnf: "runc" },
    Part { program: "mmdebstrap", apt: "mmdebstrap", dnf: "mmdebstrap" },
];

/// The package manager of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackageManager {
    Apt,
    Dnf,
}

impl PackageManager {
    /// The one that is there.
    #[must_use]
    pub fn of_this_machine() -> Option<Self> {
        let known = [("apt-get", Self::Apt), ("dnf", Self::Dnf)];
        known.into_iter().find(|(program, _)| find_program(program).is_some()).map(|(_, manager)| manager)
    }

    /// The command that a person types.
    #[must_use]
    pub fn advice(self, packages: &[&str]) -> String {
        let packages = packages.join(" ");
        match self {
            Self::Apt => format!("sudo apt-get update && sudo apt-get install -y {packages}"),
            Self::Dnf => format!("sudo dnf install -y {packages}"),
        }
    }

    fn install(self, packages: &[&str]) -> anyhow::Result<()> {
        match self {
            Self::Apt => {
                run(Command::new("apt-get").args(["update", "-qq"]))?;
                let mut install = Command::new("apt-get");
                install.env("DEBIAN_FRONTEND", "noninteractive");
                run(install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages))
            }
            Self::Dnf => run(Command::new("dnf").args(["install", "-y", "-q"]).args(packages)),
        }
    }
}

/// Installs packages, or says how: `what` is what a person would miss.
///
/// # Errors
/// When this user may not install, when there is no known package manager, or when installing fails.
pub fn install(what: &str, apt: &[&str], dnf: &[&str]) -> anyhow::Result<()> {
    let Some(manager) = PackageManager::of_this_machine() else {
        bail!("{what} is missing: install it with this machine's package manager");
    };
    let packages = if manager == PackageManager::Apt { apt } else { dnf };
    if !rustix::process::geteuid().is_root() {
        bail!("{what} is missing: run `{}`", manager.advice(packages));
    }
    println!("installing {what}");
    manager.install(packages)
}

/// Installs whatever of [`PARTS`] is missing.
///
/// # Errors
/// As [`install`].
pub fn ensure_parts() -> anyhow::Result<()> {
    ensure_all(PARTS)
}

/// Installs whatever of [`CONTAINER_PARTS`] is missing.
///
/// # Errors
/// As [`install`].
pub fn ensure_container_parts() -> anyhow::Result<()> {
    ensure_all(CONTAINER_PARTS)
}

fn ensure_all(parts: &[Part]) -> anyhow::Result<()> {
    let missing: Vec<&Part> = parts.iter().filter(|part| find_program(part.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|part| part.program).collect();
    let apt: Vec<&str> = missing.iter().map(|part| part.apt).collect();
    let dnf: Vec<&str> = missing.iter().map(|part| part.dnf).collect();
    install(&names.join(", "), &apt, &dnf)
}

/// Installs cargo's test runner when it is missing.
///
/// # Errors
/// When building it fails.
pub fn ensure_nextest() -> anyhow::Result<()> {
    ensure_cargo_tool("cargo-nextest", &[])
}

/// Installs cargo's checker of licences and sources when it is missing. Unoptimised: it builds in a quarter of the
/// time, and looks at this workspace in a second either way.
///
/// # Errors
/// When building it fails.
pub fn ensure_deny() -> anyhow::Result<()> {
    ensure_cargo_tool("cargo-deny", &["--debug"])
}

fn ensure_cargo_tool(name: &str, flags: &[&str]) -> anyhow::Result<()> {
    if find_program(name).is_some() {
        return Ok(());
    }
    println!("installing {name}");
    let mut install = cargo();
    // The tool has its own lock file and must not be built with what this workspace configures.
    install.current_dir(std::env::temp_dir()).env("CARGO_PROFILE_DEV_DEBUG", "false");
    run(install.args(["install", "--locked", "--quiet"]).args(flags).arg(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_one_command() {
        assert_eq!(
            PackageManager::Apt.advice(&["age", "strace"]),
            "sudo apt-get update && sudo apt-get install -y age strace"
        );
        assert_eq!(PackageManager::Dnf.advice(&["age"]), "sudo dnf install -y age");
    }
}
