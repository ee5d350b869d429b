//! The kernel's file encryption (fscrypt, `Documentation/filesystems/fscrypt.rst`), as far as BIB uses it: v2 policies,
//! AES-256-XTS for contents, AES-256-CTS for names, the master key in the file system's own keyring.
//!
//! No library speaks these five calls; rustix brings the call itself and its numbers. Structures are those of
//! `linux/fscrypt.h`.
#![expect(unsafe_code, reason = "ioctl: each block says why the kernel reads and writes no further than the structure")]

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};
use zeroize::Zeroizing;

/// Bytes of a master key: the most that the kernel takes.
pub(super) const KEY_BYTES: usize = 64;
/// `FSCRYPT_POLICY_V2`.
const POLICY_V2: u8 = 2;
/// `FSCRYPT_MODE_AES_256_XTS` and `FSCRYPT_MODE_AES_256_CTS`.
const CONTENTS: u8 = 1;
const NAMES: u8 = 4;
/// `FSCRYPT_POLICY_FLAGS_PAD_32`: lengths of names are known to 32 bytes only.
const PAD_32: u8 = 3;
/// `FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER`.
const SPEC_IDENTIFIER: u32 = 2;
/// `FSCRYPT_KEY_REMOVAL_STATUS_FLAG_FILES_BUSY`.
const FILES_BUSY: u32 = 1;

/// The kernel's name of a master key: what it derives from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyId([u8; 16]);

/// What is known of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    /// Nothing in it is encrypted.
    None,
    /// Encrypted with this key.
    Key(KeyId),
    /// Encrypted by a policy that is not BIB's (v1).
    Foreign,
    /// The file system cannot encrypt.
    Unsupported,
}

#[repr(C)]
struct KeySpec {
    kind: u32,
    reserved: u32,
    identifier: [u8; 16],
    rest: [u8; 16],
}

impl KeySpec {
    fn new(id: [u8; 16]) -> Self {
        Self { kind: SPEC_IDENTIFIER, reserved: 0, identifier: id, rest: [0; 16] }
    }
}

/// `struct fscrypt_add_key_arg`, with room for the key behind it.
#[repr(C)]
struct AddKey {
    spec: KeySpec,
    raw_size: u32,
    key_id: u32,
    reserved: [u32; 8],
    raw: [u8; KEY_BYTES],
}

/// `struct fscrypt_remove_key_arg`.
#[repr(C)]
struct RemoveKey {
    spec: KeySpec,
    status: u32,
    reserved: [u32; 5],
}

/// `struct fscrypt_policy_v2`.
#[repr(C)]
struct PolicyV2 {
    version: u8,
    contents: u8,
    names: u8,
    flags: u8,
    log2_data_unit_size: u8,
    reserved: [u8; 3],
    master_key: [u8; 16],
}

/// `struct fscrypt_get_policy_ex_arg`.
#[repr(C)]
struct GetPolicy {
    policy_size: u64,
    policy: PolicyV2,
}

/// Bytes of `struct fscrypt_add_key_arg` without the key: what its number is made of.
const ADD_KEY_BYTES: usize = 80;
const _: () = assert!(size_of::<AddKey>() == ADD_KEY_BYTES + KEY_BYTES && size_of::<RemoveKey>() == 64);
const _: () = assert!(size_of::<PolicyV2>() == 24 && size_of::<GetPolicy>() == 32);

// The kernel computed these numbers from other structures than those that it reads: see the header.
const SET_POLICY: Opcode = opcode::read::<[u8; 12]>(b'f', 19);
const GET_POLICY: Opcode = opcode::read_write::<[u8; 9]>(b'f', 22);
const ADD_KEY: Opcode = opcode::read_write::<[u8; ADD_KEY_BYTES]>(b'f', 23);
const REMOVE_KEY: Opcode = opcode::read_write::<RemoveKey>(b'f', 24);

/// Gives the file system that holds `directory` the key, and says the kernel's name of it. Twice is fine.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP` where the file system cannot encrypt; `EDQUOT` when this user has too many keys.
pub(super) fn add_key(directory: &Path, key: &[u8; KEY_BYTES]) -> io::Result<KeyId> {
    let file = File::open(directory)?;
    let mut argument = Zeroizing::new(AddKeyBox(AddKey {
        spec: KeySpec::new([0; 16]),
        raw_size: 64,
        key_id: 0,
        reserved: [0; 8],
        raw: *key,
    }));
    // SAFETY: the number is that of FS_IOC_ADD_ENCRYPTION_KEY, whose structure this is, followed by `raw_size` bytes.
    unsafe { ioctl(file.as_fd(), Updater::<ADD_KEY, AddKey>::new(&mut argument.0)) }?;
    Ok(KeyId(argument.0.spec.identifier))
}

/// Wipes the key that the structure carries.
struct AddKeyBox(AddKey);

impl zeroize::Zeroize for AddKeyBox {
    fn zeroize(&mut self) {
        self.0.raw.zeroize();
    }
}

/// Takes the key from the file system again: whether every file is locked now. Those that are open stay readable to
/// who has them open until they are closed.
///
/// # Errors
/// When the file system does not have the key.
pub(super) fn remove_key(directory: &Path, key: KeyId) -> io::Result<bool> {
    let file = File::open(directory)?;
    let mut argument = RemoveKey { spec: KeySpec::new(key.0), status: 0, reserved: [0; 5] };
    // SAFETY: the number is that of FS_IOC_REMOVE_ENCRYPTION_KEY, whose structure this is.
    unsafe { ioctl(file.as_fd(), Updater::<REMOVE_KEY, RemoveKey>::new(&mut argument)) }?;
    Ok(argument.status & FILES_BUSY == 0)
}

/// Encrypts what will be put into `directory`, which must be empty.
///
/// # Errors
/// `ENOTEMPTY` when it is not; `EEXIST` when it has another policy; `ENOKEY` when the key was not added;
/// `EOPNOTSUPP` or `ENOTTY` where the file system cannot encrypt.
pub(super) fn set_policy(directory: &Path, key: KeyId) -> io::Result<()> {
    let file = File::open(directory)?;
    let policy = PolicyV2 {
        version: POLICY_V2,
        contents: CONTENTS,
        names: NAMES,
        flags: PAD_32,
        log2_data_unit_size: 0,
        reserved: [0; 3],
        master_key: key.0,
    };
    // SAFETY: the number is that of FS_IOC_SET_ENCRYPTION_POLICY, which reads as many bytes as the version says: these.
    unsafe { ioctl(file.as_fd(), Setter::<SET_POLICY, PolicyV2>::new(policy)) }?;
    Ok(())
}

/// The policy of a directory.
///
/// # Errors
/// When it cannot be opened or looked at.
pub(super) fn policy(directory: &Path) -> io::Result<Policy> {
    let file = File::open(directory)?;
    let policy = PolicyV2 {
        version: 0,
        contents: 0,
        names: 0,
        flags: 0,
        log2_data_unit_size: 0,
        reserved: [0; 3],
        master_key: [0; 16],
    };
    let mut argument = GetPolicy { policy_size: size_of::<PolicyV2>() as u64, policy };
    // SAFETY: the number is that of FS_IOC_GET_ENCRYPTION_POLICY_EX, which writes at most `policy_size` bytes.
    match unsafe { ioctl(file.as_fd(), Updater::<GET_POLICY, GetPolicy>::new(&mut argument)) } {
        Ok(()) if argument.policy.version == POLICY_V2 => Ok(Policy::Key(KeyId(argument.policy.master_key))),
        Ok(()) => Ok(Policy::Foreign),
        Err(Errno::NODATA) => Ok(Policy::None),
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => Ok(Policy::Unsupported),
        Err(error) => Err(error.into()),
    }
}
