//! The event loop's state: the tasks in their slots, those that are ready, those whose rings are polled.
//!
//! It knows slots and descriptors; what a pass over a task does is `running`'s, what a turn of the loop is, `serve`'s.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber, SubscriberId};
use splitring_virtio::device::queue::QueueState;
use vmm_sys_util::eventfd::EventFd;

use super::calls;
use super::error::WorkerError;
use super::pause::Drain;
use super::polled::Polled;
use super::precedence::Precedence;
use super::processor::Processor;
use super::running::{Next, Running};
use super::timers::Timers;
use super::watches::KICK_EVENTS;
use crate::device::{Broken, Cause};

pub(super) type Ops<'a> = calls::Ops<'a, Loop>;

pub(super) fn loop_of<'a>(
    ops: &'a mut Ops<'_>,
    id: SubscriberId,
) -> Result<&'a mut Loop, WorkerError> {
    ops.subscriber_mut(id).map_err(|_| WorkerError::NoTask)
}

pub(super) fn events_of<'a>(
    ops: &'a mut Ops<'_>,
    id: SubscriberId,
) -> Result<EventOps<'a>, WorkerError> {
    ops.event_ops(id).map_err(|_| WorkerError::NoTask)
}

/// The data of the event that says that calls came in; no slot has this number.
pub(super) const CALLS: u32 = u32::MAX;
/// The data of the event that says that a timer ran out; likewise.
pub(super) const TIMERS: u32 = u32::MAX - 1;

/// No task's: the timer of delayed interrupts has it.
pub(super) const NO_SLOT: u16 = u16::MAX;

/// The state of the event loop: its one subscriber.
pub(super) struct Loop {
    pub(super) slots: Vec<Option<Entry>>,
    /// Slots of tasks to run again.
    pub(super) ready: VecDeque<u16>,
    pub(super) polled: Polled,
    precedence: Precedence,
    /// Calls came in.
    pub(super) called: bool,
    pub(super) phase: Phase,
    /// Pauses that were asked for and have not begun.
    pub(super) asked: Vec<Drain>,
    /// Slots that nothing is watched for, since they have paused.
    pub(super) parked: BTreeSet<u16>,
    pub(super) timers: Timers,
    /// Slots of tasks that have descriptors or timers to be told of.
    changed: Vec<u16>,
    pub(super) quit: bool,
}

/// Whether tasks run.
pub(super) enum Phase {
    Running,
    /// They finish what is in flight; those are told who asked for the pause.
    Draining(Vec<Drain>),
    Paused,
}

/// Milliseconds between two steps of a drain that no event brings about. Events of a halted task are not watched, and
/// a step may leave something to do.
const DRAIN_TICK: i32 = 1;

pub(super) enum Entry {
    Task(Running),
    Watch(Watcher),
}

pub(super) struct Watcher {
    pub(super) label: String,
    pub(super) fd: Arc<EventFd>,
    pub(super) action: Box<dyn FnMut() + Send>,
}

impl MutEventSubscriber for Loop {
    fn init(&mut self, _ops: &mut EventOps) {}

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.data() == CALLS {
            self.called = true;
            return;
        }
        if !self.runs() {
            // Only tasks with requests in flight are watched now, and a step of the drain looks at all of them.
            return;
        }
        if events.data() == TIMERS {
            return self.go_off(ops);
        }
        let (slot, watch) = unpack(events.data());
        let Some(Some(entry)) = self.slots.get_mut(usize::from(slot)) else {
            return;
        };
        let next = match entry {
            Entry::Watch(watcher) => {
                (watcher.action)();
                Next::Idle
            }
            Entry::Task(running) => {
                self.polled.found();
                let next = running.event(watch, self.polled.is_on());
                self.polled.did();
                next
            }
        };
        if next == Next::Halted {
            entry.unwatch(ops);
        }
        self.after(slot, next);
    }
}

impl Loop {
    pub(super) fn new(max_window: Duration, processor: Processor, timers: Timers) -> Self {
        Self {
            slots: Vec::new(),
            ready: VecDeque::new(),
            polled: Polled::new(max_window, processor),
            precedence: Precedence::new(),
            called: false,
            phase: Phase::Running,
            asked: Vec::new(),
            parked: BTreeSet::new(),
            timers,
            changed: Vec::new(),
            quit: false,
        }
    }

    pub(super) fn free_slot(&self) -> Option<u16> {
        let free = self.slots.iter().position(Option::is_none);
        u16::try_from(free.unwrap_or(self.slots.len()))
            .ok()
            .filter(|slot| *slot != NO_SLOT)
    }

    pub(super) fn put(&mut self, slot: u16, entry: Option<Entry>) {
        let index = usize::from(slot);
        if index >= self.slots.len() {
            self.slots.resize_with(index.saturating_add(1), || None);
        }
        if let Some(place) = self.slots.get_mut(index) {
            *place = entry;
        }
        self.push_ready(slot);
    }

    pub(super) fn take(&mut self, slot: u16) -> Option<Entry> {
        self.ready.retain(|&other| other != slot);
        self.polled.remove(slot);
        self.precedence.told(slot, false);
        self.parked.remove(&slot);
        self.slots.get_mut(usize::from(slot))?.take()
    }

    /// Runs the tasks whose timers have run out.
    fn go_off(&mut self, ops: &mut EventOps) {
        for (slot, token) in self.timers.expired(Instant::now()) {
            if slot == NO_SLOT {
                self.polled.timer_expired();
            }
            let Some(Some(Entry::Task(running))) = self.slots.get_mut(usize::from(slot)) else {
                continue;
            };
            let next = running.pass(Cause::Timer(token), self.polled.is_on());
            if next == Next::Halted {
                running
                    .descriptors()
                    .for_each(|fd| unwatch_fd(ops, fd, slot));
            }
            self.after(slot, next);
        }
    }

    /// Whether there is something for [`apply_changes`].
    pub(super) fn has_changes(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Notes that the task in `slot` may have changed what it waits for.
    pub(super) fn note_changes(&mut self, slot: u16) {
        if let Some(Some(Entry::Task(running))) = self.slots.get(usize::from(slot))
            && running.changed()
        {
            self.changed.push(slot);
        }
    }

    pub(super) fn live_slots(&self) -> Vec<u16> {
        (0..=u16::MAX)
            .zip(&self.slots)
            .filter(|(_, entry)| entry.is_some())
            .map(|(slot, _)| slot)
            .collect()
    }

    /// Whether tasks run, rather than being paused or on the way to it.
    pub(super) fn runs(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// Every slot in use with what is in it.
    pub(super) fn entries(&mut self) -> impl Iterator<Item = (u16, &mut Entry)> {
        let slots = (0..=u16::MAX).zip(&mut self.slots);
        slots.filter_map(|(slot, entry)| Some((slot, entry.as_mut()?)))
    }

    /// Arranges what a pass of the task in `slot` left to do.
    pub(super) fn after(&mut self, slot: u16, next: Next) {
        self.note_changes(slot);
        if let Some(Some(Entry::Task(running))) = self.slots.get(usize::from(slot)) {
            self.precedence.told(slot, running.flooded());
        }
        match next {
            Next::Idle | Next::Halted => self.polled.remove(slot),
            Next::Poll => self.polled.put(slot, None),
            Next::Delayed(deadline) => self.polled.put(slot, Some(deadline)),
            Next::Again => self.push_ready(slot),
        }
    }

    /// A step of the task in `slot` towards having nothing in flight, while its sink lets it not run: how many requests
    /// it still has.
    pub(super) fn finish(&mut self, slot: u16) -> Option<usize> {
        self.polled.remove(slot);
        let left = match self.slots.get_mut(usize::from(slot))? {
            Some(Entry::Task(running)) => running.quiesce(),
            _ => return None,
        };
        self.note_changes(slot);
        Some(left)
    }

    /// The queues of the task in `slot`, which is to be paused.
    pub(super) fn save(&mut self, slot: u16) -> Result<Vec<(u16, QueueState)>, WorkerError> {
        let parked = self.parked.contains(&slot) && !self.runs();
        match self.slots.get(usize::from(slot)) {
            Some(Some(Entry::Task(running))) if parked => running.save(),
            Some(Some(Entry::Task(_))) => Err(WorkerError::Runs),
            _ => Err(WorkerError::NoTask),
        }
    }

    /// Has the task in `slot` look at everything.
    pub(super) fn wake(&mut self, slot: u16) {
        self.push_ready(slot);
    }

    pub(super) fn push_ready(&mut self, slot: u16) {
        if !self.ready.contains(&slot) {
            self.ready.push_back(slot);
        }
    }

    /// How long to wait for events, in milliseconds; -1 is for ever.
    pub(super) fn wait(&self) -> i32 {
        if self.has_ready() || self.polled.is_looking() || !self.asked.is_empty() {
            return 0;
        }
        match self.phase {
            Phase::Draining(_) => DRAIN_TICK,
            Phase::Running | Phase::Paused => -1,
        }
    }

    pub(super) fn has_ready(&self) -> bool {
        self.runs() && !self.ready.is_empty()
    }

    /// Runs up to `round` ready tasks; returns the descriptors of those that must run no more.
    pub(super) fn run_ready(&mut self, round: usize) -> Vec<(u16, RawFd)> {
        let mut halted = Vec::new();
        for _ in 0..round {
            if !self.runs() {
                break;
            }
            let Some(slot) = self.ready.pop_front() else {
                break;
            };
            let Some(Some(Entry::Task(running))) = self.slots.get_mut(usize::from(slot)) else {
                continue;
            };
            let next = running.pass(Cause::Resume, self.polled.is_on());
            self.polled.did();
            if next == Next::Halted {
                halted.extend(running.descriptors().map(|fd| (slot, fd)));
            }
            self.after(slot, next);
        }
        halted
    }

    pub(super) fn stop_all(&mut self) {
        for entry in self.slots.drain(..).flatten() {
            if let Entry::Task(running) = entry {
                running.stop();
            }
        }
    }
}

impl Entry {
    fn label(&self) -> &str {
        match self {
            Entry::Task(running) => &running.label,
            Entry::Watch(watcher) => &watcher.label,
        }
    }

    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        match self {
            Entry::Task(running) => running.descriptors().collect(),
            Entry::Watch(watcher) => vec![watcher.fd.as_raw_fd()],
        }
    }

    pub(super) fn watch(&self, slot: u16, ops: &mut EventOps) -> Result<(), WorkerError> {
        let wanted: Vec<(u16, RawFd, EventSet)> = match self {
            Entry::Task(running) if running.halted => Vec::new(),
            Entry::Task(running) => running.watches.wanted().collect(),
            Entry::Watch(watcher) => vec![(0, watcher.fd.as_raw_fd(), KICK_EVENTS)],
        };
        for (index, fd, events) in wanted {
            let added = ops.add(Events::with_data_raw(fd, pack(slot, index), events));
            if let Err(error) = added {
                self.unwatch(ops);
                return Err(WorkerError::Watch {
                    task: self.label().to_owned(),
                    message: error.to_string(),
                });
            }
        }
        Ok(())
    }

    pub(super) fn unwatch(&self, ops: &mut EventOps) {
        for fd in self.descriptors() {
            unwatch_fd(ops, fd, 0);
        }
    }
}

pub(super) fn unwatch_fd(ops: &mut EventOps, fd: RawFd, slot: u16) {
    // Fails only for a descriptor that is not watched, which is what is wanted.
    let _ = ops.remove(Events::with_data_raw(fd, pack(slot, 0), EventSet::empty()));
}

/// Brings what tasks have changed of what they wait for to the event loop. To be called before the loop waits, and before
/// a task is taken out.
pub(super) fn apply_changes(
    ops: &mut Ops<'_>,
    subscriber: SubscriberId,
) -> Result<(), WorkerError> {
    let state = loop_of(ops, subscriber)?;
    for slot in std::mem::take(&mut state.changed) {
        let state = loop_of(ops, subscriber)?;
        let parked = state.parked.contains(&slot);
        let Some(Some(Entry::Task(mut running))) =
            state.slots.get_mut(usize::from(slot)).map(Option::take)
        else {
            continue;
        };
        for (token, at) in running.take_timers() {
            state.timers.set(slot, token, at);
        }
        let mut events = events_of(ops, subscriber)?;
        if parked || running.halted {
            running.watches.settled();
        } else if let Err(error) = running
            .watches
            .apply(&mut events, |index| pack(slot, index))
        {
            let why = format_args!("the worker cannot wait for one of its descriptors: {error}");
            running.halt(&Broken::device(why));
            running
                .descriptors()
                .for_each(|fd| unwatch_fd(&mut events, fd, slot));
        }
        let state = loop_of(ops, subscriber)?;
        if let Some(place) = state.slots.get_mut(usize::from(slot)) {
            *place = Some(Entry::Task(running));
        }
    }
    Ok(())
}

/// Which slot and which of its watches, as the 32 bits that come back with an event.
fn pack(slot: u16, watch: u16) -> u32 {
    u32::from(slot) << 16 | u32::from(watch)
}

fn unpack(data: u32) -> (u16, usize) {
    let [s1, s0, w1, w0] = data.to_be_bytes();
    (
        u16::from_be_bytes([s1, s0]),
        usize::from(u16::from_be_bytes([w1, w0])),
    )
}
