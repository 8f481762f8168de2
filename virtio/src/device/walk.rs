//! Walks one chain of descriptors, direct and indirect, and collects its segments.
//!
//! Each descriptor is copied out of guest memory once, and the copy is validated. The number of
//! steps is bounded over both tables together. Section 2.7.5.

use thiserror::Error;

use crate::mem::{
    Access, Buffers, Desc, DescSource, DeviceRing, Gather, GuestRam, Table, Translator,
    Untranslatable,
};
use crate::spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE};

/// What is wrong with a descriptor chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChainFault {
    /// A head or next index exceeds the queue size, or the indirect table.
    #[error("a descriptor index is out of range")]
    IndexOutOfRange,
    /// The head is already in flight.
    #[error("it was made available again before it was used")]
    Duplicate,
    /// The chain has more descriptors than the queue size; it may be a loop.
    #[error("it is longer than the queue")]
    TooLong,
    /// The chain has more than 2^32 bytes.
    #[error("it describes more than 2^32 bytes")]
    TooManyBytes,
    /// A buffer or an indirect table is not guest memory, or not accessible as required.
    #[error("an address is outside guest memory")]
    OutsideRam,
    /// The chain crosses memory regions and has too many segments.
    #[error("it is scattered over too many memory regions")]
    Fragmented,
    /// A readable descriptor follows a writable one.
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    /// The chain has an indirect table, but the feature was not negotiated.
    #[error("it uses an indirect table, which was not negotiated")]
    IndirectNotNegotiated,
    /// An indirect descriptor has the flag NEXT.
    #[error("an indirect descriptor has a next one")]
    IndirectWithNext,
    /// The length of an indirect table is zero or not a multiple of that of a descriptor.
    #[error("the length of its indirect table is not that of whole descriptors")]
    IndirectLength,
    /// An indirect table contains an indirect descriptor.
    #[error("its indirect table holds an indirect descriptor")]
    IndirectNested,
}

/// The rules for all chains of a queue.
pub(super) struct Rules {
    pub(super) translator: Translator,
    /// Maximum number of descriptors of a chain, direct and indirect together.
    pub(super) limit: u16,
    /// Whether indirect tables were negotiated.
    pub(super) indirect: bool,
}

/// Adds a chain of one descriptor to `buffers`, if `first` is such a chain and its buffer is in the
/// region of the previous one. After a result of false, [`walk`] has to be used.
#[inline(always)]
pub(super) fn single<M: GuestRam>(rules: &Rules, buffers: &mut Buffers<M>, first: Desc) -> bool {
    let (addr, len) = (first.addr(), first.len());
    let translator = &rules.translator;
    match first.flags(DESC_F_NEXT | DESC_F_INDIRECT | DESC_F_WRITE) {
        0 => translator.single(buffers, addr, len, Access::Read),
        DESC_F_WRITE => translator.single(buffers, addr, len, Access::Write),
        _ => false,
    }
}

/// Adds the chain that begins with `first`, the descriptor at its head, to `buffers`.
#[inline(always)]
pub(super) fn walk<M: GuestRam>(
    ring: &DeviceRing<M>,
    rules: &Rules,
    buffers: &mut Buffers<M>,
    head: u16,
    first: Desc,
) -> Result<(), ChainFault> {
    if first.flags(DESC_F_INDIRECT) == 0 {
        direct(ring, rules, buffers, head, first)
    } else {
        indirect(ring.ram(), rules, buffers, first)
    }
}

/// Walks a chain through the ring's own table and, possibly, an indirect table at its end.
#[inline(always)]
fn direct<M: GuestRam>(
    ring: &DeviceRing<M>,
    rules: &Rules,
    buffers: &mut Buffers<M>,
    head: u16,
    first: Desc,
) -> Result<(), ChainFault> {
    let mut walk = Walk::new(rules, buffers);
    match walk.follow(&ring.table(), head, first)? {
        None => walk.finish(),
        Some(desc) => onward(walk, table(ring.ram(), rules, desc)?),
    }
}

/// Walks a chain whose head is an indirect descriptor.
#[inline(always)]
fn indirect<M: GuestRam>(
    ram: &M,
    rules: &Rules,
    buffers: &mut Buffers<M>,
    first: Desc,
) -> Result<(), ChainFault> {
    match table(ram, rules, first)? {
        Table::Whole(table) => {
            let first = table.get(0)?.ok_or(ChainFault::IndexOutOfRange)?;
            if single(rules, buffers, first) {
                return Ok(());
            }
            Walk::new(rules, buffers).last(&table, first)
        }
        table => onward(Walk::new(rules, buffers), table),
    }
}

/// Continues in an indirect table in the unusual cases: behind direct descriptors, or scattered.
#[cold]
#[inline(never)]
fn onward<M: GuestRam>(walk: Walk<'_, M>, table: Table<'_, M>) -> Result<(), ChainFault> {
    match table {
        Table::Whole(table) => walk.whole(&table),
        Table::Scattered(table) => walk.whole(&table),
    }
}

/// Returns the table to which `desc`, the last direct descriptor, points. Its `DESC_F_WRITE` is
/// ignored (section 2.7.5.3.2).
#[inline(always)]
fn table<'r, M: GuestRam>(
    ram: &'r M,
    rules: &Rules,
    desc: Desc,
) -> Result<Table<'r, M>, ChainFault> {
    if !rules.indirect {
        return Err(ChainFault::IndirectNotNegotiated);
    }
    if desc.flags(DESC_F_NEXT) != 0 {
        return Err(ChainFault::IndirectWithNext);
    }
    let len = desc.len();
    if len == 0 || !len.is_multiple_of(DESC_SIZE) {
        return Err(ChainFault::IndirectLength);
    }
    let entries = len.wrapping_div(DESC_SIZE);
    Ok(rules.translator.table(ram, desc.addr(), entries)?)
}

/// The state of the walk over one chain.
struct Walk<'a, M: GuestRam> {
    gather: Gather<'a, M>,
    /// Number of descriptors that the chain may still have.
    left: u16,
    /// Whether there was a writable descriptor.
    writable: bool,
}

impl<'a, M: GuestRam> Walk<'a, M> {
    #[inline(always)]
    fn new(rules: &'a Rules, buffers: &'a mut Buffers<M>) -> Self {
        Self {
            gather: Gather::new(&rules.translator, buffers),
            left: rules.limit,
            writable: false,
        }
    }

    /// Follows the links of one table from `first` on until they end, or until an indirect
    /// descriptor.
    #[inline(always)]
    fn follow(
        &mut self,
        table: &impl DescSource,
        at: u16,
        first: Desc,
    ) -> Result<Option<Desc>, ChainFault> {
        let mut desc = first;
        let mut at = u32::from(at);
        // Two loops, so that neither has to check for the direction.
        while !self.writable {
            match desc.flags(DESC_F_INDIRECT | DESC_F_WRITE) {
                0 => {}
                DESC_F_WRITE => {
                    self.writable = true;
                    self.gather.turn_writable();
                    break;
                }
                _ => return Ok(Some(desc)),
            }
            at = at.wrapping_add(1);
            match self.take(table, desc, at)? {
                Some(next) => desc = next,
                None => return Ok(None),
            }
        }
        loop {
            match desc.flags(DESC_F_INDIRECT | DESC_F_WRITE) {
                DESC_F_WRITE => {}
                0 => return Err(ChainFault::ReadableAfterWritable),
                _ => return Ok(Some(desc)),
            }
            at = at.wrapping_add(1);
            match self.take(table, desc, at)? {
                Some(next) => desc = next,
                None => return Ok(None),
            }
        }
    }

    /// Adds one descriptor's buffer, and returns the next descriptor.
    #[inline(always)]
    fn take(
        &mut self,
        table: &impl DescSource,
        desc: Desc,
        guess: u32,
    ) -> Result<Option<Desc>, ChainFault> {
        self.left = self.left.checked_sub(1).ok_or(ChainFault::TooLong)?;
        self.gather.add(desc.addr(), desc.len())?;
        if desc.flags(DESC_F_NEXT) == 0 {
            return Ok(None);
        }
        let next = table.get_likely(desc.next(), guess)?;
        next.ok_or(ChainFault::IndexOutOfRange).map(Some)
    }

    /// Follows the last table from its first entry to its end.
    fn whole(self, table: &impl DescSource) -> Result<(), ChainFault> {
        let first = table.get(0)?.ok_or(ChainFault::IndexOutOfRange)?;
        self.last(table, first)
    }

    /// Follows the last table from `first`, its first entry, to its end.
    #[inline(always)]
    fn last(mut self, table: &impl DescSource, first: Desc) -> Result<(), ChainFault> {
        match self.follow(table, 0, first)? {
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
