//! Split virtqueues, both ends: the device's, and the driver's with piecewise submission.
//!
//! Knows the bytes of the rings and the wire structures of the device chapters. Does not know PCI
//! buses, KVM, threads or files. Section numbers are those of the Virtual I/O Device specification,
//! version 1.3.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;

pub mod device;
pub mod driver;
pub mod mem;
pub mod ring;
pub mod scatterlist;
pub mod spec;
#[cfg(test)]
mod tier;
