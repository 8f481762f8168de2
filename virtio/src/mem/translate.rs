//! Translation of guest addresses to host addresses: descriptor tables, and the buffers of a chain.

use core::cell::Cell;
use core::marker::PhantomData;

use super::buffers::Buffers;
use super::copy;
use super::ram::widen;
use crate::mem::{Access, GuestRam, RamRegion, Segment};
use crate::spec::ring::MAX_CHAIN_BYTES;

/// Why a range of guest addresses can't be translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Untranslatable {
    /// It is not, or not completely, memory with the required access.
    OutsideRam,
    /// The chain crosses regions and has more segments than its buffers may have.
    Fragmented,
}
use Untranslatable::{Fragmented, OutsideRam};

/// Translates guest addresses and caches the last region per kind of access.
///
/// The regions come from one [`GuestRam`], which is passed to every call so that a queue holds it
/// only once; translator and buffers of a queue always use the same one.
pub(crate) struct Translator {
    read: Cell<RamRegion>,
    write: Cell<RamRegion>,
    /// Maximum number of segments of a chain that crosses regions.
    limit: usize,
}

impl Translator {
    pub(crate) const fn new(limit: usize) -> Self {
        Self {
            read: Cell::new(RamRegion::EMPTY),
            write: Cell::new(RamRegion::EMPTY),
            limit,
        }
    }

    /// Returns the source of the descriptors of an indirect table: `entries` of them at `addr`.
    /// Only the first region is looked up: the walk finds what is behind it.
    #[inline(always)]
    pub(crate) fn table<'a, M: GuestRam>(
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
            // SAFETY: the segment has this many descriptors, aligned; `ram` keeps it mapped for 'a.
            Some(whole) => Table::Whole(unsafe { Descs::new(whole.as_ptr(), entries) }),
            None => Table::Scattered(Scattered { addr, entries, ram }),
        })
    }

    #[inline(always)]
    fn hint(&self, access: Access) -> &Cell<RamRegion> {
        match access {
            Access::Read => &self.read,
            Access::Write => &self.write,
        }
    }

    /// Sets `buffers` to the one buffer of a chain of one, if it is in the cached region. Returns
    /// whether it is.
    #[inline(always)]
    pub(crate) fn single<M: GuestRam>(
        &self,
        buffers: &mut Buffers<M>,
        addr: u64,
        len: u32,
        access: Access,
    ) -> bool {
        let hint = self.hint(access).get();
        let Some(segment) = hint.buffer(addr, len) else {
            return false;
        };
        if buffers.segments.capacity() == 0 {
            return false;
        }
        // SAFETY: the vector has room for one.
        unsafe {
            buffers.segments.as_mut_ptr().write(segment);
            buffers.segments.set_len(1);
        }
        let bytes = u64::from(len);
        (
            buffers.writable_at,
            buffers.readable_len,
            buffers.writable_len,
        ) = match access {
            Access::Read => (1, bytes, 0),
            Access::Write => (0, 0, bytes),
        };
        true
    }

    /// Appends a buffer that is not completely in the cached region, or for which the vector must
    /// grow.
    #[cold]
    #[inline(never)]
    fn append<M: GuestRam>(
        &self,
        buffers: &mut Buffers<M>,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<(), Untranslatable> {
        let (mut addr, mut left) = (addr, u64::from(len));
        let hint = self.hint(access);
        while left > 0 {
            let region = look_up(hint, &buffers.ram, addr, access)?;
            let run = region.available(addr).min(left);
            let segment = usize::try_from(run)
                .ok()
                .filter(|run| *run > 0)
                .and_then(|run| region.segment(addr, run))
                .ok_or(OutsideRam)?;
            if buffers.segments.len() >= self.limit {
                return Err(Fragmented);
            }
            buffers.segments.push(segment);
            left = left.saturating_sub(run);
            // A range beyond the end of the address space is not memory.
            addr = match addr.checked_add(run) {
                Some(next) => next,
                None if left == 0 => break,
                None => return Err(OutsideRam),
            };
        }
        Ok(())
    }
}

/// Returns the region that contains `addr`: the cached one, or the result of a lookup, which is
/// cached unless addresses are translated.
#[inline]
fn look_up<M: GuestRam>(
    hint: &Cell<RamRegion>,
    ram: &M,
    addr: u64,
    access: Access,
) -> Result<RamRegion, Untranslatable> {
    let last = hint.get();
    if last.available(addr) > 0 {
        return Ok(last);
    }
    let region = ram.region(addr, access).ok_or(OutsideRam)?;
    if !ram.translates() {
        hint.set(region);
    }
    Ok(region)
}

/// Bytes of a descriptor.
const DESC_BYTES: usize = 16;

/// One descriptor, copied from guest memory once: two words, so that it is passed in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Desc {
    addr: u64,
    /// Length, flags and next, from the low end.
    rest: u64,
}

impl Desc {
    /// Returns the descriptor with these two halves, as loaded from memory.
    #[inline(always)]
    fn from_words(addr: u64, rest: u64) -> Self {
        Self {
            addr: u64::from_le(addr),
            rest: u64::from_le(rest),
        }
    }

    /// Returns the guest-physical address of the buffer.
    #[inline(always)]
    pub(crate) fn addr(self) -> u64 {
        self.addr
    }

    /// Returns the number of bytes of the buffer.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low half is the length"
    )]
    pub(crate) fn len(self) -> u32 {
        self.rest as u32
    }

    /// Returns the `DESC_F_…` flags that are set and in `mask`.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "what is masked has 16 bits"
    )]
    pub(crate) fn flags(self, mask: u16) -> u16 {
        ((self.rest >> 32) & u64::from(mask)) as u16
    }

    /// Returns the index of the next descriptor, under `DESC_F_NEXT`: 16 bits.
    #[inline(always)]
    pub(crate) fn next(self) -> u32 {
        (self.rest >> 48) as u32
    }
}

/// A table of descriptors: the ring's own, or an indirect one.
pub(crate) trait DescSource {
    /// Reads descriptor `index`, or returns `None` beyond the table.
    fn get(&self, index: u32) -> Result<Option<Desc>, Untranslatable>;

    /// As [`get`](Self::get), if `index` is most likely `guess`.
    #[inline(always)]
    fn get_likely(&self, index: u32, guess: u32) -> Result<Option<Desc>, Untranslatable> {
        let _ = guess;
        self.get(index)
    }
}

/// Descriptors that are contiguous in host memory.
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

impl Descs<'_> {
    /// # Safety
    /// `index` must be below the number of entries.
    #[inline(always)]
    pub(super) unsafe fn get_unchecked(self, index: u32) -> Desc {
        let at = widen(index).wrapping_mul(2);
        // SAFETY: the index is below `entries`, which is the number of descriptors promised to
        // `new`.
        let (addr, rest) = unsafe {
            let desc = self.base.add(at);
            (desc.read_volatile(), desc.add(1).read_volatile())
        };
        Desc::from_words(addr, rest)
    }
}

impl DescSource for Descs<'_> {
    #[inline(always)]
    fn get(&self, index: u32) -> Result<Option<Desc>, Untranslatable> {
        if index >= self.entries {
            return Ok(None);
        }
        // SAFETY: just compared.
        Ok(Some(unsafe { self.get_unchecked(index) }))
    }

    /// A guess that is right lets the processor load the descriptor before it knows the index.
    #[inline(always)]
    fn get_likely(&self, index: u32, guess: u32) -> Result<Option<Desc>, Untranslatable> {
        if index == guess && guess < self.entries {
            // SAFETY: just compared.
            return Ok(Some(unsafe { self.get_unchecked(guess) }));
        }
        self.get(index)
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

/// Collects the buffers of one chain: first the readable, then the writable ones.
///
/// It is passed only to inlined functions, so that it stays in registers.
pub(crate) struct Gather<'a, M> {
    translator: &'a Translator,
    buffers: &'a mut Buffers<M>,
    /// The unused part of the vector.
    next: *mut Segment,
    end: *mut Segment,
    /// The cached region of the current access.
    hint: &'a Cell<RamRegion>,
    /// Number of bytes of the current part.
    bytes: u64,
}

impl<'a, M: GuestRam> Gather<'a, M> {
    /// Starts with empty buffers.
    #[inline(always)]
    pub(crate) fn new(translator: &'a Translator, buffers: &'a mut Buffers<M>) -> Self {
        buffers.segments.clear();
        let spare = buffers.segments.spare_capacity_mut().as_mut_ptr_range();
        Self {
            translator,
            buffers,
            next: spare.start.cast(),
            end: spare.end.cast(),
            hint: &translator.read,
            bytes: 0,
        }
    }

    /// Returns the access to the buffers that are added now.
    #[inline(always)]
    fn access(&self) -> Access {
        if core::ptr::eq(self.hint, &self.translator.read) {
            Access::Read
        } else {
            Access::Write
        }
    }

    /// Returns the number of segments so far.
    #[inline(always)]
    fn len(&self) -> usize {
        let start = self.buffers.segments.as_ptr().addr();
        let bytes = self.next.addr().wrapping_sub(start);
        bytes.checked_div(size_of::<Segment>()).unwrap_or(0)
    }

    /// Makes the following buffers device-writable.
    #[inline(always)]
    pub(crate) fn turn_writable(&mut self) {
        self.hint = &self.translator.write;
        self.buffers.writable_at = self.len();
        self.buffers.readable_len = core::mem::take(&mut self.bytes);
    }

    /// Appends `addr..addr + len`: one segment, or one per region that it crosses, or none.
    #[inline(always)]
    pub(crate) fn add(&mut self, addr: u64, len: u32) -> Result<(), Untranslatable> {
        // At most 2^15 buffers of 2^32 bytes: the sum can't wrap.
        self.bytes = self.bytes.wrapping_add(u64::from(len));
        let hint = self.hint.get();
        if self.next != self.end
            && let Some(segment) = hint.buffer(addr, len)
        {
            // SAFETY: `next` is before `end`, so in the vector's allocation and unused.
            unsafe {
                self.next.write(segment);
                self.next = self.next.add(1);
            }
            return Ok(());
        }
        self.settle();
        self.translator
            .append(self.buffers, addr, len, self.access())?;
        let spare = self.buffers.segments.spare_capacity_mut();
        let spare = spare.as_mut_ptr_range();
        (self.next, self.end) = (spare.start.cast(), spare.end.cast());
        Ok(())
    }

    /// Sets the length of the vector to the number of written segments.
    #[inline(always)]
    fn settle(&mut self) {
        let len = self.len();
        // SAFETY: everything before `next` was there or has been written by `add`.
        unsafe { self.buffers.segments.set_len(len) };
    }

    /// Finishes the buffers. Returns false if they have more bytes than a chain may have.
    #[inline(always)]
    pub(crate) fn finish(mut self) -> bool {
        self.settle();
        let read_only = self.access() == Access::Read;
        let buffers = self.buffers;
        if read_only {
            buffers.writable_at = buffers.segments.len();
            (buffers.readable_len, buffers.writable_len) = (self.bytes, 0);
        } else {
            buffers.writable_len = self.bytes;
        }
        buffers.readable_len.wrapping_add(buffers.writable_len) <= MAX_CHAIN_BYTES
    }
}
