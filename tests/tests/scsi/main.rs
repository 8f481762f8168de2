//! virtio-scsi in process: the driver of `splitring-virtio` on the device, against the requirements
//! of SPC-4, SBC-3 and the virtio specification.

mod conformance;
mod management;
mod memory;
mod paths;
mod reservations;
mod restarts;
mod units;
