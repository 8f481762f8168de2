//! The part of a driver's queue that does not care what the tokens are: free slots, the open buffer,
//! indices. See `queue` for the whole.

use core::ops::Range;

use super::piecewise::{AddError, Refusal};
use super::queue::{Broken, IndirectPolicy};
use crate::mem::dma::{Direction, DmaBuf, DmaMap, DmaRegion, Mappings};
use crate::mem::driver_ring::{DescriptorRest, DriverRing};
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
        let mut core = Self {
            // One record for each slot and, behind them, each entry of a table.
            maps: Mappings::new(hook, usize::from(size).saturating_add(ring.all_cells())),
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
        self.free_head = 0;
        self.free = self.ring.size();
        (self.added, self.exposed, self.decided, self.undecided) = (0, 0, 0, 0);
        self.broken = None;
    }

    /// Opens a buffer of up to `count` segments from up to `lists` lists.
    #[inline(always)]
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
        let first = self.ring.table(head);
        Ok(Open {
            core: self,
            draft: Draft {
                table,
                first,
                head,
                next: if table { 0 } else { head },
                last: head,
                rest: DescriptorRest::default(),
                left: count,
                segments: 0,
                lists,
                readable: 0,
                writable: 0,
                spoiled: None,
            },
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

    /// Gives a buffer's slots back, in front of the others.
    #[inline]
    pub(super) fn free_slots(&mut self, closed: Closed) {
        self.ring.set_link(closed.last, self.free_head);
        self.free_head = closed.head;
        let slots = if closed.indirect { 1 } else { closed.segments };
        self.free = self.free.wrapping_add(slots);
    }

    /// Where the records of a table's entries start, of which `first` is the first entry.
    #[inline]
    fn table_records(&self, first: usize) -> usize {
        usize::from(self.ring.size()).wrapping_add(first)
    }

    /// Undoes the mappings of a buffer of which the device wrote `written` bytes, in the order of
    /// its segments.
    pub(super) fn unmap(&mut self, closed: Closed, written: u32) {
        if !M::UNMAPS {
            return;
        }
        let records = match closed.indirect {
            true => self.table_records(self.ring.table(closed.head)),
            false => 0,
        };
        let mut slot = if closed.indirect { 0 } else { closed.head };
        let mut left = written;
        for _ in 0..closed.segments {
            left = self
                .maps
                .unmap(records.wrapping_add(usize::from(slot)), left);
            slot = match closed.indirect {
                true => slot.wrapping_add(1),
                false => self.ring.link(slot),
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
    draft: Draft,
}

#[derive(Clone, Copy)]
struct Draft {
    table: bool,
    /// The first entry of the table it goes into, if it goes into one.
    first: usize,
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

/// Why a walk over a list ended before the list did.
enum Stop {
    /// There were as many segments as were asked for, or announced.
    Enough,
    Error(AddError),
}

impl From<AddError> for Stop {
    fn from(error: AddError) -> Self {
        Self::Error(error)
    }
}

impl<M: DmaMap> Open<'_, M> {
    /// Appends a list of up to `nents` segments; answers how many there were.
    #[inline(always)]
    pub(super) fn list<B: DmaBuf>(
        &mut self,
        list: &ScatterList<B>,
        nents: usize,
        direction: Direction,
    ) -> Result<usize, AddError> {
        let before = self.draft.segments;
        let left = usize::from(self.draft.left);
        let (most, bounded) = if nents <= left {
            (nents, true)
        } else {
            (left, false)
        };
        let most = u16::try_from(most).unwrap_or(u16::MAX);
        let stopped = match self.draft.table {
            true => self.list_in_table(list, most, direction),
            false => self.list_in_ring(list, most, direction),
        };
        let added = match stopped {
            Ok(()) => Ok(()),
            Err(Stop::Enough) if bounded => Ok(()),
            Err(Stop::Enough) => Err(AddError::OverReserved),
            Err(Stop::Error(error)) => Err(error),
        };
        self.settle(added)?;
        Ok(usize::from(self.draft.segments.wrapping_sub(before)))
    }

    #[inline(always)]
    fn list_in_table<B: DmaBuf>(
        &mut self,
        list: &ScatterList<B>,
        most: u16,
        direction: Direction,
    ) -> Result<(), Stop> {
        let Self { core, draft } = self;
        let first = draft.first.wrapping_add(usize::from(draft.next));
        let mut cells = core.ring.cells(first, most);
        let mut record = core.table_records(first);
        let room = cells.len();
        let mut bytes = 0u64;
        let mut blank = DescriptorRest::new(0, flags(direction), draft.next);
        let mut rest = draft.rest;
        let stopped = list.each(|buffer| {
            let region = buffer.region();
            let len = length(region)?;
            let cell = cells.as_slice().first().ok_or(Stop::Enough)?;
            let addr = core
                .maps
                .map(record, region, len, direction)
                .map_err(AddError::from)?;
            cells.next();
            record = record.wrapping_add(1);
            bytes = bytes.wrapping_add(u64::from(len));
            blank = blank.stepped();
            rest = blank.with_len(len);
            cell.write(addr, rest);
            Ok(())
        });
        let added = u16::try_from(room.wrapping_sub(cells.len())).unwrap_or(0);
        draft.next = draft.next.wrapping_add(added);
        draft.last = draft.next.wrapping_sub(1);
        draft.rest = rest;
        draft.count(added, bytes, direction);
        stopped
    }

    #[inline(always)]
    fn list_in_ring<B: DmaBuf>(
        &mut self,
        list: &ScatterList<B>,
        most: u16,
        direction: Direction,
    ) -> Result<(), Stop> {
        let Self { core, draft } = self;
        let Core { ring, maps, .. } = &mut **core;
        let flags = flags(direction);
        let mut left = most;
        let mut bytes = 0u64;
        let (mut next, mut last, mut rest) = (draft.next, draft.last, draft.rest);
        let stopped = list.each(|buffer| {
            let region = buffer.region();
            let len = length(region)?;
            let after = left.checked_sub(1).ok_or(Stop::Enough)?;
            let addr = maps
                .map(usize::from(next), region, len, direction)
                .map_err(AddError::from)?;
            left = after;
            bytes = bytes.wrapping_add(u64::from(len));
            last = next;
            next = ring.link(last);
            rest = DescriptorRest::new(len, flags, next);
            ring.write(last, addr, rest);
            Ok(())
        });
        (draft.next, draft.last, draft.rest) = (next, last, rest);
        draft.count(most.wrapping_sub(left), bytes, direction);
        stopped
    }

    /// Appends a range of one piece of memory, as a list.
    #[inline(always)]
    pub(super) fn part<B: DmaBuf>(
        &mut self,
        buffer: &B,
        range: Range<usize>,
        direction: Direction,
    ) -> Result<(), AddError> {
        let region = buffer.region().part(range).ok_or(AddError::TooShort);
        let added = region.and_then(|region| self.segment(region, direction));
        self.settle(added)
    }

    /// Appends segments one by one, as a list.
    pub(super) fn segments<'b, B: DmaBuf>(
        &mut self,
        mut segments: impl Iterator<Item = &'b B>,
        direction: Direction,
    ) -> Result<usize, AddError> {
        let before = self.draft.segments;
        let added = segments.try_for_each(|buffer| self.segment(buffer.region(), direction));
        self.settle(added)?;
        Ok(usize::from(self.draft.segments.wrapping_sub(before)))
    }

    #[inline(always)]
    fn segment(&mut self, region: DmaRegion, direction: Direction) -> Result<(), AddError> {
        let Self { core, draft } = self;
        let len = length(region)?;
        if draft.left == 0 {
            return Err(AddError::OverReserved);
        }
        let at = draft.next;
        let entry = draft
            .table
            .then(|| draft.first.wrapping_add(usize::from(at)));
        let record = entry.map_or(usize::from(at), |entry| core.table_records(entry));
        let addr = core.maps.map(record, region, len, direction)?;
        draft.next = match entry {
            Some(_) => at.wrapping_add(1),
            None => core.ring.link(at),
        };
        draft.last = at;
        draft.rest = DescriptorRest::new(len, flags(direction), draft.next);
        match entry {
            Some(entry) => {
                if let Some(cell) = core.ring.cells(entry, 1).next() {
                    cell.write(addr, draft.rest);
                }
            }
            None => core.ring.write(at, addr, draft.rest),
        }
        draft.count(1, u64::from(len), direction);
        Ok(())
    }

    /// Counts a list in, however it went. An error spoils the buffer: it can't be closed.
    #[inline(always)]
    fn settle(&mut self, added: Result<(), AddError>) -> Result<(), AddError> {
        let draft = &mut self.draft;
        let total = draft.readable.wrapping_add(draft.writable);
        let settled = match added {
            Ok(()) if draft.lists == 0 => Err(AddError::OverReserved),
            // Below 2^32 in all neither part can be too long.
            Ok(()) if total > u64::from(u32::MAX) => draft.long(total),
            added => added,
        };
        draft.lists = draft.lists.saturating_sub(1);
        if let Err(error) = settled {
            draft.spoiled = Some(error);
        }
        settled
    }

    /// Spoils the buffer.
    pub(super) fn spoil(&mut self, error: AddError) {
        self.draft.spoiled = Some(error);
    }

    /// Segments that may still come.
    pub(super) fn room(&self) -> usize {
        usize::from(self.draft.left)
    }

    /// Ends the chain and puts it behind the others, without exposing it.
    #[inline(always)]
    pub(super) fn close(mut self) -> Result<Closed, Refusal> {
        let Self { core, draft } = &mut self;
        if let Some(error) = draft.spoiled {
            return Err(Refusal::Add(error));
        }
        if draft.segments == 0 {
            return Err(Refusal::Empty);
        }
        let closed = draft.closed();
        let rest = draft.rest.last();
        if draft.table {
            // In a table the last descriptor links nowhere; in the ring it keeps its place in the
            // free list as its link. (Both as Linux 3.8 wrote them.)
            let last = draft.first.wrapping_add(usize::from(draft.last));
            if let Some(cell) = core.ring.cells(last, 1).next() {
                cell.finish(rest.unlinked());
            }
            core.free_head = core.ring.link(draft.head);
            core.ring
                .write_indirect(draft.head, draft.first, draft.segments, core.free_head);
            core.free = core.free.wrapping_sub(1);
        } else {
            core.ring.finish(draft.last, rest);
            core.free_head = draft.next;
            core.free = core.free.wrapping_sub(draft.segments);
        }
        core.ring.set_avail_entry(core.added, draft.head);
        core.added = core.added.wrapping_add(1);
        core.undecided = core.undecided.saturating_add(1);
        // Nothing is left to undo.
        draft.segments = 0;
        Ok(closed)
    }
}

impl Draft {
    /// What the in-flight table is to remember.
    #[inline(always)]
    fn closed(&self) -> Closed {
        Closed {
            head: self.head,
            last: if self.table { self.head } else { self.last },
            segments: self.segments,
            indirect: self.table,
            // At most u32::MAX: `settle` checked.
            writable: u32::try_from(self.writable).unwrap_or(u32::MAX),
        }
    }

    /// Whether 2^32 bytes or more are too many.
    #[cold]
    fn long(&self, total: u64) -> Result<(), AddError> {
        if total > MAX_CHAIN_BYTES || self.writable > u64::from(u32::MAX) {
            return Err(AddError::TooLong);
        }
        Ok(())
    }

    /// Counts segments in. At most 2^15 of less than 2^32 bytes: the sums can't wrap.
    #[inline(always)]
    fn count(&mut self, segments: u16, bytes: u64, direction: Direction) {
        self.left = self.left.wrapping_sub(segments);
        self.segments = self.segments.wrapping_add(segments);
        match direction {
            Direction::Readable => self.readable = self.readable.wrapping_add(bytes),
            Direction::Writable => self.writable = self.writable.wrapping_add(bytes),
        }
    }
}

impl<M: DmaMap> Drop for Open<'_, M> {
    /// Abort: the device never saw the buffer. After `close` there is nothing left to undo.
    #[inline(always)]
    fn drop(&mut self) {
        if M::UNMAPS && self.draft.segments > 0 {
            let abandoned = self.draft.closed();
            self.core.unmap(abandoned, 0);
        }
    }
}

/// Flags of a segment, as if there were more to come; `close` ends the chain.
#[inline(always)]
const fn flags(direction: Direction) -> u16 {
    match direction {
        Direction::Readable => DESC_F_NEXT,
        Direction::Writable => DESC_F_NEXT | DESC_F_WRITE,
    }
}

/// The length of a segment: not 0, and below 2^32.
#[inline(always)]
fn length(region: DmaRegion) -> Result<u32, AddError> {
    match u32::try_from(region.len) {
        Ok(0) => Err(AddError::EmptySegment),
        Ok(len) => Ok(len),
        Err(_) => Err(AddError::TooLong),
    }
}
