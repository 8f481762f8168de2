//! SCSI controllers: their disks come, go and change size while the guest runs.
//!
//! [`Machine::scsi`](crate::Machine::scsi) returns a handle per controller. A disk that is added has to be open already:
//! [`disk::open_shared`](crate::disk::open_shared) opens an image for a controller.

pub use splitring_devices::scsi::{ScsiError, ScsiHandle, UnitConfig, UnitInfo, open_reservations};
