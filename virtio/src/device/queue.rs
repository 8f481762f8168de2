//! An active queue, device's end: pops chains, completes them, publishes batches.
//!
//! Size, addresses and features are frozen by type. Whatever the driver writes into the ring, a pop
//! returns a chain of checked segments, nothing, or an error that names the head and breaks the
//! queue. This module does not know the meaning of a request, nor how interrupts and notifications
//! are delivered. Sections 2.7.5 to 2.7.13.

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

/// Whether the driver has to be interrupted.
#[must_use = "the driver may be waiting for this interrupt"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// Interrupt the driver.
    Needed,
    /// The driver polls, or there are no new used entries.
    NotNeeded,
}

/// Why nothing can be popped. The queue is broken from then on, and so is its device until reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChainError {
    /// The queue was already broken.
    #[error("the queue is broken")]
    Broken,
    /// The available index is further ahead of the popped or of the published used entries than the
    /// queue size.
    #[error("the available index jumped to {avail} where the next entry is {next}")]
    IndexJump {
        /// The driver's index.
        avail: u16,
        /// The next entry to pop.
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

/// An active queue. All memory is allocated at activation, except that of a request, which is
/// allocated when more requests are in flight than ever before, and then reused.
pub struct ActiveQueue<M: GuestRam> {
    ring: DeviceRing<M>,
    rules: Rules,
    /// Next entry of the available ring.
    next_avail: u16,
    /// Entries before this one may be popped without loading the index again.
    horizon: u16,
    /// Next entry of the used ring, and the published used index.
    next_used: u16,
    published: u16,
    /// The used index up to which it was decided whether to interrupt the driver.
    decided: u16,
    /// The driver's event index when it last wanted an interrupt. As long as it does not change,
    /// the driver has not handled that interrupt.
    raised: Option<u16>,
    /// An interrupt is due regardless of the driver's event index: the index of the last decision
    /// is unknown, or too far back for a comparison.
    due: bool,
    /// Number of chains that this pass may still pop; `None` is no limit.
    budget: Option<u16>,
    /// Number of bytes that the chains of this pass may still have.
    bytes: u64,
    features: RingFeatures,
    drained: bool,
    /// Per head: `FREE`, or its position in the available ring while it is in flight.
    heads: Box<[u32]>,
    /// Unused slots, the most recently used last.
    pool: Vec<Box<ChainSlot<M>>>,
    /// With IN_ORDER only: the positions, modulo the size, that are completed but wait for earlier
    /// ones.
    done: Box<[bool]>,
    /// Restored requests, the next one last.
    replay: Vec<InFlight>,
    latch: Arc<Latch>,
    /// The fault of the chain that broke the queue.
    fault: Option<ChainFault>,
    /// The addresses, for `save`.
    config: QueueState,
}

/// A head that is not in flight. (Positions have 16 bits.)
const FREE: u32 = u32::MAX;

/// Maximum number of bytes of a pass, which take some milliseconds to copy.
const PASS_BYTES: u64 = 16 << 20;

/// After this many used entries without a decision, the driver is interrupted in any case.
const TOO_FAR: u16 = 1 << 15;

/// The source of the next chain.
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
            // A chain that crosses regions may have more segments than descriptors, but not many
            // more.
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
            raised: None,
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

    /// With IN_ORDER, marks restored positions that are not in flight as completed.
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

    /// Starts a pass that may pop up to `chains` chains, and no more once they have 16 MiB
    /// together, readable and writable. Without a call there is no limit. Prevents a driver that
    /// refills the ring permanently, or with very long chains, from starving other queues.
    pub fn grant(&mut self, chains: u16) {
        self.budget = Some(chains);
        self.bytes = PASS_BYTES;
        // Entries already loaded count again.
        self.horizon = self.next_avail;
    }

    /// Returns whether the pass has reached its limit; there may be more in the ring.
    #[must_use]
    pub fn spent(&self) -> bool {
        self.budget == Some(0) && self.horizon == self.next_avail
    }

    /// Pops the next chain: its descriptors are read once, its addresses checked and translated.
    /// Returns `None` if there is none or the pass has reached its limit.
    ///
    /// # Errors
    /// The ring is malformed; the queue is broken from then on.
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

    /// Loads the available index, once for all the chains before it.
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
        // A driver can't make more entries available than the queue has, without those not yet
        // published as used.
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
                self.count_bytes(&slot);
                Ok(Some(DescriptorChain(slot)))
            }
            None => Err(self.malformed(head)),
        }
    }

    /// Counts a chain's bytes. The chain that exceeds the limit is still popped.
    #[inline]
    fn count_bytes(&mut self, slot: &ChainSlot<M>) {
        // Each is at most 2^32.
        let (readable, writable) = (slot.buffers.readable_len(), slot.buffers.writable_len());
        let left = self.bytes.checked_sub(readable.saturating_add(writable));
        match left {
            Some(left) => self.bytes = left,
            None => self.end_pass(),
        }
    }

    /// Ends the pass. Entries already loaded are left for the next pass.
    #[cold]
    fn end_pass(&mut self) {
        if self.budget.is_some() {
            self.budget = Some(0);
            self.horizon = self.next_avail;
        }
    }

    /// Builds the chain at `head`; `None` leaves the reason in `fault`. (A pointer is returned in a
    /// register, a whole result is not.) A chain of one descriptor is handled here; all others are
    /// a tail call, so that no register need be saved before.
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

    /// Puts a chain onto the used ring with `written` bytes, clamped to the size of its writable
    /// part. The driver sees it after [`publish`](Self::publish).
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

    /// Completes a chain in the unusual cases.
    #[inline(never)]
    fn complete_long(&mut self, mut slot: Box<ChainSlot<M>>, written: u32) {
        if !Arc::ptr_eq(&slot.latch, &self.latch) {
            // The chain is another queue's: dropping it breaks that queue, and this one can't be
            // trusted either.
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

    /// Advances over completed positions, up to the first that is not.
    fn advance_in_order(&mut self) {
        let mask = self.ring.size().wrapping_sub(1);
        while let Some(done) = self.done.get_mut(usize::from(self.next_used & mask))
            && mem::take(done)
        {
            self.next_used = self.next_used.wrapping_add(1);
        }
    }

    /// Publishes the chains completed so far without a decision about an interrupt, for a driver
    /// that polls and can continue while the batch is still processed. [`publish`](Self::publish),
    /// which decides, has to follow.
    #[inline]
    pub fn publish_used(&mut self) {
        if self.published != self.next_used {
            self.published = self.next_used;
            ring::publish_idx(&self.ring, self.next_used);
            // At most a queue size is added at a time, so this is noticed before the count wraps.
            self.due |= self.unsignalled() >= TOO_FAR;
        }
    }

    /// Publishes the chains completed since the last call, and returns whether to interrupt the
    /// driver: one store of the index, one fence, one decision.
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
            self.raised = needed.then(|| ring::event(&self.ring));
            Interrupt::Needed
        } else {
            Interrupt::NotNeeded
        }
    }

    /// Returns the number of chains completed since the last decision about an interrupt.
    #[must_use]
    pub fn unsignalled(&self) -> u16 {
        self.next_used.wrapping_sub(self.decided)
    }

    /// Returns whether [`publish`](Self::publish) would find that the driver wants an interrupt, as
    /// far as loads without a fence can tell. After a false, call `publish` to be sure.
    #[must_use]
    pub fn wants_interrupt(&self) -> bool {
        self.due
            || ring::wants(
                &self.ring,
                self.features.event_idx,
                self.decided,
                self.next_used,
            )
    }

    /// Returns how many requests the driver has made available and not taken back, as far as the
    /// ring shows it; never more than it has in flight. With `EVENT_IDX`, for a driver that waits
    /// for interrupts, those count whose interrupt it has not handled yet. For other drivers they
    /// count from the last decision about an interrupt.
    #[must_use]
    pub fn outstanding(&self) -> u16 {
        // Before the event index: the driver takes requests back before it makes new ones
        // available.
        let avail = ring::peer_idx(&self.ring);
        let mut taken_back = self.decided;
        if self.features.event_idx {
            let event = ring::event(&self.ring);
            let waits = ring::need_event(event, self.next_used, self.decided);
            if waits || self.raised == Some(event) {
                taken_back = event;
            }
        }
        let outstanding = avail.wrapping_sub(taken_back);
        if outstanding <= self.ring.size() {
            outstanding
        } else {
            // An invalid index, which the next pop reports, or a stale event index.
            0
        }
    }

    /// Returns whether entries were published without a decision about an interrupt.
    fn has_undecided(&self) -> bool {
        self.due || self.published != self.decided
    }

    /// Returns whether the last pop found the available ring empty.
    #[must_use]
    pub fn drained(&self) -> bool {
        self.drained
    }

    /// Returns whether the driver has made a chain available since, by a single load: for polling
    /// while notifications are disabled. [`pop`](Self::pop) validates the chain.
    #[must_use]
    #[inline]
    pub fn has_available(&self) -> bool {
        ring::peer_idx(&self.ring) != self.next_avail && !self.latch.is_set()
    }

    /// Suppresses notifications by the driver while the ring is polled anyway.
    pub fn disable_notification(&mut self) {
        ring::disable_notifications(&self.ring, self.features.event_idx);
        self.ring.mark_used_dirty();
    }

    /// Requests a notification for the next chain. Returns true if it is already available; then
    /// there may be no notification, so pop again.
    #[must_use = "a chain that is already there may bring no notification"]
    pub fn enable_notification(&mut self) -> bool {
        let next = self.next_avail;
        let more = ring::enable_notifications(&self.ring, self.features.event_idx, next);
        self.ring.mark_used_dirty();
        // A broken queue has nothing to pop.
        more && !self.latch.is_set()
    }

    /// Returns the number of chains popped and not yet completed (with IN_ORDER: not yet on the
    /// used ring).
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.next_avail.wrapping_sub(self.next_used)
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Returns whether the driver, or a dropped chain, has broken the queue, until reset.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.latch.is_set()
    }

    /// Returns the queue as plain data, for a snapshot. It lists the requests in flight; the
    /// restored queue returns them again, so they must not be completed on this one.
    #[must_use]
    pub fn save(&self) -> QueueState {
        // Includes entries that were filled but not published, which the restored queue does not
        // fill again.
        self.ring.mark_used_dirty();
        if self.latch.is_set() {
            // The popped requests can't be trusted, not even their number.
            return QueueState {
                next_avail: self.next_used,
                next_used: self.next_used,
                published: self.published,
                undecided: self.has_undecided(),
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
            undecided: self.has_undecided(),
            in_flight: live.chain(self.replay.iter().copied()).collect(),
            ..self.config.clone()
        };
        state.sort_in_flight();
        state
    }
}

#[cfg(test)]
mod tests;
