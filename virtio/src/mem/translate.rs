//! From guest addresses to host addresses: descriptor tables, and the buffers of a chain.

use alloc::vec::Vec;
use core::cell::Cell;
use core::marker::PhantomData;

use super::buffers::Buffers;
use super::copy;
use super::device_ring::Desc;
use super::ram::widen;
use crate::mem::{Access, GuestRam, RamRegion, Segment};

/// Why a range of guest addresses gave no segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Untranslatable {
    /// It is not (wholly) memory with the access asked for.
    OutsideRam,
    /// Regions cut the chain into more segments than its buffers take.
    Fragmented,
}
use Untranslatable::{Fragmented, OutsideRam};

/// Translates guest addresses and remembers the regions last hit, one for each kind of access.
///
/// Regions come from one [`GuestRam`], which is handed in anew at every call so that a queue needs to
/// hold it but once; translator and buffers of a queue always see the same one.
pub(crate) struct Translator {
    read: Cell<RamRegion>,
    write: Cell<RamRegion>,
}

impl Translator {
    pub(crate) const fn new() -> Self {
        Self {
            read: Cell::new(RamRegion::EMPTY),
            write: Cell::new(RamRegion::EMPTY),
        }
    }

    /// Where the descriptors of an indirect table are read from: `entries` of them at `addr`. Memory
    /// is not asked for beyond the first region: what lies there is found out when it is walked.
    fn table<'a, M: GuestRam>(
        &self,
        ram: &'a M,
        addr: u64,
        entries: u32,
    ) -> Result<Table<'a, M>, Untranslatable> {
        let region = look_up(&self.read, ram, addr, Access::Read)?;
        let whole = usize::try_from(entries)
            .ok()
            .and_then(|entries| entries.checked_mul(DESC_BYTES))
            .and_then(|bytes| region.segment(addr, bytes))
            .filter(|whole| whole.as_ptr().addr().is_multiple_of(align_of::<u64>()));
        Ok(match whole {
            // SAFETY: the segment holds so many descriptors, aligned; `ram` keeps it mapped for 'a.
            Some(whole) => Table::Whole(unsafe { Descs::new(whole.as_ptr(), entries) }),
            None => Table::Scattered(Scattered { addr, entries, ram }),
        })
    }
}

/// The region that holds `addr`: the one last hit, or another one asked for.
#[inline]
fn look_up<M: GuestRam>(
    hint: &Cell<RamRegion>,
    ram: &M,
    addr: u64,
    access: Access,
) -> Result<RamRegion, Untranslatable> {
    if hint.get().available(addr) == 0 {
        hint.set(ram.region(addr, access).ok_or(OutsideRam)?);
    }
    Ok(hint.get())
}

/// Bytes of a descriptor.
const DESC_BYTES: usize = 16;

/// A table of descriptors: the ring's own, or an indirect one.
pub(crate) trait DescSource {
    /// Copies descriptor `index` out; `None` beyond the table.
    fn get(&self, index: u32) -> Result<Option<Desc>, Untranslatable>;
}

/// Descriptors that lie side by side in host memory.
#[derive(Clone, Copy)]
pub(crate) struct Descs<'a> {
    base: *const u64,
    entries: u32,
    memory: PhantomData<&'a ()>,
}

impl Descs<'_> {
    /// # Safety
    /// `base` must be aligned to 8 and valid for volatile reads of `entries` × 16 bytes during the
    /// lifetime.
    #[inline]
    pub(super) unsafe fn new(base: *const u8, entries: u32) -> Self {
        Self {
            base: base.cast(),
            entries,
            memory: PhantomData,
        }
    }
}

impl DescSource for Descs<'_> {
    #[inline]
    fn get(&self, index: u32) -> Result<Option<Desc>, Untranslatable> {
        if index >= self.entries {
            return Ok(None);
        }
        let at = widen(index).wrapping_mul(2);
        // SAFETY: the index is below `entries`, and `new` was promised so many descriptors.
        let (addr, rest) = unsafe {
            let desc = self.base.add(at);
            (desc.read_volatile(), desc.add(1).read_volatile())
        };
        Ok(Some(Desc::from_words(addr, rest)))
    }
}

/// An indirect descriptor table.
pub(crate) enum Table<'a, M> {
    /// In one piece, as nearly all are.
    Whole(Descs<'a>),
    /// Unaligned, or across regions.
    Scattered(Scattered<'a, M>),
}

/// A table that is gathered byte-wise, descriptor by descriptor.
pub(crate) struct Scattered<'a, M> {
    addr: u64,
    entries: u32,
    ram: &'a M,
}

impl<M: GuestRam> DescSource for Scattered<'_, M> {
    fn get(&self, index: u32) -> Result<Option<Desc>, Untranslatable> {
        if index >= self.entries {
            return Ok(None);
        }
        let mut bytes = [0; DESC_BYTES];
        let offset = u64::from(index).wrapping_mul(16);
        let mut at = self.addr.checked_add(offset);
        let mut rest = &mut bytes[..];
        while !rest.is_empty() {
            let addr = at.ok_or(OutsideRam)?;
            let region = self.ram.region(addr, Access::Read).ok_or(OutsideRam)?;
            let run = usize::try_from(region.available(addr)).unwrap_or(usize::MAX);
            let run = run.min(rest.len());
            let segment = region.segment(addr, run).ok_or(OutsideRam)?;
            let (now, later) = rest.split_at_mut_checked(run).ok_or(OutsideRam)?;
            if now.is_empty() {
                return Err(OutsideRam);
            }
            // SAFETY: the segment has `run` bytes, and `ram` keeps them mapped.
            unsafe { copy::from_guest(now, segment.as_ptr()) };
            rest = later;
            at = addr.checked_add(u64::try_from(run).unwrap_or(u64::MAX));
        }
        let (addr, rest) = bytes.split_at(8);
        let word = |half: &[u8]| {
            half.try_into()
                .map(u64::from_ne_bytes)
                .map_err(|_| OutsideRam)
        };
        Ok(Some(Desc::from_words(word(addr)?, word(rest)?)))
    }
}

/// Fills the buffers of one chain: first what the device reads, then what it writes.
pub(crate) struct Gather<'a, M> {
    translator: &'a Translator,
    ram: &'a M,
    segments: &'a mut Vec<Segment>,
    /// The unused part of the vector, kept here so that it stays in registers.
    next: *mut Segment,
    end: *mut Segment,
    limit: usize,
    access: Access,
    /// The region last hit with that access.
    hint: &'a Cell<RamRegion>,
}

impl<'a, M: GuestRam> Gather<'a, M> {
    /// Starts over with empty buffers.
    #[inline]
    pub(crate) fn new(translator: &'a Translator, buffers: &'a mut Buffers<M>) -> Self {
        buffers.segments.clear();
        let spare = buffers.segments.spare_capacity_mut().as_mut_ptr_range();
        Self {
            hint: &translator.read,
            translator,
            ram: &buffers.ram,
            next: spare.start.cast(),
            end: spare.end.cast(),
            segments: &mut buffers.segments,
            limit: buffers.limit,
            access: Access::Read,
        }
    }

    /// Segments so far.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        let bytes = self.next.addr().wrapping_sub(self.segments.as_ptr().addr());
        bytes.checked_div(size_of::<Segment>()).unwrap_or(0)
    }

    /// From here on, buffers are for the device to write.
    #[inline]
    pub(crate) fn turn_writable(&mut self) {
        self.access = Access::Write;
        self.hint = &self.translator.write;
    }

    /// See [`Translator::table`].
    #[inline]
    pub(crate) fn table(&self, addr: u64, entries: u32) -> Result<Table<'a, M>, Untranslatable> {
        self.translator.table(self.ram, addr, entries)
    }

    /// Appends `addr..addr + len`: one segment, or one for each region it crosses, or none.
    #[inline(always)]
    pub(crate) fn add(&mut self, addr: u64, len: u32) -> Result<(), Untranslatable> {
        let hint = self.hint.get();
        let offset = addr.wrapping_sub(hint.guest());
        // Behind the region both differences are huge; so is the last byte of an empty buffer, which
        // goes the slow way.
        let available = hint.len().wrapping_sub(offset);
        let last = u64::from(len).wrapping_sub(1);
        if offset < hint.len() && last < available && self.next != self.end {
            let segment = hint.at(offset, len);
            // SAFETY: `next` is before `end`, so in the vector's allocation and unused.
            unsafe {
                self.next.write(segment);
                self.next = self.next.add(1);
            }
            return Ok(());
        }
        // What is handed on is copied, so that nothing of `self` need lie in memory.
        self.settle();
        let missed = Missed {
            addr,
            len,
            access: self.access,
            limit: self.limit,
        };
        let done = missed.add(self.hint, self.ram, self.segments);
        let spare = self.segments.spare_capacity_mut().as_mut_ptr_range();
        (self.next, self.end) = (spare.start.cast(), spare.end.cast());
        done
    }

    /// Ends: the buffers hold what was added. (Dropped instead, they are empty or hold less.)
    #[inline]
    pub(crate) fn settle(&mut self) {
        let len = self.len();
        // SAFETY: everything before `next` was there or has been written by `add`.
        unsafe { self.segments.set_len(len) };
    }
}

/// A buffer that is not wholly in the region last hit, or for which the vector must grow.
struct Missed {
    addr: u64,
    len: u32,
    access: Access,
    limit: usize,
}

impl Missed {
    #[cold]
    #[inline(never)]
    fn add<M: GuestRam>(
        self,
        hint: &Cell<RamRegion>,
        ram: &M,
        out: &mut Vec<Segment>,
    ) -> Result<(), Untranslatable> {
        let (mut addr, mut left) = (self.addr, u64::from(self.len));
        while left > 0 {
            let region = look_up(hint, ram, addr, self.access)?;
            let run = region.available(addr).min(left);
            let segment = usize::try_from(run)
                .ok()
                .filter(|run| *run > 0)
                .and_then(|run| region.segment(addr, run))
                .ok_or(OutsideRam)?;
            if out.len() >= self.limit {
                return Err(Fragmented);
            }
            out.push(segment);
            left = left.saturating_sub(run);
            // A range that runs over the end of the address space is nobody's memory.
            addr = match addr.checked_add(run) {
                Some(next) => next,
                None if left == 0 => break,
                None => return Err(OutsideRam),
            };
        }
        Ok(())
    }
}
