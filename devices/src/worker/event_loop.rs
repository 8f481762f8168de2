//! The event loop's state: the tasks in their slots, those that are ready, those whose rings are polled.
//!
//! It knows slots and descriptors; what a pass over a task does is `running`'s, what a turn of the loop is, `serve`'s.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber, SubscriberId};
use vmm_sys_util::eventfd::EventFd;

use super::calls;
use super::error::WorkerError;
use super::pause::Drain;
use super::polling::{Polling, Turn};
use super::precedence::Precedence;
use super::processor::Processor;
use super::running::{Manner, Next, Running};
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

/// The state of the event loop: its one subscriber.
pub(super) struct Loop {
    slots: Vec<Option<Entry>>,
    /// Slots of tasks to run again.
    pub(super) ready: VecDeque<u16>,
    pub(super) polling: Polling,
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
            Entry::Task(running) => running.event(watch, manner(&self.polling)),
        };
        if next == Next::Halted {
            entry.unwatch(ops);
        }
        self.after(slot, next);
    }
}

impl Loop {
    pub(super) fn new(poll_window: Duration, processor: Processor, timers: Timers) -> Self {
        Self {
            slots: Vec::new(),
            ready: VecDeque::new(),
            polling: Polling::new(poll_window, processor),
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

    pub(super) fn set_poll_window(&mut self, window: Duration) {
        self.polling.window = window;
    }

    pub(super) fn free_slot(&self) -> Option<u16> {
        let free = self.slots.iter().position(Option::is_none);
        u16::try_from(free.unwrap_or(self.slots.len()))
            .ok()
            .filter(|slot| *slot != u16::MAX)
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
        self.polling.remove(slot);
        self.precedence.told(slot, false);
        self.parked.remove(&slot);
        self.slots.get_mut(usize::from(slot))?.take()
    }

    /// Runs the tasks whose timers have run out.
    fn go_off(&mut self, ops: &mut EventOps) {
        for (slot, token) in self.timers.expired(Instant::now()) {
            let Some(Some(Entry::Task(running))) = self.slots.get_mut(usize::from(slot)) else {
                continue;
            };
            let next = running.pass(Cause::Timer(token), manner(&self.polling));
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

    /// Ends the windows in which rings are looked at: raises the interrupts that are owed, and leaves kicks off until
    /// the tasks run again and look at everything.
    pub(super) fn stop_polling(&mut self) {
        // Whoever breaks here stays in place: its first pass after resuming finds it broken again.
        self.settle(&mut Vec::new(), false);
        self.polling.close();
    }

    /// Arranges what a pass of the task in `slot` left to do.
    fn after(&mut self, slot: u16, next: Next) {
        self.note_changes(slot);
        if let Some(Some(Entry::Task(running))) = self.slots.get(usize::from(slot)) {
            self.precedence.told(slot, running.flooded());
        }
        match next {
            Next::Owe => return self.polling.owe(slot),
            Next::Idle => {}
            Next::Poll => self.polling.add(slot),
            Next::Again => self.push_ready(slot),
            Next::Halted => return self.polling.remove(slot),
        }
        self.polling.paid(slot);
    }

    /// A step of the task in `slot` towards having nothing in flight, while its sink lets it not run: how many requests
    /// it still has.
    pub(super) fn finish(&mut self, slot: u16) -> Option<usize> {
        self.polling.remove(slot);
        let left = match self.slots.get_mut(usize::from(slot))? {
            Some(Entry::Task(running)) => running.quiesce(),
            _ => return None,
        };
        self.note_changes(slot);
        Some(left)
    }

    /// Has the task in `slot` look at everything.
    pub(super) fn wake(&mut self, slot: u16) {
        self.push_ready(slot);
    }

    fn push_ready(&mut self, slot: u16) {
        if !self.ready.contains(&slot) {
            self.ready.push_back(slot);
        }
    }

    /// How long to wait for events, in milliseconds; -1 is for ever.
    pub(super) fn wait(&self) -> i32 {
        if self.has_ready() || !self.polling.is_empty() || !self.asked.is_empty() {
            return 0;
        }
        match self.phase {
            Phase::Draining(_) => DRAIN_TICK,
            Phase::Running | Phase::Paused => -1,
        }
    }

    fn has_ready(&self) -> bool {
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
            let next = running.pass(Cause::Resume, manner(&self.polling));
            if next == Next::Halted {
                halted.extend(running.descriptors().map(|fd| (slot, fd)));
            }
            self.after(slot, next);
        }
        halted
    }

    /// Looks at the rings of the tasks that ran out of work, until the window is over, or descriptors or tasks that
    /// have more to do want their turn.
    pub(super) fn poll(&mut self, halted: &mut Vec<(u16, RawFd)>) {
        if self.polling.is_empty() {
            return;
        }
        let start = Instant::now();
        let mut now = start;
        loop {
            let look = now;
            let found = self.look(look, halted);
            now = Instant::now();
            if found {
                self.polling.did(look, now);
            }
            let turn = self.polling.turn(start, now);
            if matches!(turn, Turn::Settle | Turn::Overdue) {
                self.settle(halted, turn == Turn::Settle);
            }
            if self.has_ready() || turn == Turn::Events {
                return;
            }
            if turn == Turn::Sleep {
                break;
            }
            self.polling.rest();
        }
        for slot in self.polling.close() {
            if let Some(Some(Entry::Task(running))) = self.slots.get_mut(usize::from(slot))
                && running.rearm() == Next::Again
            {
                self.push_ready(slot);
            }
        }
    }

    /// One look at each polled task, and a pass of those that have something. Whether any had.
    fn look(&mut self, start: Instant, halted: &mut Vec<(u16, RawFd)>) -> bool {
        let mut found = false;
        // Whoever is looked at stays so until the window is over.
        let manner = Manner {
            poll: true,
            ..manner(&self.polling)
        };
        let mut index = 0_usize;
        while let Some(slot) = self.polling.get(index) {
            index = index.saturating_add(1);
            let Some(Some(Entry::Task(running))) = self.slots.get_mut(usize::from(slot)) else {
                continue;
            };
            if !running.has_work() {
                continue;
            }
            if !found {
                self.polling.finds(start);
            }
            found = true;
            let next = running.pass(Cause::Resume, manner);
            if next == Next::Halted {
                halted.extend(running.descriptors().map(|fd| (slot, fd)));
            }
            self.after(slot, next);
        }
        found
    }

    /// Raises the interrupts that polled tasks owe, since their drivers went quiet or for another reason.
    fn settle(&mut self, halted: &mut Vec<(u16, RawFd)>, quiet: bool) {
        let mut index = 0_usize;
        while let Some(slot) = self.polling.get(index) {
            index = index.saturating_add(1);
            let Some(Some(Entry::Task(running))) = self.slots.get_mut(usize::from(slot)) else {
                continue;
            };
            if running.settle(quiet) == Next::Halted {
                halted.extend(running.descriptors().map(|fd| (slot, fd)));
                self.polling.remove(slot);
            }
        }
        self.polling.settled();
    }

    pub(super) fn stop_all(&mut self) {
        for entry in self.slots.drain(..).flatten() {
            if let Entry::Task(running) = entry {
                running.stop();
            }
        }
    }
}

fn manner(polling: &Polling) -> Manner {
    Manner {
        poll: polling.is_on(),
        owe: polling.may_owe(),
        slow: polling.is_slow(),
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

#[cfg(test)]
impl Loop {
    /// Takes in a task that owes an interrupt.
    pub(super) fn put_owing(&mut self, slot: u16, entry: Entry) {
        self.put(slot, Some(entry));
        self.polling.owe(slot);
    }
}
