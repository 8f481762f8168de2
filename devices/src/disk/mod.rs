//! Disks: how they are opened, whatever they are; see `contract` for what they are.

mod aligned;
mod blocking;
mod bounce;
mod cached;
mod calls;
pub mod config;
mod contract;
#[cfg(any(test, feature = "doubles"))]
pub mod doubles;
mod error;
pub(crate) mod faults;
mod flush;
mod geometry;
mod handle;
mod image;
mod immediate;
mod limits;
mod lock;
pub mod metrics;
mod null;
mod opening;
mod own;
mod partition;
#[cfg(test)]
pub(crate) mod piped;
mod plain;
#[cfg(feature = "qcow2")]
mod qcow2;
mod range;
mod raw;
mod refused;
mod ring;
mod share;
mod spans;
#[cfg(test)]
mod testing;
mod transfer;

use std::fs::File;
use std::sync::Arc;

pub use contract::{Completion, Data, Disk, DiskOp, DiskQueue, Full};
pub use error::{DiskError, IoFault};
pub use geometry::{Extent, Geometry, ImageId, RangeLimits, SECTOR};
pub use handle::Member;
pub use immediate::Perform;
pub use limits::LimitedDisk;
pub use null::NullDisk;
pub use own::{Memory, queue_of, queue_on_thread};
#[cfg(feature = "qcow2")]
pub use qcow2::Qcow2Disk;
pub use raw::RawDisk;
pub use share::{RingShare, Seat, SharedRings};

use config::{DiskConfig, Format};

/// Opens the disk that `config` describes, which was validated, with as many streams as it has queues.
///
/// # Errors
/// What is wrong with the image, with its name and what to do about it.
pub fn open(config: &DiskConfig) -> Result<Arc<dyn Disk>, DiskError> {
    open_with(config, config.queue_count())
}

/// As [`open`], with this many streams, whatever `config` says.
///
/// # Errors
/// As [`open`].
pub fn open_with(config: &DiskConfig, queues: u16) -> Result<Arc<dyn Disk>, DiskError> {
    open_as(config, queues, None)
}

/// As [`open`], for a controller that serves the disk on this many threads through its
/// [`SharedRings`], and not through streams of the disk's own. A disk with limits has streams all
/// the same, one per thread.
///
/// # Errors
/// As [`open`].
pub fn open_shared(config: &DiskConfig, threads: u16) -> Result<Arc<dyn Disk>, DiskError> {
    match (config.iops, config.bandwidth) {
        (None, None) => open_as(config, 0, Some(threads)),
        _ => open_as(config, threads, None),
    }
}

fn open_as(
    config: &DiskConfig,
    queues: u16,
    threads: Option<u16>,
) -> Result<Arc<dyn Disk>, DiskError> {
    let depth = config.queue_len();
    let disk: Arc<dyn Disk> = match config.format {
        Format::Raw => {
            let disk = RawDisk::open(config, queues, depth)?;
            Arc::new(match threads {
                Some(threads) => disk.shared_by(threads),
                None => disk,
            })
        }
        Format::Null => Arc::new(NullDisk::new(RawDisk::open(config, 0, 1)?.geometry())),
        #[cfg(feature = "qcow2")]
        Format::Qcow2 => Arc::new(Qcow2Disk::open(config)?),
        #[cfg(not(feature = "qcow2"))]
        Format::Qcow2 => {
            return Err(DiskError::Unusable {
                path: config.path.clone(),
                problem: "this build has no qcow2".into(),
                remedy: "build it with the feature qcow2, or convert the image with `qemu-img convert -O raw`",
            });
        }
    };
    Ok(limited(disk, config))
}

/// As [`open_with`], for a raw image in `file`, which somebody else opened as `config` says; its
/// path is a name only.
///
/// # Errors
/// As [`open`]; and another format than raw, which has to be opened by its path.
pub fn open_file(file: File, config: &DiskConfig, queues: u16) -> Result<Arc<dyn Disk>, DiskError> {
    if config.format != Format::Raw {
        return Err(DiskError::Unusable {
            path: config.path.clone(),
            problem: "only raw images can be handed over as a descriptor".into(),
            remedy: "give its path, or convert the image with `qemu-img convert -O raw`",
        });
    }
    let disk = RawDisk::from_file(file, config, queues, config.queue_len())?;
    Ok(limited(Arc::new(disk), config))
}

/// The disk within the limits that `config` sets.
fn limited(disk: Arc<dyn Disk>, config: &DiskConfig) -> Arc<dyn Disk> {
    match (config.iops, config.bandwidth) {
        (None, None) => disk,
        (requests, bytes) => Arc::new(LimitedDisk::new(disk, requests, bytes.map(|bytes| bytes.0))),
    }
}
