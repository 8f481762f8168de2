//! PCI, virtio devices and their host backends, without KVM.
//!
//! A device is one chapter of the virtio specification behind [`device::VirtioDevice`]; [`pci`] gives it
//! registers, [`worker`] a thread, [`wiring::Wiring`] its interrupts. Nothing here knows KVM or the machine.
#![warn(missing_debug_implementations)]
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

pub mod balloon;
pub mod blk;
pub mod bus;
pub mod bytes;
mod clock;
mod debug;
pub mod device;
pub mod dirty;
pub mod disk;
pub mod eventfd;
pub mod events;
mod fault;
pub mod handed_over;
pub mod interrupt;
pub mod kind;
mod limits;
mod log;
pub mod net;
pub mod pci;
mod pool;
pub mod power;
pub mod pvpanic;
pub mod ram;
pub mod rings;
pub mod rng;
pub mod saved;
pub mod scsi;
pub mod serial;
mod setters;
mod signals;
mod sources;
#[cfg(test)]
mod testing;
pub mod threads;
pub mod throttle;
pub mod wiring;
pub mod worker;
