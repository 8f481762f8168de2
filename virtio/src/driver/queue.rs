//! A virtqueue as its driver sees it: buffers go in, completed ones come out.
//!
//! Who owns what: a buffer goes in with a token, any value, that owns the memory the device is lent
//! (through [`ScatterList`](crate::scatterlist::ScatterList)s and other [`DmaBuf`](super::DmaBuf)s
//! inside it). The queue keeps the token until the device completes the buffer or is proven to have
//! been reset; if the queue goes away earlier, what is in flight is leaked, never freed.
//!
//! What the device writes is judged before it is believed: a used entry must name a live buffer and
//! claim no more bytes than that buffer has room for, else the queue is [`Broken`] and gives nothing
//! back but for a [`ResetProof`]. The in-flight table is private; the shared one is never read.
//!
//! It knows neither transports nor what the buffers mean. Sections 2.7.13 and 2.7.14.

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

/// Where the three parts of a queue are, in the device's addresses: what a transport tells it.
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

/// Whether the device wants to be told of what was published.
#[must_use = "a device that asked for a notification waits for it"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kick {
    /// Notify it.
    Needed,
    /// It looks by itself, or nothing is new.
    NotNeeded,
}

impl Kick {
    /// Rings the bell if that is needed.
    #[inline]
    pub fn send(self, notify: impl FnOnce()) {
        if self == Self::Needed {
            notify();
        }
    }

    /// Needed if either is: one notification covers both.
    pub const fn or(self, other: Self) -> Self {
        match self {
            Self::Needed => self,
            Self::NotNeeded => other,
        }
    }
}

/// Names a buffer in flight; the same slot's next buffer has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    slot: u16,
    generation: u32,
}

/// A buffer that came back.
#[derive(Debug)]
pub struct Completion<T> {
    /// What went in with it.
    pub token: T,
    /// Bytes the device says it wrote, from the start of the writable part; never more than that
    /// has. What lies behind is not to be believed.
    pub written: u32,
    /// Its name while it was in flight.
    pub ticket: Ticket,
}

/// A slot's entry in the in-flight table. A token says that the buffer is live.
struct InFlightBuffer<T> {
    token: Option<T>,
    closed: Closed,
}

/// The in-flight table.
pub(super) struct InFlightTable<T> {
    /// Leaked unless a reset is proven, like everything the device may still use.
    buffers: ManuallyDrop<Box<[InFlightBuffer<T>]>>,
    clamp_lengths: bool,
}

impl Closed {
    /// Its name.
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

    /// Enters a closed buffer.
    #[inline]
    pub(super) fn enter(&mut self, closed: Closed, token: T) -> Ticket {
        if let Some(entry) = self.buffers.get_mut(usize::from(closed.head)) {
            entry.token = Some(token);
            entry.closed = closed;
        }
        closed.ticket()
    }

    /// Takes a buffer out, if what the device says of it can be true.
    #[inline(always)]
    fn leave(&mut self, id: u32, written: u32) -> Result<(T, Closed), Broken> {
        // Compared before it is cut down to 16 bits.
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

/// The driver's end of one split virtqueue; see the module's description.
pub struct Queue<T: 'static, M: DmaMap = Identity> {
    /// Leaked, with the hook and the ring's memory, unless a reset is proven.
    pub(super) core: ManuallyDrop<QueueCore<M>>,
    pub(super) in_flight: InFlightTable<T>,
    /// Used entries taken, and the used index as last seen.
    taken: u16,
    seen: u16,
    set_up: SetUp,
}

impl<T: 'static, M: DmaMap> Queue<T, M> {
    /// Sets a queue up in `memory` ([`QueueOptions::memory_len`] bytes), of which the device,
    /// `device`, has not been told yet. `hook` finds addresses for it.
    ///
    /// # Errors
    /// The size or the memory is not fit for a queue.
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

    /// What to tell the device about the queue.
    pub fn areas(&self) -> QueueAreas {
        let [descriptors, driver, device] = self.core.ring.areas();
        QueueAreas {
            size: self.core.ring.size(),
            descriptors,
            driver,
            device,
        }
    }

    /// Slots that are free: a buffer takes one for each segment, or one with a table.
    pub fn free_slots(&self) -> u16 {
        self.core.accounting.free
    }

    /// Buffers the queue holds, published or not.
    pub fn in_flight(&self) -> u16 {
        self.core.accounting.index().wrapping_sub(self.taken)
    }

    /// Whether this buffer has not come back yet.
    pub fn holds(&self, ticket: Ticket) -> bool {
        self.in_flight.holds(ticket)
    }

    /// What broke the queue, if it is broken.
    pub fn broken(&self) -> Option<Broken> {
        self.core.broken
    }

    /// Shows the device what was added, without deciding on a notification: for a device that
    /// polls, or before more is added. A [`publish`](Self::publish) has to follow.
    #[inline]
    pub fn expose(&mut self) {
        let added = self.core.accounting.index();
        if self.core.exposed != added {
            ring::publish_idx(&self.core.ring, added);
            self.core.exposed = added;
        }
    }

    /// Shows the device everything that was added and says whether it wants to be told: one index
    /// store, one fence and one decision for the whole batch.
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
        // Exposed piece by piece, more than 2^16 - 1 buffers may have passed the index the device
        // asked to be told at, which the difference of two indices no longer shows.
        let lapped = added.wrapping_sub(decided) > u64::from(u16::MAX);
        core.exposed = index;
        core.decided = added;
        if asked || lapped {
            Kick::Needed
        } else {
            Kick::NotNeeded
        }
    }

    /// Takes back one buffer the device has used. `Ok(None)` if there is none.
    ///
    /// # Errors
    /// The device did what no device may do, now or before: the queue is out of use.
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

    /// Looks at the used index; true if there is something new.
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

    /// Asks the device not to interrupt for used buffers. It may still do so: spurious interrupts
    /// are normal.
    pub fn disable_interrupts(&mut self) {
        ring::disable_notifications(&self.core.ring, self.core.event_idx);
    }

    /// Asks the device to interrupt for the next used buffer. True if there is one already, in
    /// which case none may come: pop first, then ask again.
    #[must_use]
    pub fn enable_interrupts(&mut self) -> bool {
        ring::enable_notifications(&self.core.ring, self.core.event_idx, self.taken)
    }

    /// Gives back everything in flight, published or not, because the device was reset, and makes
    /// the queue a fresh one, of which the device has to be told anew.
    ///
    /// # Errors
    /// The proof is not of this device or not later than the queue; nothing happens.
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

    /// As [`reclaim`](Self::reclaim), all at once, for callers that want themselves back for each.
    pub(super) fn take_back(&mut self, proof: &ResetProof) -> Result<Vec<T>, NotProven> {
        let mut back = Vec::with_capacity(usize::from(self.in_flight()));
        self.reclaim(proof, |token| back.push(token))?;
        Ok(back)
    }

    /// Takes the queue apart after a reset: tokens first, then its memory and hook.
    ///
    /// # Errors
    /// The proof is not of this device or not later than the queue, which comes back.
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
