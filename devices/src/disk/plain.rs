//! Requests by blocking calls, one after the other: where io_uring is refused, and for images that live in memory, whose
//! reads and writes never wait.

use std::sync::Arc;

use super::handle::Handle;
use super::immediate::Perform;
use super::range::{self, Task};
use super::transfer::{MemoryAccess, Transfer};
use super::{DiskOp, IoFault, calls};
use crate::ram::Ram;

pub(super) struct Plain {
    image: Arc<Handle>,
    access: MemoryAccess,
    transfer: Transfer,
}

impl Plain {
    pub(super) fn new(image: Arc<Handle>, ram: Ram) -> Self {
        Self {
            image,
            access: MemoryAccess::new(ram),
            transfer: Transfer::default(),
        }
    }

    fn range(&self, task: Task, offset: u64, len: u64, fua: bool) -> Result<u64, IoFault> {
        self.image.admit(offset, len, true)?;
        if len == 0 {
            // fallocate(2) takes no empty ranges.
            return Ok(0);
        }
        range::run(&self.image, &self.access, task, offset, len)?;
        if fua || self.image.writethrough {
            calls::flush(&self.image)?;
        }
        Ok(0)
    }
}

impl Perform for Plain {
    fn perform(&mut self, op: DiskOp<'_>) -> Result<u64, IoFault> {
        let image = &*self.image;
        match op {
            DiskOp::Read { offset, data } => {
                self.transfer.load(data, &self.access)?;
                image.admit(offset, self.transfer.len(), false)?;
                calls::read(image, &mut self.transfer, offset)?;
                Ok(self.transfer.len())
            }
            DiskOp::Write { offset, data, fua } => {
                self.transfer.load(data, &self.access)?;
                image.admit(offset, self.transfer.len(), true)?;
                calls::write(image, &mut self.transfer, offset, fua || image.writethrough)?;
                Ok(self.transfer.len())
            }
            DiskOp::Flush => calls::flush(image).map(|()| 0),
            DiskOp::Discard { offset, len, fua } => self.range(Task::Discard, offset, len, fua),
            DiskOp::WriteZeroes {
                offset,
                len,
                may_unmap,
                fua,
            } => self.range(Task::zero(image, may_unmap), offset, len, fua),
        }
    }

    fn release(&mut self) -> Option<Vec<u8>> {
        self.transfer.clear()
    }
}
