//! Shared memory: the only module of this crate that accesses it, and the only one with unsafe
//! code.
//!
//! For the device's end (`ram`, `device_ring`, `buffers`, `copy`) it is guest memory: a guest
//! address becomes a [`Segment`] only after a bounds check; bytes and ring words are copied only by
//! volatile and atomic accesses, because the guest may write them at any time; and there is never a
//! Rust reference to guest memory. For the driver's end (`dma`, `driver_ring`, `bounce`, `mmio`,
//! `reset`) it is memory that a device may use: owned until the device returns it. This module
//! knows neither chains nor the meaning of the bytes.
#![expect(
    unsafe_code,
    reason = "ring words and buffers live in memory that is shared with the guest"
)]

pub(crate) mod bounce;
mod buffers;
mod copy;
mod device_ring;
pub(crate) mod dma;
pub(crate) mod driver_ring;
pub(crate) mod mmio;
mod plain;
mod ram;
pub(crate) mod reset;
#[cfg(test)]
pub(crate) mod testbed;
mod translate;

pub(crate) use buffers::{Buffers, Cursor};
pub(crate) use device_ring::{DeviceRing, RingFault};
pub use plain::PlainRam;
pub use ram::{Access, GuestRam, RamRegion, Segment};
pub(crate) use translate::{Desc, DescSource, Gather, Table, Translator, Untranslatable};

#[cfg(any(test, feature = "testing"))]
pub mod testing;
