//! The segments of one chain, and a cursor that copies bytes from and to them.

use alloc::vec::Vec;
use core::ops::Range;

use super::copy;
use crate::mem::{GuestRam, Segment};

/// The segments of one chain, with the memory that keeps them mapped. Only translation adds
/// segments.
#[repr(C)]
pub(crate) struct Buffers<M> {
    pub(super) segments: Vec<Segment>,
    /// Index of the first writable segment; those before it are readable.
    pub(super) writable_at: usize,
    /// Number of bytes of the two parts.
    pub(super) readable_len: u64,
    pub(super) writable_len: u64,
    pub(super) ram: M,
}

impl<M: GuestRam> Buffers<M> {
    pub(crate) fn new(ram: M) -> Self {
        Self {
            segments: Vec::new(),
            writable_at: 0,
            readable_len: 0,
            writable_len: 0,
            ram,
        }
    }

    #[inline]
    pub(crate) fn readable(&self) -> &[Segment] {
        self.segments.get(..self.writable_at).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn writable(&self) -> &[Segment] {
        self.segments.get(self.writable_at..).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn readable_len(&self) -> u64 {
        self.readable_len
    }

    #[inline]
    pub(crate) fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// Marks the whole writable part dirty: the number of bytes that the kernel wrote into it is
    /// not known.
    #[inline]
    pub(crate) fn mark_dirty(&self) {
        if self.ram.tracks_dirty() {
            for segment in self.writable() {
                self.ram.mark_dirty(segment, segment.len());
            }
        }
    }

    /// Returns the readable segments from byte `start` on for `len` bytes, permanently split where
    /// needed, or `None` if there are fewer bytes.
    pub(crate) fn readable_range(&mut self, start: u64, len: u64) -> Option<&[Segment]> {
        if start.checked_add(len)? > self.readable_len {
            return None;
        }
        let before = self.segments.len();
        let range = self.cut(0, start, len)?;
        let added = self.segments.len().saturating_sub(before);
        self.writable_at = self.writable_at.saturating_add(added);
        self.segments.get(range)
    }

    /// As `readable_range`, for the writable segments.
    pub(crate) fn writable_range(&mut self, start: u64, len: u64) -> Option<&[Segment]> {
        if start.checked_add(len)? > self.writable_len {
            return None;
        }
        let range = self.cut(self.writable_at, start, len)?;
        self.segments.get(range)
    }

    fn cut(&mut self, from: usize, start: u64, len: u64) -> Option<Range<usize>> {
        let first = self.boundary(from, start)?;
        let last = self.boundary(first, len)?;
        Some(first..last)
    }

    /// Returns the index of the segment that begins `bytes` after segment `from`, which is split if
    /// needed.
    fn boundary(&mut self, from: usize, bytes: u64) -> Option<usize> {
        let mut left = usize::try_from(bytes).ok()?;
        let mut index = from;
        while left > 0 {
            let segment = *self.segments.get(index)?;
            let next = index.checked_add(1)?;
            if left < segment.len() {
                let (first, second) = segment.split_at(left)?;
                *self.segments.get_mut(index)? = first;
                self.segments.insert(next, second);
            }
            left = left.saturating_sub(segment.len());
            index = next;
        }
        Some(index)
    }

    /// Returns a cursor at the start of the readable part.
    #[inline]
    pub(crate) fn reading(&self) -> Cursor<'_> {
        Cursor {
            segments: self.readable(),
            offset: 0,
            remaining: self.readable_len,
        }
    }

    /// Returns a cursor at the start of the writable part.
    #[inline]
    pub(crate) fn writing(&mut self) -> Cursor<'_> {
        Cursor {
            segments: self.writable(),
            offset: 0,
            remaining: self.writable_len,
        }
    }
}

/// A position in a list of segments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    segments: &'a [Segment],
    /// Offset in the first segment.
    offset: usize,
    /// Bytes left: never more than the segments have.
    remaining: u64,
}

impl<'a> Cursor<'a> {
    /// Bytes ahead.
    #[inline]
    pub(crate) fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Advances by `len` bytes, or as many as are left; passes the pieces, never empty, to `each`.
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

    /// Advances by `len` bytes, or as many as are left; returns how many.
    pub(crate) fn skip(&mut self, len: u64) -> u64 {
        let before = self.remaining;
        self.walk(len, |_| ());
        before.saturating_sub(self.remaining)
    }

    /// Advances by `len` bytes and returns them if they are in one segment, the common case.
    #[inline]
    fn one_piece(&mut self, len: usize) -> Option<Segment> {
        let (first, rest) = self.segments.split_first()?;
        let (_, ahead) = first.split_at(self.offset)?;
        let remaining = self.remaining.checked_sub(u64::try_from(len).ok()?)?;
        let (piece, later) = ahead.split_at(len)?;
        self.remaining = remaining;
        if later.is_empty() {
            self.segments = rest;
            self.offset = 0;
        } else {
            self.offset = self.offset.saturating_add(len);
        }
        Some(piece)
    }

    /// Copies bytes to `dst` until it is full or none are left; returns how many.
    pub(crate) fn copy_to(&mut self, dst: &mut [u8]) -> usize {
        if let Some(piece) = self.one_piece(dst.len()) {
            // SAFETY: the piece is as long as `dst`, and the buffers that this cursor borrows keep
            // it mapped.
            unsafe { copy::from_guest(dst, piece.as_ptr()) };
            return dst.len();
        }
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

    /// Copies bytes from `src` until it or the room is exhausted; returns how many. The cursor must
    /// be over segments that were translated for writing.
    pub(crate) fn copy_from(&mut self, src: &[u8]) -> usize {
        if let Some(piece) = self.one_piece(src.len()) {
            // SAFETY: the piece is as long as `src`; the buffers that this cursor borrows keep it
            // mapped, for writing because the caller created the cursor over writable segments.
            unsafe { copy::to_guest(piece.as_ptr(), src) };
            return src.len();
        }
        let mut rest = src;
        let mut done: usize = 0;
        self.walk(u64::try_from(src.len()).unwrap_or(u64::MAX), |piece| {
            if let Some((now, later)) = rest.split_at_checked(piece.len()) {
                // SAFETY: the piece has as many bytes as `now`; the buffers that this cursor
                // borrows keep them mapped, for writing because the caller created the cursor over
                // writable segments.
                unsafe { copy::to_guest(piece.as_ptr(), now) };
                done = done.saturating_add(now.len());
                rest = later;
            }
        });
        done
    }

    /// Returns the segments that are left, none of them empty.
    pub(crate) fn segments(&self) -> impl Iterator<Item = Segment> + Clone + use<'a> {
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

    /// Splits the cursor into one over the next `len` bytes and one over the rest. Returns `None`
    /// if there are fewer bytes.
    pub(crate) fn split_at(self, len: u64) -> Option<(Self, Self)> {
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
