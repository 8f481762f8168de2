//! The two kinds of disk error: what an operator hears ([`DiskError`]) and what a guest's request ends with ([`IoFault`]).

use std::io;
use std::path::PathBuf;

use crate::kind::ErrorKind;

/// Why a disk could not be opened or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The image could not be opened.
    #[error("cannot open {}: {source}{}", path.display(), remedy(source))]
    Open {
        /// The image.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// An operation on the opened image failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Host {
        /// What was tried, as a verb with its object's preposition ("query the size of").
        operation: &'static str,
        /// The image.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// Something that is neither a file nor a block device.
    #[error("cannot use {} as a disk: it is {what}; give a regular file or a block device", path.display())]
    NotADisk {
        /// The path.
        path: PathBuf,
        /// What it is, with an article.
        what: &'static str,
    },
    /// Another process, or another disk of this machine, holds the image.
    #[error(
        "cannot lock {}: it is in use {by}; stop the other user, or give readonly=on to both if neither writes, \
         or share=on to both if the guests coordinate their writes",
        path.display()
    )]
    Locked {
        /// The image.
        path: PathBuf,
        /// For what, as far as the lock tells.
        by: &'static str,
    },
    /// A size or alignment that can't be served.
    #[error("cannot use {} as a disk: {problem}; {remedy}", path.display())]
    Unusable {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A disk that the embedder implements could not be opened.
    #[error("cannot use the disk: {0}")]
    Own(String),
    /// More streams or requests asked for than the disk was opened for.
    #[error("stream {index} of {} is in use or was not prepared when the disk was opened", path.display())]
    NoSuchQueue {
        /// The image.
        path: PathBuf,
        /// Which.
        index: u16,
    },
}

impl DiskError {
    /// Returns [`ErrorKind::Disk`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Disk
    }
}

/// What to do when the host gives this reason for not opening an image.
fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => {
            "; check the path, or make the image, for example with `truncate -s 1G`"
        }
        io::ErrorKind::PermissionDenied => {
            "; have its owner let this user read and write it (chmod, chgrp), or give readonly=on if reading is allowed"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; give readonly=on",
        io::ErrorKind::ExecutableFileBusy => "; it is a program that is running, not a disk image",
        _ => "",
    }
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IoFault {
    /// The range does not lie within the disk; nothing was done.
    #[error("range past the end of the disk")]
    OutOfRange,
    /// The disk is read-only; nothing was done.
    #[error("disk is read-only")]
    ReadOnly,
    /// A segment is not of the memory the queue was opened with; nothing was done.
    #[error("segment outside the queue's memory")]
    BadMemory,
    /// The host has no space left.
    #[error("no space left on the host")]
    NoSpace,
    /// The host transferred less than asked for, and nothing more when asked again.
    #[error("short transfer")]
    Short,
    /// An earlier flush failed, so what is stable is not known any more.
    #[error("an earlier flush failed")]
    FlushLost,
    /// Given up by the host because [`cancel`](super::DiskQueue::cancel) or [`drain`](super::DiskQueue::drain) asked.
    #[error("cancelled")]
    Cancelled,
    /// The host did not give it back in time.
    #[error("the host does not answer")]
    Stuck,
    /// A request of a kind that the disk does not know; nothing was done.
    #[error("the disk does not know this request")]
    Unsupported,
    /// Any other error of the host's, by its number.
    #[error("host error: {}{}", io::Error::from_raw_os_error(*.0), remedy_of_fault(*.0))]
    Host(i32),
}

/// What to do about requests that end with this error, where that is known.
fn remedy_of_fault(errno: i32) -> &'static str {
    match errno {
        libc::EFBIG => {
            "; raise the limit on file sizes (`ulimit -f`), which is below the image's size"
        }
        _ => "",
    }
}

impl IoFault {
    /// The fault for a host error number.
    #[must_use]
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ENOSPC | libc::EDQUOT => Self::NoSpace,
            libc::ECANCELED => Self::Cancelled,
            other => Self::Host(other),
        }
    }
}

impl From<io::Error> for IoFault {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::from_errno(errno),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Short,
            None => Self::Host(libc::EIO),
        }
    }
}
