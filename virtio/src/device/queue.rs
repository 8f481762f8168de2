//! A live queue, device's end: pop a chain, complete it, publish a batch.
//!
//! Size, addresses and features are frozen by type. Whatever the driver writes into the ring, a pop
//! gives a chain of checked segments, nothing, or an error that names the head and latches the queue
//! broken. It does not know what a request means, nor how interrupts and notifications travel.
//! Sections 2.7.5 to 2.7.13.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::mem;

use thiserror::Error;

use super::chain::{ChainSlot, DescriptorChain, Latch};
pub use super::config::{QueueConfig, RestoreError};
pub use super::state::{ActivateError, InFlight, Part, QueueState, RingFeatures};
pub use super::walk::ChainFault;
use super::walk::{self, Rules};
use crate::mem::{Desc, DeviceRing, GuestRam, Translator};
use crate::ring;

/// Whether the driver asked to be interrupted.
#[must_use = "the driver may be waiting for this interrupt"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// Interrupt it.
    Needed,
    /// It is looking anyway, or there is nothing new.
    NotNeeded,
}

/// Why nothing can be popped. The queue is broken from then on, and so is its device until reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChainError {
    /// It has been broken before.
    #[error("the queue is broken")]
    Broken,
    /// The available index is further ahead, of what was popped or of what was published as used,
    /// than the queue is long.
    #[error("the available index jumped to {avail} where the next entry is {next}")]
    IndexJump {
        /// The driver's index.
        avail: u16,
        /// Ours.
        next: u16,
    },
    /// A malformed chain.
    #[error("the chain at head {head} is malformed: {fault}")]
    Malformed {
        /// Its head.
        head: u16,
        /// What is wrong.
        fault: ChainFault,
    },
}

/// A live queue. Everything is allocated at activation, but for a request's slot, which is made when
/// more requests are in flight than ever before and then reused.
pub struct ActiveQueue<M: GuestRam> {
    ring: DeviceRing<M>,
    rules: Rules,
    /// Next entry of the available ring.
    next_avail: u16,
    /// Entries before this one may be popped without another look at the index.
    horizon: u16,
    /// Next entry of the used ring; the driver was shown those up to `published`.
    next_used: u16,
    published: u16,
    /// Up to where it was decided whether the driver wants an interrupt.
    decided: u16,
    /// An interrupt is due whatever the driver's index says: what was last decided about is no longer
    /// known, or too far back for indices to tell.
    due: bool,
    /// Chains this pass may still take from the ring; `None` is no limit.
    budget: Option<u16>,
    /// Bytes that the chains of this pass may still hold.
    bytes: u64,
    features: RingFeatures,
    drained: bool,
    /// For each head `FREE`, or while it is in flight its place in the available ring's sequence.
    heads: Box<[u32]>,
    /// Unused slots, the last used on top.
    pool: Vec<Box<ChainSlot<M>>>,
    /// In order only: which positions, modulo the size, are done but wait for earlier ones.
    done: Box<[bool]>,
    /// Restored requests, the next one last.
    replay: Vec<InFlight>,
    latch: Arc<Latch>,
    /// What was wrong with the chain that broke the queue.
    fault: Option<ChainFault>,
    /// Addresses, for `save`.
    config: QueueState,
}

/// A head that is the driver's. (Positions have 16 bits.)
const FREE: u32 = u32::MAX;

/// Bytes of a pass: some milliseconds' worth of copying.
const PASS_BYTES: u64 = 16 << 20;

/// So many chains without a decision about an interrupt, and it is made in the driver's favour.
const TOO_FAR: u16 = 1 << 15;

/// What there is to pop.
enum Supply {
    Nothing,
    Ring,
    Restored(InFlight),
}

impl<M: GuestRam> ActiveQueue<M> {
    pub(super) fn new(
        ring: DeviceRing<M>,
        max_size: u16,
        features: RingFeatures,
        state: &QueueState,
    ) -> Self {
        let size = usize::from(ring.size());
        let mut config = state.clone();
        config.sort_in_flight();
        let mut replay = mem::take(&mut config.in_flight);
        replay.reverse();
        let mut queue = Self {
            ring,
            // Crossing regions, a chain may have more segments than descriptors, but not many more.
            rules: Rules {
                translator: Translator::new(usize::from(max_size).saturating_mul(2)),
                limit: max_size,
                indirect: features.indirect,
            },
            next_avail: state.next_avail,
            horizon: state.next_avail,
            next_used: state.next_used,
            published: state.published,
            decided: state.published,
            due: state.undecided,
            budget: None,
            bytes: u64::MAX,
            features,
            drained: false,
            heads: vec![FREE; size].into_boxed_slice(),
            pool: Vec::with_capacity(size),
            done: vec![false; if features.in_order { size } else { 0 }].into_boxed_slice(),
            replay,
            latch: Arc::default(),
            fault: None,
            config,
        };
        queue.restore_done();
        if state.broken {
            queue.latch.set();
        }
        queue
    }

    /// In order, restored positions that are not in flight are done.
    fn restore_done(&mut self) {
        if !self.features.in_order {
            return;
        }
        let mut position = self.next_used;
        while position != self.next_avail {
            let waiting = self.replay.iter().any(|it| it.position == position);
            self.set_done(position, !waiting);
            position = position.wrapping_add(1);
        }
        self.advance_in_order();
    }

    /// Starts a pass that may take up to `chains` chains, and none after those hold 16 MiB together,
    /// readable and writable; a queue that was never granted any has no limit. A driver that refills
    /// for ever, or with very long chains, is so kept from starving other queues.
    pub fn grant(&mut self, chains: u16) {
        self.budget = Some(chains);
        self.bytes = PASS_BYTES;
        // Entries already seen count anew.
        self.horizon = self.next_avail;
    }

    /// Whether the grant is used up; there may be more in the ring.
    #[must_use]
    pub fn spent(&self) -> bool {
        self.budget == Some(0) && self.horizon == self.next_avail
    }

    /// Takes the next chain off the available ring: its descriptors are read once, its addresses
    /// checked and translated. `None` when there is none or the grant is used up.
    ///
    /// # Errors
    /// What the driver wrote is malformed; the queue is broken from then on.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<DescriptorChain<M>>, ChainError> {
        if self.next_avail == self.horizon {
            match self.supply()? {
                Supply::Nothing => return Ok(None),
                Supply::Ring => {}
                Supply::Restored(it) => return self.chain(it.position, it.head),
            }
        }
        let position = self.next_avail;
        self.next_avail = position.wrapping_add(1);
        let head = self.ring.avail_entry(position);
        self.chain(position, head)
    }

    /// Looks at the available index, once for as many chains as it shows.
    #[inline(never)]
    fn supply(&mut self) -> Result<Supply, ChainError> {
        if self.latch.is_set() {
            return Err(ChainError::Broken);
        }
        self.drained = false;
        if self.budget == Some(0) {
            return Ok(Supply::Nothing);
        }
        if let Some(restored) = self.replay.pop() {
            self.spend(1);
            return Ok(Supply::Restored(restored));
        }
        let avail = ring::peer_idx(&self.ring);
        let ahead = avail.wrapping_sub(self.next_avail);
        // A driver can offer no more than it has, and what it has not been shown as used it has not.
        let out = avail.wrapping_sub(self.published);
        if ahead > self.ring.size() || out > self.ring.size() {
            self.latch.set();
            let next = self.next_avail;
            return Err(ChainError::IndexJump { avail, next });
        }
        if ahead == 0 {
            self.drained = true;
            return Ok(Supply::Nothing);
        }
        let granted = ahead.min(self.budget.unwrap_or(ahead));
        self.spend(granted);
        self.horizon = self.next_avail.wrapping_add(granted);
        Ok(Supply::Ring)
    }

    fn spend(&mut self, chains: u16) {
        self.budget = self.budget.map(|left| left.saturating_sub(chains));
    }

    #[inline]
    fn chain(
        &mut self,
        position: u16,
        head: u16,
    ) -> Result<Option<DescriptorChain<M>>, ChainError> {
        match self.take(position, head) {
            Some(slot) => {
                self.weigh(&slot);
                Ok(Some(DescriptorChain(slot)))
            }
            None => Err(self.malformed(head)),
        }
    }

    /// Counts a chain's bytes. The one that exceeds the limit is still taken.
    #[inline]
    fn weigh(&mut self, slot: &ChainSlot<M>) {
        // Each is at most 2^32.
        let (readable, writable) = (slot.buffers.readable_len(), slot.buffers.writable_len());
        let left = self.bytes.checked_sub(readable.saturating_add(writable));
        match left {
            Some(left) => self.bytes = left,
            None => self.end_pass(),
        }
    }

    /// Uses the grant up. Entries already seen are left for the next pass.
    #[cold]
    fn end_pass(&mut self) {
        if self.budget.is_some() {
            self.budget = Some(0);
            self.horizon = self.next_avail;
        }
    }

    /// Makes a chain of what hangs off `head`; `None` leaves the reason in `fault`. (A pointer comes
    /// back in a register, which a whole result does not.) A chain of one is dealt with right here;
    /// everything else is a call in the last place, so that nothing need be saved before.
    #[inline]
    fn take(&mut self, position: u16, head: u16) -> Option<Box<ChainSlot<M>>> {
        let Some(state) = self.heads.get_mut(usize::from(head)) else {
            return self.refuse(ChainFault::IndexOutOfRange);
        };
        if *state != FREE {
            return self.refuse(ChainFault::Duplicate);
        }
        *state = u32::from(position);
        let first = self.ring.desc(head);
        let mut slot = self.pool.pop();
        if let Some(slot) = &mut slot
            && walk::single(&self.rules, &mut slot.buffers, first)
        {
            slot.arm(head);
        } else {
            return self.take_long(slot, head, first);
        }
        slot
    }

    #[inline(never)]
    fn take_long(
        &mut self,
        slot: Option<Box<ChainSlot<M>>>,
        head: u16,
        first: Desc,
    ) -> Option<Box<ChainSlot<M>>> {
        let mut slot = slot.unwrap_or_else(|| self.new_slot());
        match walk::walk(&self.ring, &self.rules, &mut slot.buffers, head, first) {
            Ok(()) => {
                slot.arm(head);
                Some(slot)
            }
            Err(fault) => self.refuse(fault),
        }
    }

    #[cold]
    fn refuse(&mut self, fault: ChainFault) -> Option<Box<ChainSlot<M>>> {
        self.fault = Some(fault);
        None
    }

    #[cold]
    fn malformed(&mut self, head: u16) -> ChainError {
        self.latch.set();
        self.horizon = self.next_avail;
        match self.fault {
            Some(fault) => ChainError::Malformed { head, fault },
            None => ChainError::Broken,
        }
    }

    #[cold]
    fn new_slot(&self) -> Box<ChainSlot<M>> {
        let latch = Arc::clone(&self.latch);
        Box::new(ChainSlot::new(self.ring.ram().clone(), latch))
    }

    /// Puts a chain onto the used ring with `written` bytes, cut to what its writable part holds.
    /// The driver sees it after [`publish`](Self::publish).
    #[inline]
    pub fn complete(&mut self, chain: DescriptorChain<M>, written: u32) {
        let mut slot = chain.0;
        let usual = Arc::ptr_eq(&slot.latch, &self.latch)
            && !self.features.in_order
            && !self.ring.ram().tracks_dirty()
            && self.pool.len() < self.pool.capacity();
        if !usual {
            return self.complete_long(slot, written);
        }
        let written = slot.disarm(written);
        if let Some(head) = self.heads.get_mut(usize::from(slot.head)) {
            *head = FREE;
        }
        self.ring.set_used_entry(self.next_used, slot.head, written);
        self.next_used = self.next_used.wrapping_add(1);
        self.pool.push(slot);
    }

    /// The same with all that is not usual.
    #[inline(never)]
    fn complete_long(&mut self, mut slot: Box<ChainSlot<M>>, written: u32) {
        if !Arc::ptr_eq(&slot.latch, &self.latch) {
            // Another queue's: dropping it breaks that one, and this one can't be trusted either.
            self.latch.set();
            return;
        }
        slot.buffers.mark_dirty();
        let written = slot.disarm(written);
        let state = self.heads.get_mut(usize::from(slot.head));
        let position = state.map_or(FREE, |state| mem::replace(state, FREE));
        match u16::try_from(position) {
            Ok(position) if self.features.in_order => {
                self.ring.set_used_entry(position, slot.head, written);
                self.set_done(position, true);
                self.advance_in_order();
            }
            _ => {
                self.ring.set_used_entry(self.next_used, slot.head, written);
                self.next_used = self.next_used.wrapping_add(1);
            }
        }
        self.pool.push(slot);
    }

    fn set_done(&mut self, position: u16, done: bool) {
        let slot = usize::from(position & self.ring.size().wrapping_sub(1));
        if let Some(flag) = self.done.get_mut(slot) {
            *flag = done;
        }
    }

    /// Moves on over positions that are done, up to the first that is not.
    fn advance_in_order(&mut self) {
        let mask = self.ring.size().wrapping_sub(1);
        while let Some(done) = self.done.get_mut(usize::from(self.next_used & mask))
            && mem::take(done)
        {
            self.next_used = self.next_used.wrapping_add(1);
        }
    }

    /// Shows the driver what was completed so far, for one that is looking anyway and can go on while
    /// the batch does. [`publish`](Self::publish) has to follow, which decides about the interrupt.
    #[inline]
    pub fn publish_used(&mut self) {
        if self.published != self.next_used {
            self.published = self.next_used;
            ring::publish_idx(&self.ring, self.next_used);
            // At most a queue's length is added at a time, so this is seen before the count wraps.
            self.due |= self.unsignalled() >= TOO_FAR;
        }
    }

    /// Shows the driver what was completed since the last call: one store of the index, one fence,
    /// one decision.
    #[inline]
    pub fn publish(&mut self) -> Interrupt {
        let (old, new) = (self.decided, self.next_used);
        if old == new && !self.due {
            return Interrupt::NotNeeded;
        }
        (self.published, self.decided) = (new, new);
        let needed = ring::publish(&self.ring, self.features.event_idx, old, new);
        self.ring.mark_used_dirty();
        if mem::take(&mut self.due) || needed {
            Interrupt::Needed
        } else {
            Interrupt::NotNeeded
        }
    }

    /// Chains completed since the last decision about an interrupt.
    #[must_use]
    pub fn unsignalled(&self) -> u16 {
        self.next_used.wrapping_sub(self.decided)
    }

    /// Whether the driver was shown something about which it is not decided whether to interrupt it.
    fn owes(&self) -> bool {
        self.due || self.published != self.decided
    }

    /// Whether the last pop found the available ring empty.
    #[must_use]
    pub fn drained(&self) -> bool {
        self.drained
    }

    /// Whether the driver has made something available since, told by one load: for looking at the ring
    /// while notifications are off. What it is, and whether it is well formed, [`pop`](Self::pop) says.
    #[must_use]
    #[inline]
    pub fn has_available(&self) -> bool {
        ring::peer_idx(&self.ring) != self.next_avail && !self.latch.is_set()
    }

    /// Asks the driver not to notify, as long as we are looking anyway.
    pub fn disable_notification(&mut self) {
        ring::disable_notifications(&self.ring, self.features.event_idx);
        self.ring.mark_used_dirty();
    }

    /// Asks the driver to notify about the next chain. True when it is there already, and no
    /// notification need come: pop again.
    #[must_use = "a chain that is already there may bring no notification"]
    pub fn enable_notification(&mut self) -> bool {
        let next = self.next_avail;
        let more = ring::enable_notifications(&self.ring, self.features.event_idx, next);
        self.ring.mark_used_dirty();
        // Broken, there is nothing to come back for.
        more && !self.latch.is_set()
    }

    /// Chains popped and not yet completed (in order: not yet on the used ring).
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.next_avail.wrapping_sub(self.next_used)
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Whether the driver, or a forgotten chain, has made the queue unusable until reset.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.latch.is_set()
    }

    /// The queue as plain numbers, for a snapshot. Requests in flight are listed; the queue restored
    /// from it hands them out again, so they must not be completed on this one any more.
    #[must_use]
    pub fn save(&self) -> QueueState {
        // Entries that were filled and not published, which the restored queue will not fill again.
        self.ring.mark_used_dirty();
        if self.latch.is_set() {
            // What was popped can't be trusted, not even its number.
            return QueueState {
                next_avail: self.next_used,
                next_used: self.next_used,
                published: self.published,
                undecided: self.owes(),
                broken: true,
                ..self.config.clone()
            };
        }
        let live = (0..).zip(&self.heads).filter_map(|(head, state)| {
            let position = u16::try_from(*state).ok()?;
            Some(InFlight { position, head })
        });
        let mut state = QueueState {
            next_avail: self.next_avail,
            next_used: self.next_used,
            published: self.published,
            undecided: self.owes(),
            in_flight: live.chain(self.replay.iter().copied()).collect(),
            ..self.config.clone()
        };
        state.sort_in_flight();
        state
    }
}

#[cfg(test)]
mod tests;
