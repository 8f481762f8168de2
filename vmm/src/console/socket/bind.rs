//! The socket's file: created if there is none or if a dead process left one, removed at the end.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::console::error::ConsoleError;

/// A socket's name in the file system, removed on drop.
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn is(&self, found: &Metadata) -> bool {
        (found.dev(), found.ino()) == (self.device, self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Another file may have been put there meanwhile.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| self.is(&found)) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`. A socket without a listening process is replaced.
pub(super) fn bind(path: PathBuf) -> Result<(UnixListener, SocketFile), ConsoleError> {
    let path = std::path::absolute(&path).map_err(|error| failed(&path, error))?;
    // Two machines that start at the same time must not replace each other's socket. Closing the
    // descriptor releases the lock.
    let directory = path
        .parent()
        .and_then(|directory| File::open(directory).ok());
    if let Some(directory) = &directory {
        // A file system without locks must not prevent the start.
        let _ = rustix::fs::flock(directory, FlockOperation::LockExclusive);
    }
    remove_stale(&path)?;
    let listener = UnixListener::bind(&path).map_err(|error| failed(&path, error))?;
    let made = fs::symlink_metadata(&path).map_err(|error| failed(&path, error))?;
    let file = SocketFile {
        device: made.dev(),
        inode: made.ino(),
        path: path.clone(),
    };
    listener
        .set_nonblocking(true)
        .map_err(|error| failed(&path, error))?;
    Ok((listener, file))
}

fn remove_stale(path: &Path) -> Result<(), ConsoleError> {
    if is_stale(path)? {
        fs::remove_file(path).map_err(|error| failed(path, error))?;
    }
    Ok(())
}

/// Returns an error if anything is at `path` except a socket without a listening process.
pub(in crate::console) fn check_free(path: &Path) -> Result<(), ConsoleError> {
    is_stale(path).map(drop)
}

/// Returns whether a dead process left a socket at `path`.
fn is_stale(path: &Path) -> Result<bool, ConsoleError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        // If it is anything but "not found", bind reports it.
        Err(_) => return Ok(false),
    };
    if !found.file_type().is_socket() {
        return Err(ConsoleError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        // A socket with a full backlog or of another type is in use, too.
        _ => Err(ConsoleError::SocketInUse(path.to_owned())),
    }
}

pub(in crate::console) fn failed(path: &Path, error: io::Error) -> ConsoleError {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => "create its directory first",
        io::ErrorKind::PermissionDenied => "give a directory that you may write to",
        io::ErrorKind::InvalidInput => "give a path of at most 107 bytes",
        _ => "give another path",
    };
    ConsoleError::Socket {
        path: path.to_owned(),
        error,
        remedy,
    }
}
