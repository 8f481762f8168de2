//! The driver's end of a virtqueue: buffers are added, and used ones come back.
//!
//! Ownership: a buffer is added with a token, any value, which owns the memory that the device may
//! use (through [`ScatterList`](crate::scatterlist::ScatterList)s and other
//! [`DmaBuf`](super::DmaBuf)s in it). The queue keeps the token until the device has used the
//! buffer or is proven to have been reset. If the queue is dropped earlier, the buffers in flight
//! are leaked, never freed.
//!
//! Values written by the device are validated before use: a used entry must name a buffer in flight
//! and claim no more bytes than the buffer has room for. Otherwise the queue is [`Broken`] and
//! returns buffers only for a [`ResetProof`]. The in-flight table is private; the shared descriptor
//! table is never read.
//!
//! This module knows neither transports nor the meaning of buffers. Sections 2.7.13 and 2.7.14.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;

use super::accounting::Closed;
use super::engine::QueueCore;
pub use super::error::{Broken, NotProven};
pub use super::options::{IndirectPolicy, QueueOptions};
use crate::mem::dma::{DmaBytes, DmaMap, Identity};
use crate::mem::driver_ring::{DriverRing, QueueMemoryError};
use crate::mem::reset::{DeviceId, ResetProof, SetUp};
use crate::ring;

/// The device addresses of the three parts of a queue, which the transport passes to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAreas {
    /// Number of slots.
    pub size: u16,
    /// Descriptor area (`queue_desc`).
    pub descriptors: u64,
    /// Driver area (`queue_driver`): the available ring.
    pub driver: u64,
    /// Device area (`queue_device`): the used ring.
    pub device: u64,
}

/// Whether the device has to be notified of the published buffers.
#[must_use = "a device that asked for a notification waits for it"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kick {
    /// Notify the device.
    Needed,
    /// The device polls, or there are no new buffers.
    NotNeeded,
}

impl Kick {
    /// Calls `notify` if a notification is needed.
    #[inline]
    pub fn send(self, notify: impl FnOnce()) {
        if self == Self::Needed {
            notify();
        }
    }

    /// Returns `Needed` if either is: one notification covers both.
    pub const fn or(self, other: Self) -> Self {
        match self {
            Self::Needed => self,
            Self::NotNeeded => other,
        }
    }
}

/// Identifies a buffer in flight. The next buffer in the same slot has another ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    slot: u16,
    generation: u32,
}

/// A buffer that the device has used.
#[derive(Debug)]
pub struct Completion<T> {
    /// The token that was added with it.
    pub token: T,
    /// Bytes that the device claims to have written from the start of the writable part, at most
    /// the size of that part. The bytes behind them are not valid.
    pub written: u32,
    /// Its ticket.
    pub ticket: Ticket,
}

/// A slot's entry in the in-flight table. It is in use if it has a token.
struct InFlightBuffer<T> {
    token: Option<T>,
    closed: Closed,
}

/// The in-flight table.
pub(super) struct InFlightTable<T> {
    /// Leaked unless a reset is proven, like all memory that the device may still use.
    buffers: ManuallyDrop<Box<[InFlightBuffer<T>]>>,
    clamp_lengths: bool,
}

impl Closed {
    /// Returns its ticket.
    #[inline(always)]
    const fn ticket(&self) -> Ticket {
        Ticket {
            slot: self.head,
            generation: self.generation,
        }
    }
}

impl<T> InFlightTable<T> {
    fn new(size: u16, clamp_lengths: bool) -> Self {
        let empty = Closed {
            head: 0,
            last: 0,
            segments: 0,
            indirect: false,
            writable: 0,
            generation: 0,
        };
        let buffers = (0..size).map(|_| InFlightBuffer {
            token: None,
            closed: empty,
        });
        Self {
            buffers: ManuallyDrop::new(buffers.collect()),
            clamp_lengths,
        }
    }

    /// Adds a closed buffer.
    #[inline]
    pub(super) fn enter(&mut self, closed: Closed, token: T) -> Ticket {
        if let Some(entry) = self.buffers.get_mut(usize::from(closed.head)) {
            entry.token = Some(token);
            entry.closed = closed;
        }
        closed.ticket()
    }

    /// Removes a buffer, if the device's used entry is valid.
    #[inline(always)]
    fn leave(&mut self, id: u32, written: u32) -> Result<(T, Closed), Broken> {
        // Compared before the conversion to 16 bits.
        let slot = u16::try_from(id).map_err(|_| Broken::NoSuchSlot(id))?;
        let entry = self.buffers.get_mut(usize::from(slot));
        let entry = entry.ok_or(Broken::NoSuchSlot(id))?;
        let closed = entry.closed;
        let too_long = written > closed.writable && !self.clamp_lengths;
        if entry.token.is_some() && too_long {
            return Err(Broken::TooLong {
                slot,
                claimed: written,
                writable: closed.writable,
            });
        }
        let token = entry.token.take().ok_or(Broken::NotInFlight(slot))?;
        Ok((token, closed))
    }

    fn holds(&self, ticket: Ticket) -> bool {
        let entry = self.buffers.get(usize::from(ticket.slot));
        entry.is_some_and(|it| it.token.is_some() && it.closed.generation == ticket.generation)
    }

    fn empty(&mut self, mut each: impl FnMut(T)) {
        for entry in self.buffers.iter_mut() {
            if let Some(token) = entry.token.take() {
                each(token);
            }
        }
    }
}

/// The driver's end of one split virtqueue; see the module.
pub struct Queue<T: 'static, M: DmaMap = Identity> {
    /// Leaked, with the DMA hook and the ring's memory, unless a reset is proven.
    pub(super) core: ManuallyDrop<QueueCore<M>>,
    pub(super) in_flight: InFlightTable<T>,
    /// Number of used entries taken, and the used index last loaded.
    taken: u16,
    seen: u16,
    set_up: SetUp,
}

impl<T: 'static, M: DmaMap> Queue<T, M> {
    /// Creates a queue in `memory` ([`QueueOptions::memory_len`] bytes) for `device`, which must
    /// not use it yet. `hook` translates addresses for the device.
    ///
    /// # Errors
    /// The size or the memory is not suitable for a queue.
    pub fn new(
        options: QueueOptions,
        memory: DmaBytes,
        hook: M,
        device: &DeviceId,
    ) -> Result<Self, QueueMemoryError> {
        let ring = DriverRing::new(memory, &hook, options.size, options.entries())?;
        let policy = match options.entries() {
            0 => IndirectPolicy::Never,
            _ => options.policy,
        };
        Ok(Self {
            core: ManuallyDrop::new(QueueCore::new(ring, hook, policy, options.event_idx)),
            in_flight: InFlightTable::new(options.size, options.clamp_lengths),
            taken: 0,
            seen: 0,
            set_up: device.now(),
        })
    }

    /// Returns the addresses to pass to the device.
    pub fn areas(&self) -> QueueAreas {
        let [descriptors, driver, device] = self.core.ring.areas();
        QueueAreas {
            size: self.core.ring.size(),
            descriptors,
            driver,
            device,
        }
    }

    /// Returns the number of free slots. A buffer takes one slot per segment, or a single one with
    /// an indirect table.
    pub fn free_slots(&self) -> u16 {
        self.core.accounting.free
    }

    /// Returns the number of buffers in flight, published or not.
    pub fn in_flight(&self) -> u16 {
        self.core.accounting.index().wrapping_sub(self.taken)
    }

    /// Returns whether this buffer is still in flight.
    pub fn holds(&self, ticket: Ticket) -> bool {
        self.in_flight.holds(ticket)
    }

    /// Returns why the queue is broken, if it is.
    pub fn broken(&self) -> Option<Broken> {
        self.core.broken
    }

    /// Makes added buffers visible to the device, without a decision about a notification: for a
    /// device that polls, or before more buffers are added. [`publish`](Self::publish) has to
    /// follow.
    #[inline]
    pub fn expose(&mut self) {
        let added = self.core.accounting.index();
        if self.core.exposed != added {
            ring::publish_idx(&self.core.ring, added);
            self.core.exposed = added;
        }
    }

    /// Makes all added buffers visible to the device and returns whether it has to be notified: one
    /// store of the index, one fence and one decision per batch.
    #[inline]
    pub fn publish(&mut self) -> Kick {
        let core = &mut *self.core;
        let (added, decided) = (core.accounting.added, core.decided);
        if added == decided || core.broken.is_some() {
            return Kick::NotNeeded;
        }
        let index = core.accounting.index();
        #[expect(clippy::cast_possible_truncation, reason = "indices have 16 bits")]
        let asked = ring::publish(&core.ring, core.event_idx, decided as u16, index);
        // With several calls of `expose`, more than 2^16 - 1 buffers may have passed the index at
        // which the device requested a notification. The difference of two indices does not show
        // that.
        let lapped = added.wrapping_sub(decided) > u64::from(u16::MAX);
        core.exposed = index;
        core.decided = added;
        if asked || lapped {
            Kick::Needed
        } else {
            Kick::NotNeeded
        }
    }

    /// Returns one buffer that the device has used, or `Ok(None)` if there is none.
    ///
    /// # Errors
    /// The device violated the protocol, now or before: the queue is out of use.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Completion<T>>, Broken> {
        if let Some(broken) = self.core.broken {
            return Err(broken);
        }
        if self.taken == self.seen && !self.look()? {
            return Ok(None);
        }
        let (id, written) = self.core.ring.used_entry(self.taken);
        let (token, closed) = match self.in_flight.leave(id, written) {
            Ok(left) => left,
            Err(broken) => return Err(self.break_down(broken)),
        };
        self.core.unmap(closed, written);
        self.core.free_slots(closed);
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(Completion {
            token,
            written: written.min(closed.writable),
            ticket: closed.ticket(),
        }))
    }

    /// Loads the used index. Returns whether there are new used entries.
    #[inline]
    fn look(&mut self) -> Result<bool, Broken> {
        self.seen = ring::peer_idx(&self.core.ring);
        let moved = self.seen.wrapping_sub(self.taken);
        let in_flight = self.in_flight();
        if moved > in_flight {
            return Err(self.break_down(Broken::IndexJump { moved, in_flight }));
        }
        Ok(moved != 0)
    }

    #[cold]
    fn break_down(&mut self, broken: Broken) -> Broken {
        self.core.broken = Some(broken);
        broken
    }

    /// Suppresses interrupts for used buffers. The device may still interrupt: spurious interrupts
    /// are normal.
    pub fn disable_interrupts(&mut self) {
        ring::disable_notifications(&self.core.ring, self.core.event_idx);
    }

    /// Requests an interrupt for the next used buffer. Returns true if there already is one, in
    /// which case there may be no interrupt: pop first, then call this again.
    #[must_use]
    pub fn enable_interrupts(&mut self) -> bool {
        ring::enable_notifications(&self.core.ring, self.core.event_idx, self.taken)
    }

    /// Returns all buffers in flight, published or not, after a reset of the device, and
    /// reinitialises the queue. The device has to be given its addresses again.
    ///
    /// # Errors
    /// The proof is of another device or not later than the queue; nothing changes.
    pub fn reclaim(&mut self, proof: &ResetProof, each: impl FnMut(T)) -> Result<(), NotProven> {
        if !self.set_up.ended_by(proof) {
            return Err(NotProven);
        }
        self.core.maps.unmap_all();
        self.core.start_over();
        (self.taken, self.seen) = (0, 0);
        self.set_up = self.set_up.restarted();
        self.in_flight.empty(each);
        Ok(())
    }

    /// As [`reclaim`](Self::reclaim), but returns all tokens at once, for callers that need `&mut
    /// self` for each.
    pub(super) fn take_back(&mut self, proof: &ResetProof) -> Result<Vec<T>, NotProven> {
        let mut back = Vec::with_capacity(usize::from(self.in_flight()));
        self.reclaim(proof, |token| back.push(token))?;
        Ok(back)
    }

    /// Takes the queue apart after a reset: passes the tokens to `each`, and returns its memory and
    /// hook.
    ///
    /// # Errors
    /// The proof is of another device or not later than the queue; returns the queue.
    #[expect(clippy::result_large_err, reason = "the error is the queue itself")]
    pub fn dismantle(
        mut self,
        proof: &ResetProof,
        each: impl FnMut(T),
    ) -> Result<(DmaBytes, M), Self> {
        if self.reclaim(proof, each).is_err() {
            return Err(self);
        }
        drop(ManuallyDrop::into_inner(self.in_flight.buffers));
        let core = ManuallyDrop::into_inner(self.core);
        Ok((core.ring.release(), core.maps.into_hook()))
    }
}

#[cfg(test)]
mod tests;
