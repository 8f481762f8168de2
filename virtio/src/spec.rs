//! Constants and wire structures of the specification, with their section numbers.
//!
//! Every multi-byte field is little-endian (section 1.4 of the specification). The structures have
//! no padding and no alignment, so they can be laid over any byte of a buffer.

/// Defines structures as they are laid out in shared memory, or in a configuration space.
macro_rules! wire {
    ($($structure:item)+) => {
        $(
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            #[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
            #[derive(zerocopy::KnownLayout, zerocopy::Unaligned)]
            #[repr(C)]
            $structure
        )+
    };
}

pub mod balloon;
pub mod blk;
pub mod feature;
pub mod net;
pub mod pci;
pub mod ring;
pub mod rng;
pub mod scsi;

/// Bits of the device status field (section 2.1).
pub mod status {
    /// The driver has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive the device.
    pub const DRIVER: u8 = 2;
    /// The driver is ready; the device may run.
    pub const DRIVER_OK: u8 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u8 = 8;
    /// The device met an error it can't recover from without a reset.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver has given the device up.
    pub const FAILED: u8 = 128;
}

/// Device identifiers (section 5).
pub mod id {
    /// Network card (section 5.1).
    pub const NET: u16 = 1;
    /// Block device (section 5.2).
    pub const BLOCK: u16 = 2;
    /// Console (section 5.3).
    pub const CONSOLE: u16 = 3;
    /// Entropy source (section 5.4).
    pub const ENTROPY: u16 = 4;
    /// Memory balloon, traditional (section 5.5).
    pub const BALLOON: u16 = 5;
    /// SCSI host (section 5.6).
    pub const SCSI: u16 = 8;
    /// Socket (section 5.10).
    pub const VSOCK: u16 = 19;
    /// File system (section 5.11).
    pub const FS: u16 = 26;
}
