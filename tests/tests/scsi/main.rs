//! virtio-scsi in process: our piecewise driver on our device, against what SPC-4, SBC-3 and the virtio
//! specification ask for.

mod conformance;
mod guest;
mod management;
mod memory;
mod paths;
mod reservations;
mod restarts;
mod units;
