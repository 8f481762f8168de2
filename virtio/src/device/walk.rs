//! Following one chain of descriptors, direct and indirect, into segments.
//!
//! Each descriptor is copied out of guest memory once and judged as copied; the number of steps is
//! bounded over both tables together. Section 2.7.5.

use thiserror::Error;

use crate::mem::{
    Access, Buffers, Desc, DescSource, DeviceRing, Gather, GuestRam, Scattered, Table, Translator,
    Untranslatable,
};
use crate::spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE};

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

/// Takes the chain that begins with `first`, the descriptor at its head, into `buffers`.
#[inline]
pub(super) fn walk<M: GuestRam>(
    ring: &DeviceRing<M>,
    rules: &Rules,
    buffers: &mut Buffers<M>,
    first: Desc,
) -> Result<(), ChainFault> {
    if first.flags & (DESC_F_NEXT | DESC_F_INDIRECT) == 0
        && rules
            .translator
            .single(buffers, first.addr, first.len, access(first))
    {
        return Ok(());
    }
    direct(ring, rules, buffers, first)
}

/// What holds for all chains of a queue.
pub(super) struct Rules {
    pub(super) translator: Translator,
    /// Most descriptors of a chain, direct and indirect together.
    pub(super) limit: u16,
    /// Whether indirect tables were negotiated.
    pub(super) indirect: bool,
}

fn access(desc: Desc) -> Access {
    if desc.flags & DESC_F_WRITE == 0 {
        Access::Read
    } else {
        Access::Write
    }
}

/// Follows a chain through the ring's own table and, at its end, an indirect one.
#[inline(never)]
fn direct<M: GuestRam>(
    ring: &DeviceRing<M>,
    rules: &Rules,
    buffers: &mut Buffers<M>,
    first: Desc,
) -> Result<(), ChainFault> {
    let mut walk = Walk::new(rules, buffers);
    if first.flags & DESC_F_INDIRECT != 0 {
        return walk.indirect(ring.ram(), rules, first);
    }
    match walk.follow(&ring.table(), first)? {
        None => walk.finish(),
        Some(desc) => walk.indirect(ring.ram(), rules, desc),
    }
}

/// One chain being taken apart.
struct Walk<'a, M: GuestRam> {
    gather: Gather<'a, M>,
    /// Descriptors the chain may still have.
    left: u16,
}

impl<'a, M: GuestRam> Walk<'a, M> {
    #[inline(always)]
    fn new(rules: &'a Rules, buffers: &'a mut Buffers<M>) -> Self {
        Self {
            gather: Gather::new(&rules.translator, buffers),
            left: rules.limit,
        }
    }

    /// Follows the links of one table from `first` on until they end, or come to an indirect
    /// descriptor.
    #[inline(always)]
    fn follow(&mut self, table: &impl DescSource, first: Desc) -> Result<Option<Desc>, ChainFault> {
        let mut desc = first;
        loop {
            // Most descriptors are like the one before.
            if desc.flags & DESC_F_INDIRECT != 0 || access(desc) != self.gather.access() {
                if desc.flags & DESC_F_INDIRECT != 0 {
                    return Ok(Some(desc));
                }
                if self.gather.access() == Access::Write {
                    return Err(ChainFault::ReadableAfterWritable);
                }
                self.gather.turn_writable();
            }
            self.left = self.left.checked_sub(1).ok_or(ChainFault::TooLong)?;
            self.gather.add(desc.addr, desc.len)?;
            if desc.flags & DESC_F_NEXT == 0 {
                return Ok(None);
            }
            let next = table.get(u32::from(desc.next))?;
            desc = next.ok_or(ChainFault::IndexOutOfRange)?;
        }
    }

    /// Follows the table that `desc`, the last direct descriptor, points to. Its own `DESC_F_WRITE`
    /// says nothing (section 2.7.5.3.2).
    #[inline(never)]
    fn indirect(self, ram: &M, rules: &Rules, desc: Desc) -> Result<(), ChainFault> {
        if !rules.indirect {
            return Err(ChainFault::IndirectNotNegotiated);
        }
        if desc.flags & DESC_F_NEXT != 0 {
            return Err(ChainFault::IndirectWithNext);
        }
        if desc.len == 0 || !desc.len.is_multiple_of(DESC_SIZE) {
            return Err(ChainFault::IndirectLength);
        }
        let entries = desc.len.wrapping_div(DESC_SIZE);
        match self.gather.table(ram, desc.addr, entries)? {
            Table::Whole(table) => self.last(&table),
            Table::Scattered(table) => self.scattered(&table),
        }
    }

    #[cold]
    #[inline(never)]
    fn scattered(self, table: &Scattered<'_, M>) -> Result<(), ChainFault> {
        self.last(table)
    }

    /// Follows the last table of a chain to its end.
    #[inline(always)]
    fn last(mut self, table: &impl DescSource) -> Result<(), ChainFault> {
        let first = table.get(0)?.ok_or(ChainFault::IndexOutOfRange)?;
        match self.follow(table, first)? {
            None => self.finish(),
            Some(_) => Err(ChainFault::IndirectNested),
        }
    }

    #[inline(always)]
    fn finish(self) -> Result<(), ChainFault> {
        if self.gather.finish() {
            Ok(())
        } else {
            Err(ChainFault::TooManyBytes)
        }
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
