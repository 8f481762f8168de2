//! What an operator may say about a controller and its units, judged before anything is made of it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::reserve::store::Store;
use crate::disk::config::{MAX_LUN, Media};
use crate::kind::ErrorKind;

/// Most request queues of a controller.
pub(super) const MAX_QUEUES: u16 = 1024;

/// A controller.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ScsiConfig {
    /// The device's name, unique in the machine.
    pub id: String,
    /// The machine's name. With `id` it names the initiator: registrations of persistent reservations are kept
    /// under it, so it should stay the same over restarts and differ between machines that share an image.
    pub machine: String,
    /// Request queues.
    pub queues: u16,
    /// Descriptors of each of them, a power of two.
    pub queue_size: u16,
    /// Highest target the guest is told to look at; by default the highest in use.
    pub max_target: Option<u8>,
}

impl ScsiConfig {
    /// One request queue of 256 descriptors.
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            machine: String::new(),
            queues: 1,
            queue_size: 256,
            max_target: None,
        }
    }

    crate::setters! {
        id: into String;
        machine: into String;
        queues: u16;
        queue_size: u16;
        max_target: some u8;
    }

    pub(super) fn check(&self) -> Result<(), ScsiError> {
        if self.queues == 0 || self.queues > MAX_QUEUES {
            return Err(ScsiError::Queues {
                controller: self.id.clone(),
                queues: self.queues,
            });
        }
        if !self.queue_size.is_power_of_two() || !(2..=32768).contains(&self.queue_size) {
            return Err(ScsiError::QueueSize {
                controller: self.id.clone(),
                size: self.queue_size,
            });
        }
        Ok(())
    }
}

/// A logical unit.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct UnitConfig {
    /// Its name, unique in the controller.
    pub id: String,
    /// Target, 0 to 255; the first without a unit 0 if not given.
    pub target: Option<u8>,
    /// Logical unit number, 0 to 16383; 0 if not given.
    pub lun: Option<u16>,
    /// Serial number; by default derived from the image.
    pub serial: Option<String>,
    /// NAA name; by default derived from the serial number.
    pub wwn: Option<u64>,
    /// What it is.
    pub media: Media,
    /// The medium can be ejected.
    pub removable: bool,
    /// It is one unit with what other machines of this process have of its image, if they say so too: reservations,
    /// mode pages and the medium are common to them. Without it, that holds for the controllers of one machine only.
    pub share: bool,
    /// Where persistent reservations are kept over a power loss, see [`open_reservations`].
    pub reservations: Option<File>,
}

impl UnitConfig {
    /// A disk called `id`, everything else by default.
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            ..Self::default()
        }
    }

    crate::setters! {
        id: into String;
        target: some u8;
        lun: some u16;
        serial: some into String;
        wwn: some u64;
        media: Media;
        removable: bool;
        share: bool;
        reservations: some File;
    }

    pub(super) fn check(&self) -> Result<(), ScsiError> {
        match self.lun {
            Some(lun) if lun > MAX_LUN => Err(ScsiError::Lun {
                id: self.id.clone(),
                lun,
            }),
            _ => Ok(()),
        }
    }
}

/// Opens the file beside `image` that keeps persistent reservations over a power loss (APTPL): the image's name with
/// `.reservations` after it. It is made only if `create` says so; `None` if there is none.
///
/// # Errors
/// The file can't be opened, or is something else.
pub fn open_reservations(image: &Path, create: bool) -> Result<Option<File>, ScsiError> {
    let mut name = image.as_os_str().to_owned();
    name.push(".reservations");
    let path = PathBuf::from(name);
    let opened = File::options()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .open(&path);
    match opened {
        Ok(file) => match Store::is_ours(&file) {
            Ok(true) => Ok(Some(file)),
            Ok(false) => Err(ScsiError::NotReservations { path }),
            Err(source) => Err(ScsiError::Reservations { path, source }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && !create => Ok(None),
        Err(source) => Err(ScsiError::Reservations { path, source }),
    }
}

/// What is wrong with a controller or a unit.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ScsiError {
    /// The number of request queues is out of range.
    #[error("scsi controller {controller}: {queues} request queues; use 1 to 1024")]
    Queues {
        /// The controller.
        controller: String,
        /// As asked for.
        queues: u16,
    },
    /// The size of the request queues is out of range.
    #[error("scsi controller {controller}: queue-size={size}; use a power of two from 2 to 32768")]
    QueueSize {
        /// The controller.
        controller: String,
        /// As asked for.
        size: u16,
    },
    /// The logical unit number is out of range.
    #[error("scsi disk {id}: lun={lun} is too high; use 0 to 16383")]
    Lun {
        /// The unit.
        id: String,
        /// As asked for.
        lun: u16,
    },
    /// Two units want the same place.
    #[error(
        "scsi disk {id}: target {target} lun {lun} is taken by {by}; choose another, or leave target out"
    )]
    PlaceTaken {
        /// The unit.
        id: String,
        /// Its target.
        target: u8,
        /// Its logical unit number.
        lun: u16,
        /// Who has it.
        by: String,
    },
    /// Two units want the same name.
    #[error("scsi controller {controller} has a disk {id} already; choose another id")]
    NameTaken {
        /// The controller.
        controller: String,
        /// The name.
        id: String,
    },
    /// All targets have a unit.
    #[error("scsi disk {id}: all 256 targets are in use; give it a target and a free lun")]
    NoTarget {
        /// The unit.
        id: String,
    },
    /// No unit has this name.
    #[error("scsi controller {controller} has no disk {id}")]
    NoUnit {
        /// The controller.
        controller: String,
        /// The name.
        id: String,
    },
    /// The image is open with blocks of another size.
    #[error(
        "scsi disk {id}: its image is in use with another block size; give every user the same block-size"
    )]
    BlockSize {
        /// The unit.
        id: String,
    },
    /// The image's blocks don't fit the unit.
    #[error("scsi disk {id}: blocks of {block} bytes can't make a CD-ROM; leave block-size out")]
    CdromBlock {
        /// The unit.
        id: String,
        /// The image's block size in bytes.
        block: u32,
    },
    /// The reservations file failed.
    #[error("cannot use {path}, which keeps persistent reservations: {source}", path = path.display())]
    Reservations {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The reservations file is something else.
    #[error("{path} does not hold persistent reservations; move it out of the way", path = path.display())]
    NotReservations {
        /// The file.
        path: PathBuf,
    },
    /// The disk failed.
    #[error("scsi disk {id}: {source}")]
    Disk {
        /// The unit.
        id: String,
        /// Why.
        source: crate::disk::DiskError,
    },
    /// The machine has ended or started over.
    #[error("scsi controller {controller} is gone; ask the machine for the present one")]
    Gone {
        /// The controller.
        controller: String,
    },
    /// The unit did not come free in time.
    #[error("scsi disk {id}: removed, but its last commands have not come back from the host yet")]
    Busy {
        /// The unit.
        id: String,
    },
}

impl ScsiError {
    /// Returns what kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Reservations { .. }
            | Self::NotReservations { .. }
            | Self::Disk { .. }
            | Self::BlockSize { .. }
            | Self::CdromBlock { .. } => ErrorKind::Disk,
            Self::Gone { .. } => ErrorKind::State,
            Self::Busy { .. } => ErrorKind::Timeout,
            Self::Queues { .. }
            | Self::QueueSize { .. }
            | Self::Lun { .. }
            | Self::PlaceTaken { .. }
            | Self::NameTaken { .. }
            | Self::NoTarget { .. }
            | Self::NoUnit { .. } => ErrorKind::Config,
        }
    }
}
