//! The kernel's questions, answered by [`State`]. No logic here.

use std::ffi::OsStr;
use std::time::{Duration, SystemTime};

use fuser::{
    FileAttr, FileType, Filesystem, KernelConfig, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
};

use super::Forgetful;
use super::state::{Errno, Inode, Kind, State};

/// Nothing is cached: each question is asked.
const TTL: Duration = Duration::ZERO;

pub struct Glue(pub Forgetful);

fn attr(state: &State, req: &Request<'_>, ino: u64) -> Result<FileAttr, Errno> {
    let Inode { kind, mode } = state.inode(ino)?;
    let (size, mtime, kind) = match kind {
        Kind::File { now, .. } => (now.data.len() as u64, now.mtime, FileType::RegularFile),
        Kind::Dir { .. } => (0, SystemTime::UNIX_EPOCH, FileType::Directory),
    };
    Ok(FileAttr {
        ino,
        size,
        blocks: size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind,
        perm: *mode as u16,
        nlink: 1,
        uid: req.uid(),
        gid: req.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

macro_rules! reply_empty {
    ($reply:expr, $result:expr) => {
        match $result {
            Ok(()) => $reply.ok(),
            Err(errno) => $reply.error(errno),
        }
    };
}

impl Filesystem for Glue {
    fn init(&mut self, _req: &Request<'_>, _config: &mut KernelConfig) -> Result<(), i32> {
        Ok(())
    }

    fn lookup(&mut self, req: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.0.state();
        match state.find(parent, name).and_then(|ino| attr(&state, req, ino)) {
            Ok(attr) => reply.entry(&TTL, &attr, 0),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&mut self, req: &Request<'_>, ino: u64, _fh: Option<u64>, reply: ReplyAttr) {
        let state = self.0.state();
        match state.alive().and_then(|()| attr(&state, req, ino)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &mut self,
        req: &Request<'_>,
        ino: u64,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<u64>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<u32>,
        reply: ReplyAttr,
    ) {
        let mut state = self.0.state();
        let mtime = mtime.map(|time| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => state.now(),
        });
        match state.set(ino, size, mtime).and_then(|()| attr(&state, req, ino)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn mkdir(&mut self, req: &Request<'_>, parent: u64, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let mut state = self.0.state();
        match state.make(parent, name, mode & !umask, true).and_then(|ino| attr(&state, req, ino)) {
            Ok(attr) => reply.entry(&TTL, &attr, 0),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &mut self,
        req: &Request<'_>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut state = self.0.state();
        match state.make(parent, name, mode & !umask, false).and_then(|ino| attr(&state, req, ino)) {
            Ok(attr) => reply.created(&TTL, &attr, 0, 0, 0),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&mut self, _req: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        reply_empty!(reply, self.0.state().unlink(parent, name));
    }

    fn rmdir(&mut self, _req: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        reply_empty!(reply, self.0.state().rmdir(parent, name));
    }

    fn rename(
        &mut self,
        _req: &Request<'_>,
        parent: u64,
        name: &OsStr,
        newparent: u64,
        newname: &OsStr,
        flags: u32,
        reply: ReplyEmpty,
    ) {
        reply_empty!(reply, self.0.state().rename((parent, name), (newparent, newname), flags));
    }

    fn open(&mut self, _req: &Request<'_>, _ino: u64, _flags: i32, reply: ReplyOpen) {
        match self.0.state().alive() {
            Ok(()) => reply.opened(0, 0),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &mut self,
        _req: &Request<'_>,
        ino: u64,
        _fh: u64,
        offset: i64,
        size: u32,
        _flags: i32,
        _lock_owner: Option<u64>,
        reply: ReplyData,
    ) {
        let mut state = self.0.state();
        match state.alive().and_then(|()| state.file(ino)) {
            Ok(file) => {
                let start = file.data.len().min(offset as usize);
                let end = file.data.len().min(start + size as usize);
                reply.data(&file.data[start..end]);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &mut self,
        _req: &Request<'_>,
        ino: u64,
        _fh: u64,
        offset: i64,
        data: &[u8],
        _write_flags: u32,
        _flags: i32,
        _lock_owner: Option<u64>,
        reply: ReplyWrite,
    ) {
        match self.0.state().write(ino, offset as usize, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&mut self, _req: &Request<'_>, _ino: u64, _fh: u64, _lock_owner: u64, reply: ReplyEmpty) {
        reply.ok(); // a close makes nothing durable
    }

    fn fsync(&mut self, _req: &Request<'_>, ino: u64, _fh: u64, _datasync: bool, reply: ReplyEmpty) {
        reply_empty!(reply, self.0.state().sync_file(ino));
    }

    fn fsyncdir(&mut self, _req: &Request<'_>, ino: u64, _fh: u64, _datasync: bool, reply: ReplyEmpty) {
        reply_empty!(reply, self.0.state().sync_dir(ino));
    }

    fn readdir(&mut self, _req: &Request<'_>, ino: u64, _fh: u64, offset: i64, mut reply: ReplyDirectory) {
        let mut state = self.0.state();
        let names = match state.alive().and_then(|()| state.names(ino)) {
            Ok(names) => names.clone(),
            Err(errno) => return reply.error(errno),
        };
        for (index, (name, child)) in names.iter().enumerate().skip(offset as usize) {
            let kind = match state.inode(*child).map(|inode| &inode.kind) {
                Ok(Kind::Dir { .. }) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            if reply.add(*child, index as i64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&mut self, _req: &Request<'_>, _ino: u64, reply: ReplyStatfs) {
        reply.statfs(1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}
