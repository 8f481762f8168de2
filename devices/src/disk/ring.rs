//! Requests through an io_uring, of one disk or shared by many.
//!
//! The ring is made when the disk is opened, restricted to registered files and to the operations
//! below, and stays disabled until the queue's thread binds it at its first request (see `bind`).
//! Where that thread can't have it, a blocking thread does everything. A batch costs one
//! io_uring_enter; what completes within it is picked up without a signal; the eventfd is armed
//! only while something is with the kernel and nobody looks. Files sit in numbered seats: a disk's
//! own ring has one, taken for good; in a shared ring disks come and go (see `share`).
#![expect(
    unsafe_code,
    reason = "submission entries hold raw pointers that stay valid until their completion"
)]

mod bind;
mod blocking;
mod drain;
mod job;
mod prepare;
mod setup;
mod slot;
mod syncs;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use io_uring::IoUring;

use super::blocking::BlockingThread;
use super::cached::Cached;
use super::flush::Mark;
use super::handle::Handle;
use super::range;
use super::transfer::{MemoryAccess, Transfer};
use super::{Completion, DiskOp, DiskQueue, Full, IoFault};
use crate::log;
use crate::ram::Ram;
use crate::throttle::Throttle;
pub(super) use bind::Unbound;
use bind::{Bound, Refusal};
use job::{Finished, Job, Step, What};
use setup::NO_FILE;
pub(super) use setup::Ring;
use slot::{Next, Slot, seated};
use syncs::Syncs;

/// How often a request the host was too busy for is tried again.
const BUSY_LIMIT: u8 = 100;

pub(super) struct RingQueue {
    /// Whose file sits in which seat of the ring.
    images: Vec<Option<Arc<Handle>>>,
    access: MemoryAccess,
    ring: Hold,
    /// Signalled by completions of the ring and of the blocking thread.
    event: Arc<OwnedFd>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Slots pushed to the submission queue and not taken by the kernel yet, in order; a cancellation has none.
    pushed: Vec<u16>,
    done: Vec<Completion>,
    cached: Cached,
    syncs: Syncs,
    /// Does what the ring can't; `None` until that is asked for.
    blocking: Option<BlockingThread<Job, Finished>>,
    /// Whether completions signal the eventfd.
    armed: bool,
    /// The ring takes no requests any more.
    dead: bool,
    /// For lines that a guest can cause; the ring's own, so that a reset does not renew it.
    throttle: Arc<Throttle>,
}

/// How far this queue has its ring.
enum Hold {
    /// It is kept for the thread that uses the queue first.
    Waiting(Unbound),
    /// It is that thread's.
    Bound(Bound),
    /// There is none, or that thread can't have it. It stays taken as long as this queue lives.
    Refused { _ring: Option<Unbound> },
}

impl RingQueue {
    /// A queue with a ring that was taken from its pool. `None` if that is being given back.
    pub(super) fn new(
        ring: Unbound,
        images: Vec<Option<Arc<Handle>>>,
        ram: Ram,
        depth: u16,
    ) -> Option<Self> {
        let slot = |_| Slot {
            tag: 0,
            seat: 0,
            step: Step::Flush,
            offset: 0,
            transfer: Transfer::default(),
            busy: 0,
            cancelled: false,
            mark: Mark::default(),
            offloaded: false,
            lock: None,
        };
        Some(Self {
            images,
            access: MemoryAccess::new(ram),
            event: ring.event()?,
            throttle: ring.throttle()?,
            ring: match ring.is_refused() {
                true => Hold::Refused { _ring: Some(ring) },
                false => Hold::Waiting(ring),
            },
            slots: (0..depth).map(slot).collect(),
            free: (0..depth).rev().collect(),
            pushed: Vec::with_capacity(usize::from(depth)),
            done: Vec::with_capacity(usize::from(depth)),
            cached: Cached::default(),
            syncs: Syncs::default(),
            blocking: None,
            // Rings start with signals on.
            armed: true,
            dead: false,
        })
    }

    /// Makes the ring this thread's, at the first request. A queue that is only dropped never gets
    /// here.
    fn bind(&mut self) {
        if let Hold::Waiting(_) = &self.ring
            && let Hold::Waiting(ring) =
                std::mem::replace(&mut self.ring, Hold::Refused { _ring: None })
        {
            self.ring = match ring.bind() {
                Ok(bound) => Hold::Bound(bound),
                Err((ring, refusal)) => self.refused(ring, &refusal),
            };
        }
    }

    #[cold]
    fn refused(&self, ring: Unbound, refusal: &Refusal) -> Hold {
        log::warn!(
            self.throttle,
            "{}: {refusal}; requests of this queue wait for one another on a blocking thread. Open the disk anew to \
             get another",
            self.name()
        );
        Hold::Refused { _ring: Some(ring) }
    }

    /// The ring, if requests may go to it.
    fn usable(&mut self) -> Option<&mut IoUring> {
        if self.dead { None } else { self.io() }
    }

    /// The ring, if this queue's thread has it.
    fn io(&mut self) -> Option<&mut IoUring> {
        match &mut self.ring {
            Hold::Bound(ring) => ring.io(),
            Hold::Waiting(_) | Hold::Refused { .. } => None,
        }
    }

    /// Puts a slot into the submission queue, or hands it to the blocking thread where there is
    /// none.
    fn push(&mut self, index: u16) {
        let Some(slot) = self.slots.get(usize::from(index)) else {
            return;
        };
        if slot.cancelled {
            return self.ended(index, Err(IoFault::Cancelled));
        }
        let (step, seat) = (slot.step, slot.seat);
        let entry = self.entry(index);
        let Some(io) = self.usable() else {
            return self.offload(index, What::Step(step));
        };
        // There is an entry for each slot, and a slot is pushed once until the kernel took it, so there is room.
        let pushed = entry.is_some_and(|entry| {
            // SAFETY: the buffers and the iovec array belong to the slot, which is left alone until its completion,
            // and the memory is mapped as long as `access` or owned by the slot. Where completions can't be awaited,
            // `abandon` leaks them.
            unsafe { io.submission().push(&entry) }.is_ok()
        });
        if pushed {
            self.pushed.push(index);
            self.begin_sync(index, seat, step);
        } else {
            self.ended(index, Err(IoFault::Host(libc::EBUSY)));
        }
    }

    /// Takes note of a step that makes cached data stable, for [`Self::ended`].
    fn begin_sync(&mut self, index: u16, seat: u16, step: Step) {
        if step.syncs() && seated(&self.images, seat).is_some_and(|image| !image.direct) {
            self.syncs.begin(index, seat);
        }
    }

    /// Answers a request and frees its slot.
    fn finish(&mut self, index: u16, result: Result<u64, IoFault>) {
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            let buffer = slot.transfer.clear();
            slot.lock = None;
            self.done.push(Completion {
                tag: slot.tag,
                result,
                buffer,
            });
            self.free.push(index);
        }
    }

    /// What to call the ring in messages: its disk, or the first of them.
    fn name(&self) -> String {
        let first = self.images.iter().flatten().next();
        first.map_or_else(
            || "shared ring".into(),
            |image| image.path.display().to_string(),
        )
    }

    /// Gives `image` a free seat.
    pub(super) fn sit(&mut self, image: &Arc<Handle>) -> io::Result<u16> {
        self.bind();
        let free = self.images.iter().position(Option::is_none);
        let seat = free
            .and_then(|seat| u16::try_from(seat).ok())
            .ok_or(io::ErrorKind::QuotaExceeded)?;
        self.update_file(seat, image.file().as_raw_fd())?;
        if let Some(place) = self.images.get_mut(usize::from(seat)) {
            *place = Some(Arc::clone(image));
        }
        Ok(seat)
    }

    /// Frees a seat that has nothing in flight.
    pub(super) fn stand(&mut self, seat: u16) {
        if let Err(error) = self.update_file(seat, NO_FILE) {
            log::warn!(
                self.throttle,
                "{}: the ring keeps the file open: {error}",
                self.name()
            );
        }
        if let Some(place) = self.images.get_mut(usize::from(seat)) {
            *place = None;
        }
    }

    /// Frees all seats; nothing is in flight.
    pub(super) fn stand_all(&mut self) {
        for seat in 0..u16::try_from(self.images.len()).unwrap_or(u16::MAX) {
            if seated(&self.images, seat).is_some() {
                self.stand(seat);
            }
        }
    }

    /// Tells the ring, if this thread has one; the blocking thread needs no seats.
    fn update_file(&mut self, seat: u16, file: RawFd) -> io::Result<()> {
        let Some(io) = self.usable() else {
            return Ok(());
        };
        let updated = io
            .submitter()
            .register_files_update(u32::from(seat), &[file]);
        updated.map(|_| ())
    }

    /// Takes a request to the file in `seat`.
    pub(super) fn submit_to(&mut self, seat: u16, tag: u64, op: DiskOp<'_>) -> Result<(), Full> {
        if !self.ready() {
            return Err(Full);
        }
        self.bind();
        let index = self.free.pop().ok_or(Full)?;
        match self.prepare(index, seat, tag, op) {
            Next::Ring => self.push(index),
            Next::Done(result) => self.finish(index, result),
            Next::Blocking(what) => self.offload(index, what),
        }
        Ok(())
    }

    /// Takes the ring out, which is not given back then.
    fn lose(&mut self) -> Option<IoUring> {
        match &mut self.ring {
            Hold::Bound(ring) => ring.lose(),
            Hold::Waiting(_) | Hold::Refused { .. } => None,
        }
    }

    /// Requests the kernel has or is about to get.
    fn active(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }

    /// Gives the kernel what was pushed, and time to finish deferred work if it asks for that.
    fn enter(&mut self) {
        let Some(io) = self.usable() else {
            return;
        };
        match io.submit() {
            Ok(count) => {
                self.pushed.drain(..count.min(self.pushed.len()));
            }
            Err(error) => match error.raw_os_error() {
                // Interrupted, or short of memory or of completion entries for now: what was pushed stays pushed.
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
                errno => self.give_up(errno.unwrap_or(libc::EIO)),
            },
        }
    }

    /// The ring failed for good: what the kernel has not taken goes to the blocking thread, and so
    /// does all that follows.
    fn give_up(&mut self, errno: i32) {
        log::error!(
            self.throttle,
            "{}: io_uring failed: {}; requests wait for one another on a blocking thread from now on",
            self.name(),
            IoFault::from_errno(errno)
        );
        self.dead = true;
        for index in std::mem::take(&mut self.pushed) {
            self.push(index);
        }
    }

    /// Takes all completions there are. Requests that need another step are pushed again.
    fn reap(&mut self) -> bool {
        let mut any = self.reap_blocking();
        while let Some((tag, result)) = self
            .io()
            .and_then(|io| io.completion().next())
            .map(|entry| (entry.user_data(), entry.result()))
        {
            any = true;
            if let Ok(index) = u16::try_from(tag) {
                self.completed(index, result);
            }
        }
        any
    }

    /// Judges one completion.
    fn completed(&mut self, index: u16, result: i32) {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return;
        };
        if matches!(result.checked_neg(), Some(libc::EAGAIN | libc::EINTR))
            && slot.busy < BUSY_LIMIT
        {
            slot.busy = slot.busy.saturating_add(1);
            return self.push(index);
        }
        let Some(image) = seated(&self.images, slot.seat) else {
            return self.finish(index, Err(IoFault::Host(libc::EBADF)));
        };
        match (slot.step, u64::try_from(result)) {
            (Step::Read | Step::Write { .. }, Ok(0)) => self.ended(index, Err(IoFault::Short)),
            (Step::Read | Step::Write { .. }, Ok(count)) => {
                slot.transfer.advance(count);
                if slot.transfer.left() > 0 {
                    return self.push(index);
                }
                self.ended(index, Ok(()));
            }
            (Step::Range { fua: true, .. }, Ok(_)) => {
                slot.step = Step::Flush;
                self.push(index);
            }
            (Step::Flush | Step::Range { .. }, Ok(_)) => self.ended(index, Ok(())),
            (Step::Range { task, len, .. }, Err(_)) if range::refused(result.saturating_neg()) => {
                range::note_refusal(image, task, result.saturating_neg());
                self.offload(index, What::Instead { task, len });
            }
            (_, Err(_)) => self.ended(index, Err(IoFault::from_errno(result.saturating_neg()))),
        }
    }

    /// Answers a request that the ring is done with, and syncs that waited for this one.
    fn ended(&mut self, index: u16, result: Result<(), IoFault>) {
        let Some(slot) = self.slots.get(usize::from(index)) else {
            return;
        };
        let image = seated(&self.images, slot.seat);
        let Some(image) = image.filter(|image| slot.step.syncs() && !image.direct) else {
            let len = slot.transfer.len();
            return self.finish(index, result.map(|()| len));
        };
        self.syncs.end(index, result.is_ok());
        if let Err(fault) = result {
            image.sync_failed(fault);
            self.finish(index, Err(fault));
        }
        while let Some(index) = self.syncs.settled() {
            let believed = self.believed(index);
            self.finish(index, believed);
        }
    }

    /// What a sync that ended well is answered: another may have been told of a loss meanwhile.
    fn believed(&self, index: u16) -> Result<u64, IoFault> {
        let gone = IoFault::Host(libc::EBADF);
        let slot = self.slots.get(usize::from(index)).ok_or(gone)?;
        let image = seated(&self.images, slot.seat).ok_or(gone)?;
        match slot.step {
            Step::Flush => image.admit_flush()?,
            _ => image.admit_sync(slot.mark)?,
        }
        Ok(slot.transfer.len())
    }

    /// Switches the signal for completions. Off while this thread looks by itself.
    fn arm(&mut self, on: bool) {
        if self.armed == on {
            return;
        }
        let Some(io) = self.io() else {
            return;
        };
        if on {
            io.completion().enable_eventfd();
        } else {
            io.completion().disable_eventfd();
        }
        // What completes from here on signals; what completed before is seen by the look that
        // follows.
        fence(Ordering::SeqCst);
        self.armed = on;
    }

    /// Whether the kernel holds back completions until it is entered.
    fn work_deferred(&mut self) -> bool {
        self.usable().is_some_and(|io| io.submission().taskrun())
    }
}

impl DiskQueue for RingQueue {
    fn ready(&mut self) -> bool {
        // What is done but not fetched counts too, so that `out` never grows beyond the depth.
        self.in_flight() < self.slots.len()
    }

    fn submit(&mut self, tag: u64, op: DiskOp<'_>) -> Result<(), Full> {
        self.submit_to(0, tag, op)
    }

    fn commit(&mut self) {
        if !self.pushed.is_empty() {
            self.arm(false);
            self.enter();
        }
    }

    fn completed(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.done);
    }

    fn completions(&mut self, out: &mut Vec<Completion>) {
        // Bounded: each turn but the last has taken a completion or given the kernel an entry.
        for _ in 0..=self.slots.len().saturating_mul(4) {
            let reaped = self.reap();
            if !self.pushed.is_empty() || self.work_deferred() {
                self.enter();
            } else if self.active() == 0 {
                break;
            } else if !reaped {
                if self.armed {
                    break;
                }
                self.arm(true);
            }
        }
        if !self.pushed.is_empty() || (self.active() > 0 && !self.armed) {
            // The kernel would not take everything, or keeps completing: have the worker come back.
            self.arm(true);
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
        out.append(&mut self.done);
        self.pass_on_panic();
    }

    fn has_completions(&mut self) -> bool {
        let ended = |io: &mut IoUring| !io.completion().is_empty();
        self.active() > 0 && (self.io().is_some_and(ended) || self.work_deferred())
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.event.as_fd()]
    }

    fn cancel(&mut self, tag: u64) {
        self.cancel_tag(tag);
    }

    fn in_flight(&self) -> usize {
        self.active().saturating_add(self.done.len())
    }

    fn drain(&mut self, out: &mut Vec<Completion>) {
        self.drain_all(out);
        self.pass_on_panic();
    }
}

impl Drop for RingQueue {
    fn drop(&mut self) {
        self.drain_all(&mut Vec::new());
        // An entry that the kernel never took would be in the way of whoever has the ring next.
        if self.dead || !self.pushed.is_empty() {
            drop(self.lose());
        }
    }
}

#[cfg(test)]
mod tests;
