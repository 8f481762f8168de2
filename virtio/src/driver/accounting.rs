//! A queue's accounting: what every buffer changes, and what is remembered of one until it comes back.

use crate::mem::dma::{DmaMap, Mappings};
use crate::mem::driver_ring::DriverRing;

/// What every buffer changes.
///
/// The free list is kept here and in the ring's links, from slot to slot; the links in the shared
/// table are copies that nobody reads back. A buffer takes slots from its front and gives them back
/// there, as Linux 3.8 did, so that recently used (cached) slots are used first.
pub(super) struct Accounting {
    pub(super) free_head: u16,
    pub(super) free: u16,
    /// Buffers ever added, counted on over resets so that it tells them apart. Its low half is the
    /// available index of the next one.
    pub(super) added: u64,
}

impl Accounting {
    /// The available index of the next buffer.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "indices have 16 bits")]
    pub(super) const fn index(&self) -> u16 {
        self.added as u16
    }
}

/// A buffer that has been closed, as the in-flight table remembers it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closed {
    pub(super) head: u16,
    pub(super) last: u16,
    pub(super) segments: u16,
    pub(super) indirect: bool,
    pub(super) writable: u32,
    /// Which of all buffers ever it is, modulo 2^32.
    pub(super) generation: u32,
}

/// Where the records of a table's entries start, of which `first` is the first entry.
#[inline(always)]
pub(super) fn table_records(ring: &DriverRing, first: usize) -> usize {
    usize::from(ring.size()).wrapping_add(first)
}

/// Undoes the mappings of a buffer of which the device wrote `written` bytes, in the order of its
/// segments.
#[inline(always)]
pub(super) fn unmap<M: DmaMap>(
    maps: &mut Mappings<M>,
    ring: &DriverRing,
    closed: Closed,
    written: u32,
) {
    if !M::UNMAPS {
        return;
    }
    let records = match closed.indirect {
        true => table_records(ring, ring.table(closed.head)),
        false => 0,
    };
    let mut slot = if closed.indirect { 0 } else { closed.head };
    let mut left = written;
    for _ in 0..closed.segments {
        left = maps.unmap(records.wrapping_add(usize::from(slot)), left);
        slot = match closed.indirect {
            true => slot.wrapping_add(1),
            false => ring.link(slot),
        };
    }
}
