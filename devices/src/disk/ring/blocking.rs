//! What a ring can't do, or everything where there is no ring: it goes to a blocking thread, which
//! is made when it is first needed.

use std::sync::Arc;
use std::time::Duration;

use super::RingQueue;
use super::job::{Finished, Job, Step, What};
use super::slot::seated;
use crate::disk::IoFault;
use crate::disk::blocking::BlockingThread;
use crate::log;

impl RingQueue {
    /// Hands a slot's request to the blocking thread; does it here where no thread is to be had.
    pub(super) fn offload(&mut self, index: u16, what: What) {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return;
        };
        let Some(image) = seated(&self.images, slot.seat) else {
            return self.finish(index, Err(IoFault::Host(libc::EBADF)));
        };
        let job = Job {
            index,
            image: Arc::clone(image),
            access: self.access.clone(),
            transfer: std::mem::take(&mut slot.transfer),
            offset: slot.offset,
            what,
        };
        slot.offloaded = true;
        // The thread takes it anew, and may want more of it.
        slot.lock = None;
        let (seat, step) = (slot.seat, slot.step);
        self.begin_sync(index, seat, step);
        match self.blocking_thread() {
            Some(blocking) => {
                if let Err(job) = blocking.give(job) {
                    self.put_back(job.end(Err(IoFault::Stuck)));
                }
            }
            None => self.put_back(job.run(false)),
        }
    }

    fn blocking_thread(&mut self) -> Option<&mut BlockingThread<Job, Finished>> {
        if self.blocking.is_none() {
            let started = BlockingThread::start(Arc::clone(&self.event), Job::run);
            if let Err(error) = &started {
                log::warn!(
                    self.throttle,
                    "{}: requests that block hold up others, for there is no thread for them: {error}",
                    self.name()
                );
            }
            self.blocking = started.ok();
        }
        self.blocking.as_mut()
    }

    /// Takes what the thread has done. Whether there was any.
    pub(super) fn reap_blocking(&mut self) -> bool {
        let mut any = false;
        while let Some(finished) = self.blocking.as_mut().and_then(BlockingThread::take) {
            any = true;
            self.put_back(finished);
        }
        any | self.fail_offloaded()
    }

    /// Answers what the thread had if it has panicked. Whether there was any.
    fn fail_offloaded(&mut self) -> bool {
        if !self.blocking.as_ref().is_some_and(BlockingThread::ended) {
            return false;
        }
        let mut any = false;
        for index in 0..u16::try_from(self.slots.len()).unwrap_or(u16::MAX) {
            if let Some(slot) = self.slots.get_mut(usize::from(index))
                && std::mem::take(&mut slot.offloaded)
            {
                any = true;
                self.ended(index, Err(IoFault::Stuck));
            }
        }
        any
    }

    /// Goes on with a panic of the thread's on this one.
    pub(super) fn pass_on_panic(&mut self) {
        if let Some(blocking) = &mut self.blocking {
            blocking.pass_on_panic();
        }
    }

    /// At the end: waits a while for the thread if it is at something. Whether it was.
    pub(super) fn wait_blocking(&mut self, limit: Duration) -> bool {
        let Some(blocking) = self
            .blocking
            .as_mut()
            .filter(|blocking| blocking.under_way() > 0)
        else {
            return false;
        };
        blocking.give_up(true);
        if let Some(finished) = blocking.wait(limit) {
            self.put_back(finished);
        }
        if let Some(blocking) = self
            .blocking
            .as_ref()
            .filter(|blocking| blocking.under_way() == 0)
        {
            blocking.give_up(false);
        }
        true
    }

    fn put_back(&mut self, finished: Finished) {
        let index = finished.index;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return;
        };
        slot.transfer = finished.transfer;
        slot.offloaded = false;
        match (slot.step, finished.result) {
            (Step::Range { fua: true, .. }, Ok(_)) => {
                slot.step = Step::Flush;
                self.push(index);
            }
            (_, result) => self.ended(index, result.map(|_| ())),
        }
    }
}
