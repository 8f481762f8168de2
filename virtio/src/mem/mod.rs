//! Guest memory: the one place of this crate where it is touched, and the one place with unsafe code.
//!
//! An address of the guest's becomes a [`Segment`] only after a bounds check; bytes and ring words
//! move only by volatile and atomic accesses, because the guest may write them at any moment; and no
//! Rust reference to guest memory ever exists. It knows neither chains nor what the bytes mean.
#![expect(
    unsafe_code,
    reason = "ring words and buffers live in memory that is shared with the guest"
)]

mod buffers;
mod copy;
mod device_ring;
mod ram;

pub use buffers::Cursor;
pub(crate) use buffers::{Buffers, Translator, Untranslatable};
pub(crate) use device_ring::{Desc, DeviceRing, RingFault};
pub use ram::{Access, GuestRam, RamRegion, Segment};
