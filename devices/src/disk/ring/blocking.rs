//! What a ring can't do: it goes to a thread beside it, which is made when it is first needed.

use std::sync::Arc;
use std::time::Duration;

use super::{RingQueue, Step, seated};
use crate::disk::aside::Aside;
use crate::disk::image::Image;
use crate::disk::range::{self, Task};
use crate::disk::transfer::{Reach, Transfer};
use crate::disk::{IoFault, bounce};

/// A request with all it may touch: it may outlive the queue.
pub(in crate::disk) struct Job {
    index: u16,
    image: Arc<Image>,
    reach: Reach,
    transfer: Transfer,
    offset: u64,
    what: What,
}

/// The blocking way to do something.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// O_DIRECT would refuse it.
    BouncedRead,
    /// The same.
    BouncedWrite { fua: bool },
    /// fallocate(2) can't do it.
    Range { task: Task, len: u64 },
}

/// A job that is done.
pub(in crate::disk) struct Finished {
    index: u16,
    transfer: Transfer,
    result: Result<u64, IoFault>,
}

impl Job {
    fn run(mut self, given_up: bool) -> Finished {
        let result = match given_up {
            true => Err(IoFault::Cancelled),
            false => self.perform(),
        };
        Finished {
            index: self.index,
            transfer: self.transfer,
            result,
        }
    }

    fn perform(&mut self) -> Result<u64, IoFault> {
        let (image, transfer) = (&*self.image, &mut self.transfer);
        match self.what {
            What::BouncedRead => bounce::read(image, transfer, self.offset)?,
            What::BouncedWrite { fua } => bounce::write(image, transfer, self.offset, fua)?,
            What::Range { task, len } => {
                range::instead(image, &self.reach, task, self.offset, len)?;
            }
        }
        Ok(transfer.len())
    }
}

impl RingQueue {
    /// Hands a slot's request to the thread; does it here where no thread is to be had.
    pub(super) fn set_aside(&mut self, index: u16, what: What) {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return;
        };
        let Some(image) = seated(&self.images, slot.seat) else {
            return self.finish(index, Err(IoFault::Host(libc::EBADF)));
        };
        let job = Job {
            index,
            image: Arc::clone(image),
            reach: self.reach.clone(),
            transfer: std::mem::take(&mut slot.transfer),
            offset: slot.offset,
            what,
        };
        let refused = match self.helper() {
            Some(aside) => aside.give(job).err(),
            None => Some(job),
        };
        if let Some(job) = refused {
            self.put_back(job.run(false));
        }
    }

    fn helper(&mut self) -> Option<&mut Aside<Job, Finished>> {
        if self.aside.is_none() {
            let event = self.ring.as_ref()?.event.try_clone();
            let started = event.and_then(|event| Aside::start(event, Job::run));
            if let Err(error) = &started {
                tracing::warn!(
                    "{}: requests that block hold up others, for there is no thread for them: {error}",
                    self.name()
                );
            }
            self.aside = started.ok();
        }
        self.aside.as_mut()
    }

    /// Takes what the thread has done. Whether there was any.
    pub(super) fn reap_aside(&mut self) -> bool {
        let mut any = false;
        while let Some(finished) = self.aside.as_mut().and_then(Aside::take) {
            any = true;
            self.put_back(finished);
        }
        any
    }

    /// At the end: waits a while for the thread if it is at something. Whether it was.
    pub(super) fn wait_aside(&mut self, limit: Duration) -> bool {
        let Some(aside) = self.aside.as_mut().filter(|aside| aside.under_way() > 0) else {
            return false;
        };
        aside.give_up(true);
        if let Some(finished) = aside.wait(limit) {
            self.put_back(finished);
        }
        if let Some(aside) = self.aside.as_ref().filter(|aside| aside.under_way() == 0) {
            aside.give_up(false);
        }
        true
    }

    fn put_back(&mut self, finished: Finished) {
        let index = finished.index;
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return;
        };
        slot.transfer = finished.transfer;
        match (slot.step, finished.result) {
            (Step::Range { fua: true, .. }, Ok(_)) => {
                slot.step = Step::Flush;
                self.push(index);
            }
            (_, result) => self.finish(index, result),
        }
    }
}
