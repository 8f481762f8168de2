//! The end of a request before its time, and of a queue: everything comes back from the kernel, or is kept for good.
#![expect(
    unsafe_code,
    reason = "a cancellation is a submission entry like any other"
)]

use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{opcode, squeue};

use super::RingQueue;
use crate::disk::{Completion, IoFault};
use crate::log;

/// Tag of entries that belong to no request, and what stands for their slot.
const NO_REQUEST: u64 = u64::MAX;
const NO_SLOT: u16 = u16::MAX;
/// How long a drain waits for the host.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

impl RingQueue {
    /// Asks the kernel to give a request up; see [`DiskQueue::cancel`](crate::disk::DiskQueue::cancel).
    pub(super) fn cancel_tag(&mut self, tag: u64) {
        let mut slots = (0..).zip(&mut self.slots);
        let under_way = |index: &u16| !self.free.contains(index);
        let Some((index, slot)) = slots.find(|(index, slot)| slot.tag == tag && under_way(index))
        else {
            return;
        };
        slot.cancelled = true;
        // The kernel gives up only what it has.
        self.enter();
        if self.pushed.is_empty() {
            self.push_cancel(CancelBuilder::user_data(u64::from(index)));
            self.enter();
        }
    }

    fn push_cancel(&mut self, what: CancelBuilder) {
        let cancel = opcode::AsyncCancel2::new(what).build();
        let cancel = cancel
            .flags(squeue::Flags::FIXED_FILE)
            .user_data(NO_REQUEST);
        let Some(io) = self.usable() else {
            return;
        };
        // SAFETY: a cancellation points to nothing. If there is no room for it, requests run to their end.
        if unsafe { io.submission().push(&cancel) }.is_ok() {
            self.pushed.push(NO_SLOT);
        }
    }

    /// Cancels what can be cancelled and waits for the rest; see [`DiskQueue::drain`](crate::disk::DiskQueue::drain).
    pub(super) fn drain_all(&mut self, out: &mut Vec<Completion>) {
        let end = Instant::now().checked_add(DRAIN_LIMIT);
        if self.active() == 0 {
            // The ring, if any, is left as it is: this may be a thread that has never used it.
            out.append(&mut self.done);
            return;
        }
        self.arm(false);
        self.enter();
        self.reap();
        // What the host gives up now is not taken up again, nor is what is left of a request begun.
        for slot in &mut self.slots {
            slot.cancelled = true;
        }
        if self.active() > 0 {
            self.push_cancel(CancelBuilder::any());
            self.enter();
        }
        while self.active() > 0 {
            if end.is_none_or(|end| Instant::now() >= end) {
                self.abandon();
                break;
            }
            self.wait(Duration::from_millis(100));
            self.reap();
        }
        out.append(&mut self.done);
    }

    /// One turn of waiting at the end: up to `limit` for a completion.
    fn wait(&mut self, limit: Duration) {
        if self.wait_blocking(limit) {
            return;
        }
        let timespec = Timespec::from(limit);
        let Some(io) = self.usable() else {
            std::thread::sleep(Duration::from_millis(1));
            return;
        };
        let waited = io
            .submitter()
            .submit_with_args(1, &SubmitArgs::new().timespec(&timespec));
        if let Ok(count) = waited {
            self.pushed.drain(..count.min(self.pushed.len()));
        } else if waited.is_err_and(|error| error.raw_os_error() != Some(libc::ETIME)) {
            // Not the ring's thread, or the ring is dead: completions come without our help or not at all.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The kernel still has requests: keeps all they may touch for good, and answers them.
    fn abandon(&mut self) {
        log::error!(
            self.throttle,
            "{}: {} requests did not come back from the host within {} s; the memory they use is kept",
            self.name(),
            self.active(),
            DRAIN_LIMIT.as_secs()
        );
        let free = std::mem::take(&mut self.free);
        let mut slots = std::mem::take(&mut self.slots);
        let mut in_ring = false;
        for (index, slot) in (0..).zip(&mut slots) {
            // What hangs may still be written, but nobody can wait for that.
            slot.lock = None;
            if !free.contains(&index) {
                in_ring |= !slot.offloaded;
                self.done.push(Completion {
                    tag: slot.tag,
                    result: Err(IoFault::Stuck),
                    buffer: None,
                });
            }
        }
        // What hangs on the blocking thread has all it may touch itself, and the ring nothing of
        // it.
        if in_ring {
            let images = std::mem::take(&mut self.images);
            std::mem::forget((self.lose(), slots, self.access.clone(), images));
            self.dead = true;
        }
    }
}
