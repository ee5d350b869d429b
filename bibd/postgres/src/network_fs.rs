//! Tells network file systems from local ones: on most of them fsync and locks do not mean what PostgreSQL needs.

use std::path::Path;

use crate::error::Error;

/// Magic numbers of statfs(2) for file systems whose bytes are elsewhere.
#[cfg(target_os = "linux")]
const NETWORK: [(u32, &str); 14] = [
    (0x6969, "nfs"),
    (0xFF53_4D42, "cifs"),
    (0xFE53_4D42, "smb2"),
    (0x517B, "smb"),
    (0x6573_5546, "fuse"),
    (0x00C3_6400, "ceph"),
    (0x5346_414F, "afs"),
    (0x6B41_4653, "kafs"),
    (0x7375_7245, "coda"),
    (0x0102_1997, "9p"),
    (0x0BD0_0BD0, "lustre"),
    (0x4750_4653, "gpfs"),
    (0x786F_4256, "vboxsf"),
    (0x1980_0202, "pvfs2"),
];

/// The name of the network file system that `path` lies on; `None` when it is local.
///
/// FUSE is counted as network (sshfs, gluster, rclone): what it does with fsync cannot be known.
///
/// # Errors
/// [`Error::Io`] when the system does not say.
#[cfg(target_os = "linux")]
pub fn network_kind(path: &Path) -> Result<Option<String>, Error> {
    let stat = rustix::fs::statfs(path).map_err(|error| Error::io("statfs", path)(error.into()))?;
    // The field is signed on some architectures; the magic numbers are 32 bits.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "only the low 32 bits are the magic")]
    let magic = stat.f_type as u32;
    Ok(name_of(magic).map(|name| {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if name == "fuse" { mounted_type(&mounts, path).unwrap_or_else(|| name.to_owned()) } else { name.to_owned() }
    }))
}

/// Elsewhere the check is not made: `bibd doctor` says so.
///
/// # Errors
/// Never.
#[cfg(not(target_os = "linux"))]
pub fn network_kind(_path: &Path) -> Result<Option<String>, Error> {
    Ok(None)
}

#[cfg(target_os = "linux")]
fn name_of(magic: u32) -> Option<&'static str> {
    NETWORK.into_iter().find(|(number, _)| *number == magic).map(|(_, name)| name)
}

/// The type of the mount that covers `path`, from mountinfo: the longest mount point that is a prefix.
#[cfg(target_os = "linux")]
fn mounted_type(mountinfo: &str, path: &Path) -> Option<String> {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let point = left.split(' ').nth(4)?.replace("\\040", " ");
            path.starts_with(&point).then(|| (point.len(), right.split(' ').next().unwrap_or("").to_owned()))
        })
        .max_by_key(|(length, _)| *length)
        .map(|(_, kind)| kind)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn knows_network_magics_and_lets_local_ones_pass() {
        assert_eq!(name_of(0x6969), Some("nfs"));
        assert_eq!(name_of(0xFE53_4D42), Some("smb2"));
        for local in [0xEF53, 0x0102_1994, 0x5846_5342, 0x9123_683E, 0x794C_7630, 0x2FC1_2FC1] {
            assert_eq!(name_of(local), None, "{local:x}");
        }
        assert_eq!(network_kind(Path::new("/proc")).unwrap(), None);
    }

    #[test]
    fn names_the_fuse_type_of_the_nearest_mount() {
        let mounts = "22 1 0:5 / / rw - ext4 /dev/vda rw\n\
                      30 22 0:40 / /mnt/lab\\040data rw shared:3 - fuse.sshfs host:/ rw\n";
        assert_eq!(mounted_type(mounts, Path::new("/mnt/lab data/x")).as_deref(), Some("fuse.sshfs"));
        assert_eq!(mounted_type(mounts, Path::new("/mnt/other")).as_deref(), Some("ext4"));
    }
}
