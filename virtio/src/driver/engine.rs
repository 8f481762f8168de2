//! The part of a driver's queue that does not care what the tokens are: free slots, the open buffer,
//! indices. See `queue` for the whole.

use alloc::boxed::Box;
use core::ops::Range;

use super::piecewise::{AddError, Refusal};
use super::queue::{Broken, IndirectPolicy};
use crate::mem::dma::{Direction, DmaBuf, DmaMap, DmaRegion, Mappings};
use crate::mem::driver_ring::{DescriptorRest, Descriptors, DriverRing};
use crate::scatterlist::ScatterList;
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
    draft: Draft,
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
        let mut core = Self {
            // One record for each slot and each entry of a table.
            maps: Mappings::new(hook, ring.record_base(size, true)),
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
            draft: Draft::default(),
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
        self.draft = Draft {
            table,
            head,
            next: if table { 0 } else { head },
            left: count,
            lists,
            ..Draft::default()
        };
        Ok(Open(self))
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

    /// Undoes the mappings of a buffer of which the device wrote `written` bytes, in the order of
    /// its segments.
    pub(super) fn unmap(&mut self, closed: Closed, written: u32) {
        if !M::UNMAPS {
            return;
        }
        let records = self.ring.record_base(closed.head, closed.indirect);
        let mut slot = if closed.indirect { 0 } else { closed.head };
        let mut left = written;
        for _ in 0..closed.segments {
            left = self
                .maps
                .unmap(records.wrapping_add(usize::from(slot)), left);
            slot = match closed.indirect {
                true => slot.wrapping_add(1),
                false => self.link(slot),
            };
        }
    }
}

/// The most segments [`IndirectPolicy::Auto`] puts into the ring itself: one cache line of them.
const AUTO_DIRECT: u16 = 4;

/// The state of the buffer being built.
#[derive(Clone, Copy, Default)]
struct Draft {
    table: bool,
    head: u16,
    /// Slot, or index in the table, of the next descriptor and of the last one written.
    next: u16,
    last: u16,
    /// Everything but the address of the last one, which ends or continues the chain.
    rest: DescriptorRest,
    /// Segments and lists that may still come, and segments that are there.
    left: u16,
    segments: u16,
    lists: usize,
    readable: u64,
    writable: u64,
    spoiled: Option<AddError>,
}

/// A buffer being built. Nothing of it is in the queue's books before `close`: dropping it leaves
/// the queue as it was, but for descriptors of free slots, which mean nothing. What it remembers is
/// the queue's draft, of which there is one: this holds the queue exclusively.
pub(super) struct Open<'q, M: DmaMap>(&'q mut Core<M>);

impl<M: DmaMap> Open<'_, M> {
    /// Appends a list of up to `nents` segments; answers how many there were.
    #[inline]
    pub(super) fn list<B: DmaBuf>(
        &mut self,
        list: &ScatterList<B>,
        nents: usize,
        direction: Direction,
    ) -> Result<usize, AddError> {
        let mut pen = self.pen(direction);
        let added = list.each(nents, |buffer| pen.add(buffer.region()));
        let state = pen.put_down();
        self.settle(state, direction, added)
    }

    /// Appends a range of one piece of memory, as a list.
    #[inline]
    pub(super) fn part<B: DmaBuf>(
        &mut self,
        buffer: &B,
        range: Range<usize>,
        direction: Direction,
    ) -> Result<(), AddError> {
        let mut pen = self.pen(direction);
        let region = buffer.region().part(range).ok_or(AddError::TooShort);
        let added = region.and_then(|region| pen.add(region));
        let state = pen.put_down();
        self.settle(state, direction, added)
    }

    /// Appends segments one by one, as a list.
    pub(super) fn segments<'b, B: DmaBuf>(
        &mut self,
        segments: impl Iterator<Item = &'b B>,
        direction: Direction,
    ) -> Result<usize, AddError> {
        let mut pen = self.pen(direction);
        let mut count = 0usize;
        let mut added = Ok(());
        for buffer in segments {
            added = pen.add(buffer.region());
            if added.is_err() {
                break;
            }
            count = count.wrapping_add(1);
        }
        let state = pen.put_down();
        self.settle(state, direction, added.map(|()| count))
    }

    #[inline]
    fn pen(&mut self, direction: Direction) -> Pen<'_, M> {
        let core = &mut *self.0;
        let draft = core.draft;
        Pen {
            target: match draft.table {
                true => core.ring.table(draft.head),
                false => core.ring.descriptors(),
            },
            links: &core.links,
            records: core.ring.record_base(draft.head, draft.table),
            maps: &mut core.maps,
            direction,
            table: draft.table,
            state: PenState {
                next: draft.next,
                last: draft.last,
                left: draft.left,
                rest: draft.rest,
                bytes: 0,
            },
        }
    }

    /// Takes over what was written. An error spoils the buffer.
    #[inline]
    fn settle<R>(
        &mut self,
        state: PenState,
        direction: Direction,
        added: Result<R, AddError>,
    ) -> Result<R, AddError> {
        let draft = &mut self.0.draft;
        draft.segments = draft
            .segments
            .wrapping_add(draft.left.wrapping_sub(state.left));
        (draft.next, draft.last) = (state.next, state.last);
        (draft.left, draft.rest) = (state.left, state.rest);
        // At most 2^15 segments of less than 2^32 bytes: the sums can't wrap.
        match direction {
            Direction::Readable => draft.readable = draft.readable.wrapping_add(state.bytes),
            Direction::Writable => draft.writable = draft.writable.wrapping_add(state.bytes),
        }
        let total = draft.readable.wrapping_add(draft.writable);
        let error = if draft.lists == 0 {
            Some(AddError::OverReserved)
        } else if total > MAX_CHAIN_BYTES || draft.writable > u64::from(u32::MAX) {
            Some(AddError::TooLong)
        } else {
            None
        };
        draft.lists = draft.lists.saturating_sub(1);
        let added = match error {
            Some(error) => added.and(Err(error)),
            None => added,
        };
        if let Err(error) = &added {
            draft.spoiled = Some(*error);
        }
        added
    }

    /// Spoils the buffer: it can't be closed.
    pub(super) fn spoil(&mut self, error: AddError) {
        self.0.draft.spoiled = Some(error);
    }

    /// Segments that may still come.
    pub(super) fn room(&self) -> usize {
        usize::from(self.0.draft.left)
    }

    /// Ends the chain and puts it behind the others, without exposing it.
    #[inline]
    pub(super) fn close(self) -> Result<Closed, Refusal> {
        let core = &mut *self.0;
        let draft = core.draft;
        if let Some(error) = draft.spoiled {
            return Err(Refusal::Add(error));
        }
        if draft.segments == 0 {
            return Err(Refusal::Empty);
        }
        let last = if draft.table {
            // In a table the last descriptor links nowhere; in the ring it keeps its place in the
            // free list as its link. (Both as Linux 3.8 wrote them.)
            let table = core.ring.table(draft.head);
            table.finish(draft.last, draft.rest.last().unlinked());
            let next = core.link(draft.head);
            core.ring.write_indirect(draft.head, draft.segments, next);
            core.free_head = next;
            core.free = core.free.wrapping_sub(1);
            draft.head
        } else {
            core.ring
                .descriptors()
                .finish(draft.last, draft.rest.last());
            core.free_head = draft.next;
            core.free = core.free.wrapping_sub(draft.segments);
            draft.last
        };
        core.ring.set_avail_entry(core.added, draft.head);
        core.added = core.added.wrapping_add(1);
        core.undecided = core.undecided.saturating_add(1);
        // Nothing is left to undo.
        core.draft.segments = 0;
        Ok(Closed {
            head: draft.head,
            last,
            segments: draft.segments,
            indirect: draft.table,
            // At most u32::MAX: `settle` checked.
            writable: u32::try_from(draft.writable).unwrap_or(u32::MAX),
        })
    }
}

impl<M: DmaMap> Drop for Open<'_, M> {
    /// Abort: the device never saw the buffer. After `close` there is nothing left to undo.
    #[inline]
    fn drop(&mut self) {
        let draft = self.0.draft;
        if M::UNMAPS && draft.segments > 0 {
            let abandoned = Closed {
                head: draft.head,
                last: draft.last,
                segments: draft.segments,
                indirect: draft.table,
                writable: 0,
            };
            self.0.unmap(abandoned, 0);
        }
    }
}

/// Writes the descriptors of one list: what the loop over a list needs, apart from the queue, so that
/// it stays in registers.
struct Pen<'c, M: DmaMap> {
    target: Descriptors<'c>,
    links: &'c [u16],
    maps: &'c mut Mappings<M>,
    records: usize,
    direction: Direction,
    table: bool,
    state: PenState,
}

#[derive(Clone, Copy)]
struct PenState {
    next: u16,
    last: u16,
    left: u16,
    rest: DescriptorRest,
    bytes: u64,
}

impl<M: DmaMap> Pen<'_, M> {
    #[inline]
    fn add(&mut self, region: DmaRegion) -> Result<(), AddError> {
        let state = &mut self.state;
        let left = state.left.checked_sub(1).ok_or(AddError::OverReserved)?;
        let len = u32::try_from(region.len).map_err(|_| AddError::TooLong)?;
        if len == 0 {
            return Err(AddError::EmptySegment);
        }
        let at = state.next;
        let record = self.records.wrapping_add(usize::from(at));
        let addr = self.maps.map(record, region, len, self.direction)?;
        let next = match self.table {
            true => at.wrapping_add(1),
            false => self.links.get(usize::from(at)).copied().unwrap_or(0),
        };
        // As if there were more to come; `close` ends the chain.
        let flags = match self.direction {
            Direction::Readable => DESC_F_NEXT,
            Direction::Writable => DESC_F_NEXT | DESC_F_WRITE,
        };
        let rest = DescriptorRest::new(len, flags, next);
        self.target.write(at, addr, rest);
        *state = PenState {
            next,
            last: at,
            left,
            rest,
            bytes: state.bytes.wrapping_add(u64::from(len)),
        };
        Ok(())
    }

    #[inline]
    fn put_down(self) -> PenState {
        self.state
    }
}
