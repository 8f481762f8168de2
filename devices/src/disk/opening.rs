//! From a path to an open and locked file that can be an image, whatever its format.
//!
//! Knows no sizes, no alignments and no formats.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;

use super::DiskError;
use super::lock::{self, Refused, Use};

/// How often, and how far apart, a held lock is tried again: together longer than a killed predecessor's requests take.
const LOCK_TRIES: u32 = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// How a file is opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    /// For writing, too.
    pub(super) write: bool,
    /// Around the page cache (O_DIRECT).
    pub(super) direct: bool,
}

/// Opens what is at `path`, which [`admit`] has to judge.
pub(super) fn open(path: &Path, access: Access) -> Result<File, DiskError> {
    let direct = if access.direct { libc::O_DIRECT } else { 0 };
    File::options()
        .read(true)
        .write(access.write)
        // Without O_NONBLOCK a FIFO given by mistake would hang here.
        .custom_flags(direct | libc::O_NONBLOCK)
        .open(path)
        .map_err(|source| refused(path, access, source))
}

/// The best remedy for a failed open.
fn refused(path: &Path, access: Access, source: io::Error) -> DiskError {
    let path = path.to_owned();
    if fs::metadata(&path).is_ok_and(|meta| meta.is_dir()) {
        let what = "a directory";
        return DiskError::NotADisk { path, what };
    }
    if access.direct && source.raw_os_error() == Some(libc::EINVAL) {
        return DiskError::Unusable {
            path,
            problem: "its file system has no O_DIRECT".into(),
            remedy: "use direct=off",
        };
    }
    DiskError::Open { path, source }
}

/// Takes a file, opened here or by somebody else, if it can hold an image; what it is.
pub(super) fn admit(file: &File, path: &Path) -> Result<fs::Metadata, DiskError> {
    let host = |operation: &'static str| {
        move |source: io::Error| DiskError::Host {
            operation,
            path: path.to_owned(),
            source,
        }
    };
    let meta = file.metadata().map_err(host("query"))?;
    if let Some(what) = not_a_disk(&meta.file_type()) {
        return Err(DiskError::NotADisk {
            path: path.to_owned(),
            what,
        });
    }
    rustix::fs::fcntl_getfl(file)
        .and_then(|flags| rustix::fs::fcntl_setfl(file, flags.difference(OFlags::NONBLOCK)))
        .map_err(|error| host("set the flags of")(error.into()))?;
    Ok(meta)
}

/// What a file type is, if it can't be a disk.
fn not_a_disk(kind: &fs::FileType) -> Option<&'static str> {
    if kind.is_file() || kind.is_block_device() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_char_device() {
        Some("a character device")
    } else if kind.is_fifo() {
        Some("a pipe")
    } else {
        Some("neither file nor device")
    }
}

/// Takes the lock for the life of the open file.
///
/// A ring keeps the file open until the kernel has finished its requests, which after a kill may be
/// a little later than the end of the process; the lock must not go earlier, and a successor waits
/// for it. `false` if the file system has no locks and the operator lets others share the image.
pub(super) fn take_lock(file: &File, path: &Path, intent: Use) -> Result<bool, DiskError> {
    let mut result = lock::acquire(file, intent);
    for _ in 0..LOCK_TRIES {
        if !matches!(result, Err(Refused::Held(_))) {
            break;
        }
        std::thread::sleep(LOCK_PAUSE);
        result = lock::acquire(file, intent);
    }
    match result {
        Ok(()) => Ok(true),
        Err(Refused::Held(by)) => Err(DiskError::Locked {
            path: path.to_owned(),
            by,
        }),
        Err(Refused::Unsupported(error)) if intent.share => {
            tracing::warn!(
                "{}: shared without a lock, its file system has none: {error}",
                path.display()
            );
            Ok(false)
        }
        Err(Refused::Unsupported(error)) => Err(DiskError::Unusable {
            path: path.to_owned(),
            problem: format!(
                "its file system has no locks ({error}), so a second writer would go unnoticed"
            ),
            remedy: "use share=on if you make sure yourself that there is none",
        }),
    }
}
