//! A buffer under construction: its descriptors, in the ring or in its slot's table, one list after
//! the other. This module knows neither tokens nor what was published; `piecewise` is the public
//! interface.

use core::ops::Range;

use super::accounting::{Accounting, Closed, table_records, unmap};
use super::error::{AddError, Refusal};
use crate::mem::dma::{Direction, DmaBuf, DmaMap, DmaRegion, Mappings};
use crate::mem::driver_ring::{Cell, Cells, DriverRing, Tail};
use crate::scatterlist::{Ended, ScatterList};
use crate::spec::ring::{DESC_F_NEXT, DESC_F_WRITE, MAX_CHAIN_BYTES};

/// A buffer under construction. It is not in the queue's accounting before `close`: dropping it
/// leaves the queue unchanged, except for the contents of free descriptors.
pub(super) struct OpenBuffer<'q, M: DmaMap> {
    ring: &'q DriverRing,
    maps: &'q mut Mappings<M>,
    accounting: &'q mut Accounting,
    draft: Draft<'q>,
}

#[derive(Clone, Copy)]
struct Draft<'q> {
    /// Whether it uses its slot's table, and the entries of that table.
    table: bool,
    cells: Cells<'q>,
    head: u16,
    /// Slot, or index in the table, of the next descriptor; slot of the last one written.
    next: u16,
    last: u16,
    /// Segments that may still be added, segments added, and lists that may still be added.
    left: u16,
    segments: u16,
    lists: usize,
    readable: u64,
    writable: u64,
    poisoned: Option<AddError>,
}

/// A list to be added, of which at most `most` segments are used.
struct ListPart<'l, B: DmaBuf> {
    list: &'l ScatterList<B>,
    most: u16,
    direction: Direction,
}

/// Why a walk over a list ended before the list.
enum ListEnd {
    /// The requested or announced number of segments was reached.
    Enough,
    Error(AddError),
}

impl ListEnd {
    /// Returns whether this is a success: if the number of segments was `asked` for by the caller.
    #[cold]
    fn judge(self, asked: bool) -> Result<(), AddError> {
        match self {
            Self::Enough if asked => Ok(()),
            Self::Enough => Err(AddError::OverReserved),
            Self::Error(error) => Err(error),
        }
    }
}

impl From<AddError> for ListEnd {
    fn from(error: AddError) -> Self {
        Self::Error(error)
    }
}

impl<'q, M: DmaMap> OpenBuffer<'q, M> {
    /// Creates a buffer of `count` segments from `lists` lists. The caller has checked that there
    /// are slots and, for a `table`, entries.
    #[inline(always)]
    pub(super) fn new(
        ring: &'q DriverRing,
        maps: &'q mut Mappings<M>,
        accounting: &'q mut Accounting,
        table: bool,
        count: u16,
        lists: usize,
    ) -> Self {
        let head = accounting.free_head;
        let draft = Draft {
            table,
            cells: ring.cells(head, if table { count } else { 0 }),
            head,
            next: if table { 0 } else { head },
            last: head,
            left: count,
            segments: 0,
            lists,
            readable: 0,
            writable: 0,
            poisoned: None,
        };
        Self {
            ring,
            maps,
            accounting,
            draft,
        }
    }

    /// Appends a list of up to `nents` segments; returns how many there were.
    #[inline(always)]
    pub(super) fn list<B: DmaBuf>(
        &mut self,
        list: &ScatterList<B>,
        nents: usize,
        direction: Direction,
    ) -> Result<usize, AddError> {
        let before = self.draft.segments;
        let wanted = ListPart {
            list,
            most: self.draft.most(nents),
            direction,
        };
        let stopped = match self.draft.table {
            true => self.list_in_table(&wanted),
            false => self.list_in_ring(&wanted),
        };
        let added = match stopped {
            Ok(()) => Ok(()),
            Err(stop) => stop.judge(usize::from(wanted.most) == nents),
        };
        self.count_list(added)?;
        Ok(usize::from(self.draft.segments.wrapping_sub(before)))
    }

    #[inline(always)]
    fn list_in_table<B: DmaBuf>(&mut self, wanted: &ListPart<'_, B>) -> Result<(), ListEnd> {
        let (ring, draft) = (self.ring, &mut self.draft);
        let mut cells = draft.cells.part(draft.next, wanted.most);
        let first = table_records(ring, ring.table(draft.head));
        let record = first.wrapping_add(usize::from(draft.next));
        let (added, bytes, stopped) = if wanted.list.capacity() < LONG {
            let mut fill = TableFill::new(self.maps, record, draft.next, wanted.direction);
            let stopped = wanted.list.each(|buffer| {
                let cell = cells.next().ok_or(ListEnd::Enough)?;
                fill.put(buffer, cell).map_err(ListEnd::Error)
            });
            (wanted.most.wrapping_sub(cells.left()), fill.bytes, stopped)
        } else {
            long_list(self.maps, record, draft.next, cells, wanted)
        };
        draft.next = draft.next.wrapping_add(added);
        draft.count(added, bytes, wanted.direction);
        stopped
    }

    #[inline(always)]
    fn list_in_ring<B: DmaBuf>(&mut self, wanted: &ListPart<'_, B>) -> Result<(), ListEnd> {
        let (ring, draft) = (self.ring, &mut self.draft);
        let flags = flags(wanted.direction);
        let mut left = wanted.most;
        let mut bytes = 0u64;
        let (mut next, mut last) = (draft.next, draft.last);
        let stopped = wanted.list.each(|buffer| {
            left = left.checked_sub(1).ok_or(ListEnd::Enough)?;
            let region = buffer.region();
            let len = length(region)?;
            let addr = self
                .maps
                .map(usize::from(next), region, len, wanted.direction);
            let addr = addr.map_err(AddError::from)?;
            bytes = bytes.wrapping_add(u64::from(len));
            last = next;
            next = ring.link(last);
            ring.cell(last).write(addr, len, Tail::new(flags, next));
            Ok(())
        });
        (draft.next, draft.last) = (next, last);
        draft.count(wanted.most.wrapping_sub(left), bytes, wanted.direction);
        stopped
    }

    /// Appends a range of one memory buffer, as a list.
    #[inline(always)]
    pub(super) fn part<B: DmaBuf>(
        &mut self,
        buffer: &B,
        range: Range<usize>,
        direction: Direction,
    ) -> Result<(), AddError> {
        let region = buffer.region().part(range).ok_or(AddError::TooShort);
        let added = region.and_then(|region| self.segment(region, direction));
        self.count_list(added)
    }

    /// Appends segments one by one, as a list.
    pub(super) fn segments<'b, B: DmaBuf>(
        &mut self,
        mut segments: impl Iterator<Item = &'b B>,
        direction: Direction,
    ) -> Result<usize, AddError> {
        let before = self.draft.segments;
        let added = segments.try_for_each(|buffer| self.segment(buffer.region(), direction));
        self.count_list(added)?;
        Ok(usize::from(self.draft.segments.wrapping_sub(before)))
    }

    #[inline(always)]
    fn segment(&mut self, region: DmaRegion, direction: Direction) -> Result<(), AddError> {
        let Self {
            ring, maps, draft, ..
        } = self;
        let len = length(region)?;
        if draft.left == 0 {
            return Err(AddError::OverReserved);
        }
        let at = draft.next;
        let record = match draft.table {
            true => table_records(ring, ring.table(draft.head)),
            false => 0,
        };
        let record = record.wrapping_add(usize::from(at));
        let addr = maps.map(record, region, len, direction)?;
        draft.last = at;
        draft.next = match draft.table {
            true => at.wrapping_add(1),
            false => ring.link(at),
        };
        let tail = Tail::new(flags(direction), draft.next);
        match draft.table {
            true => {
                if let Some(cell) = draft.cells.part(at, 1).next() {
                    cell.write(addr, len, tail);
                }
            }
            false => ring.cell(at).write(addr, len, tail),
        }
        draft.count(1, u64::from(len), direction);
        Ok(())
    }

    /// Counts a list, whether or not adding it succeeded. An error poisons the buffer: it can't be
    /// closed.
    #[inline(always)]
    fn count_list(&mut self, added: Result<(), AddError>) -> Result<(), AddError> {
        let draft = &mut self.draft;
        let total = draft.readable.wrapping_add(draft.writable);
        let result = match added {
            Ok(()) if draft.lists == 0 => Err(AddError::OverReserved),
            // With a total below 2^32 neither part can be too long.
            Ok(()) if total > u64::from(u32::MAX) => draft.long(total),
            added => added,
        };
        draft.lists = draft.lists.saturating_sub(1);
        if let Err(error) = result {
            draft.poisoned = Some(error);
        }
        result
    }

    /// Poisons the buffer.
    pub(super) fn poison(&mut self, error: AddError) {
        self.draft.poisoned = Some(error);
    }

    /// Returns the number of segments that may still be added.
    pub(super) fn room(&self) -> usize {
        usize::from(self.draft.left)
    }

    /// Ends the chain and adds it to the available ring, without exposing it to the device.
    #[inline(always)]
    pub(super) fn close(mut self) -> Result<Closed, Refusal> {
        let Self {
            ring,
            accounting,
            draft,
            ..
        } = &mut self;
        if let Some(error) = draft.poisoned {
            return Err(Refusal::Add(error));
        }
        if draft.segments == 0 {
            return Err(Refusal::Empty);
        }
        let closed = draft.closed(accounting);
        let flags = match draft.writable {
            0 => 0,
            _ => DESC_F_WRITE,
        };
        if draft.table {
            // In a table the last descriptor has no link; in the ring its link stays that of the
            // free list. (Both as written by Linux 3.8.)
            let last = draft.next.wrapping_sub(1);
            if let Some(cell) = draft.cells.part(last, 1).next() {
                cell.finish(Tail::new(flags, 0));
            }
            accounting.free_head = ring.link(draft.head);
            ring.write_indirect(draft.head, draft.segments, accounting.free_head);
            accounting.free = accounting.free.wrapping_sub(1);
        } else {
            let tail = Tail::new(flags, draft.next);
            ring.cell(draft.last).finish(tail);
            accounting.free_head = draft.next;
            accounting.free = accounting.free.wrapping_sub(draft.segments);
        }
        ring.set_avail_entry(accounting.index(), draft.head);
        accounting.added = accounting.added.wrapping_add(1);
        // Nothing is left to unmap.
        draft.segments = 0;
        Ok(closed)
    }
}

impl Draft<'_> {
    /// Returns the record for the in-flight table.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "generations wrap")]
    fn closed(&self, accounting: &Accounting) -> Closed {
        Closed {
            head: self.head,
            last: if self.table { self.head } else { self.last },
            segments: self.segments,
            indirect: self.table,
            // At most u32::MAX, as checked by `count_list`.
            writable: u32::try_from(self.writable).unwrap_or(u32::MAX),
            generation: accounting.added as u32,
        }
    }

    /// Returns how many of `nents` segments may still be added.
    #[inline(always)]
    fn most(&self, nents: usize) -> u16 {
        u16::try_from(nents).map_or(self.left, |nents| nents.min(self.left))
    }

    /// Checks a buffer of 2^32 bytes or more.
    #[cold]
    fn long(&self, total: u64) -> Result<(), AddError> {
        if total > MAX_CHAIN_BYTES || self.writable > u64::from(u32::MAX) {
            return Err(AddError::TooLong);
        }
        Ok(())
    }

    /// Counts segments: at most 2^15 of less than 2^32 bytes, so the sums can't wrap.
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

impl<M: DmaMap> Drop for OpenBuffer<'_, M> {
    /// Aborts the buffer, which the device has not seen. After `close` nothing is left to unmap.
    #[inline(always)]
    fn drop(&mut self) {
        if M::UNMAPS && self.draft.segments > 0 {
            let abandoned = self.draft.closed(self.accounting);
            unmap(self.maps, self.ring, abandoned, 0);
        }
    }
}

/// The number of entries from which a list counts as long.
const LONG: usize = 16;

/// Adds a long list to a table, by a loop that has more overhead to start and less per segment. A
/// separate function, so that the caller's state need not be kept in memory. Returns the numbers of
/// segments and bytes.
#[inline(never)]
fn long_list<M: DmaMap, B: DmaBuf>(
    maps: &mut Mappings<M>,
    record: usize,
    next: u16,
    cells: Cells<'_>,
    wanted: &ListPart<'_, B>,
) -> (u16, u64, Result<(), ListEnd>) {
    let mut fill = TableFill::new(maps, record, next, wanted.direction);
    let slots = cells.as_slice();
    let (added, stopped) = wanted
        .list
        .pair(slots, |buffer, cell| fill.put(buffer, cell));
    let stopped = match stopped {
        Ok(Ended::List) => Ok(()),
        Ok(Ended::Slots) => Err(ListEnd::Enough),
        Err(error) => Err(ListEnd::Error(error)),
    };
    let added = u16::try_from(added).unwrap_or(cells.left());
    (added, fill.bytes, stopped)
}

/// Writes segments to a table.
struct TableFill<'f, M: DmaMap> {
    maps: &'f mut Mappings<M>,
    /// The index of the next mapping record.
    record: usize,
    direction: Direction,
    bytes: u64,
    tail: Tail,
}

impl<'f, M: DmaMap> TableFill<'f, M> {
    /// Starts at entry `next`.
    #[inline(always)]
    fn new(maps: &'f mut Mappings<M>, record: usize, next: u16, direction: Direction) -> Self {
        Self {
            maps,
            record,
            direction,
            bytes: 0,
            tail: Tail::new(flags(direction), next),
        }
    }

    /// Writes the next segment.
    #[inline(always)]
    fn put<B: DmaBuf>(&mut self, buffer: &B, cell: &Cell) -> Result<(), AddError> {
        let region = buffer.region();
        let len = length(region)?;
        let addr = self.maps.map(self.record, region, len, self.direction)?;
        self.record = self.record.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(u64::from(len));
        self.tail = self.tail.stepped();
        cell.write(addr, len, self.tail);
        Ok(())
    }
}

/// Returns the flags of a segment that is not the last; `close` ends the chain.
#[inline(always)]
const fn flags(direction: Direction) -> u16 {
    match direction {
        Direction::Readable => DESC_F_NEXT,
        Direction::Writable => DESC_F_NEXT | DESC_F_WRITE,
    }
}

/// Returns the length of a segment, which must be above 0 and below 2^32.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "compared just before")]
fn length(region: DmaRegion) -> Result<u32, AddError> {
    const LONGEST: usize = u32::MAX as usize;
    // One comparison for both bounds: 0 minus one wraps to the largest value.
    if region.len.wrapping_sub(1) < LONGEST {
        Ok(region.len as u32)
    } else {
        Err(unfit(region.len))
    }
}

/// Returns the error for an invalid length.
#[cold]
fn unfit(len: usize) -> AddError {
    match len {
        0 => AddError::EmptySegment,
        _ => AddError::TooLong,
    }
}
