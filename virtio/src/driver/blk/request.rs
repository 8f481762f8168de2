//! The requests to a block device: bios, merged bios, and the limits that the device states.

use alloc::vec::Vec;

use crate::mem::dma::{DmaBuf, DmaBytes};
use crate::scatterlist::ScatterList;
use crate::spec::blk::{Config, SECTOR_SIZE, feature, request};

/// Limits of discard or write-zeroes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLimits {
    /// Maximum number of ranges of a request.
    pub ranges: u32,
    /// Maximum number of sectors of a range.
    pub sectors: u32,
}

/// What the device offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Size in sectors of 512 bytes.
    pub capacity: u64,
    /// Block size in bytes, to which requests should be aligned.
    pub block_size: u32,
    /// Whether the device is read-only.
    pub read_only: bool,
    /// Maximum number of data segments of a request.
    pub seg_max: u32,
    /// Maximum number of bytes of a segment.
    pub size_max: u32,
    /// Whether flush requests are supported.
    pub flush: bool,
    /// Limits of discard requests, if they are supported.
    pub discard: Option<RangeLimits>,
    /// Limits of write-zeroes requests, if they are supported.
    pub write_zeroes: Option<RangeLimits>,
    /// Number of request queues.
    pub queues: u16,
}

impl Info {
    /// Reads the fields of the configuration space that the negotiated features make valid.
    pub fn new(config: &Config, features: u64) -> Self {
        let has = |feature: u64| features & feature != 0;
        let or = |feature, value: u32, default| if has(feature) { value } else { default };
        let limits =
            |feature, ranges: u32, sectors| has(feature).then_some(RangeLimits { ranges, sectors });
        Self {
            capacity: config.capacity.get(),
            block_size: or(feature::BLK_SIZE, config.blk_size.get(), 512),
            read_only: has(feature::RO),
            // Without the feature nothing is specified: one segment always works (as in Linux).
            seg_max: or(feature::SEG_MAX, config.seg_max.get(), 1).max(1),
            size_max: or(feature::SIZE_MAX, config.size_max.get(), u32::MAX),
            flush: has(feature::FLUSH),
            discard: limits(
                feature::DISCARD,
                config.max_discard_seg.get(),
                config.max_discard_sectors.get(),
            ),
            write_zeroes: limits(
                feature::WRITE_ZEROES,
                config.max_write_zeroes_seg.get(),
                config.max_write_zeroes_sectors.get(),
            ),
            queues: if has(feature::MQ) {
                config.num_queues.get()
            } else {
                1
            },
        }
    }
}

/// The direction of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// From the device.
    Read,
    /// To the device.
    Write,
}

/// A run of sectors and the memory for it.
#[derive(Debug)]
pub struct Bio<B: DmaBuf = DmaBytes> {
    /// The direction.
    pub transfer: Transfer,
    /// First sector, of 512 bytes.
    pub sector: u64,
    /// The memory, up to its end marker.
    pub data: ScatterList<B>,
}

impl<B: DmaBuf> Bio<B> {
    /// Returns the sector behind the last, or `None` if the data are not whole sectors, or too
    /// many.
    pub(super) fn end(&self) -> Option<u64> {
        let bytes = self.data.bytes();
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_SIZE) {
            return None;
        }
        self.sector.checked_add(bytes.div_euclid(SECTOR_SIZE))
    }
}

/// Bios of one direction and adjacent sectors, submitted as one request.
#[derive(Debug)]
pub struct Merged<B: DmaBuf = DmaBytes> {
    pub(super) bios: Vec<Bio<B>>,
}

impl<B: DmaBuf> Merged<B> {
    /// Returns an empty request with room for `bios` bios. Only this allocates.
    pub fn with_capacity(bios: usize) -> Self {
        Self {
            bios: Vec::with_capacity(bios),
        }
    }

    /// Adds a bio behind the others or in front of them, wherever its sectors are adjacent.
    ///
    /// # Errors
    /// It has another direction, its sectors are not adjacent, or there is no room. Returns the
    /// bio.
    pub fn merge(&mut self, bio: Bio<B>) -> Result<(), Bio<B>> {
        let full = self.bios.len() == self.bios.capacity();
        let (Some(end), false) = (bio.end(), full) else {
            return Err(bio);
        };
        let (Some(first), Some(last)) = (self.bios.first(), self.bios.last()) else {
            self.bios.push(bio);
            return Ok(());
        };
        if first.transfer != bio.transfer {
            return Err(bio);
        }
        if last.end() == Some(bio.sector) {
            self.bios.push(bio);
        } else if first.sector == end {
            self.bios.insert(0, bio);
        } else {
            return Err(bio);
        }
        Ok(())
    }

    /// Returns the bios, ordered by sector.
    pub fn bios(&self) -> &[Bio<B>] {
        &self.bios
    }

    /// Removes the bios, ordered by sector; the room stays.
    pub fn drain(&mut self) -> impl Iterator<Item = Bio<B>> + '_ {
        self.bios.drain(..)
    }
}

/// A request with its memory.
#[derive(Debug)]
pub enum Work<B: DmaBuf = DmaBytes> {
    /// One bio.
    Bio(Bio<B>),
    /// Merged bios.
    Merged(Merged<B>),
    /// A flush of the cache.
    Flush,
    /// A discard of ranges.
    Discard,
    /// A write-zeroes of ranges.
    WriteZeroes,
    /// A read of the identification string.
    GetId,
}

impl<B: DmaBuf> Work<B> {
    pub(super) fn bios(&self) -> &[Bio<B>] {
        match self {
            Self::Bio(bio) => core::slice::from_ref(bio),
            Self::Merged(merged) => &merged.bios,
            _ => &[],
        }
    }

    #[inline]
    pub(super) fn kind(&self) -> u32 {
        match (self, self.bios().first()) {
            (Self::Flush, _) => request::FLUSH,
            (Self::Discard, _) => request::DISCARD,
            (Self::WriteZeroes, _) => request::WRITE_ZEROES,
            (Self::GetId, _) => request::GET_ID,
            (_, Some(bio)) if bio.transfer == Transfer::Write => request::OUT,
            _ => request::IN,
        }
    }
}
