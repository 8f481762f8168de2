//! Virtio over PCI, modern only (section 4.1).

use zerocopy::little_endian::{U16, U32};

/// Vendor of every virtio device.
pub const VENDOR: u16 = 0x1af4;
/// Added to the device identifier of section 5, it makes the PCI device identifier.
pub const DEVICE_BASE: u16 = 0x1040;
/// Minimum revision of a modern device.
pub const REVISION: u8 = 1;
/// Vendor-specific capability: the identifier of a virtio capability.
pub const CAP_ID: u8 = 0x09;
/// No vector is assigned, or the one asked for could not be (section 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// Values of [`Capability::cfg_type`] (section 4.1.4).
pub mod cfg_type {
    /// Common configuration.
    pub const COMMON: u8 = 1;
    /// Notifications.
    pub const NOTIFY: u8 = 2;
    /// Interrupt status.
    pub const ISR: u8 = 3;
    /// Device-specific configuration.
    pub const DEVICE: u8 = 4;
    /// Window through PCI configuration space.
    pub const PCI: u8 = 5;
    /// Shared memory.
    pub const SHARED_MEMORY: u8 = 8;
    /// Vendor-specific.
    pub const VENDOR: u8 = 9;
}

/// Bits of the interrupt status (section 4.1.4.5).
pub mod isr {
    /// A queue has used buffers.
    pub const QUEUE: u8 = 1;
    /// The configuration changed.
    pub const CONFIG: u8 = 2;
}

wire! {
    /// A virtio capability in PCI configuration space.
    pub struct Capability {
        /// [`CAP_ID`].
        pub cap_vndr: u8,
        /// Offset of the next capability, 0 at the end.
        pub cap_next: u8,
        /// Bytes of this capability.
        pub cap_len: u8,
        /// `cfg_type::…`.
        pub cfg_type: u8,
        /// Number of the BAR.
        pub bar: u8,
        /// Distinguishes capabilities of one type.
        pub id: u8,
        /// Zero.
        pub padding: [u8; 2],
        /// Offset in the BAR.
        pub offset: U32,
        /// Bytes in the BAR.
        pub length: U32,
    }

    /// A capability with a 64-bit offset and length, for shared memory.
    pub struct Capability64 {
        /// The common part, with the lower halves.
        pub cap: Capability,
        /// Upper half of the offset in the BAR.
        pub offset_hi: U32,
        /// Upper half of the length.
        pub length_hi: U32,
    }

    /// The notification capability: one more field.
    pub struct NotifyCapability {
        /// The common part.
        pub cap: Capability,
        /// Bytes from one `queue_notify_off` to the next.
        pub notify_off_multiplier: U32,
    }

    /// The window capability: one more field.
    pub struct CfgCapability {
        /// The common part; the driver writes `bar`, `offset` and `length`.
        pub cap: Capability,
        /// Window onto the BAR.
        pub pci_cfg_data: [u8; 4],
    }
}

/// Offsets in the common configuration (section 4.1.4.3).
pub mod common {
    /// 32 bits: selects the half of the offered features.
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    /// 32 bits, read-only: offered features.
    pub const DEVICE_FEATURE: u64 = 0x04;
    /// 32 bits: selects the half of the accepted features.
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    /// 32 bits: accepted features.
    pub const DRIVER_FEATURE: u64 = 0x0c;
    /// 16 bits: vector of configuration changes.
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    /// 16 bits, read-only: number of queues.
    pub const NUM_QUEUES: u64 = 0x12;
    /// 8 bits: device status.
    pub const DEVICE_STATUS: u64 = 0x14;
    /// 8 bits, read-only: changes when the configuration does.
    pub const CONFIG_GENERATION: u64 = 0x15;
    /// 16 bits: selects the queue of the fields below.
    pub const QUEUE_SELECT: u64 = 0x16;
    /// 16 bits: size of the queue, 0 if there is none.
    pub const QUEUE_SIZE: u64 = 0x18;
    /// 16 bits: vector of the queue.
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    /// 16 bits: 1 enables the queue.
    pub const QUEUE_ENABLE: u64 = 0x1c;
    /// 16 bits, read-only: offset of the queue's notification address.
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    /// 64 bits: descriptor table.
    pub const QUEUE_DESC: u64 = 0x20;
    /// 64 bits: available ring.
    pub const QUEUE_DRIVER: u64 = 0x28;
    /// 64 bits: used ring.
    pub const QUEUE_DEVICE: u64 = 0x30;
    /// 16 bits, read-only: data of a notification, under `NOTIF_CONFIG_DATA`.
    pub const QUEUE_NOTIFY_CONFIG_DATA: u64 = 0x38;
    /// 16 bits: 1 resets the queue, under `RING_RESET`.
    pub const QUEUE_RESET: u64 = 0x3a;
    /// Bytes of the part that every device has.
    pub const SIZE: u64 = 0x38;
}

wire! {
    /// Data of a notification under `NOTIFICATION_DATA` (section 2.9).
    pub struct NotificationData {
        /// Number of the queue.
        pub queue: U16,
        /// Next available index.
        pub next: U16,
    }
}
