//! The memory of one queue as accessed by the driver's end: the three parts of the ring and an
//! indirect table per slot, in one block of memory that the caller supplies.
//!
//! Memory that the device may read is only written here, never read back: the driver's state is in
//! its own tables. Sections 2.7.5 to 2.7.8.

use alloc::boxed::Box;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use crate::mem::dma::{DmaBuf, DmaBytes, DmaMap, MemoryLocation};
use crate::ring::{ENTRIES_OFFSET, FLAGS_OFFSET, IDX_OFFSET, Word, Words};
use crate::spec::ring::{DESC_F_INDIRECT, MAX_SIZE};

/// The parts are on separate cache lines, because the two rings are written by different ends.
const LINE: usize = 64;
const DESC: usize = 16;

/// Why memory can't be used for a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueMemoryError {
    /// The size is not a power of two between 1 and 32768.
    #[error("queue size {0} is not a power of two between 1 and 32768")]
    Size(u16),
    /// There are fewer bytes than the queue needs.
    #[error("the queue needs {need} bytes of memory, not {have}")]
    TooSmall {
        /// Bytes needed.
        need: usize,
        /// Bytes supplied.
        have: usize,
    },
    /// The memory does not start at a multiple of 64.
    #[error("queue memory must start at a multiple of 64")]
    Misaligned,
    /// The device can't access the memory directly.
    #[error("the device can't access the queue memory")]
    Unreachable,
}

/// Offsets of the parts in a queue's memory.
#[derive(Clone, Copy, Debug)]
struct Layout {
    avail: usize,
    used: usize,
    tables: usize,
    total: usize,
}

impl Layout {
    /// Returns the layout. With sizes of at most 2^15 nothing exceeds 2^35, so this can't overflow
    /// on a 64-bit machine; on a 32-bit one it returns `None`.
    fn new(size: u16, table_entries: u16) -> Option<Self> {
        let entries = usize::from(size);
        let line = |bytes: usize| bytes.checked_next_multiple_of(LINE);
        let avail = line(entries.checked_mul(DESC)?)?;
        let used = line(avail.checked_add(entries.checked_mul(2)?.checked_add(6)?)?)?;
        let tables = line(used.checked_add(entries.checked_mul(8)?.checked_add(6)?)?)?;
        let table = stride(table_entries).checked_mul(DESC)?;
        let total = tables.checked_add(entries.checked_mul(table)?)?;
        Some(Self {
            avail,
            used,
            tables,
            total,
        })
    }
}

/// Returns the number of entries from one table to the next: whole cache lines, and an odd number
/// of them, so that the first lines of all tables, which are used most, do not compete for a few
/// sets of a cache.
fn stride(table_entries: u16) -> usize {
    const PER_LINE: usize = LINE / DESC;
    match usize::from(table_entries).div_ceil(PER_LINE) {
        0 => 0,
        lines => (lines | 1).wrapping_mul(PER_LINE),
    }
}

/// Returns the bytes of memory that a queue of `size` entries needs, with tables for
/// `table_entries` indirect descriptors per slot.
pub(crate) fn memory_len(size: u16, table_entries: u16) -> usize {
    Layout::new(size, table_entries).map_or(usize::MAX, |layout| layout.total)
}

/// The ring of one queue. Slots and positions are taken modulo the size, and table indices are
/// checked, so no access can leave the memory.
pub(crate) struct DriverRing {
    base: NonNull<u8>,
    avail: NonNull<u8>,
    used: NonNull<u8>,
    /// The first table, and its device address.
    tables: NonNull<u8>,
    tables_bus: u64,
    table_entries: u16,
    /// Entries from one table to the next, and of all tables.
    stride: usize,
    cells: usize,
    /// Size less one; the size is a power of two.
    mask: u16,
    bus: u64,
    layout: Layout,
    /// The link of each slot: the driver's own copy.
    links: Box<[u16]>,
    /// Freed only by `release`: the device may use the ring until a reset is proven.
    memory: ManuallyDrop<DmaBytes>,
}

// SAFETY: the pointers are into `memory`, which is Send and owned here; the accesses are atomic.
unsafe impl Send for DriverRing {}

impl DriverRing {
    /// Creates a ring in `memory`, which `hook` must be able to map directly.
    pub(crate) fn new(
        memory: DmaBytes,
        hook: &impl DmaMap,
        size: u16,
        table_entries: u16,
    ) -> Result<Self, QueueMemoryError> {
        if !size.is_power_of_two() || size > MAX_SIZE {
            return Err(QueueMemoryError::Size(size));
        }
        let have = memory.len();
        let need = memory_len(size, table_entries);
        let layout = Layout::new(size, table_entries)
            .filter(|layout| layout.total <= have)
            .ok_or(QueueMemoryError::TooSmall { need, have })?;
        let MemoryLocation::Memory(base) = memory.region().place else {
            return Err(QueueMemoryError::Unreachable);
        };
        if !base.addr().get().is_multiple_of(LINE) {
            return Err(QueueMemoryError::Misaligned);
        }
        let bus = hook.shared(base, layout.total);
        let bus = bus.ok_or(QueueMemoryError::Unreachable)?;
        // SAFETY: the three offsets are within `total`, which is within the memory.
        let (avail, used, tables) = unsafe {
            (
                base.add(layout.avail),
                base.add(layout.used),
                base.add(layout.tables),
            )
        };
        let ring = Self {
            base,
            avail,
            used,
            tables,
            tables_bus: bus.wrapping_add(wide(layout.tables)),
            table_entries,
            stride: stride(table_entries),
            cells: usize::from(size).wrapping_mul(stride(table_entries)),
            mask: size.wrapping_sub(1),
            bus,
            layout,
            links: (0..size).map(|_| 0).collect(),
            memory: ManuallyDrop::new(memory),
        };
        Ok(ring)
    }

    /// Initialises the memory: zeroes, and every slot linked to the next. Only before the device
    /// uses it or after a reset.
    pub(crate) fn initialise(&mut self) {
        self.memory.bytes_mut().fill(0);
        for slot in 0..self.mask {
            self.set_link(slot, slot.wrapping_add(1));
        }
        self.set_link(self.mask, 0);
    }

    /// Returns the memory. Only before the device uses it or after a reset.
    pub(crate) fn release(self) -> DmaBytes {
        ManuallyDrop::into_inner(self.memory)
    }

    /// Returns the device addresses of the descriptor table, the available and the used ring.
    pub(crate) fn areas(&self) -> [u64; 3] {
        [0, self.layout.avail, self.layout.used].map(|offset| self.bus.wrapping_add(wide(offset)))
    }

    pub(crate) const fn size(&self) -> u16 {
        self.mask.wrapping_add(1)
    }

    pub(crate) const fn table_entries(&self) -> u16 {
        self.table_entries
    }

    /// Returns descriptor `slot` for writing.
    #[inline(always)]
    pub(crate) fn cell(&self, slot: u16) -> &Cell {
        // SAFETY: the masked slot is below size, so the descriptor is inside the table.
        unsafe {
            self.base
                .cast::<Cell>()
                .add(usize::from(slot & self.mask))
                .as_ref()
        }
    }

    /// Returns the number of entries of all tables.
    pub(crate) const fn all_cells(&self) -> usize {
        self.cells
    }

    /// Returns the index, among all tables' entries, of the first entry of the table of `slot`.
    #[inline]
    pub(crate) fn table(&self, slot: u16) -> usize {
        usize::from(slot & self.mask).wrapping_mul(self.stride)
    }

    /// Returns the first `count` entries of the table of `slot`, or as many as there are, for
    /// writing.
    #[inline(always)]
    pub(crate) fn cells(&self, slot: u16, count: u16) -> Cells<'_> {
        // SAFETY: a slot's table is among those behind `tables`, aligned as the memory is.
        let first = unsafe { self.tables.cast::<Cell>().add(self.table(slot)) };
        Cells {
            first,
            left: count.min(self.table_entries),
            ring: PhantomData,
        }
    }

    /// Returns the link of `slot`.
    #[inline]
    pub(crate) fn link(&self, slot: u16) -> u16 {
        // SAFETY: there is one for each slot, and the masked slot is below size.
        unsafe { *self.links.get_unchecked(usize::from(slot & self.mask)) }
    }

    /// Links `slot` to another, in the driver's own copy and in the shared table.
    #[inline]
    pub(crate) fn set_link(&mut self, slot: u16, next: u16) {
        let slot = usize::from(slot & self.mask);
        // SAFETY: as in `link` and `write`; the link is the last of a descriptor's four fields.
        unsafe {
            *self.links.get_unchecked_mut(slot) = next;
            let word = self
                .base
                .add(slot.wrapping_mul(DESC).wrapping_add(14))
                .cast::<AtomicU16>();
            word.as_ref().store(next.to_le(), Ordering::Relaxed);
        }
    }

    /// Makes descriptor `slot` point at the first `entries` entries of its table.
    #[inline]
    pub(crate) fn write_indirect(&self, slot: u16, entries: u16, next: u16) {
        let first = self.table(slot);
        let addr = self.tables_bus.wrapping_add(wide(first.wrapping_mul(DESC)));
        let len = u32::from(entries).wrapping_mul(16);
        let tail = Tail::new(DESC_F_INDIRECT, next);
        self.cell(slot).write(addr, len, tail);
    }

    /// Writes entry `position` of the available ring, modulo the size.
    #[inline]
    pub(crate) fn set_avail_entry(&self, position: u16, head: u16) {
        let slot = usize::from(position & self.mask);
        let word = self.avail_word(ENTRIES_OFFSET.wrapping_add(slot.wrapping_mul(2)));
        word.store(head.to_le(), Ordering::Relaxed);
    }

    /// Reads entry `position` of the used ring, modulo the size: the id and the length that the
    /// device wrote. Loaded once; both have to be validated.
    #[inline]
    pub(crate) fn used_entry(&self, position: u16) -> (u32, u32) {
        let slot = usize::from(position & self.mask);
        let at = ENTRIES_OFFSET.wrapping_add(slot.wrapping_mul(8));
        // SAFETY: the masked position is below size, so the 8 bytes are inside the used ring, which
        // is aligned to 64; all accesses to ring words are atomic.
        unsafe {
            let entry = self.used.add(at).cast::<AtomicU32>().as_ptr();
            (
                u32::from_le((*entry).load(Ordering::Relaxed)),
                u32::from_le((*entry.add(1)).load(Ordering::Relaxed)),
            )
        }
    }

    /// Returns the 16-bit word at `at` of the available ring, which must be even and inside it.
    #[inline]
    fn avail_word(&self, at: usize) -> &AtomicU16 {
        // SAFETY: private, and called with offsets inside the ring: the header, an entry below
        // size, the event word; the reference is to an atomic and does not outlive `self`.
        unsafe { &*self.avail.add(at).cast::<AtomicU16>().as_ptr() }
    }

    /// As [`avail_word`](Self::avail_word), of the used ring.
    #[inline]
    fn used_word(&self, at: usize) -> &AtomicU16 {
        // SAFETY: as in `avail_word`.
        unsafe { &*self.used.add(at).cast::<AtomicU16>().as_ptr() }
    }

    /// Returns the offset of the event word behind entries of `elem` bytes.
    #[inline]
    const fn event_offset(&self, elem: usize) -> usize {
        #[expect(clippy::as_conversions, reason = "u16 to usize in a const fn")]
        let entries = self.size() as usize;
        ENTRIES_OFFSET.wrapping_add(entries.wrapping_mul(elem))
    }
}

/// The last two fields of a descriptor in memory: flags and link.
#[derive(Clone, Copy)]
pub(crate) struct Tail(u32);

impl Tail {
    #[inline(always)]
    pub(crate) fn new(flags: u16, next: u16) -> Self {
        Self(u32::from(flags) | u32::from(next) << 16)
    }

    /// Returns the same with the link incremented.
    #[inline(always)]
    pub(crate) const fn stepped(self) -> Self {
        Self(self.0.wrapping_add(1 << 16))
    }
}

/// Entries of a slot's table, to be written in order.
#[derive(Clone, Copy)]
pub(crate) struct Cells<'r> {
    /// The next of `left` entries inside the ring's memory.
    first: NonNull<Cell>,
    left: u16,
    ring: PhantomData<&'r DriverRing>,
}

impl<'r> Cells<'r> {
    /// Returns up to `most` entries after the first `skip`.
    #[inline(always)]
    pub(crate) fn part(self, skip: u16, most: u16) -> Self {
        let skip = skip.min(self.left);
        Self {
            // SAFETY: among the entries, or behind the last.
            first: unsafe { self.first.add(usize::from(skip)) },
            left: most.min(self.left.wrapping_sub(skip)),
            ring: self.ring,
        }
    }

    /// Returns the next entry.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Option<&'r Cell> {
        self.left = self.left.checked_sub(1)?;
        // SAFETY: there was one left; it lives as long as the ring.
        unsafe {
            let cell = self.first.as_ref();
            self.first = self.first.add(1);
            Some(cell)
        }
    }

    /// Returns how many are left.
    #[inline(always)]
    pub(crate) const fn left(&self) -> u16 {
        self.left
    }

    /// Returns all that are left.
    #[inline(always)]
    pub(crate) fn as_slice(&self) -> &'r [Cell] {
        // SAFETY: this many entries are left, and they live as long as the ring.
        unsafe { core::slice::from_raw_parts(self.first.as_ptr(), usize::from(self.left)) }
    }
}

/// The memory of one descriptor. Atomic, because a device in this process may be reading.
#[repr(C, align(16))]
pub(crate) struct Cell {
    addr: AtomicU64,
    len: AtomicU32,
    tail: AtomicU32,
}

impl Cell {
    #[inline(always)]
    pub(crate) fn write(&self, addr: u64, len: u32, tail: Tail) {
        self.addr.store(addr.to_le(), Ordering::Relaxed);
        self.len.store(len.to_le(), Ordering::Relaxed);
        self.finish(tail);
    }

    /// Writes all but the address and the length.
    #[inline(always)]
    pub(crate) fn finish(&self, tail: Tail) {
        self.tail.store(tail.0.to_le(), Ordering::Relaxed);
    }
}

#[inline]
#[expect(
    clippy::as_conversions,
    reason = "usize to u64 on machines of at most 64 bits"
)]
const fn wide(offset: usize) -> u64 {
    offset as u64
}

impl Words for DriverRing {
    #[inline]
    fn load(&self, theirs: Word, order: Ordering) -> u16 {
        let at = match theirs {
            Word::Flags => FLAGS_OFFSET,
            Word::Idx => IDX_OFFSET,
            Word::Event => self.event_offset(8),
        };
        u16::from_le(self.used_word(at).load(order))
    }

    #[inline]
    fn store(&self, own: Word, value: u16, order: Ordering) {
        let at = match own {
            Word::Flags => FLAGS_OFFSET,
            Word::Idx => IDX_OFFSET,
            Word::Event => self.event_offset(2),
        };
        self.avail_word(at).store(value.to_le(), order);
    }

    #[inline]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}
