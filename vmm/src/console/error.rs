//! Why a console cannot be opened.

use std::io;
use std::path::{Path, PathBuf};

#[cfg(doc)]
use crate::config::SerialTarget;
use crate::error::ErrorKind;
use crate::kick::KickError;

/// Why a console can't be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsoleError {
    /// The file of [`SerialTarget::File`] can't be opened.
    #[error("serial: cannot open {}: {error}; {remedy}", path.display())]
    File {
        /// As given.
        path: PathBuf,
        /// Of the system.
        error: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// A pseudo-terminal can't be created.
    #[error("serial: cannot create a pseudo-terminal: {error}; {remedy}")]
    Pty {
        /// Of the system.
        error: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Another process listens at the path of [`SerialTarget::Socket`].
    #[error("serial: another process listens at {}; stop it, or give another path", .0.display())]
    SocketInUse(PathBuf),
    /// The path of [`SerialTarget::Socket`] is not that of a socket.
    #[error("serial: {} exists and is not a socket; remove it, or give another path", .0.display())]
    NotASocket(PathBuf),
    /// The socket can't be created.
    #[error("serial: cannot create the socket {}: {error}; {remedy}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Of the system.
        error: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The process can't open another descriptor.
    #[error("serial: cannot open another descriptor: {0}; raise the limit on open files")]
    Descriptor(io::Error),
    /// The console's thread can't be started.
    #[error("serial: cannot start the console's thread: {0}; raise the limit on processes")]
    Thread(io::Error),
    /// The signal that interrupts the thread's system calls can't be installed.
    #[error(transparent)]
    Kick(#[from] KickError),
}

impl ConsoleError {
    /// Returns what kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Descriptor(_) | Self::Thread(_) => ErrorKind::Limit,
            Self::Kick(error) => error.kind(),
            Self::File { .. }
            | Self::Pty { .. }
            | Self::SocketInUse(_)
            | Self::NotASocket(_)
            | Self::Socket { .. } => ErrorKind::Device,
        }
    }

    /// Returns the error for a file at `path` that can't be opened.
    pub(super) fn file(path: &Path, error: io::Error) -> Self {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => "create its directory first",
            io::ErrorKind::PermissionDenied => "check its permissions",
            io::ErrorKind::IsADirectory => "name a file in it",
            _ if error.raw_os_error() == Some(libc::ENXIO) => {
                "start what reads the pipe first; for a socket use serial=socket=PATH"
            }
            _ => "give another path",
        };
        Self::File {
            path: path.to_owned(),
            error,
            remedy,
        }
    }
}
