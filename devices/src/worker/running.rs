//! A task on its worker: one pass of its handler, and what goes round it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::EventSet;
use splitring_virtio::device::queue::Interrupt;
use vmm_sys_util::eventfd::EventFd;

use super::{NewTask, Stopped};
use crate::device::{
    Broken, Cause, Interest, Outcome, QueueHandler, QueueSet, Source, TaskQueue, Trigger,
};
use crate::interrupt::InterruptSink;

/// Edge-triggered: each signal of an eventfd is an event of its own, so it never has to be read.
pub(super) const KICK_EVENTS: EventSet = EventSet::IN.union(EventSet::EDGE_TRIGGERED);

/// Chains a pass may take from each queue before it is the others' turn: a full queue of the usual size.
const BUDGET: u16 = 256;

/// A task on its worker.
pub(super) struct Running {
    pub(super) label: String,
    queues: Vec<TaskQueue>,
    handler: Box<dyn QueueHandler>,
    sink: Arc<dyn InterruptSink>,
    pub(super) watches: Vec<Watch>,
    /// Kept open while they are watched.
    _kicks: Vec<EventFd>,
    /// The device needs a reset; nothing runs until then.
    pub(super) halted: bool,
}

#[derive(Clone, Copy)]
pub(super) struct Watch {
    pub(super) fd: RawFd,
    pub(super) events: EventSet,
    cause: Cause,
}

/// What a pass leaves to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing until an event.
    Idle,
    /// To look at the rings, which ask for no kicks.
    Poll,
    Again,
    Halted,
}

impl Running {
    pub(super) fn new(task: NewTask) -> Self {
        let (queues, kicks): (Vec<_>, Vec<_>) = task.queues.into_iter().unzip();
        let mut watches: Vec<Watch> = queues
            .iter()
            .zip(&kicks)
            .map(|(slot, kick)| Watch {
                fd: kick.as_raw_fd(),
                events: KICK_EVENTS,
                cause: Cause::Kick(slot.index),
            })
            .collect();
        watches.extend(task.handler.sources().iter().map(Watch::of_source));
        Self {
            label: task.label,
            queues,
            handler: task.handler,
            sink: task.sink,
            watches,
            _kicks: kicks,
            halted: false,
        }
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.watches.iter().map(|watch| watch.fd)
    }

    pub(super) fn event(&mut self, watch: usize, poll: bool) -> Next {
        match self.watches.get(watch).map(|watch| watch.cause) {
            Some(cause) => self.pass(cause, poll),
            None => Next::Idle,
        }
    }

    /// One run of the handler between switching notifications off and on again; they stay off if the worker is going
    /// to `poll` and the handler's backend can be polled as well.
    pub(super) fn pass(&mut self, cause: Cause, poll: bool) -> Next {
        if self.halted || self.sink.is_broken() {
            self.halted = true;
            return Next::Halted;
        }
        for slot in &mut self.queues {
            slot.queue.disable_notification();
            slot.queue.grant(BUDGET);
        }
        let outcome = self
            .handler
            .run(&mut QueueSet::new(&mut self.queues), cause);
        match self.publish().and(outcome) {
            Err(broken) => {
                self.halted = true;
                self.sink.broken(&broken);
                Next::Halted
            }
            Ok(Outcome::More) => Next::Again,
            Ok(Outcome::Idle) if self.queues.iter().any(|slot| slot.queue.spent()) => Next::Again,
            Ok(Outcome::Idle) if poll && self.handler.poll().is_some() => Next::Poll,
            Ok(Outcome::Idle) => self.rearm(),
        }
    }

    /// Whether a pass would find something, told without a system call.
    pub(super) fn has_work(&mut self) -> bool {
        let mut queues = self.queues.iter();
        queues.any(|slot| slot.queue.drained() && slot.queue.has_available())
            || self.handler.poll() == Some(true)
    }

    /// Shows the driver what was completed: one index store and one interrupt decision a queue.
    fn publish(&mut self) -> Result<(), Broken> {
        let mut result = Ok(());
        for slot in &mut self.queues {
            if slot.queue.publish() == Interrupt::Needed {
                self.sink.queue(slot.index);
            }
            if slot.queue.is_broken() {
                result = Err(Broken::new(slot.index, "the ring is broken"));
            }
        }
        result
    }

    /// Asks to be notified of the next buffer on every queue that was emptied. A buffer that came in between
    /// is not notified: then the handler runs again, after other events.
    pub(super) fn rearm(&mut self) -> Next {
        let mut next = Next::Idle;
        for slot in &mut self.queues {
            if slot.queue.drained() && slot.queue.enable_notification() {
                next = Next::Again;
            }
        }
        next
    }

    pub(super) fn stop(mut self) -> Stopped {
        self.handler.stop(&mut QueueSet::new(&mut self.queues));
        // A ring found broken here ends with the reset that stops it.
        let _ = self.publish();
        let in_flight = self
            .queues
            .iter()
            .map(|slot| u32::from(slot.queue.in_flight()))
            .sum();
        Stopped {
            handler: self.handler,
            queues: self.queues,
            in_flight,
        }
    }
}

impl Watch {
    fn of_source(source: &Source<'_>) -> Self {
        let mut events = match source.interest {
            Interest::Read => EventSet::IN,
            Interest::Write => EventSet::OUT,
            Interest::Both => EventSet::IN.union(EventSet::OUT),
        };
        if source.trigger == Trigger::Edge {
            events = events.union(EventSet::EDGE_TRIGGERED);
        }
        Self {
            fd: source.fd.as_raw_fd(),
            events,
            cause: Cause::Source(source.token),
        }
    }
}
