//! The driver's (guest's) end: a queue that is filled piecewise, and drivers for blk, net, scsi and
//! virtio-pci on top of it.
//!
//! Memory is allocated only at set-up and is supplied by the caller where the device uses it, so
//! that firmware and unikernels can use these drivers. The drivers know queues, not transports:
//! they return a [`Kick`], and the caller notifies the device. `queue` describes the ownership of
//! memory, `piecewise` how a buffer is built.

#[macro_use]
mod queue_methods;

mod accounting;
pub mod blk;
mod engine;
mod error;
pub mod net;
mod open;
mod options;
pub mod pci;
pub mod piecewise;
pub mod queue;
pub mod scsi;

pub use piecewise::{AddError, Builder, Parts, Readable, Refusal, Refused, State, Writable};
pub use queue::{
    Broken, Completion, IndirectPolicy, Kick, NotProven, Queue, QueueAreas, QueueOptions, Ticket,
};

pub use crate::mem::bounce::Bounce;
pub use crate::mem::dma::{
    Direction, DmaBuf, DmaBufMut, DmaBytes, DmaMap, DmaRegion, Identity, MapError, RawSegment,
    Window,
};
pub use crate::mem::driver_ring::QueueMemoryError;
pub use crate::mem::mmio::{Mmio, PciFunction, Registers};
pub use crate::mem::reset::{DeviceId, ResetProof};

#[cfg(test)]
mod tests;
