//! The driver's (guest's) end: a queue that is filled piecewise, and drivers for blk, net, scsi and
//! virtio-pci on top of it.
//!
//! Everything allocates at set-up only and works with memory the caller supplies, so that firmware
//! and unikernels can use it. The drivers know queues, not transports: they answer a [`Kick`] and
//! leave it to the caller to ring the bell. See `queue` for what is owned by whom, and `piecewise`
//! for how a buffer is built.

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
