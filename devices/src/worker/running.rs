//! A task on its worker: one pass of its handler, and what goes round it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use splitring_virtio::device::queue::{self, Interrupt};
use vmm_sys_util::eventfd::EventFd;

use super::coalesce::{Coalescer, QueueState};
use super::error::WorkerError;
use super::processor::Processor;
use super::watches::Watches;
use crate::debug::opaque_debug;
use crate::device::{Broken, Cause, Outcome, Queue, QueueHandler, QueueSet, Registry, TaskQueue};
use crate::interrupt::InterruptSink;

/// Chains a pass may take from each queue before it is the others' turn: a full queue of the usual size.
const BUDGET: u16 = 256;

/// What [`Worker::add`](super::Worker::add) takes in: a task that has not run. It may be made and dropped on any thread,
/// which gives back what its handler has reserved and does no more.
pub struct NewTask {
    /// For messages: the device's id.
    pub label: String,
    /// The queues, each with the eventfd that its doorbell signals.
    pub queues: Vec<(TaskQueue, Arc<EventFd>)>,
    /// Who serves them.
    pub handler: Box<dyn QueueHandler>,
    /// Where interrupts go.
    pub sink: Arc<dyn InterruptSink>,
}

opaque_debug! { NewTask |it| { label: it.label } }

/// What [`Worker::stop`](super::Worker::stop) says of a task. Its handler was dropped on the worker's thread.
#[derive(Debug)]
pub struct Stopped {
    /// Chains that were taken from the queues and not completed. The handler's stop leaves none.
    pub in_flight: u32,
}

/// A task on its worker: made on the loop's thread, and dropping it stops it.
pub(super) struct Running {
    pub(super) label: String,
    queues: Vec<TaskQueue>,
    /// One for each queue.
    coalescers: Vec<Coalescer>,
    processor: Processor,
    handler: Box<dyn QueueHandler>,
    sink: Arc<dyn InterruptSink>,
    pub(super) watches: Watches,
    /// Lent to the handler.
    registry: Registry,
    /// Timers that the event loop has not been told of yet.
    timers: Vec<(u32, Option<Instant>)>,
    /// Kept open while they are watched.
    _kicks: Vec<Arc<EventFd>>,
    /// The device needs a reset; nothing runs until then.
    pub(super) halted: bool,
    stopped: bool,
}

/// What a pass leaves to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing until an event.
    Idle,
    /// To look at the rings, which ask for no kicks.
    Poll,
    /// The same at that time at the latest: an interrupt is delayed.
    Delayed(Instant),
    Again,
    Halted,
}

impl Running {
    /// The task, for a worker on that processor; its interrupts are delayed by `delay` where they
    /// are coalesced.
    pub(super) fn new(task: NewTask, processor: Processor, delay: Duration) -> Self {
        let (queues, kicks): (Vec<_>, Vec<_>) = task.queues.into_iter().unzip();
        let mut watches = Watches::default();
        for (slot, kick) in queues.iter().zip(&kicks) {
            watches.add_kick(kick.as_raw_fd(), slot.index);
        }
        for source in task.handler.sources() {
            watches.add_source(&source);
        }
        let coalescer = |_: &TaskQueue| Coalescer::new(processor, delay);
        Self {
            label: task.label,
            coalescers: queues.iter().map(coalescer).collect(),
            processor,
            queues,
            handler: task.handler,
            sink: task.sink,
            watches,
            registry: Registry::default(),
            timers: Vec::new(),
            _kicks: kicks,
            halted: false,
            stopped: false,
        }
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.watches.descriptors()
    }

    pub(super) fn event(&mut self, watch: usize, poll: bool) -> Next {
        match self.watches.cause(watch) {
            Some(cause) => self.pass(cause, poll),
            None => Next::Idle,
        }
    }

    /// One run of the handler between switching notifications off and on again. They stay off if
    /// the worker is going to look at the rings: it polls and the handler's backend can be looked
    /// at as well, or an interrupt is delayed.
    pub(super) fn pass(&mut self, cause: Cause, poll: bool) -> Next {
        if self.halted || self.sink.is_broken() {
            return self.set_halted();
        }
        if !self.sink.may_run() {
            return Next::Idle;
        }
        for (slot, coalescer) in self.queues.iter_mut().zip(&self.coalescers) {
            slot.queue.disable_notification();
            slot.queue.grant(coalescer.budget().unwrap_or(BUDGET));
        }
        let mut set = QueueSet::new(&mut self.queues, &mut self.registry);
        let outcome = self.handler.run(&mut set, cause);
        if !self.registry.is_empty()
            && let Err(broken) = self.register()
        {
            return self.halt(&broken);
        }
        let spent = self.queues.iter().any(|slot| slot.queue.spent());
        let pollable = self.handler.poll().is_some();
        // A driver whose device breaks gets what was done before.
        let published = self.publish(pollable && outcome.is_ok());
        let idle = matches!(outcome, Ok(Outcome::Idle)) && !spent;
        // What the handler found wrong says more than that the ring is broken now.
        match outcome.and(published) {
            Err(broken) => self.halt(&broken),
            Ok(_) if !idle => Next::Again,
            Ok(_) => self.idle(poll && pollable),
        }
    }

    /// What is to happen after a pass that did all there was to do.
    fn idle(&mut self, poll: bool) -> Next {
        if let Some(deadline) = self.deadline() {
            return Next::Delayed(deadline);
        }
        // A driver on the worker's processor that keeps one request in flight adds none before its
        // interrupt.
        let poll = poll && (self.processor == Processor::Own || self.is_deep());
        if poll { Next::Poll } else { self.rearm() }
    }

    fn is_deep(&self) -> bool {
        self.coalescers.iter().any(Coalescer::is_deep)
    }

    /// When the first of the delayed interrupts is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.coalescers.iter().filter_map(Coalescer::deadline).min()
    }

    /// Raises all interrupts that are delayed.
    pub(super) fn flush(&mut self) -> Next {
        match self.publish(false) {
            Err(broken) => self.halt(&broken),
            Ok(()) => Next::Idle,
        }
    }

    /// Whether the backend has requests.
    pub(super) fn in_flight(&self) -> bool {
        self.queues.iter().any(|slot| slot.queue.in_flight() > 0)
    }

    /// One step towards a pause: takes no chains, shows the driver what is done, and returns how many requests the
    /// backend still has. A halted task's are waited for as well: they write guest memory like any other.
    pub(super) fn quiesce(&mut self) -> usize {
        for slot in &mut self.queues {
            slot.queue.grant(0);
        }
        let mut set = QueueSet::new(&mut self.queues, &mut self.registry);
        let left = self.handler.quiesce(&mut set);
        let registered = self.register();
        if let Err(broken) = self.publish(false).and(registered)
            && !self.halted
        {
            self.halt(&broken);
        }
        left
    }

    /// Takes over what the handler wants changed of what it waits for.
    fn register(&mut self) -> Result<(), Broken> {
        let taken = self.watches.take(&mut self.registry, &mut self.timers);
        taken.map_err(Broken::device)
    }

    /// Whether the event loop has to be told of a descriptor or a timer.
    pub(super) fn changed(&self) -> bool {
        self.watches.changed() || !self.timers.is_empty()
    }

    /// Takes the timers that have changed: tokens, and when each goes off.
    pub(super) fn take_timers(&mut self) -> Vec<(u32, Option<Instant>)> {
        std::mem::take(&mut self.timers)
    }

    pub(super) fn halt(&mut self, broken: &Broken) -> Next {
        // What other queues completed is not delayed until the reset; the break is reported below.
        let _ = self.publish(false);
        self.sink.broken(broken);
        self.set_halted()
    }

    fn set_halted(&mut self) -> Next {
        if !std::mem::replace(&mut self.halted, true) {
            let mut set = QueueSet::new(&mut self.queues, &mut self.registry);
            self.handler.halted(&mut set);
        }
        Next::Halted
    }

    /// Whether a pass would find something, told without a system call.
    pub(super) fn has_work(&mut self) -> bool {
        let mut queues = self.queues.iter();
        queues.any(|slot| slot.queue.drained() && slot.queue.has_available())
            || self.handler.poll() == Some(true)
    }

    pub(super) fn flooded(&self) -> bool {
        !self.halted && self.handler.flooded()
    }

    /// Shows the driver what was completed, and interrupts it where that is due: at most one index
    /// store and one interrupt decision a queue. Only where interrupts may be delayed is the
    /// coalescer asked.
    fn publish(&mut self, may_delay: bool) -> Result<(), Broken> {
        let mut result = Ok(());
        for (slot, coalescer) in self.queues.iter_mut().zip(&mut self.coalescers) {
            let queue = &mut slot.queue;
            if queue.is_broken() {
                result = Err(Broken::new(slot.index, "the ring is broken"));
            } else if may_delay && !coalescer.due(state_of(queue), Instant::now) {
                queue.publish_used();
                continue;
            }
            coalescer.raised();
            if queue.publish() == Interrupt::Needed {
                self.sink.queue(slot.index);
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

    /// The queues as they are, with their numbers; the backend has nothing.
    pub(super) fn save(&self) -> Result<Vec<(u16, queue::QueueState)>, WorkerError> {
        if !self.handler.can_be_saved() {
            return Err(WorkerError::Holds);
        }
        let queues = self.queues.iter();
        Ok(queues.map(|slot| (slot.index, slot.queue.save())).collect())
    }

    /// Ends it; nothing of it is in flight afterwards.
    pub(super) fn stop(mut self) -> Stopped {
        self.end()
    }

    fn end(&mut self) -> Stopped {
        self.stopped = true;
        let mut set = QueueSet::new(&mut self.queues, &mut self.registry);
        self.handler.stop(&mut set);
        // A ring found broken here ends with the reset that stops it.
        let _ = self.publish(false);
        let in_flight = self
            .queues
            .iter()
            .map(|slot| u32::from(slot.queue.in_flight()))
            .sum();
        Stopped { in_flight }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Where a handler has panicked, no other code of a device is trusted on the way out.
        if !self.stopped && !std::thread::panicking() {
            self.end();
        }
    }
}

fn state_of(queue: &Queue) -> QueueState {
    QueueState {
        completed: queue.unsignalled(),
        in_flight: queue.in_flight(),
        // Where the grant is used up there may be.
        available: queue.spent() || queue.has_available(),
        outstanding: queue.outstanding(),
        wanted: queue.wants_interrupt(),
    }
}

#[cfg(test)]
#[path = "running_tests.rs"]
mod tests;
