//! Following one chain of descriptors, direct and indirect, into segments.
//!
//! Each descriptor is copied out of guest memory once and judged as copied; the number of steps is
//! bounded over both tables together. Section 2.7.5.

use thiserror::Error;

use crate::mem::{
    Desc, DescSource, DeviceRing, Gather, GuestRam, Scattered, Table, Untranslatable,
};
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

/// What a chain amounts to, besides its segments.
pub(super) struct Extent {
    /// Number of readable segments.
    pub(super) writable_at: usize,
    /// Bytes of them.
    pub(super) readable: u64,
    /// Bytes of the writable segments.
    pub(super) writable: u64,
}

/// One chain being taken apart.
pub(super) struct Walk<'a, M: GuestRam> {
    gather: Gather<'a, M>,
    /// Descriptors the chain may still have.
    left: u16,
    /// `DESC_F_WRITE` once a writable descriptor has been seen.
    write: u16,
    /// Bytes of the current part, readable or writable.
    bytes: u64,
    /// Segments and bytes of the readable part, once it is over.
    readable: (usize, u64),
}

impl<'a, M: GuestRam> Walk<'a, M> {
    #[inline]
    pub(super) fn new(gather: Gather<'a, M>, limit: u16) -> Self {
        Self {
            gather,
            left: limit,
            write: 0,
            bytes: 0,
            readable: (0, 0),
        }
    }

    /// Follows the chain from `head` on through the ring's own table and, at its end, an indirect one.
    #[inline]
    pub(super) fn chain(
        mut self,
        ring: &DeviceRing<M>,
        head: u16,
        indirect: bool,
    ) -> Result<Extent, ChainFault> {
        match self.follow(&ring.table(), head)? {
            None => self.finish(),
            Some(desc) => self.indirect(desc, indirect),
        }
    }

    /// Follows the links of one table until they end, or come to an indirect descriptor.
    #[inline]
    fn follow(&mut self, table: &impl DescSource, first: u16) -> Result<Option<Desc>, ChainFault> {
        let mut index = u32::from(first);
        loop {
            let desc = table.get(index)?;
            let desc = desc.ok_or(ChainFault::IndexOutOfRange)?;
            // Most descriptors are like the one before.
            if desc.flags & (DESC_F_INDIRECT | DESC_F_WRITE) != self.write {
                if desc.flags & DESC_F_INDIRECT != 0 {
                    return Ok(Some(desc));
                }
                self.turn_writable()?;
            }
            self.left = self.left.checked_sub(1).ok_or(ChainFault::TooLong)?;
            // At most 2^15 descriptors of 2^32 bytes: no sum here can wrap.
            self.bytes = self.bytes.wrapping_add(u64::from(desc.len));
            self.gather.add(desc.addr, desc.len)?;
            if desc.flags & DESC_F_NEXT == 0 {
                return Ok(None);
            }
            index = u32::from(desc.next);
        }
    }

    /// A descriptor of the other kind: the first writable one, or one out of place.
    #[inline(always)]
    fn turn_writable(&mut self) -> Result<(), ChainFault> {
        if self.write != 0 {
            return Err(ChainFault::ReadableAfterWritable);
        }
        self.write = DESC_F_WRITE;
        self.readable = (self.gather.len(), core::mem::take(&mut self.bytes));
        self.gather.turn_writable();
        Ok(())
    }

    /// Follows the table that `desc`, the last direct descriptor, points to. Its own `DESC_F_WRITE`
    /// says nothing (section 2.7.5.3.2).
    #[inline(never)]
    fn indirect(mut self, desc: Desc, negotiated: bool) -> Result<Extent, ChainFault> {
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
        let nested = match self.gather.table(desc.addr, entries)? {
            Table::Whole(table) => self.follow(&table, 0)?,
            Table::Scattered(table) => return self.scattered(&table),
        };
        match nested {
            None => self.finish(),
            Some(_) => Err(ChainFault::IndirectNested),
        }
    }

    #[cold]
    #[inline(never)]
    fn scattered(mut self, table: &Scattered<'_, M>) -> Result<Extent, ChainFault> {
        match self.follow(table, 0)? {
            None => self.finish(),
            Some(_) => Err(ChainFault::IndirectNested),
        }
    }

    #[inline]
    fn finish(mut self) -> Result<Extent, ChainFault> {
        let (writable_at, readable, writable) = if self.write == 0 {
            (self.gather.len(), self.bytes, 0)
        } else {
            (self.readable.0, self.readable.1, self.bytes)
        };
        if readable.wrapping_add(writable) > MAX_CHAIN_BYTES {
            return Err(ChainFault::TooManyBytes);
        }
        self.gather.settle();
        Ok(Extent {
            writable_at,
            readable,
            writable,
        })
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
