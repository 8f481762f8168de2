//! What a disk is like: sizes, blocks and abilities.

/// Bytes in a sector, the unit of virtio-blk requests and the smallest block a disk may have.
pub const SECTOR: u64 = 512;

/// What a disk is like. All sizes are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Geometry {
    /// Size, a multiple of [`SECTOR`] and of `logical_block`.
    pub capacity: u64,
    /// Smallest addressable block: a power of two from 512 up.
    pub logical_block: u32,
    /// Block the medium writes without reading first: a power of two, at least `logical_block`.
    pub physical_block: u32,
    /// Where the first physical block boundary lies, in logical blocks from the start of the disk.
    pub alignment_offset: u32,
    /// Smallest transfer without a penalty; 0 if unknown.
    pub min_io: u32,
    /// Best size for a stream of transfers; 0 if unknown.
    pub opt_io: u32,
    /// Alignment of memory below which the host's transfers are bounced (1 with the page cache).
    pub memory_alignment: u32,
    /// Writes, discards and zeroes fail with [`IoFault::ReadOnly`](crate::disk::IoFault::ReadOnly).
    pub read_only: bool,
    /// `false` if every completed write is stable already, because the disk was opened as writethrough.
    pub write_cache: bool,
    /// What discards free; `None` if the host can't discard.
    pub discard: Option<RangeLimits>,
    /// Ranges that a discard freed read as zeroes, guaranteed. Holes in regular files do; block
    /// devices promise nothing, whatever they return. `false` where the host can't discard.
    pub discard_zeroes: bool,
    /// `WriteZeroes` with `may_unmap` can free the range. Otherwise zeroes are written, at the cost
    /// of a write.
    pub zeroes_unmap: bool,
    /// How `WriteZeroes` likes its ranges; it always works.
    pub zeroes: RangeLimits,
}

impl Geometry {
    /// A writable disk of `capacity` bytes with blocks of 512, that has a write cache and discards
    /// nothing.
    #[must_use]
    pub const fn new(capacity: u64) -> Self {
        Self {
            capacity,
            logical_block: 512,
            physical_block: 512,
            alignment_offset: 0,
            min_io: 0,
            opt_io: 0,
            memory_alignment: 1,
            read_only: false,
            write_cache: true,
            discard: None,
            discard_zeroes: false,
            zeroes_unmap: false,
            zeroes: RangeLimits {
                granularity: 512,
                max: 1 << 30,
            },
        }
    }

    crate::setters! {
        logical_block: u32;
        physical_block: u32;
        alignment_offset: u32;
        min_io: u32;
        opt_io: u32;
        memory_alignment: u32;
        read_only: bool;
        write_cache: bool;
        discard: some RangeLimits;
        discard_zeroes: bool;
        zeroes_unmap: bool;
        zeroes: RangeLimits;
    }
}

/// A run of bytes the host stores, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// There is storage behind it; otherwise it reads as zeroes.
    pub mapped: bool,
    /// The first byte after it.
    pub end: u64,
}

/// Names an image on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId {
    /// The file system's device number; for a block device its own.
    pub device: u64,
    /// The inode, 0 for a block device.
    pub inode: u64,
}

/// How a discard or zeroing likes its ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLimits {
    /// Ranges smaller or less aligned than this free nothing.
    pub granularity: u32,
    /// The longest range worth one request: longer ones are accepted but hold up the queue.
    pub max: u64,
}
