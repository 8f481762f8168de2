//! Block device (section 5.2).

use zerocopy::little_endian::{U16, U32, U64};

/// Bytes of a sector: the unit of every offset and count, whatever `blk_size` says.
pub const SECTOR_SIZE: u64 = 512;
/// Bytes of the identification string (section 5.2.6).
pub const ID_BYTES: usize = 20;

/// Feature bits (section 5.2.3), as masks.
pub mod feature {
    /// `size_max` is valid.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << 2;
    /// `geometry` is valid.
    pub const GEOMETRY: u64 = 1 << 4;
    /// The device is read-only.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` is valid.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// Flush requests are supported.
    pub const FLUSH: u64 = 1 << 9;
    /// `topology` is valid.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// The driver may switch the cache between writeback and writethrough.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// More than one request queue.
    pub const MQ: u64 = 1 << 12;
    /// Discard requests are supported.
    pub const DISCARD: u64 = 1 << 13;
    /// Write-zeroes requests are supported.
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// Lifetime requests are supported.
    pub const LIFETIME: u64 = 1 << 15;
    /// Secure-erase requests are supported.
    pub const SECURE_ERASE: u64 = 1 << 16;
    /// The device has zones.
    pub const ZONED: u64 = 1 << 17;
}

/// Request types (section 5.2.6).
pub mod request {
    /// Read.
    pub const IN: u32 = 0;
    /// Write.
    pub const OUT: u32 = 1;
    /// Flush the cache.
    pub const FLUSH: u32 = 4;
    /// Read the identification string.
    pub const GET_ID: u32 = 8;
    /// Read the lifetime estimate of the device.
    pub const GET_LIFETIME: u32 = 10;
    /// Discard ranges.
    pub const DISCARD: u32 = 11;
    /// Zero ranges.
    pub const WRITE_ZEROES: u32 = 13;
    /// Erase ranges securely.
    pub const SECURE_ERASE: u32 = 14;
}

/// The status byte (section 5.2.6).
pub mod status {
    /// Success.
    pub const OK: u8 = 0;
    /// Device or driver error.
    pub const IOERR: u8 = 1;
    /// The device does not support the request.
    pub const UNSUPP: u8 = 2;
}

/// Flag of a [`Range`]: the device may deallocate the sectors (write-zeroes only).
pub const RANGE_F_UNMAP: u32 = 1;

wire! {
    /// Head of every request, device-readable.
    pub struct RequestHeader {
        /// `request::…`.
        pub kind: U32,
        /// Zero.
        pub reserved: U32,
        /// First sector, of 512 bytes.
        pub sector: U64,
    }

    /// One range of a discard, write-zeroes or secure-erase request.
    pub struct Range {
        /// First sector, of 512 bytes.
        pub sector: U64,
        /// Number of sectors.
        pub num_sectors: U32,
        /// `RANGE_F_UNMAP`; other bits are reserved.
        pub flags: U32,
    }

    /// Configuration space (section 5.2.4), up to the zoned part.
    pub struct Config {
        /// Size of the device in sectors of 512 bytes.
        pub capacity: U64,
        /// Maximum number of bytes of one segment.
        pub size_max: U32,
        /// Maximum number of segments of one request.
        pub seg_max: U32,
        /// Legacy geometry: cylinders.
        pub cylinders: U16,
        /// Legacy geometry: heads.
        pub heads: u8,
        /// Legacy geometry: sectors.
        pub sectors: u8,
        /// Block size in bytes.
        pub blk_size: U32,
        /// Logical blocks per physical block, as a power of two.
        pub physical_block_exp: u8,
        /// Offset of the first aligned logical block.
        pub alignment_offset: u8,
        /// Suggested minimum I/O size in blocks.
        pub min_io_size: U16,
        /// Suggested optimum I/O size in blocks.
        pub opt_io_size: U32,
        /// Cache mode: 0 is writethrough, 1 is writeback. The only field a driver writes.
        pub writeback: u8,
        /// Reserved.
        pub unused0: u8,
        /// Number of request queues.
        pub num_queues: U16,
        /// Maximum number of sectors of a discard range.
        pub max_discard_sectors: U32,
        /// Maximum number of ranges of a discard.
        pub max_discard_seg: U32,
        /// Alignment of a discard range in sectors.
        pub discard_sector_alignment: U32,
        /// Maximum number of sectors of a write-zeroes range.
        pub max_write_zeroes_sectors: U32,
        /// Maximum number of ranges of a write-zeroes.
        pub max_write_zeroes_seg: U32,
        /// 1 if a write-zeroes request may deallocate sectors.
        pub write_zeroes_may_unmap: u8,
        /// Reserved.
        pub unused1: [u8; 3],
        /// Maximum number of sectors of a secure-erase range.
        pub max_secure_erase_sectors: U32,
        /// Maximum number of ranges of a secure-erase.
        pub max_secure_erase_seg: U32,
        /// Alignment of a secure-erase range in sectors.
        pub secure_erase_sector_alignment: U32,
    }
}

/// Offset of [`Config::writeback`] in the configuration space.
pub const CONFIG_WRITEBACK: usize = core::mem::offset_of!(Config, writeback);
