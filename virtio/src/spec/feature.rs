//! Feature bits that are not specific to a device (section 6), as masks.

/// Buffers may be described by an indirect descriptor table (section 2.7.5.3).
pub const INDIRECT_DESC: u64 = 1 << 28;
/// `used_event` and `avail_event` replace the suppression flags (section 2.7.10).
pub const EVENT_IDX: u64 = 1 << 29;
/// The device complies with version 1 or later.
pub const VERSION_1: u64 = 1 << 32;
/// Addresses are translated by the platform, for example by an IOMMU.
pub const ACCESS_PLATFORM: u64 = 1 << 33;
/// Packed virtqueues (section 2.8).
pub const RING_PACKED: u64 = 1 << 34;
/// Buffers are used in the order they were made available (section 2.7.9).
pub const IN_ORDER: u64 = 1 << 35;
/// Memory accesses are ordered as the platform orders those of its devices.
pub const ORDER_PLATFORM: u64 = 1 << 36;
/// Single root I/O virtualization.
pub const SR_IOV: u64 = 1 << 37;
/// The driver passes extra data in its notifications.
pub const NOTIFICATION_DATA: u64 = 1 << 38;
/// The driver uses notification data that the device supplies.
pub const NOTIF_CONFIG_DATA: u64 = 1 << 39;
/// One queue can be reset by itself (section 2.6.1).
pub const RING_RESET: u64 = 1 << 40;
/// Administration virtqueues (section 2.13).
pub const ADMIN_VQ: u64 = 1 << 41;
/// First bit reserved for the core; bits 0 to 23 and 50 to 127 are specific to the device.
pub const CORE_FIRST: u32 = 24;
/// Last bit reserved for the core.
pub const CORE_LAST: u32 = 49;
