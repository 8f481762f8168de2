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

pub mod blk;
pub mod bus;
pub mod bytes;
mod clock;
mod debug;
pub mod device;
pub mod disk;
pub mod eventfd;
pub mod events;
mod fault;
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
pub mod rng;
pub mod scsi;
pub mod serial;
mod setters;
mod signals;
mod sources;
#[cfg(test)]
mod testing;
pub mod throttle;
pub mod wiring;
pub mod worker;

use core::fmt;

/// Declares what can be put on the bus: one line a device.
macro_rules! device_table {
    ($($(#[$doc:meta])* $kind:ident = $name:literal, type $id:literal, class $class:literal;)+) => {
        /// The kinds of virtio device this crate implements.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum DeviceKind { $($(#[$doc])* $kind),+ }

        impl DeviceKind {
            /// Every kind, in the table's order.
            pub const ALL: &[DeviceKind] = &[$(DeviceKind::$kind),+];

            /// The device type number (VIRTIO 1.2 §5).
            pub fn type_id(self) -> u16 { match self { $(Self::$kind => $id),+ } }

            /// PCI class, subclass and programming interface, as three bytes of one number.
            pub fn pci_class(self) -> u32 { match self { $(Self::$kind => $class),+ } }

            /// The name used in messages and in configuration.
            pub fn name(self) -> &'static str { match self { $(Self::$kind => $name),+ } }
        }
    };
}

device_table! {
    /// Network card (VIRTIO 1.2 §5.1).
    Net = "net", type 1, class 0x02_0000;
    /// Block device (§5.2).
    Blk = "blk", type 2, class 0x01_8000;
    /// Entropy source (§5.4).
    Rng = "rng", type 4, class 0xff_0000;
    /// SCSI host adapter (§5.6).
    Scsi = "scsi", type 8, class 0x01_0000;
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
