//! The part of a driver's queue that does not care what the tokens are: free slots, indices, mappings.
//! See `queue` for the whole, `open` for the buffer under construction.

use super::accounting::{Accounting, Closed, unmap};
use super::error::{Broken, Refusal};
use super::open::OpenBuffer;
use super::options::IndirectPolicy;
use crate::mem::dma::{DmaMap, Mappings};
use crate::mem::driver_ring::DriverRing;

/// Ring, free list and indices of one queue.
pub(super) struct QueueCore<M: DmaMap> {
    pub(super) ring: DriverRing,
    pub(super) maps: Mappings<M>,
    pub(super) accounting: Accounting,
    pub(super) policy: IndirectPolicy,
    pub(super) event_idx: bool,
    /// Of `added`, as last stored in the ring, and at the last kick decision.
    pub(super) exposed: u16,
    pub(super) decided: u64,
    pub(super) broken: Option<Broken>,
}

impl<M: DmaMap> QueueCore<M> {
    pub(super) fn new(ring: DriverRing, hook: M, policy: IndirectPolicy, event_idx: bool) -> Self {
        let size = ring.size();
        let mut core = Self {
            // One record for each slot and, behind them, each entry of a table.
            maps: Mappings::new(hook, usize::from(size).saturating_add(ring.all_cells())),
            ring,
            accounting: Accounting {
                free_head: 0,
                free: size,
                added: 0,
            },
            policy,
            event_idx,
            exposed: 0,
            decided: 0,
            broken: None,
        };
        core.start_over();
        core
    }

    /// A fresh ring with every slot free.
    pub(super) fn start_over(&mut self) {
        self.ring.initialise();
        self.accounting = Accounting {
            free_head: 0,
            free: self.ring.size(),
            // The next count of which the low half is 0.
            added: self.accounting.added.next_multiple_of(1 << 16),
        };
        self.decided = self.accounting.added;
        self.exposed = 0;
        self.broken = None;
    }

    /// Opens a buffer of up to `count` segments from up to `lists` lists.
    #[inline(always)]
    pub(super) fn open(
        &mut self,
        count: usize,
        lists: usize,
    ) -> Result<OpenBuffer<'_, M>, Refusal> {
        if let Some(broken) = self.broken {
            return Err(Refusal::Broken(broken));
        }
        if count == 0 || lists == 0 {
            return Err(Refusal::Empty);
        }
        let size = self.ring.size();
        let count = u16::try_from(count).ok().filter(|count| *count <= size);
        let count = count.ok_or(Refusal::TooLong)?;
        let table = self.use_table(count)?;
        let slots = if table { 1 } else { count };
        if slots > self.accounting.free {
            return Err(Refusal::Full);
        }
        let Self {
            ring,
            maps,
            accounting,
            ..
        } = self;
        Ok(OpenBuffer::new(ring, maps, accounting, table, count, lists))
    }

    /// Whether a buffer of `count` segments goes into its slot's table.
    #[inline(always)]
    fn use_table(&self, count: u16) -> Result<bool, Refusal> {
        if count <= 1 || self.policy == IndirectPolicy::Never {
            return Ok(false);
        }
        if count > self.ring.table_entries() {
            // As `virtqueue_add_buf` had it: where no table can be had (there, because memory was
            // short), direct after all.
            return match self.policy {
                IndirectPolicy::Always => Err(Refusal::TooLong),
                _ => Ok(false),
            };
        }
        Ok(self.policy != IndirectPolicy::Auto || !self.roomy(count))
    }

    /// Whether a chain of `count` is short and leaves a quarter of the ring free: it costs the
    /// device less than a table does, but the ring must not become what limits the number of
    /// buffers in flight.
    #[inline]
    fn roomy(&self, count: u16) -> bool {
        let reserve = self.ring.size() >> 2;
        count <= AUTO_DIRECT && self.accounting.free.saturating_sub(count) >= reserve
    }

    /// Gives a buffer's slots back, in front of the others.
    #[inline(always)]
    pub(super) fn free_slots(&mut self, closed: Closed) {
        self.ring.set_link(closed.last, self.accounting.free_head);
        self.accounting.free_head = closed.head;
        let slots = if closed.indirect { 1 } else { closed.segments };
        self.accounting.free = self.accounting.free.wrapping_add(slots);
    }

    /// Undoes the mappings of a buffer of which the device wrote `written` bytes.
    #[inline(always)]
    pub(super) fn unmap(&mut self, closed: Closed, written: u32) {
        unmap(&mut self.maps, &self.ring, closed, written);
    }
}

/// The most segments [`IndirectPolicy::Auto`] puts into the ring itself: one cache line of them.
const AUTO_DIRECT: u16 = 4;
