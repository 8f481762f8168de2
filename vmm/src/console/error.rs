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
    /// The file of [`SerialTarget::File`].
    #[error("serial: cannot open {}: {error}; {remedy}", path.display())]
    File {
        /// As given.
        path: PathBuf,
        /// Of the system.
        error: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// No pseudo-terminal.
    #[error("serial: cannot make a pseudo-terminal: {error}; {remedy}")]
    Pty {
        /// Of the system.
        error: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Somebody listens at the path of [`SerialTarget::Socket`].
    #[error("serial: another process listens at {}; stop it, or give another path", .0.display())]
    SocketInUse(PathBuf),
    /// The path of [`SerialTarget::Socket`] is something else's.
    #[error("serial: {} exists and is not a socket; remove it, or give another path", .0.display())]
    NotASocket(PathBuf),
    /// The socket can't be made.
    #[error("serial: cannot make the socket {}: {error}; {remedy}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Of the system.
        error: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// No descriptor.
    #[error("serial: cannot have another descriptor: {0}; raise the limit on open files")]
    Descriptor(io::Error),
    /// No thread.
    #[error("serial: cannot start the console's thread: {0}; raise the limit on processes")]
    Thread(io::Error),
    /// The signal that calls the thread out of a system call.
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

    /// The file at `path` cannot be opened.
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
