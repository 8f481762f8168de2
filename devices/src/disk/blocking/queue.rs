//! A queue whose requests are performed one after the other on a thread of its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use splitring_virtio::mem::Segment;

use super::BlockingThread;
use crate::disk::immediate::Perform;
use crate::disk::{Completion, Data, DiskOp, DiskQueue, Full, IoFault};

/// How long a drain waits for the host.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// The queue.
pub(in crate::disk) struct BlockingQueue {
    event: Arc<OwnedFd>,
    blocking: BlockingThread<Order, Completion>,
    /// Tags in flight.
    tags: Vec<u64>,
    /// Requests that no thread takes any more.
    failed: Vec<Completion>,
    depth: usize,
}

/// A request that owns its list of segments.
struct Order {
    tag: u64,
    op: DiskOp<'static>,
    /// The memory, if it is guest memory; the operation has an empty list then.
    segments: Vec<Segment>,
}

impl Order {
    fn new(tag: u64, op: DiskOp<'_>) -> Self {
        let mut segments = Vec::new();
        let mut own = |data: Data<'_>| match data {
            Data::Host(buffer) => Data::Host(buffer),
            Data::Guest(list) => {
                segments.extend_from_slice(list);
                Data::Guest(&[])
            }
        };
        let op = match op {
            DiskOp::Read { offset, data } => DiskOp::Read {
                offset,
                data: own(data),
            },
            DiskOp::Write { offset, data, fua } => DiskOp::Write {
                offset,
                data: own(data),
                fua,
            },
            DiskOp::Flush => DiskOp::Flush,
            DiskOp::Discard { offset, len, fua } => DiskOp::Discard { offset, len, fua },
            DiskOp::WriteZeroes {
                offset,
                len,
                may_unmap,
                fua,
            } => DiskOp::WriteZeroes {
                offset,
                len,
                may_unmap,
                fua,
            },
        };
        Self { tag, op, segments }
    }
}

impl Order {
    /// Has it done, on the thread.
    /// The answer where there is nobody to carry it out.
    fn fail(self) -> Completion {
        let buffer = match self.op {
            DiskOp::Read { data, .. } | DiskOp::Write { data, .. } => match data {
                Data::Host(buffer) => Some(buffer),
                Data::Guest(_) => None,
            },
            _ => None,
        };
        Completion {
            tag: self.tag,
            result: Err(IoFault::Stuck),
            buffer,
        }
    }

    fn perform(self, performer: &mut impl Perform, given_up: bool) -> Completion {
        if given_up {
            return Completion {
                tag: self.tag,
                result: Err(IoFault::Cancelled),
                buffer: None,
            };
        }
        let result = performer.perform(match self.op {
            DiskOp::Read {
                offset,
                data: Data::Guest(_),
            } => DiskOp::Read {
                offset,
                data: Data::Guest(&self.segments),
            },
            DiskOp::Write {
                offset,
                data: Data::Guest(_),
                fua,
            } => DiskOp::Write {
                offset,
                data: Data::Guest(&self.segments),
                fua,
            },
            other => other,
        });
        Completion {
            tag: self.tag,
            result,
            buffer: performer.release(),
        }
    }
}

impl BlockingQueue {
    pub(in crate::disk) fn start(
        mut performer: impl Perform + 'static,
        depth: u16,
    ) -> io::Result<Self> {
        let event = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let work = move |order: Order, given_up| order.perform(&mut performer, given_up);
        let blocking = BlockingThread::start(Arc::clone(&event), work)?;
        Ok(Self {
            event,
            blocking,
            tags: Vec::with_capacity(usize::from(depth)),
            failed: Vec::new(),
            depth: usize::from(depth),
        })
    }

    /// Answers what does not come back.
    fn fail(&mut self, out: &mut Vec<Completion>) {
        let stuck = self.tags.drain(..).map(|tag| Completion {
            tag,
            result: Err(IoFault::Stuck),
            buffer: None,
        });
        out.extend(stuck);
        out.append(&mut self.failed);
    }

    fn done(&mut self, completion: Completion, out: &mut Vec<Completion>) {
        if let Some(at) = self.tags.iter().position(|tag| *tag == completion.tag) {
            self.tags.swap_remove(at);
            out.push(completion);
        }
    }
}

impl Drop for BlockingQueue {
    fn drop(&mut self) {
        self.finish(&mut Vec::new());
    }
}

impl DiskQueue for BlockingQueue {
    fn ready(&mut self) -> bool {
        self.in_flight() < self.depth
    }

    fn submit(&mut self, tag: u64, op: DiskOp<'_>) -> Result<(), Full> {
        if !self.ready() {
            return Err(Full);
        }
        match self.blocking.give(Order::new(tag, op)) {
            Ok(()) => self.tags.push(tag),
            Err(order) => self.failed.push(order.fail()),
        }
        Ok(())
    }

    fn commit(&mut self) {}

    fn completions(&mut self, out: &mut Vec<Completion>) {
        while let Some(completion) = self.blocking.take() {
            self.done(completion, out);
        }
        if self.blocking.ended() {
            self.fail(out);
            self.blocking.pass_on_panic();
        }
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.event.as_fd()]
    }

    fn in_flight(&self) -> usize {
        self.tags.len().saturating_add(self.failed.len())
    }

    fn drain(&mut self, out: &mut Vec<Completion>) {
        self.finish(out);
        self.blocking.pass_on_panic();
    }
}

impl BlockingQueue {
    /// Drains.
    fn finish(&mut self, out: &mut Vec<Completion>) {
        self.blocking.give_up(true);
        while !self.tags.is_empty()
            && let Some(completion) = self.blocking.wait(DRAIN_LIMIT)
        {
            self.done(completion, out);
        }
        // What is left hangs in the host. The thread keeps the memory, and begins nothing any more.
        self.fail(out);
        if self.blocking.under_way() == 0 {
            self.blocking.give_up(false);
        }
    }
}
