//! The part of a driver's queue that does not care what the tokens are: free slots, the open buffer,
//! indices. See `queue` for the whole.

use alloc::boxed::Box;

use super::piecewise::{AddError, Refusal};
use super::queue::{Broken, IndirectPolicy};
use crate::mem::dma::{Direction, DmaMap, DmaRegion, Mappings};
use crate::mem::driver_ring::DriverRing;
use crate::spec::ring::{DESC_F_NEXT, DESC_F_WRITE, MAX_CHAIN_BYTES};

/// Ring, free list and indices of one queue.
///
/// The free list is kept here, as links from slot to slot; the links in the shared table are copies
/// that nobody reads back. A buffer takes slots from its front and gives them back there, as Linux
/// 3.8 did, so that recently used (cached) slots are used first.
pub(super) struct Core<M: DmaMap> {
    pub(super) ring: DriverRing,
    pub(super) maps: Mappings<M>,
    links: Box<[u16]>,
    free_head: u16,
    pub(super) free: u16,
    pub(super) policy: IndirectPolicy,
    pub(super) event_idx: bool,
    /// Available index: of the next buffer to add, as last stored, and at the last kick decision.
    pub(super) added: u16,
    pub(super) exposed: u16,
    pub(super) decided: u16,
    /// Buffers added since that decision, which the difference of two indices can't tell from
    /// 2^16 more.
    pub(super) undecided: u32,
    pub(super) broken: Option<Broken>,
}

/// A buffer that has been closed, as the in-flight table remembers it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closed {
    pub(super) head: u16,
    pub(super) last: u16,
    pub(super) segments: u16,
    pub(super) indirect: bool,
    pub(super) writable: u32,
}

impl<M: DmaMap> Core<M> {
    pub(super) fn new(ring: DriverRing, hook: M, policy: IndirectPolicy, event_idx: bool) -> Self {
        let size = ring.size();
        let slots = usize::from(size);
        let tables = slots.saturating_mul(usize::from(ring.table_entries()));
        let mut core = Self {
            maps: Mappings::new(hook, slots.saturating_add(tables)),
            links: (0..slots).map(|_| 0).collect(),
            ring,
            free_head: 0,
            free: size,
            policy,
            event_idx,
            added: 0,
            exposed: 0,
            decided: 0,
            undecided: 0,
            broken: None,
        };
        core.start_over();
        core
    }

    /// A fresh ring with every slot free.
    pub(super) fn start_over(&mut self) {
        self.ring.initialise();
        let last = self.links.len().saturating_sub(1);
        let mut next = 1u16;
        for (slot, link) in self.links.iter_mut().enumerate() {
            *link = if slot == last { 0 } else { next };
            next = next.wrapping_add(1);
        }
        self.free_head = 0;
        self.free = self.ring.size();
        (self.added, self.exposed, self.decided, self.undecided) = (0, 0, 0, 0);
        self.broken = None;
    }

    /// Opens a buffer of up to `count` segments from up to `lists` lists.
    #[inline]
    pub(super) fn open(&mut self, count: usize, lists: usize) -> Result<Open<'_, M>, Refusal> {
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
        if slots > self.free {
            return Err(Refusal::Full);
        }
        let head = self.free_head;
        Ok(Open {
            head,
            next: if table { 0 } else { head },
            table,
            left: count,
            lists,
            segments: 0,
            readable: 0,
            writable: 0,
            held: None,
            core: self,
        })
    }

    /// Whether a buffer of `count` segments goes into its slot's table.
    #[inline]
    fn use_table(&self, count: u16) -> Result<bool, Refusal> {
        let fits = count <= self.ring.table_entries();
        match self.policy {
            _ if count <= 1 => Ok(false),
            IndirectPolicy::Never => Ok(false),
            IndirectPolicy::Always if fits => Ok(true),
            IndirectPolicy::Always => Err(Refusal::TooLong),
            // As `virtqueue_add_buf` had it: with a slot free, always; where no table can be
            // had (there, because memory was short), direct after all.
            IndirectPolicy::Rfc => Ok(fits && self.free > 0),
            IndirectPolicy::Auto => Ok(fits && !self.roomy(count)),
        }
    }

    /// Whether a chain of `count` is short and leaves a quarter of the ring free: it costs the
    /// device less than a table does, but the ring must not become what limits the number of
    /// buffers in flight.
    #[inline]
    fn roomy(&self, count: u16) -> bool {
        let reserve = self.ring.size() >> 2;
        count <= AUTO_DIRECT && self.free.saturating_sub(count) >= reserve
    }

    #[inline]
    pub(super) fn link(&self, slot: u16) -> u16 {
        // Slots come from this very list, so there always is one.
        self.links.get(usize::from(slot)).copied().unwrap_or(0)
    }

    /// Gives a buffer's slots back, in front of the others.
    #[inline]
    pub(super) fn free_slots(&mut self, closed: Closed) {
        if let Some(link) = self.links.get_mut(usize::from(closed.last)) {
            *link = self.free_head;
        }
        self.ring.link(closed.last, self.free_head);
        self.free_head = closed.head;
        let slots = if closed.indirect { 1 } else { closed.segments };
        self.free = self.free.wrapping_add(slots);
    }

    /// Where the mapping of segment `index`, in descriptor `slot`, of a buffer is recorded.
    #[inline]
    fn record(&self, head: u16, table: bool, slot: u16) -> usize {
        if !table {
            return usize::from(slot);
        }
        let table = usize::from(head).wrapping_mul(usize::from(self.ring.table_entries()));
        let table = table.wrapping_add(usize::from(self.ring.size()));
        table.wrapping_add(usize::from(slot))
    }

    /// Undoes the mappings of a buffer of which the device wrote `written` bytes, in the order of
    /// its segments.
    pub(super) fn unmap(&mut self, closed: Closed, written: u32) {
        if !M::UNMAPS {
            return;
        }
        let mut slot = if closed.indirect { 0 } else { closed.head };
        let mut left = written;
        for _ in 0..closed.segments {
            let record = self.record(closed.head, closed.indirect, slot);
            left = self.maps.unmap(record, left);
            slot = match closed.indirect {
                true => slot.wrapping_add(1),
                false => self.link(slot),
            };
        }
    }
}

/// The most segments [`IndirectPolicy::Auto`] puts into the ring itself: one cache line of them.
const AUTO_DIRECT: u16 = 4;

/// A buffer being built. Nothing of it is in the queue's books before `close`: dropping it leaves
/// the queue as it was, but for descriptors of free slots, which mean nothing.
pub(super) struct Open<'q, M: DmaMap> {
    core: &'q mut Core<M>,
    table: bool,
    head: u16,
    /// Slot, or index in the table, of the next descriptor.
    next: u16,
    /// Segments and lists that may still come.
    left: u16,
    lists: usize,
    segments: u16,
    readable: u64,
    writable: u64,
    /// The last segment, written only when it is known whether the chain goes on.
    held: Option<Held>,
}

#[derive(Clone, Copy)]
struct Held {
    at: u16,
    addr: u64,
    len: u32,
    flags: u16,
}

impl<M: DmaMap> Open<'_, M> {
    /// Counts a list in.
    #[inline]
    pub(super) fn list(&mut self) -> Result<(), AddError> {
        self.lists = self.lists.checked_sub(1).ok_or(AddError::OverReserved)?;
        Ok(())
    }

    /// Appends one segment.
    #[inline]
    pub(super) fn append(
        &mut self,
        region: DmaRegion,
        direction: Direction,
    ) -> Result<(), AddError> {
        let left = self.left.checked_sub(1).ok_or(AddError::OverReserved)?;
        let len = u32::try_from(region.len).map_err(|_| AddError::TooLong)?;
        if len == 0 {
            return Err(AddError::EmptySegment);
        }
        let (readable, writable) = match direction {
            Direction::Readable => (self.readable.wrapping_add(u64::from(len)), self.writable),
            Direction::Writable => (self.readable, self.writable.wrapping_add(u64::from(len))),
        };
        // Each is at most 2^15 × 2^32: the sums can't wrap.
        if readable.wrapping_add(writable) > MAX_CHAIN_BYTES || writable > u64::from(u32::MAX) {
            return Err(AddError::TooLong);
        }
        let record = self.core.record(self.head, self.table, self.next);
        let addr = self.core.maps.map(record, region, len, direction)?;
        if let Some(held) = self.held {
            self.write(held, DESC_F_NEXT);
        }
        let flags = match direction {
            Direction::Readable => 0,
            Direction::Writable => DESC_F_WRITE,
        };
        self.held = Some(Held {
            at: self.next,
            addr,
            len,
            flags,
        });
        self.next = match self.table {
            true => self.next.wrapping_add(1),
            false => self.core.link(self.next),
        };
        (self.readable, self.writable, self.left) = (readable, writable, left);
        self.segments = self.segments.wrapping_add(1);
        Ok(())
    }

    /// Writes a descriptor. A direct one keeps its place in the free list as its link, the last of
    /// a chain too; in a table the last links nowhere. (Both as Linux 3.8 wrote them.)
    #[inline]
    fn write(&self, held: Held, more: u16) {
        let ring = &self.core.ring;
        let flags = held.flags | more;
        if self.table {
            let next = if more == 0 {
                0
            } else {
                held.at.wrapping_add(1)
            };
            ring.write_table(self.head, held.at, held.addr, held.len, flags, next);
        } else {
            let next = self.core.link(held.at);
            ring.write(held.at, held.addr, held.len, flags, next);
        }
    }

    /// Segments that may still come.
    pub(super) fn room(&self) -> usize {
        usize::from(self.left)
    }

    /// Ends the chain and puts it behind the others, without exposing it. `None`, and the buffer
    /// is abandoned, if it has no segment.
    #[inline]
    pub(super) fn close(mut self) -> Option<Closed> {
        let held = self.held.take()?;
        self.write(held, 0);
        let core = &mut *self.core;
        let taken = if self.table {
            let next = core.link(self.head);
            core.ring.write_indirect(self.head, self.segments, next);
            core.free_head = next;
            1
        } else {
            core.free_head = self.next;
            self.segments
        };
        core.free = core.free.wrapping_sub(taken);
        core.ring.set_avail_entry(core.added, self.head);
        core.added = core.added.wrapping_add(1);
        core.undecided = core.undecided.saturating_add(1);
        let closed = Closed {
            head: self.head,
            last: if self.table { self.head } else { held.at },
            segments: self.segments,
            indirect: self.table,
            // At most u32::MAX: `append` checked.
            writable: u32::try_from(self.writable).unwrap_or(u32::MAX),
        };
        self.segments = 0;
        Some(closed)
    }
}

impl<M: DmaMap> Drop for Open<'_, M> {
    /// Abort: the device never saw the buffer. After `close` there is nothing left to undo.
    #[inline]
    fn drop(&mut self) {
        if M::UNMAPS && self.segments > 0 {
            let abandoned = Closed {
                head: self.head,
                last: self.head,
                segments: self.segments,
                indirect: self.table,
                writable: 0,
            };
            self.core.unmap(abandoned, 0);
        }
    }
}
