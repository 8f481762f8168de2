//! Requests through an io_uring, of one disk or shared by many.
//!
//! The ring is made when the disk is opened, restricted to registered files and to the operations below, and stays
//! disabled until the queue's thread uses it first: that thread is its single issuer from then on. A batch costs one
//! io_uring_enter; what completes within it is picked up without a signal; the eventfd is armed only while something
//! is with the kernel and nobody looks. Files sit in numbered seats: a disk's own ring has one, taken for good; in a
//! shared ring disks come and go (see `share`).
#![expect(
    unsafe_code,
    reason = "submission entries hold raw pointers that stay valid until their completion"
)]

mod blocking;
mod drain;
mod prepare;
mod setup;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::aside::Aside;
use super::cached::Cached;
use super::image::Image;
use super::range::{self, Task};
use super::raw::Home;
use super::transfer::{Reach, Transfer};
use super::{Completion, DiskOp, DiskQueue, Full, IoFault};
use crate::ram::Ram;
use blocking::{Finished, Job, What};
use prepare::Next;
use setup::NO_FILE;
pub(super) use setup::Ring;

/// How often a request the host was too busy for is tried again.
const BUSY_LIMIT: u8 = 100;

/// What a slot's request is doing.
#[derive(Clone, Copy, Debug)]
enum Step {
    Read,
    Write { fua: bool },
    Flush,
    Range { task: Task, len: u64, fua: bool },
}

#[derive(Debug)]
struct Slot {
    tag: u64,
    seat: u16,
    step: Step,
    offset: u64,
    transfer: Transfer,
    busy: u8,
    /// It is not to be taken up again: somebody asked for it to be given up.
    cancelled: bool,
}

pub(super) struct RingQueue {
    home: Arc<Home>,
    index: u16,
    /// Whose file sits in which seat of the ring.
    images: Vec<Option<Arc<Image>>>,
    reach: Reach,
    /// `None` only while it is being dropped.
    ring: Option<Ring>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Slots pushed to the submission queue and not taken by the kernel yet, in order; a cancellation has none.
    pushed: Vec<u16>,
    done: Vec<Completion>,
    cached: Cached,
    /// Does what the ring can't; `None` until that is asked for.
    aside: Option<Aside<Job, Finished>>,
    /// Whether completions signal the eventfd.
    armed: bool,
    /// The ring can't be used any more, for this reason.
    dead: Option<IoFault>,
}

impl RingQueue {
    pub(super) fn new(
        home: Arc<Home>,
        index: u16,
        ring: Ring,
        images: Vec<Option<Arc<Image>>>,
        ram: Ram,
        depth: u16,
    ) -> Self {
        let slot = |_| Slot {
            tag: 0,
            seat: 0,
            step: Step::Flush,
            offset: 0,
            transfer: Transfer::default(),
            busy: 0,
            cancelled: false,
        };
        Self {
            home,
            index,
            images,
            reach: Reach::new(ram),
            ring: Some(ring),
            slots: (0..depth).map(slot).collect(),
            free: (0..depth).rev().collect(),
            pushed: Vec::with_capacity(usize::from(depth)),
            done: Vec::with_capacity(usize::from(depth)),
            cached: Cached::default(),
            aside: None,
            // Rings start with signals on.
            armed: true,
            dead: None,
        }
    }

    /// Puts a slot into the submission queue, or answers it if that can't be.
    fn push(&mut self, index: u16) {
        if self
            .slots
            .get(usize::from(index))
            .is_some_and(|slot| slot.cancelled)
        {
            return self.finish(index, Err(IoFault::Cancelled));
        }
        let entry = self.entry(index);
        // There is an entry for each slot, and a slot is pushed once until the kernel took it, so there is room.
        let pushed = entry.zip(self.ring.as_mut()).is_some_and(|(entry, ring)| {
            // SAFETY: the buffers and the iovec array belong to the slot, which is left alone until its completion,
            // and the memory is mapped as long as `reach` or owned by the slot. Where completions can't be awaited,
            // `abandon` leaks them.
            unsafe { ring.io.submission().push(&entry) }.is_ok()
        });
        if pushed {
            self.pushed.push(index);
        } else {
            self.finish(index, Err(IoFault::Host(libc::EBUSY)));
        }
    }

    /// Answers a request and frees its slot.
    fn finish(&mut self, index: u16, result: Result<u64, IoFault>) {
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            let buffer = slot.transfer.clear();
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
    pub(super) fn sit(&mut self, image: &Arc<Image>) -> io::Result<u16> {
        let free = self.images.iter().position(Option::is_none);
        let seat = free
            .and_then(|seat| u16::try_from(seat).ok())
            .ok_or(io::ErrorKind::QuotaExceeded)?;
        self.update_file(seat, image.file.as_raw_fd())?;
        if let Some(place) = self.images.get_mut(usize::from(seat)) {
            *place = Some(Arc::clone(image));
        }
        Ok(seat)
    }

    /// Frees a seat that has nothing in flight.
    pub(super) fn stand(&mut self, seat: u16) {
        if let Err(error) = self.update_file(seat, NO_FILE) {
            tracing::warn!("{}: the ring keeps the file open: {error}", self.name());
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

    fn update_file(&mut self, seat: u16, file: RawFd) -> io::Result<()> {
        self.enable()?;
        let ring = self.ring.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        ring.io
            .submitter()
            .register_files_update(u32::from(seat), &[file])
            .map(|_| ())
    }

    /// Lets the ring work, for this thread only from then on.
    fn enable(&mut self) -> io::Result<()> {
        let ring = self.ring.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        if !ring.enabled {
            ring.io.submitter().register_enable_rings()?;
            ring.enabled = true;
        }
        Ok(())
    }

    /// Takes a request to the file in `seat`.
    pub(super) fn submit_to(&mut self, seat: u16, tag: u64, op: DiskOp<'_>) -> Result<(), Full> {
        if !self.ready() {
            return Err(Full);
        }
        let index = self.free.pop().ok_or(Full)?;
        match self.prepare(index, seat, tag, op) {
            Next::Ring => self.push(index),
            Next::Done(result) => self.finish(index, result),
            Next::Aside(what) => self.set_aside(index, what),
        }
        Ok(())
    }

    /// Requests the kernel has or is about to get.
    fn active(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }

    /// Gives the kernel what was pushed, and time to finish deferred work if it asks for that.
    fn enter(&mut self) {
        let result = self.enable();
        let Some(ring) = self.ring.as_mut().filter(|_| self.dead.is_none()) else {
            return;
        };
        match result.and_then(|()| ring.io.submit()) {
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

    /// The ring failed for good: answers what the kernel has not taken, and lets nothing new in.
    fn give_up(&mut self, errno: i32) {
        let fault = IoFault::from_errno(errno);
        tracing::error!(
            "{}: io_uring failed: {fault}; all requests fail from now on",
            self.name()
        );
        self.dead = Some(fault);
        for index in std::mem::take(&mut self.pushed) {
            self.finish(index, Err(fault));
        }
    }

    /// Takes all completions there are. Requests that need another step are pushed again.
    fn reap(&mut self) -> bool {
        let mut any = self.reap_aside();
        while let Some((tag, result)) = self
            .ring
            .as_mut()
            .and_then(|ring| ring.io.completion().next())
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
            (Step::Read | Step::Write { .. }, Ok(0)) => self.finish(index, Err(IoFault::Short)),
            (Step::Read | Step::Write { .. }, Ok(count)) => {
                slot.transfer.advance(count);
                if slot.transfer.left() > 0 {
                    return self.push(index);
                }
                let len = slot.transfer.len();
                self.finish(index, Ok(len));
            }
            (Step::Range { fua: true, .. }, Ok(_)) => {
                slot.step = Step::Flush;
                self.push(index);
            }
            (Step::Flush, Ok(_)) => {
                // Of two streams that flush at once the host tells only one that data was lost.
                let believed = image.admit_flush().map(|()| 0);
                self.finish(index, believed);
            }
            (Step::Range { .. }, Ok(_)) => self.finish(index, Ok(0)),
            (Step::Range { task, len, .. }, Err(_)) if range::refused(result.saturating_neg()) => {
                range::note_refusal(image, task, result.saturating_neg());
                self.set_aside(index, What::Range { task, len });
            }
            (step, Err(_)) => {
                let errno = result.saturating_neg();
                // One that was given up before it began says nothing about the medium.
                if matches!(step, Step::Flush) && !matches!(errno, libc::ECANCELED | libc::EINTR) {
                    image.flush_failed();
                }
                self.finish(index, Err(IoFault::from_errno(errno)));
            }
        }
    }

    /// Switches the signal for completions. Off while this thread looks by itself.
    fn arm(&mut self, on: bool) {
        if self.armed != on
            && let Some(ring) = self.ring.as_mut()
        {
            let completions = ring.io.completion();
            if on {
                completions.enable_eventfd();
            } else {
                completions.disable_eventfd();
            }
            self.armed = on;
            // What completes from here on signals; what completed before is seen by the look that follows.
            fence(Ordering::SeqCst);
        }
    }

    /// Whether the kernel holds back completions until it is entered.
    fn work_deferred(&mut self) -> bool {
        self.dead.is_none()
            && self
                .ring
                .as_mut()
                .is_some_and(|ring| ring.io.submission().taskrun())
    }
}

/// Whose file sits there.
fn seated(images: &[Option<Arc<Image>>], seat: u16) -> Option<&Arc<Image>> {
    images.get(usize::from(seat))?.as_ref()
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
            if let Some(ring) = self.ring.as_ref() {
                let _ = rustix::io::write(&ring.event, &1_u64.to_ne_bytes());
            }
        }
        out.append(&mut self.done);
    }

    fn has_completions(&mut self) -> bool {
        let ended = |ring: &mut Ring| !ring.io.completion().is_empty();
        self.active() > 0 && (self.ring.as_mut().is_some_and(ended) || self.work_deferred())
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        self.ring.iter().map(|ring| ring.event.as_fd()).collect()
    }

    fn cancel(&mut self, tag: u64) {
        self.cancel_tag(tag);
    }

    fn in_flight(&self) -> usize {
        self.active().saturating_add(self.done.len())
    }

    fn drain(&mut self, out: &mut Vec<Completion>) {
        self.drain_all(out);
    }
}

impl Drop for RingQueue {
    fn drop(&mut self) {
        self.drain(&mut Vec::new());
        if let Some(ring) = self.ring.take().filter(|_| self.dead.is_none()) {
            self.home.give_back(self.index, ring);
        }
    }
}
