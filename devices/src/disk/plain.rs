//! Requests by blocking calls, each done when it is submitted: where io_uring is refused, and for images that live in
//! memory, whose reads and writes never wait.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::image::Image;
use super::range::{self, Task};
use super::transfer::{Reach, Transfer};
use super::{Completion, DiskOp, DiskQueue, Full, IoFault, bounce};
use crate::ram::Ram;

pub(super) struct PlainQueue {
    image: Arc<Image>,
    reach: Reach,
    transfer: Transfer,
    done: Vec<Completion>,
    depth: usize,
}

impl PlainQueue {
    pub(super) fn new(image: Arc<Image>, ram: Ram, depth: u16) -> Self {
        let depth = usize::from(depth);
        Self {
            image,
            reach: Reach::new(ram),
            transfer: Transfer::default(),
            done: Vec::with_capacity(depth),
            depth,
        }
    }

    fn perform(&mut self, op: DiskOp<'_>) -> Result<u64, IoFault> {
        let image = &*self.image;
        match op {
            DiskOp::Read { offset, data } => {
                self.transfer.load(data, &self.reach)?;
                image.admit(offset, self.transfer.len(), false)?;
                if bounce::fits(image, &self.transfer, offset) {
                    self.transfer.read_at(&image.file, offset)?;
                } else {
                    bounce::read(image, &mut self.transfer, offset)?;
                }
                Ok(self.transfer.len())
            }
            DiskOp::Write { offset, data, fua } => {
                self.transfer.load(data, &self.reach)?;
                image.admit(offset, self.transfer.len(), true)?;
                let fua = fua || image.writethrough;
                if bounce::fits(image, &self.transfer, offset) {
                    self.transfer.write_at(&image.file, offset, fua)?;
                } else {
                    bounce::write(image, &mut self.transfer, offset, fua)?;
                }
                Ok(self.transfer.len())
            }
            DiskOp::Flush => self.flush(),
            DiskOp::Discard { offset, len, fua } => self.range(Task::Discard, offset, len, fua),
            DiskOp::WriteZeroes {
                offset,
                len,
                may_unmap,
                fua,
            } => self.range(Task::zero(image, may_unmap), offset, len, fua),
        }
    }

    fn range(&self, task: Task, offset: u64, len: u64, fua: bool) -> Result<u64, IoFault> {
        self.image.admit(offset, len, true)?;
        range::run(&self.image, &self.reach, task, offset, len)?;
        if fua || self.image.writethrough {
            self.flush()
        } else {
            Ok(0)
        }
    }

    fn flush(&self) -> Result<u64, IoFault> {
        self.image.admit_flush()?;
        self.image.file.sync_data().map(|()| 0).map_err(|error| {
            self.image.flush_failed();
            error.into()
        })
    }
}

impl DiskQueue for PlainQueue {
    fn ready(&mut self) -> bool {
        self.done.len() < self.depth
    }

    fn submit(&mut self, tag: u64, op: DiskOp<'_>) -> Result<(), Full> {
        if !self.ready() {
            return Err(Full);
        }
        let result = self.perform(op);
        let buffer = self.transfer.clear();
        self.done.push(Completion {
            tag,
            result,
            buffer,
        });
        Ok(())
    }

    fn commit(&mut self) {}

    fn completions(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.done);
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn drain(&mut self, out: &mut Vec<Completion>) {
        self.completions(out);
    }
}
