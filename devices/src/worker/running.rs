//! A task on its worker: one pass of its handler, and what goes round it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use splitring_virtio::device::queue::Interrupt;
use vmm_sys_util::eventfd::EventFd;

use super::depth::Depth;
use super::processor::Processor;
use super::watches::Watches;
use crate::debug::opaque_debug;
use crate::device::{Broken, Cause, Outcome, QueueHandler, QueueSet, Registry, TaskQueue};
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
    handler: Box<dyn QueueHandler>,
    sink: Arc<dyn InterruptSink>,
    pub(super) watches: Watches,
    /// Lent to the handler.
    registry: Registry,
    /// Timers that the event loop has not been told of yet.
    timers: Vec<(u32, Option<Instant>)>,
    /// Kept open while they are watched.
    _kicks: Vec<Arc<EventFd>>,
    depth: Depth,
    /// The device needs a reset; nothing runs until then.
    pub(super) halted: bool,
    stopped: bool,
}

/// What a worker does about tasks that run out of work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// It looks at their rings for a while.
    pub(super) poll: bool,
    /// They may owe the interrupt meanwhile.
    pub(super) owe: bool,
    /// What they owe took long to answer.
    pub(super) slow: bool,
}

/// What a pass leaves to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing until an event.
    Idle,
    /// To look at the rings, which ask for no kicks.
    Poll,
    /// The same, and an interrupt is owed.
    Owe,
    Again,
    Halted,
}

impl Running {
    pub(super) fn new(task: NewTask, processor: Processor) -> Self {
        let (queues, kicks): (Vec<_>, Vec<_>) = task.queues.into_iter().unzip();
        let mut watches = Watches::default();
        for (slot, kick) in queues.iter().zip(&kicks) {
            watches.add_kick(kick.as_raw_fd(), slot.index);
        }
        for source in task.handler.sources() {
            watches.add_source(&source);
        }
        Self {
            label: task.label,
            queues,
            handler: task.handler,
            sink: task.sink,
            watches,
            registry: Registry::default(),
            timers: Vec::new(),
            _kicks: kicks,
            depth: Depth::new(processor),
            halted: false,
            stopped: false,
        }
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.watches.descriptors()
    }

    pub(super) fn event(&mut self, watch: usize, manner: Manner) -> Next {
        match self.watches.cause(watch) {
            Some(cause) => self.pass(cause, manner),
            None => Next::Idle,
        }
    }

    /// One run of the handler between switching notifications off and on again; they stay off if the worker is going
    /// to look at the rings and the handler's backend can be looked at as well.
    pub(super) fn pass(&mut self, cause: Cause, manner: Manner) -> Next {
        if self.halted || self.sink.is_broken() {
            return self.set_halted();
        }
        if !self.sink.may_run() {
            return Next::Idle;
        }
        let half = self.depth.half().filter(|_| manner.owe);
        let budget = half.unwrap_or(BUDGET);
        for slot in &mut self.queues {
            slot.queue.disable_notification();
            slot.queue.grant(budget);
        }
        let mut set = QueueSet::new(&mut self.queues, &mut self.registry);
        let outcome = self.handler.run(&mut set, cause);
        if !self.registry.is_empty()
            && let Err(broken) = self.register()
        {
            return self.halt(&broken);
        }
        let spent = self.queues.iter().any(|slot| slot.queue.spent());
        let idle = matches!(outcome, Ok(Outcome::Idle)) && !spent;
        let poll = idle && manner.poll && self.handler.poll().is_some();
        let owe = poll && manner.owe && self.may_owe();
        if owe && self.depth.goes_on(self.owed(), manner.slow) {
            for slot in &mut self.queues {
                slot.queue.publish_used();
            }
            return Next::Owe;
        }
        if owe || (spent && half.is_some()) {
            self.depth.complete();
        }
        let published = self.publish();
        // What the handler found wrong says more than that the ring is broken now.
        match outcome.and(published) {
            Err(broken) => self.halt(&broken),
            Ok(_) if !idle => Next::Again,
            Ok(_) if poll => Next::Poll,
            Ok(_) => self.rearm(),
        }
    }

    /// Whether the driver loses nothing by hearing of its requests a little later: all it asked for is done, so that
    /// the backend has nothing to do meanwhile either way.
    fn may_owe(&self) -> bool {
        let mut queues = self.queues.iter().map(|slot| &slot.queue);
        self.owed() > 0 && queues.all(|queue| queue.in_flight() == 0 && !queue.is_broken())
    }

    /// Requests that the driver was not told of yet.
    fn owed(&self) -> u16 {
        let owed = self.queues.iter().map(|slot| slot.queue.unsignalled());
        owed.fold(0, u16::saturating_add)
    }

    /// Raises the interrupts that are owed, since the driver went quiet or for another reason.
    pub(super) fn settle(&mut self, quiet: bool) -> Next {
        let owed = self.owed();
        if quiet && owed > 0 {
            self.depth.quiet(owed);
        }
        match self.publish() {
            Err(broken) => self.halt(&broken),
            Ok(()) => Next::Poll,
        }
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
        if let Err(broken) = self.publish().and(registered)
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

    /// Ends it; nothing of it is in flight afterwards.
    pub(super) fn stop(mut self) -> Stopped {
        self.end()
    }

    fn end(&mut self) -> Stopped {
        self.stopped = true;
        let mut set = QueueSet::new(&mut self.queues, &mut self.registry);
        self.handler.stop(&mut set);
        // A ring found broken here ends with the reset that stops it.
        let _ = self.publish();
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use splitring_virtio::device::queue::RingFeatures;

    use super::*;
    use crate::eventfd::eventfd;
    use crate::testing::{GuestRing, Sink, memory};
    use crate::worker::depth;
    use crate::worker::event_loop::{Entry, Loop};
    use crate::worker::timers::Timers;

    const OWING: Manner = Manner {
        poll: true,
        owe: true,
        slow: false,
    };

    /// Keeps the first few and answers the others.
    struct Backend {
        keeps: u16,
        kept: Vec<crate::device::DescriptorChain>,
    }

    impl QueueHandler for Backend {
        fn run(&mut self, queues: &mut QueueSet<'_>, _: Cause) -> Result<Outcome, Broken> {
            let (_, queue) = queues.iter().next().unwrap();
            while let Some(chain) = queue.pop().map_err(|error| Broken::new(0, error))? {
                if self.kept.len() < usize::from(self.keeps) {
                    self.kept.push(chain);
                } else {
                    queue.complete(chain, 1);
                }
            }
            Ok(Outcome::Idle)
        }
        fn poll(&mut self) -> Option<bool> {
            Some(false)
        }
        fn stop(&mut self, queues: &mut QueueSet<'_>) {
            let (_, queue) = queues.iter().next().unwrap();
            self.kept
                .drain(..)
                .for_each(|chain| queue.complete(chain, 0));
        }
    }

    fn task(keeps: u16) -> (Running, GuestRing, Arc<Sink>) {
        let ram = memory();
        let ring = GuestRing::new(&ram, 0, 256);
        let queue = ring
            .config()
            .activate(ram, RingFeatures::default())
            .unwrap();
        let sink = Arc::new(Sink::default());
        let task = NewTask {
            label: "task".to_owned(),
            queues: vec![(TaskQueue { index: 0, queue }, Arc::new(eventfd().unwrap()))],
            handler: Box::new(Backend {
                keeps,
                kept: Vec::new(),
            }),
            sink: sink.clone(),
        };
        let running = Running::new(task, Processor::Own);
        (running, ring, sink)
    }

    fn offer(ring: &mut GuestRing, count: u16) {
        for _ in 0..count {
            ring.offer(&[(0x1000, 1, true)]);
        }
    }

    #[test]
    fn what_is_answered_is_shown_at_once_and_one_interrupt_follows() {
        let (mut running, mut ring, sink) = task(0);
        for pass in 1..=3 {
            offer(&mut ring, 2);
            assert_eq!(running.pass(Cause::Resume, OWING), Next::Owe);
            assert_eq!(ring.used().len(), 2, "in pass {pass}");
        }
        assert_eq!(sink.interrupts(), 0);
        assert_eq!(running.settle(true), Next::Poll);
        assert_eq!(running.settle(true), Next::Poll);
        assert_eq!(sink.interrupts(), 1);
    }

    #[test]
    fn nothing_is_owed_while_the_backend_works_or_when_it_is_much() {
        let (mut running, mut ring, sink) = task(1);
        offer(&mut ring, 2);
        assert_eq!(running.pass(Cause::Resume, OWING), Next::Poll);
        assert_eq!(sink.interrupts(), 1, "one is in flight");
        let (mut running, mut ring, sink) = task(0);
        for _ in 1..depth::MOST {
            offer(&mut ring, 1);
            assert_eq!(running.pass(Cause::Resume, OWING), Next::Owe);
        }
        offer(&mut ring, 1);
        assert_eq!(running.pass(Cause::Resume, OWING), Next::Poll);
        assert_eq!(sink.interrupts(), 1);
    }

    #[test]
    fn a_burst_of_the_usual_length_is_told_of_with_its_last_answer() {
        let (mut running, mut ring, sink) = task(0);
        for _ in 0..4 {
            offer(&mut ring, 3);
            running.pass(Cause::Resume, OWING);
            running.settle(true);
        }
        let before = sink.interrupts();
        for next in [Next::Owe, Next::Owe, Next::Poll] {
            offer(&mut ring, 1);
            assert_eq!(running.pass(Cause::Resume, OWING), next);
        }
        assert_eq!(sink.interrupts(), before + 1);
    }

    #[test]
    fn a_driver_that_is_ahead_is_told_of_every_half() {
        let (mut running, mut ring, sink) = task(0);
        offer(&mut ring, depth::MOST);
        for interrupts in 1..=2 {
            assert_eq!(running.pass(Cause::Resume, OWING), Next::Again);
            assert_eq!(sink.interrupts(), interrupts);
        }
        assert_eq!(ring.used().len(), usize::from(depth::MOST));
        assert_eq!(
            running.pass(Cause::Resume, OWING),
            Next::Poll,
            "nothing is owed"
        );
    }

    #[test]
    fn a_pause_and_a_stop_pay_what_is_owed() {
        let owing = || {
            let (mut running, mut ring, sink) = task(0);
            offer(&mut ring, 1);
            assert_eq!(running.pass(Cause::Resume, OWING), Next::Owe);
            (running, sink)
        };
        let (running, sink) = owing();
        let timers = Timers::new().unwrap();
        let mut state = Loop::new(Duration::from_micros(32), Processor::Own, timers);
        state.put_owing(3, Entry::Task(running));
        state.stop_polling();
        assert_eq!(sink.interrupts(), 1);
        let (running, sink) = owing();
        running.stop();
        assert_eq!(sink.interrupts(), 1);
    }
}
