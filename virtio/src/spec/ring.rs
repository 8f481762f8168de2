//! Split virtqueues (section 2.7): sizes, alignments, flags and the layout of the entries.

use zerocopy::little_endian::{U16, U32, U64};

/// Largest size of a queue (section 2.7); sizes are powers of two.
pub const MAX_SIZE: u16 = 32768;

/// Alignment of the descriptor table in guest memory.
pub const DESC_ALIGN: u64 = 16;
/// Alignment of the available ring in guest memory.
pub const AVAIL_ALIGN: u64 = 2;
/// Alignment of the used ring in guest memory.
pub const USED_ALIGN: u64 = 4;

/// Bytes of one descriptor.
pub const DESC_SIZE: u32 = 16;
/// Bytes of one entry of the available ring.
pub const AVAIL_ELEM_SIZE: u32 = 2;
/// Bytes of one entry of the used ring.
pub const USED_ELEM_SIZE: u32 = 8;

/// The chain continues at `next`.
pub const DESC_F_NEXT: u16 = 1;
/// The buffer is device-writable; without this flag it is device-readable.
pub const DESC_F_WRITE: u16 = 2;
/// The buffer holds a table of descriptors (section 2.7.5.3).
pub const DESC_F_INDIRECT: u16 = 4;

/// `avail.flags`: the driver suppresses used buffer notifications; ignored under `EVENT_IDX`.
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `used.flags`: the device suppresses available buffer notifications; ignored under `EVENT_IDX`.
pub const USED_F_NO_NOTIFY: u16 = 1;

/// Maximum number of bytes that one descriptor chain may describe (section 2.7.5.2).
pub const MAX_CHAIN_BYTES: u64 = 1 << 32;

wire! {
    /// One entry of the descriptor table (section 2.7.5).
    pub struct Descriptor {
        /// Guest-physical address of the buffer.
        pub addr: U64,
        /// Bytes of the buffer.
        pub len: U32,
        /// `DESC_F_…`.
        pub flags: U16,
        /// Index of the chain's next descriptor, under `DESC_F_NEXT`.
        pub next: U16,
    }

    /// One entry of the used ring (section 2.7.8).
    pub struct UsedElem {
        /// Head of the used chain.
        pub id: U32,
        /// Bytes written to the chain's writable part.
        pub len: U32,
    }
}
