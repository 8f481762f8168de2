//! A descriptor chain: the segments of one request, and a reader and a writer over any framing of
//! them.
//!
//! Descriptors were fetched and checked once when the chain was popped; the ring is not accessed
//! again. This module does not know the meaning of the bytes. Sections 2.7.4 and 2.7.5.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::mem::{Buffers, Cursor, GuestRam, Segment};

/// A chain has fewer bytes than requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the chain has {left} bytes left where {wanted} are needed")]
pub struct ShortChain {
    /// Bytes requested.
    pub wanted: u64,
    /// Bytes left.
    pub left: u64,
}

/// Set permanently when a queue is broken.
#[derive(Debug, Default)]
pub(super) struct Latch(AtomicBool);

impl Latch {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The memory of a chain, which its queue pools. The fields that every request uses are on one
/// cache line.
#[repr(C, align(64))]
pub(super) struct ChainSlot<M: GuestRam> {
    pub(super) head: u16,
    /// The request must be completed: dropping it breaks the queue.
    pub(super) armed: bool,
    pub(super) latch: Arc<Latch>,
    pub(super) buffers: Buffers<M>,
}

impl<M: GuestRam> ChainSlot<M> {
    pub(super) fn new(ram: M, latch: Arc<Latch>) -> Self {
        Self {
            head: 0,
            armed: false,
            buffers: Buffers::new(ram),
            latch,
        }
    }

    /// Makes this the request at `head`.
    #[inline(always)]
    pub(super) fn arm(&mut self, head: u16) {
        self.head = head;
        self.armed = true;
    }

    /// Ends the request; returns `written`, clamped to the size of the writable part.
    #[inline(always)]
    pub(super) fn disarm(&mut self, written: u32) -> u32 {
        self.armed = false;
        let writable = u32::try_from(self.buffers.writable_len()).unwrap_or(u32::MAX);
        written.min(writable)
    }
}

impl<M: GuestRam> Drop for ChainSlot<M> {
    fn drop(&mut self) {
        if self.armed {
            self.buffers.mark_dirty();
            self.latch.set();
        }
    }
}

/// One request, from pop to completion.
///
/// It keeps guest memory mapped. Complete it with
/// [`ActiveQueue::complete`](super::queue::ActiveQueue::complete). Dropping it instead breaks its
/// queue, because the driver would wait for it for ever.
#[must_use = "a chain that is dropped breaks its queue: complete it"]
pub struct DescriptorChain<M: GuestRam>(pub(super) Box<ChainSlot<M>>);

impl<M: GuestRam> DescriptorChain<M> {
    /// Returns the index of its first descriptor, by which the driver identifies the request.
    #[inline]
    #[must_use]
    pub fn head(&self) -> u16 {
        self.0.head
    }

    /// Returns the device-readable segments, none of them empty.
    #[inline]
    #[must_use]
    pub fn readable(&self) -> &[Segment] {
        self.0.buffers.readable()
    }

    /// Returns the device-writable segments, none of them empty.
    #[inline]
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        self.0.buffers.writable()
    }

    /// Returns the number of bytes of the readable part.
    #[inline]
    #[must_use]
    pub fn readable_len(&self) -> u64 {
        self.0.buffers.readable_len()
    }

    /// Returns the number of bytes of the writable part.
    #[inline]
    #[must_use]
    pub fn writable_len(&self) -> u64 {
        self.0.buffers.writable_len()
    }

    /// Returns a reader at the start of the readable part.
    #[inline]
    #[must_use]
    pub fn reader(&self) -> Reader<'_> {
        Reader(self.0.buffers.reading())
    }

    /// Returns a writer at the start of the writable part.
    #[inline]
    #[must_use]
    pub fn writer(&mut self) -> Writer<'_> {
        let cursor = self.0.buffers.writing();
        Writer { cursor, written: 0 }
    }

    /// Returns the `len` readable bytes from `start` on as whole segments, in the layout of an
    /// iovec. A segment at a boundary of the range is split permanently.
    ///
    /// # Errors
    /// The readable part ends before `start + len`.
    pub fn readable_range(&mut self, start: u64, len: u64) -> Result<&[Segment], ShortChain> {
        let left = self.readable_len();
        let range = self.0.buffers.readable_range(start, len);
        range.ok_or(short(start, len, left))
    }

    /// Returns the `len` writable bytes from `start` on as whole segments; see
    /// [`readable_range`](Self::readable_range).
    ///
    /// # Errors
    /// The writable part ends before `start + len`.
    pub fn writable_range(&mut self, start: u64, len: u64) -> Result<&[Segment], ShortChain> {
        let left = self.writable_len();
        let range = self.0.buffers.writable_range(start, len);
        range.ok_or(short(start, len, left))
    }

    /// Drops the chain without completing it and without breaking its queue. Only for a queue that
    /// is being reset, when the driver takes back all its buffers, or saved, when the restored
    /// queue returns the chain again.
    pub fn abandon(mut self) {
        self.0.buffers.mark_dirty();
        self.0.armed = false;
    }
}

impl<M: GuestRam> fmt::Debug for DescriptorChain<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DescriptorChain")
            .field("head", &self.head())
            .field("readable", &self.readable())
            .field("writable", &self.writable())
            .finish()
    }
}

/// Reads the readable part of a chain as a byte stream.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(Cursor<'a>);

impl<'a> Reader<'a> {
    /// Bytes ahead.
    #[inline]
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.0.remaining()
    }

    /// Fills `out`.
    ///
    /// # Errors
    /// Fewer bytes remain; nothing is read.
    pub fn read_exact(&mut self, out: &mut [u8]) -> Result<(), ShortChain> {
        enough(&self.0, out.len())?;
        self.0.copy_to(out);
        Ok(())
    }

    /// Reads a structure. It is copied once, so that the validated bytes are those that are used.
    ///
    /// # Errors
    /// Fewer bytes remain; nothing is read.
    pub fn read_obj<T: FromBytes + IntoBytes>(&mut self) -> Result<T, ShortChain> {
        let mut value = T::new_zeroed();
        self.read_exact(value.as_mut_bytes())?;
        Ok(value)
    }

    /// Skips `len` bytes.
    ///
    /// # Errors
    /// Fewer bytes remain; nothing is skipped.
    pub fn skip(&mut self, len: u64) -> Result<(), ShortChain> {
        enough64(&self.0, len)?;
        self.0.skip(len);
        Ok(())
    }

    /// The pieces ahead, none of them empty.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + Clone + use<'a> {
        self.0.segments()
    }
}

/// Writes the writable part of a chain as a byte stream.
#[derive(Debug)]
pub struct Writer<'a> {
    cursor: Cursor<'a>,
    written: u64,
}

impl<'a> Writer<'a> {
    /// Bytes ahead.
    #[inline]
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.cursor.remaining()
    }

    /// Returns the number of bytes that this writer has written or skipped since it was created or
    /// split off.
    #[inline]
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes all of `data`.
    ///
    /// # Errors
    /// Fewer bytes remain; nothing is written.
    pub fn write_all(&mut self, data: &[u8]) -> Result<(), ShortChain> {
        enough(&self.cursor, data.len())?;
        let done = self.cursor.copy_from(data);
        self.count(u64::try_from(done).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Writes a structure.
    ///
    /// # Errors
    /// Fewer bytes remain; nothing is written.
    pub fn write_obj<T: IntoBytes + Immutable>(&mut self, value: &T) -> Result<(), ShortChain> {
        self.write_all(value.as_bytes())
    }

    /// Writes `len` zeroes.
    ///
    /// # Errors
    /// Fewer bytes remain; nothing is written.
    pub fn write_zeroes(&mut self, len: u64) -> Result<(), ShortChain> {
        enough64(&self.cursor, len)?;
        let zeroes = [0; 256];
        let mut left = len;
        while left > 0 {
            let run = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(zeroes.len());
            let done = self.cursor.copy_from(zeroes.get(..run).unwrap_or_default());
            left = left.saturating_sub(u64::try_from(done.max(1)).unwrap_or(u64::MAX));
        }
        self.count(len);
        Ok(())
    }

    /// Skips `len` bytes, which are written by other means.
    ///
    /// # Errors
    /// Fewer bytes remain; nothing is skipped.
    pub fn skip(&mut self, len: u64) -> Result<(), ShortChain> {
        enough64(&self.cursor, len)?;
        self.cursor.skip(len);
        self.count(len);
        Ok(())
    }

    /// Splits the writer into one over the next `len` bytes and one over the rest.
    ///
    /// # Errors
    /// Fewer bytes remain.
    pub fn split_at(self, len: u64) -> Result<(Self, Self), ShortChain> {
        enough64(&self.cursor, len)?;
        let (first, second) = self.cursor.split_at(len).ok_or(ShortChain {
            wanted: len,
            left: self.cursor.remaining(),
        })?;
        let part = |cursor| Self { cursor, written: 0 };
        Ok((part(first), part(second)))
    }

    /// The pieces ahead, none of them empty.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + Clone + use<'a> {
        self.cursor.segments()
    }

    fn count(&mut self, bytes: u64) {
        self.written = self.written.saturating_add(bytes);
    }
}

fn short(start: u64, len: u64, left: u64) -> ShortChain {
    let wanted = start.saturating_add(len);
    ShortChain { wanted, left }
}

fn enough(cursor: &Cursor<'_>, wanted: usize) -> Result<(), ShortChain> {
    enough64(cursor, u64::try_from(wanted).unwrap_or(u64::MAX))
}

fn enough64(cursor: &Cursor<'_>, wanted: u64) -> Result<(), ShortChain> {
    let left = cursor.remaining();
    if wanted > left {
        return Err(ShortChain { wanted, left });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
