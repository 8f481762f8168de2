//! Shared memory: the one place of this crate where it is touched, and the one place with unsafe code.
//!
//! For the device's end (`ram`, `device_ring`, `buffers`, `copy`) it is the guest's:
//! An address of the guest's becomes a [`Segment`] only after a bounds check; bytes and ring words
//! move only by volatile and atomic accesses, because the guest may write them at any moment; and no
//! Rust reference to guest memory ever exists. For the driver's end (`dma`, `driver_ring`, `bounce`,
//! `mmio`, `reset`) it is what a device was lent: owned until it comes back. It knows neither chains
//! nor what the bytes mean.
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
