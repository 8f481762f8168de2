//! A queue's accounting: its free slots and indices, and the record of a closed buffer until it
//! comes back.

use crate::mem::dma::{DmaMap, Mappings};
use crate::mem::driver_ring::DriverRing;

/// The free slots and the available index.
///
/// The free list is kept here and in the ring's links, from slot to slot; the links in the shared
/// table are copies that are never read back. A buffer takes slots from the front of the list and
/// returns them there, as in Linux 3.8, so that recently used slots, which are cached, are used
/// first.
pub(super) struct Accounting {
    pub(super) free_head: u16,
    pub(super) free: u16,
    /// Number of buffers ever added, across resets, so that it identifies them. Its low half is the
    /// available index of the next buffer.
    pub(super) added: u64,
}

impl Accounting {
    /// Returns the available index of the next buffer.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "indices have 16 bits")]
    pub(super) const fn index(&self) -> u16 {
        self.added as u16
    }
}

/// A closed buffer, as recorded in the in-flight table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closed {
    pub(super) head: u16,
    pub(super) last: u16,
    pub(super) segments: u16,
    pub(super) indirect: bool,
    pub(super) writable: u32,
    /// The buffer's number among all buffers ever added, modulo 2^32.
    pub(super) generation: u32,
}

/// Returns the index of the first mapping record of a table whose first entry is `first`.
#[inline(always)]
pub(super) fn table_records(ring: &DriverRing, first: usize) -> usize {
    usize::from(ring.size()).wrapping_add(first)
}

/// Unmaps a buffer of which the device wrote `written` bytes, in the order of its segments.
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
