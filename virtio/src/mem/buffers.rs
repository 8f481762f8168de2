//! From guest addresses to segments, the segments of one chain, and the cursor that moves bytes
//! through them.

use alloc::vec::Vec;

use super::copy;
use super::device_ring::Desc;
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
    read: RamRegion,
    write: RamRegion,
}

impl Translator {
    pub(crate) const fn new() -> Self {
        Self {
            read: RamRegion::EMPTY,
            write: RamRegion::EMPTY,
        }
    }

    /// The region that holds `addr`: the last one, or another one asked for.
    #[inline]
    fn region(&mut self, ram: &impl GuestRam, addr: u64, access: Access) -> Option<RamRegion> {
        let hint = match access {
            Access::Read => &mut self.read,
            Access::Write => &mut self.write,
        };
        if hint.available(addr) == 0 {
            *hint = ram.region(addr, access)?;
        }
        Some(*hint)
    }

    /// Appends `addr..addr + len` to `out`: one segment, or one for each region it crosses.
    #[inline]
    pub(crate) fn append<M: GuestRam>(
        &mut self,
        out: &mut Buffers<M>,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<(), Untranslatable> {
        let hint = match access {
            Access::Read => &self.read,
            Access::Write => &self.write,
        };
        let Ok(bytes) = usize::try_from(len) else {
            return Err(OutsideRam);
        };
        if let Some(segment) = hint.segment(addr, bytes) {
            out.segments.push(segment);
            return Ok(());
        }
        self.append_slow(out, addr, len, access)
    }

    #[cold]
    fn append_slow<M: GuestRam>(
        &mut self,
        out: &mut Buffers<M>,
        addr: u64,
        len: u32,
        access: Access,
    ) -> Result<(), Untranslatable> {
        let (mut addr, mut left) = (addr, u64::from(len));
        while left > 0 {
            let region = self.region(&out.ram, addr, access).ok_or(OutsideRam)?;
            let run = region.available(addr).min(left);
            let segment = usize::try_from(run)
                .ok()
                .filter(|run| *run > 0)
                .and_then(|run| region.segment(addr, run))
                .ok_or(OutsideRam)?;
            if out.segments.len() >= out.limit {
                return Err(Fragmented);
            }
            out.segments.push(segment);
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

    /// A view of the `entries` descriptors at `addr`. Nothing is read, and memory is not asked for
    /// beyond the first region: what lies there is found out when it is walked.
    pub(crate) fn table<'a, M: GuestRam>(
        &mut self,
        ram: &'a M,
        addr: u64,
        entries: u32,
    ) -> Result<Table<'a, M>, Untranslatable> {
        let region = self.region(ram, addr, Access::Read).ok_or(OutsideRam)?;
        let bytes = u64::from(entries).wrapping_mul(16);
        let whole = usize::try_from(bytes.min(region.available(addr)))
            .ok()
            .and_then(|bytes| region.segment(addr, bytes))
            .ok_or(OutsideRam)?;
        Ok(Table { whole, addr, ram })
    }
}

/// An indirect descriptor table.
pub(crate) struct Table<'a, M> {
    /// As much of it as lies in the region of its first byte.
    whole: Segment,
    addr: u64,
    ram: &'a M,
}

impl<M: GuestRam> Table<'_, M> {
    /// Descriptor `index`; the caller compares it with the table's length.
    #[inline]
    pub(crate) fn desc(&self, index: u32) -> Result<Desc, Untranslatable> {
        let Ok(offset) = usize::try_from(u64::from(index).wrapping_mul(16)) else {
            return Err(OutsideRam);
        };
        let ptr = self.whole.as_ptr().wrapping_add(offset);
        let fits = offset
            .checked_add(16)
            .is_some_and(|end| end <= self.whole.len());
        if !fits || !ptr.addr().is_multiple_of(align_of::<u64>()) {
            return self.desc_slow(offset);
        }
        let ptr = ptr.cast::<u64>();
        // SAFETY: offset + 16 lies in the segment, which `ram` keeps mapped, and is aligned.
        let (addr, rest) = unsafe { (ptr.read_volatile(), ptr.add(1).read_volatile()) };
        Ok(Desc::from_words(addr, rest))
    }

    /// A descriptor that is unaligned or crosses regions, gathered byte-wise.
    #[cold]
    fn desc_slow(&self, offset: usize) -> Result<Desc, Untranslatable> {
        let mut bytes = [0; 16];
        let mut at = u64::try_from(offset)
            .ok()
            .and_then(|offset| self.addr.checked_add(offset));
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
        let word = |range: core::ops::Range<usize>| {
            bytes
                .get(range)
                .and_then(|b| <[u8; 8]>::try_from(b).ok())
                .map(u64::from_ne_bytes)
                .ok_or(OutsideRam)
        };
        Ok(Desc::from_words(word(0..8)?, word(8..16)?))
    }
}

/// The segments of one chain, with what keeps them mapped. Only a [`Translator`] adds to them.
pub(crate) struct Buffers<M> {
    segments: Vec<Segment>,
    /// Most segments that crossing regions may bring the chain to.
    limit: usize,
    ram: M,
}

impl<M: GuestRam> Buffers<M> {
    pub(crate) fn new(ram: M, limit: usize) -> Self {
        Self {
            segments: Vec::new(),
            limit,
            ram,
        }
    }

    #[inline]
    pub(crate) fn clear(&mut self) {
        self.segments.clear();
    }

    #[inline]
    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    pub(crate) fn ram(&self) -> &M {
        &self.ram
    }

    /// Splits segment `index` after `mid` bytes, so that a boundary falls between two segments.
    pub(crate) fn split(&mut self, index: usize, mid: usize) -> Option<()> {
        let (first, second) = self.segments.get(index)?.split_at(mid)?;
        *self.segments.get_mut(index)? = first;
        self.segments.insert(index.checked_add(1)?, second);
        Some(())
    }

    /// A cursor at the start of the segments `range`.
    #[inline]
    pub(crate) fn cursor(&self, range: core::ops::Range<usize>, bytes: u64) -> Cursor<'_> {
        Cursor {
            segments: self.segments.get(range).unwrap_or_default(),
            offset: 0,
            remaining: bytes,
        }
    }
}

/// A place in a run of segments. Copying it remembers the place.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    segments: &'a [Segment],
    /// Bytes of the first segment that lie behind.
    offset: usize,
    /// Bytes ahead: never more than the segments hold.
    remaining: u64,
}

impl<'a> Cursor<'a> {
    /// Bytes ahead.
    #[inline]
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Moves on by as many of `len` bytes as are there; `each` gets the pieces, never empty.
    fn walk(&mut self, len: u64, mut each: impl FnMut(Segment)) {
        let mut left = len.min(self.remaining);
        self.remaining = self.remaining.saturating_sub(left);
        while let Some((first, rest)) = self.segments.split_first() {
            let Some((_, ahead)) = first.split_at(self.offset) else {
                break;
            };
            let run = usize::try_from(left).unwrap_or(usize::MAX).min(ahead.len());
            if run > 0
                && let Some((piece, _)) = ahead.split_at(run)
            {
                each(piece);
                left = left.saturating_sub(u64::try_from(run).unwrap_or(u64::MAX));
            }
            if run < ahead.len() {
                self.offset = self.offset.saturating_add(run);
                break;
            }
            self.segments = rest;
            self.offset = 0;
        }
    }

    /// Moves on by `len` bytes, or as many as are there; returns how many.
    pub fn skip(&mut self, len: u64) -> u64 {
        let before = self.remaining;
        self.walk(len, |_| ());
        before.saturating_sub(self.remaining)
    }

    /// Copies out as many bytes as `dst` takes and are there; returns how many.
    pub fn copy_to(&mut self, dst: &mut [u8]) -> usize {
        let mut rest = &mut dst[..];
        let mut done: usize = 0;
        self.walk(u64::try_from(rest.len()).unwrap_or(u64::MAX), |piece| {
            if let Some((now, later)) = core::mem::take(&mut rest).split_at_mut_checked(piece.len())
            {
                // SAFETY: the piece has as many bytes as `now`, and the buffers this cursor borrows
                // keep them mapped.
                unsafe { copy::from_guest(now, piece.as_ptr()) };
                done = done.saturating_add(now.len());
                rest = later;
            }
        });
        done
    }

    /// Copies in as many bytes as `src` has and fit; returns how many. The cursor must be over
    /// segments that were translated for writing.
    pub(crate) fn copy_from(&mut self, src: &[u8]) -> usize {
        let mut rest = src;
        let mut done: usize = 0;
        self.walk(u64::try_from(src.len()).unwrap_or(u64::MAX), |piece| {
            if let Some((now, later)) = rest.split_at_checked(piece.len()) {
                // SAFETY: the piece has as many bytes as `now`; the buffers this cursor borrows keep
                // them mapped, for writing because the caller made it over writable segments.
                unsafe { copy::to_guest(piece.as_ptr(), now) };
                done = done.saturating_add(now.len());
                rest = later;
            }
        });
        done
    }

    /// The pieces ahead, none of them empty.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + Clone + use<'a> {
        let (mut offset, mut left) = (self.offset, self.remaining);
        self.segments.iter().map_while(move |segment| {
            if left == 0 {
                return None;
            }
            let (_, ahead) = segment.split_at(core::mem::take(&mut offset))?;
            let run = usize::try_from(left).unwrap_or(usize::MAX).min(ahead.len());
            left = left.saturating_sub(u64::try_from(run).unwrap_or(u64::MAX));
            Some(ahead.split_at(run)?.0)
        })
    }

    /// The next `len` bytes, and what follows; `None` when there are fewer.
    #[must_use]
    pub fn split_at(self, len: u64) -> Option<(Self, Self)> {
        self.remaining.checked_sub(len)?;
        let mut rest = self;
        rest.skip(len);
        Some((
            Self {
                remaining: len,
                ..self
            },
            rest,
        ))
    }
}
