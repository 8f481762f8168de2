//! One request of a ring's by blocking calls.

use std::sync::Arc;

use crate::disk::handle::Handle;
use crate::disk::range::{self, Task};
use crate::disk::transfer::{MemoryAccess, Transfer};
use crate::disk::{IoFault, calls};

/// What a request is at.
#[derive(Clone, Copy, Debug)]
pub(in crate::disk) enum Step {
    Read,
    Write { fua: bool },
    Flush,
    Range { task: Task, len: u64, fua: bool },
}

impl Step {
    /// Whether it makes data stable, and so may be told of a failed write-back.
    pub(super) fn syncs(self) -> bool {
        matches!(self, Self::Flush | Self::Write { fua: true })
    }
}

/// A request with all it may touch: it may outlive the queue.
pub(in crate::disk) struct Job {
    pub(super) index: u16,
    pub(super) image: Arc<Handle>,
    pub(super) access: MemoryAccess,
    pub(super) transfer: Transfer,
    pub(super) offset: u64,
    pub(super) what: What,
}

/// What to do by blocking calls.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// What the request is at. Bounced where O_DIRECT would refuse it.
    Step(Step),
    /// What fallocate(2) has refused or can't do.
    Instead { task: Task, len: u64 },
}

/// A job that is done.
pub(in crate::disk) struct Finished {
    pub(super) index: u16,
    pub(super) transfer: Transfer,
    pub(super) result: Result<u64, IoFault>,
}

impl Job {
    pub(super) fn run(mut self, given_up: bool) -> Finished {
        let result = match given_up {
            true => Err(IoFault::Cancelled),
            false => self.perform(),
        };
        self.end(result)
    }

    pub(super) fn end(self, result: Result<u64, IoFault>) -> Finished {
        Finished {
            index: self.index,
            transfer: self.transfer,
            result,
        }
    }

    fn perform(&mut self) -> Result<u64, IoFault> {
        let (image, transfer) = (&*self.image, &mut self.transfer);
        let at = self.offset;
        match self.what {
            What::Step(Step::Read) => calls::read(image, transfer, at)?,
            What::Step(Step::Write { fua }) => calls::write(image, transfer, at, fua)?,
            What::Step(Step::Flush) => calls::flush(image)?,
            What::Step(Step::Range { task, len, .. }) => {
                range::run(image, &self.access, task, at, len)?;
            }
            What::Instead { task, len } => range::instead(image, &self.access, task, at, len)?,
        }
        Ok(transfer.len())
    }
}
