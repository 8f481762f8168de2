//! Following one chain of descriptors, direct and indirect, into segments.
//!
//! Each descriptor is copied out of guest memory once and judged as copied; the number of steps is
//! bounded over both tables together. Section 2.7.5.

use thiserror::Error;

use super::chain::Slot;
use crate::mem::{Access, Desc, DeviceRing, GuestRam, Translator, Untranslatable};
use crate::spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, MAX_CHAIN_BYTES};

/// What is wrong with a descriptor chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChainFault {
    /// A head or next index beyond the queue, or beyond the indirect table.
    #[error("a descriptor index is out of range")]
    IndexOutOfRange,
    /// The head is in flight already.
    #[error("it was made available again before it was used")]
    Duplicate,
    /// More descriptors than the queue is long: a loop, perhaps.
    #[error("it is longer than the queue")]
    TooLong,
    /// More than 2^32 bytes.
    #[error("it describes more than 2^32 bytes")]
    TooManyBytes,
    /// A buffer or an indirect table that is not guest memory, or may not be accessed so.
    #[error("an address is outside guest memory")]
    OutsideRam,
    /// Crossing memory regions, it falls into too many pieces.
    #[error("it is scattered over too many memory regions")]
    Fragmented,
    /// A writable descriptor comes before a readable one.
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    /// An indirect table without the feature.
    #[error("it uses an indirect table, which was not negotiated")]
    IndirectNotNegotiated,
    /// An indirect descriptor that goes on.
    #[error("an indirect descriptor has a next one")]
    IndirectWithNext,
    /// A table whose length is zero or no multiple of a descriptor's.
    #[error("the length of its indirect table is not that of whole descriptors")]
    IndirectLength,
    /// A table in a table.
    #[error("its indirect table holds an indirect descriptor")]
    IndirectNested,
}

/// One chain being taken apart.
pub(super) struct Walk<'a, M: GuestRam> {
    slot: &'a mut Slot<M>,
    translator: &'a mut Translator,
    /// Descriptors the chain may still have.
    left: u16,
    readable: u64,
    writable: u64,
    seen_writable: bool,
}

impl<'a, M: GuestRam> Walk<'a, M> {
    #[inline]
    pub(super) fn new(slot: &'a mut Slot<M>, translator: &'a mut Translator, limit: u16) -> Self {
        slot.buffers.clear();
        slot.writable_at = 0;
        Self {
            slot,
            translator,
            left: limit,
            readable: 0,
            writable: 0,
            seen_writable: false,
        }
    }

    /// Follows the chain from `head` on through the ring's own table.
    #[inline]
    pub(super) fn direct(
        &mut self,
        ring: &DeviceRing<M>,
        head: u16,
        indirect: bool,
    ) -> Result<(), ChainFault> {
        let mut index = head;
        loop {
            let desc = ring.desc(index);
            if desc.flags & DESC_F_INDIRECT != 0 {
                return self.indirect(ring, desc, indirect);
            }
            self.add(desc)?;
            if desc.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = desc.next;
            if index >= ring.size() {
                return Err(ChainFault::IndexOutOfRange);
            }
        }
    }

    /// Adds the buffer of a direct descriptor, or of one in a table.
    #[inline]
    fn add(&mut self, desc: Desc) -> Result<(), ChainFault> {
        self.left = self.left.checked_sub(1).ok_or(ChainFault::TooLong)?;
        let len = u64::from(desc.len);
        let access = if desc.flags & DESC_F_WRITE != 0 {
            if !self.seen_writable {
                self.seen_writable = true;
                self.slot.writable_at = self.slot.buffers.segments().len();
            }
            // At most 2^15 descriptors of 2^32 bytes: no sum here can wrap.
            self.writable = self.writable.wrapping_add(len);
            Access::Write
        } else {
            if self.seen_writable {
                return Err(ChainFault::ReadableAfterWritable);
            }
            self.readable = self.readable.wrapping_add(len);
            Access::Read
        };
        if len == 0 {
            return Ok(());
        }
        self.translator
            .append(&mut self.slot.buffers, desc.addr, desc.len, access)
            .map_err(ChainFault::from)
    }

    /// Adds the buffers of the table that `desc`, the last direct descriptor, points to. Its own
    /// `DESC_F_WRITE` says nothing (section 2.7.5.3.2).
    fn indirect(
        &mut self,
        ring: &DeviceRing<M>,
        desc: Desc,
        negotiated: bool,
    ) -> Result<(), ChainFault> {
        if !negotiated {
            return Err(ChainFault::IndirectNotNegotiated);
        }
        if desc.flags & DESC_F_NEXT != 0 {
            return Err(ChainFault::IndirectWithNext);
        }
        if desc.len == 0 || !desc.len.is_multiple_of(DESC_SIZE) {
            return Err(ChainFault::IndirectLength);
        }
        let entries = desc.len.wrapping_div(DESC_SIZE);
        let table = self.translator.table(ring.ram(), desc.addr, entries)?;
        let mut index = 0;
        loop {
            let desc = table.desc(index)?;
            if desc.flags & DESC_F_INDIRECT != 0 {
                return Err(ChainFault::IndirectNested);
            }
            self.add(desc)?;
            if desc.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = u32::from(desc.next);
            if index >= entries {
                return Err(ChainFault::IndexOutOfRange);
            }
        }
    }

    #[inline]
    pub(super) fn finish(self) -> Result<(), ChainFault> {
        if self.readable.wrapping_add(self.writable) > MAX_CHAIN_BYTES {
            return Err(ChainFault::TooManyBytes);
        }
        if !self.seen_writable {
            self.slot.writable_at = self.slot.buffers.segments().len();
        }
        self.slot.readable_len = self.readable;
        self.slot.writable_len = self.writable;
        Ok(())
    }
}

impl From<Untranslatable> for ChainFault {
    fn from(fault: Untranslatable) -> Self {
        match fault {
            Untranslatable::OutsideRam => Self::OutsideRam,
            Untranslatable::Fragmented => Self::Fragmented,
        }
    }
}
