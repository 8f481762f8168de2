//! One thread's ways to the disks: a ring shared by those that can share one, a queue of its own for each other.
//!
//! Both are taken when a disk is first used on this thread. Whatever the way, requests carry the caller's tag and
//! completions come back in one list; what a disk will not take now waits here in order.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::hub::Hub;
use super::job::Op;
use super::request::Request;
use super::slot::Slot;
use super::unit::Nexus;
use crate::device::{Interest, Registry, Source, Trigger};
use crate::disk::{Completion, Data, DiskOp, DiskQueue, IoFault, RingShare, Seat};
use crate::log;
use crate::ram::Ram;

/// Token of the shared ring.
const RING: u32 = 1;
/// Token of the queue in slot 0, of its events and of its timer; those of the others follow.
const QUEUES: u32 = 2;

/// How this thread reaches one disk.
enum Way {
    Seat(Seat),
    Queue {
        queue: Box<dyn DiskQueue>,
        waiting: VecDeque<u64>,
        submitted: bool,
    },
}

/// A disk that this thread has open. It keeps the number under which it is found here.
struct Open {
    way: Way,
    _slot: Arc<Slot>,
}

/// All ways of one thread.
pub(crate) struct Backend {
    ram: Ram,
    index: u16,
    depth: u16,
    ring: Option<RingShare>,
    ways: Vec<Option<Open>>,
    /// What is to be waited for from now on, or no more: queues come and go while the thread runs.
    registry: Registry,
    /// Queues that were given something since the last commit.
    touched: Vec<usize>,
    failed: Vec<Completion>,
}

impl Backend {
    pub(crate) fn new(hub: &Arc<Hub>, ram: Ram, index: u16, depth: u16) -> Self {
        let ring = hub
            .opened
            .rings
            .as_ref()
            .and_then(|rings| rings.take(index, ram.clone()));
        Self {
            ram,
            index,
            depth,
            ring,
            ways: Vec::new(),
            registry: Registry::default(),
            touched: Vec::new(),
            failed: Vec::new(),
        }
    }

    pub(crate) fn sources(&self) -> Vec<Source<'_>> {
        let events = self.ring.iter().flat_map(RingShare::events);
        events.map(|fd| Source::edge(fd, RING)).collect()
    }

    /// Tells `registry` which queues have come and gone, and when those over a rate limit are to be asked again.
    pub(crate) fn register(&mut self, registry: &mut Registry) {
        for (slot, open) in self.ways.iter().enumerate() {
            if let Some(Open {
                way: Way::Queue { queue, waiting, .. },
                ..
            }) = open
                && !waiting.is_empty()
                && let Some(at) = queue.ready_at()
            {
                self.registry.set_timer(token_of(slot), at);
            }
        }
        registry.append(&mut self.registry);
    }

    /// Whether the shared ring has something; of disks with queues of their own, the sources tell.
    pub(crate) fn has_completions(&mut self) -> bool {
        self.ring.as_mut().is_some_and(RingShare::has_completions)
    }

    /// The way to a disk, if this thread has it open.
    fn known(&mut self, slot: usize) -> Option<&mut Way> {
        let open = self.ways.get_mut(slot)?.as_mut()?;
        Some(&mut open.way)
    }

    /// The way to a disk, which is opened at its first use.
    fn way(&mut self, nexus: &Nexus) -> Result<&mut Way, IoFault> {
        let slot = nexus.slot.number();
        if self.known(slot).is_none() {
            let way = self.open(nexus)?;
            if self.ways.len() <= slot {
                self.ways.resize_with(slot.saturating_add(1), || None);
            }
            if let Some(place) = self.ways.get_mut(slot) {
                *place = Some(Open {
                    way,
                    _slot: Arc::clone(&nexus.slot),
                });
            }
        }
        self.known(slot).ok_or(IoFault::Host(libc::EBADF))
    }

    fn open(&mut self, nexus: &Nexus) -> Result<Way, IoFault> {
        if let (Some(ring), Some(member)) = (self.ring.as_mut(), nexus.disk.member()) {
            match ring.join(&member) {
                Ok(seat) => return Ok(Way::Seat(seat)),
                Err(error) => log::warn!(
                    nexus.throttle,
                    "{}: no place in the shared ring: {error}",
                    nexus.id
                ),
            }
        }
        let opened = nexus
            .disk
            .open_queue(self.ram.clone(), self.index, self.depth);
        let queue = opened.map_err(|error| {
            log::error!(nexus.throttle, "{}: {error}", nexus.id);
            IoFault::Host(libc::ENODEV)
        })?;
        let events: io::Result<Vec<OwnedFd>> = queue
            .events()
            .iter()
            .map(|event| event.try_clone_to_owned())
            .collect();
        let events = events.map_err(|error| {
            log::error!(nexus.throttle, "{}: cannot wait for it: {error}", nexus.id);
            IoFault::from_errno(error.raw_os_error().unwrap_or(libc::EIO))
        })?;
        let token = token_of(nexus.slot.number());
        for event in events {
            self.registry
                .add(event, token, Interest::Read, Trigger::Edge);
        }
        Ok(Way::Queue {
            queue,
            waiting: VecDeque::new(),
            submitted: false,
        })
    }

    /// Hands a request to the disk of `nexus`. What can't even be tried completes with a fault.
    pub(crate) fn submit(&mut self, nexus: &Nexus, tag: u64, op: Op, request: &mut Request) {
        let slot = nexus.slot.number();
        let result = match self.way(nexus) {
            Err(fault) => Err(fault),
            Ok(Way::Seat(seat)) => {
                let seat = *seat;
                let ring = self.ring.as_mut();
                translate(op, request).and_then(|op| {
                    let submitted = ring.map(|ring| ring.submit(seat, tag, op));
                    // There are as many places as commands, so a full ring is a bug that costs one command.
                    submitted
                        .and_then(Result::ok)
                        .ok_or(IoFault::Host(libc::EBUSY))
                })
            }
            Ok(Way::Queue {
                queue, submitted, ..
            }) => {
                let first = !*submitted;
                let result = translate(op, request).and_then(|op| {
                    queue
                        .submit(tag, op)
                        .map_err(|_| IoFault::Host(libc::EBUSY))
                });
                *submitted = true;
                if first {
                    self.touched.push(slot);
                }
                result
            }
        };
        if let Err(fault) = result {
            self.failed.push(Completion {
                tag,
                result: Err(fault),
                buffer: None,
            });
        }
    }

    /// Whether the disk takes another request now; if not, `tag` waits and comes back from [`Self::runnable`].
    pub(crate) fn admits(&mut self, nexus: &Nexus, tag: u64) -> bool {
        if let Ok(Way::Queue { queue, waiting, .. }) = self.way(nexus)
            && (!waiting.is_empty() || !queue.ready())
        {
            waiting.push_back(tag);
            return false;
        }
        true
    }

    /// Tags that waited and may go on. Each is to be admitted anew.
    pub(crate) fn runnable(&mut self, out: &mut Vec<u64>) {
        for open in self.ways.iter_mut().flatten() {
            if let Way::Queue { queue, waiting, .. } = &mut open.way
                && !waiting.is_empty()
                && queue.ready()
            {
                out.extend(waiting.drain(..));
            }
        }
    }

    /// Forgets a tag that waits.
    pub(crate) fn forget(&mut self, nexus: &Nexus, tag: u64) {
        if let Some(Way::Queue { waiting, .. }) = self.known(nexus.slot.number()) {
            waiting.retain(|other| *other != tag);
        }
    }

    /// Asks the disk to let go of a request; what it is done with comes out of the next [`Self::exchange`].
    pub(crate) fn cancel(&mut self, nexus: &Nexus, tag: u64) {
        let slot = nexus.slot.number();
        match self.known(slot) {
            Some(Way::Seat(_)) => {
                if let Some(ring) = self.ring.as_mut() {
                    ring.cancel(tag);
                }
            }
            Some(Way::Queue { queue, .. }) => {
                queue.cancel(tag);
                self.touched.push(slot);
            }
            None => {}
        }
    }

    /// Gives the host the batch and takes what has completed.
    pub(crate) fn exchange(&mut self, out: &mut Vec<Completion>) {
        if let Some(ring) = self.ring.as_mut().filter(|ring| ring.in_flight() > 0) {
            ring.commit();
            ring.completions(out);
        }
        for slot in std::mem::take(&mut self.touched) {
            if let Some(Way::Queue {
                queue, submitted, ..
            }) = self.known(slot)
            {
                *submitted = false;
                queue.commit();
                queue.completions(out);
            }
        }
        out.append(&mut self.failed);
    }

    /// Takes what has completed already, without asking the host for more.
    pub(crate) fn completed(&mut self, out: &mut Vec<Completion>) {
        if let Some(ring) = &mut self.ring {
            ring.completed(out);
        }
        for slot in &self.touched {
            if let Some(Some(open)) = self.ways.get_mut(*slot)
                && let Way::Queue { queue, .. } = &mut open.way
            {
                queue.completed(out);
            }
        }
        out.append(&mut self.failed);
    }

    /// The next exchange asks the queue whose event or timer has this token.
    pub(crate) fn touch(&mut self, token: u32) {
        if let Some(slot) = slot_of(token) {
            self.touched.push(slot);
        }
    }

    /// The next exchange asks all queues.
    pub(crate) fn touch_all(&mut self) {
        self.touched.extend(0..self.ways.len());
    }

    /// Closes a disk that has nothing in flight here.
    pub(crate) fn detach(&mut self, slot: &Slot) {
        let open = self.ways.get_mut(slot.number());
        match open.and_then(Option::take).map(|open| open.way) {
            Some(Way::Seat(seat)) => {
                if let Some(ring) = self.ring.as_mut() {
                    ring.leave(seat);
                }
            }
            Some(Way::Queue { .. }) => {
                let token = token_of(slot.number());
                self.registry.remove(token);
                self.registry.stop_timer(token);
            }
            None => {}
        }
    }

    /// Cancels and waits, bounded; the completions are appended to `out`.
    pub(crate) fn drain(&mut self, out: &mut Vec<Completion>) {
        if let Some(ring) = self.ring.as_mut() {
            ring.drain(out);
        }
        for open in self.ways.drain(..).flatten() {
            if let Way::Queue { mut queue, .. } = open.way {
                queue.drain(out);
            }
        }
        out.append(&mut self.failed);
        self.ring = None;
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.drain(&mut Vec::new());
    }
}

/// The token of the queue in `slot`.
fn token_of(slot: usize) -> u32 {
    u32::try_from(slot).map_or(u32::MAX, |slot| slot.saturating_add(QUEUES))
}

/// The slot whose queue has this token.
fn slot_of(token: u32) -> Option<usize> {
    usize::try_from(token.checked_sub(QUEUES)?).ok()
}

/// The request as the disk takes it, with the guest's memory filled in.
fn translate(op: Op, request: &mut Request) -> Result<DiskOp<'_>, IoFault> {
    let bad = |_| IoFault::BadMemory;
    Ok(match op {
        Op::Read { offset, len } => DiskOp::Read {
            offset,
            data: Data::Guest(request.data_in(len).map_err(bad)?),
        },
        Op::Write {
            offset,
            start,
            len,
            fua,
        } => DiskOp::Write {
            offset,
            data: Data::Guest(request.data_out(start, len).map_err(bad)?),
            fua,
        },
        Op::ReadHost { offset, buffer } => DiskOp::Read {
            offset,
            data: Data::Host(buffer),
        },
        Op::WriteHost {
            offset,
            buffer,
            fua,
        } => DiskOp::Write {
            offset,
            data: Data::Host(buffer),
            fua,
        },
        Op::Flush => DiskOp::Flush,
        Op::Discard { offset, len, fua } => DiskOp::Discard { offset, len, fua },
        Op::Zeroes {
            offset,
            len,
            unmap,
            fua,
        } => DiskOp::WriteZeroes {
            offset,
            len,
            may_unmap: unmap,
            fua,
        },
    })
}
