//! Disks made of calls that return when the request is done: the call for one request, and the queue in front of it.

use std::os::fd::BorrowedFd;

use super::{Completion, DiskOp, DiskQueue, Full, IoFault};

/// Carries out the requests of one stream, one after the other: all that a [`DiskQueue`] has to do where a call returns
/// when the request is done. [`queue_of`](super::queue_of) and [`queue_on_thread`](super::queue_on_thread) make a queue
/// of it.
pub trait Perform: Send {
    /// Does all of a request and returns the bytes transferred: all that were asked for, and 0 for requests without
    /// data. [`Memory`](super::Memory) gives access to its data.
    ///
    /// # Errors
    /// Why it was not done, or not all of it.
    fn perform(&mut self, op: DiskOp<'_>) -> Result<u64, IoFault>;

    /// Gives back the buffer of the request performed last, if its data was [`Data::Host`](super::Data::Host).
    fn release(&mut self) -> Option<Vec<u8>>;
}

/// The queue in front of a [`Perform`].
pub(super) struct ImmediateQueue<P> {
    performer: P,
    done: Vec<Completion>,
    depth: usize,
}

impl<P: Perform + 'static> ImmediateQueue<P> {
    pub(super) fn open(performer: P, depth: u16) -> Box<dyn DiskQueue> {
        let depth = usize::from(depth);
        Box::new(Self {
            performer,
            done: Vec::with_capacity(depth),
            depth,
        })
    }
}

impl<P: Perform> DiskQueue for ImmediateQueue<P> {
    fn ready(&mut self) -> bool {
        self.done.len() < self.depth
    }

    fn submit(&mut self, tag: u64, op: DiskOp<'_>) -> Result<(), Full> {
        if !self.ready() {
            return Err(Full);
        }
        let result = self.performer.perform(op);
        let buffer = self.performer.release();
        self.done.push(Completion {
            tag,
            result,
            buffer,
        });
        Ok(())
    }

    fn commit(&mut self) {}

    fn completed(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.done);
    }

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
        out.append(&mut self.done);
    }
}
