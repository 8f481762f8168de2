//! What can be asked of a block device: bios, merged bios, and the limits it states.

use alloc::vec::Vec;

use crate::mem::dma::{DmaBuf, DmaBytes};
use crate::scatterlist::ScatterList;
use crate::spec::blk::{Config, SECTOR_SIZE, feature, request};

/// Limits of discards or write-zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLimits {
    /// Most ranges of a request.
    pub ranges: u32,
    /// Most sectors of a range.
    pub sectors: u32,
}

/// What the device says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Size in sectors of 512 bytes.
    pub capacity: u64,
    /// Block size in bytes; requests should keep to it.
    pub block_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Most data segments of a request.
    pub seg_max: u32,
    /// Most bytes of a segment.
    pub size_max: u32,
    /// Whether there is a flush.
    pub flush: bool,
    /// Discards, if there are any.
    pub discard: Option<RangeLimits>,
    /// Write-zeroes, if there are any.
    pub write_zeroes: Option<RangeLimits>,
    /// Number of request queues.
    pub queues: u16,
}

impl Info {
    /// Reads the configuration space as far as the negotiated features make it valid.
    pub fn new(config: &Config, features: u64) -> Self {
        let has = |feature: u64| features & feature != 0;
        let or = |feature, value: u32, default| if has(feature) { value } else { default };
        let limits =
            |feature, ranges: u32, sectors| has(feature).then_some(RangeLimits { ranges, sectors });
        Self {
            capacity: config.capacity.get(),
            block_size: or(feature::BLK_SIZE, config.blk_size.get(), 512),
            read_only: has(feature::RO),
            // Without the feature nothing is promised: one segment always works (Linux's choice).
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

/// Which way data goes.
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
    /// Which way.
    pub transfer: Transfer,
    /// First sector, of 512 bytes.
    pub sector: u64,
    /// The memory, up to its end marker.
    pub data: ScatterList<B>,
}

impl<B: DmaBuf> Bio<B> {
    /// The sector behind the last. `None` if the data are no whole sectors, or too many.
    pub(super) fn end(&self) -> Option<u64> {
        let bytes = self.data.bytes();
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_SIZE) {
            return None;
        }
        self.sector.checked_add(bytes.div_euclid(SECTOR_SIZE))
    }
}

/// Bios of one direction and adjacent sectors that go out as one request.
#[derive(Debug)]
pub struct Merged<B: DmaBuf = DmaBytes> {
    pub(super) bios: Vec<Bio<B>>,
}

impl<B: DmaBuf> Merged<B> {
    /// Room for `bios` bios; the only allocation.
    pub fn with_capacity(bios: usize) -> Self {
        Self {
            bios: Vec::with_capacity(bios),
        }
    }

    /// Adds a bio behind the others or in front of them, wherever its sectors are adjacent.
    ///
    /// # Errors
    /// It does not fit: another direction, other sectors, or no room. It comes back.
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

    /// The bios, by sector.
    pub fn bios(&self) -> &[Bio<B>] {
        &self.bios
    }

    /// Takes the bios out, by sector; the room stays.
    pub fn drain(&mut self) -> impl Iterator<Item = Bio<B>> + '_ {
        self.bios.drain(..)
    }
}

/// What a request was, with the memory it had.
#[derive(Debug)]
pub enum Work<B: DmaBuf = DmaBytes> {
    /// One bio.
    Bio(Bio<B>),
    /// Several.
    Merged(Merged<B>),
    /// A flush of the cache.
    Flush,
    /// Ranges discarded.
    Discard,
    /// Ranges zeroed.
    WriteZeroes,
    /// The identification string.
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
