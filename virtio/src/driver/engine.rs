//! The part of a driver's queue that does not depend on the token type: free slots, indices,
//! mappings. `queue` is the whole queue, `open` the buffer under construction.

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
    /// The available index last stored in the ring, and the number of buffers at the last
    /// notification decision.
    pub(super) exposed: u16,
    pub(super) decided: u64,
    pub(super) broken: Option<Broken>,
}

impl<M: DmaMap> QueueCore<M> {
    pub(super) fn new(ring: DriverRing, hook: M, policy: IndirectPolicy, event_idx: bool) -> Self {
        let size = ring.size();
        let mut core = Self {
            // One record per slot, followed by one per entry of all tables.
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

    /// Initialises the ring with every slot free.
    pub(super) fn start_over(&mut self) {
        self.ring.initialise();
        self.accounting = Accounting {
            free_head: 0,
            free: self.ring.size(),
            // The next number whose low half is 0.
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

    /// Returns whether a buffer of `count` segments uses its slot's indirect table.
    #[inline(always)]
    fn use_table(&self, count: u16) -> Result<bool, Refusal> {
        if count <= 1 || self.policy == IndirectPolicy::Never {
            return Ok(false);
        }
        if count > self.ring.table_entries() {
            // As in `virtqueue_add_buf`: if no table is available (there, for lack of memory), the
            // buffer is direct.
            return match self.policy {
                IndirectPolicy::Always => Err(Refusal::TooLong),
                _ => Ok(false),
            };
        }
        Ok(self.policy != IndirectPolicy::Auto || !self.roomy(count))
    }

    /// Returns whether a chain of `count` is short and leaves a quarter of the ring free. Then it
    /// costs the device less than a table; but the ring must not limit the number of buffers in
    /// flight.
    #[inline]
    fn roomy(&self, count: u16) -> bool {
        let reserve = self.ring.size() >> 2;
        count <= AUTO_DIRECT && self.accounting.free.saturating_sub(count) >= reserve
    }

    /// Returns a buffer's slots to the front of the free list.
    #[inline(always)]
    pub(super) fn free_slots(&mut self, closed: Closed) {
        self.ring.set_link(closed.last, self.accounting.free_head);
        self.accounting.free_head = closed.head;
        let slots = if closed.indirect { 1 } else { closed.segments };
        self.accounting.free = self.accounting.free.wrapping_add(slots);
    }

    /// Unmaps a buffer of which the device wrote `written` bytes.
    #[inline(always)]
    pub(super) fn unmap(&mut self, closed: Closed, written: u32) {
        unmap(&mut self.maps, &self.ring, closed, written);
    }
}

/// The maximum number of segments that [`IndirectPolicy::Auto`] puts into the ring itself: one
/// cache line.
const AUTO_DIRECT: u16 = 4;
