//! The tasks whose rings a worker looks at by itself, with kicks off: those that ran out of work
//! while the busy-poll window is open, and those whose interrupt is delayed.

use std::time::{Duration, Instant};

use super::busy_poll::BusyPoll;
use super::processor::Processor;

/// The tasks that are looked at, and since when there is no work.
pub(super) struct Polled {
    pub(super) tasks: Vec<Task>,
    busy: BusyPoll,
    processor: Processor,
    /// Whether the worker goes on looking rather than sleeping.
    looking: bool,
    /// Whether it has slept since it last had work.
    slept: bool,
    /// When it last had work.
    last: Instant,
    /// When the timer goes off that ends a sleep for a delayed interrupt.
    armed: Option<Instant>,
}

#[derive(Clone, Copy)]
pub(super) struct Task {
    pub(super) slot: u16,
    /// When its delayed interrupt is due.
    pub(super) deadline: Option<Instant>,
}

/// What a look at all tasks found.
#[derive(Clone, Copy, Default)]
pub(super) struct Look {
    pub(super) work: bool,
    /// An interrupt was due.
    pub(super) due: bool,
}

impl Polled {
    pub(super) fn new(max_window: Duration, processor: Processor) -> Self {
        Self {
            tasks: Vec::new(),
            busy: BusyPoll::new(max_window),
            processor,
            looking: false,
            slept: false,
            last: Instant::now(),
            armed: None,
        }
    }

    pub(super) fn timer_expired(&mut self) {
        self.armed = None;
    }

    /// Whether a task that ran out of work is to be looked at.
    pub(super) fn is_on(&self) -> bool {
        match self.processor {
            Processor::Own => !self.busy.window().is_zero(),
            // It spends no time that the driver needs.
            Processor::Shared => self.busy.is_possible(),
        }
    }

    pub(super) fn is_looking(&self) -> bool {
        self.looking && !self.tasks.is_empty()
    }

    /// Looks at the task in `slot`, whose delayed interrupt is due at `deadline`.
    pub(super) fn put(&mut self, slot: u16, deadline: Option<Instant>) {
        self.looking = true;
        match self.tasks.iter_mut().find(|task| task.slot == slot) {
            Some(task) => task.deadline = deadline,
            None => self.tasks.push(Task { slot, deadline }),
        }
    }

    pub(super) fn remove(&mut self, slot: u16) {
        self.tasks.retain(|task| task.slot != slot);
    }

    /// The worker is about to wait for events, for some time.
    pub(super) fn sleeps(&mut self) {
        self.slept = true;
    }

    /// There is work.
    pub(super) fn found(&mut self) {
        if std::mem::take(&mut self.slept) {
            self.busy.slept(self.last.elapsed());
        } else if self.looking {
            self.busy.found();
        }
    }

    /// It is done.
    pub(super) fn did(&mut self) {
        self.last = Instant::now();
    }

    /// Whether the worker has looked for long enough.
    pub(super) fn is_over(&self, now: Instant, look: Look) -> bool {
        match self.processor {
            Processor::Own => now.saturating_duration_since(self.last) >= self.busy.window(),
            Processor::Shared => !look.work && !look.due,
        }
    }

    /// Gives the processor, or its other thread, a moment before the next look.
    pub(super) fn relax(&self) {
        self.processor.relax();
    }

    /// Sets the longest window, and closes it.
    pub(super) fn set_max_window(&mut self, window: Duration) {
        self.busy = BusyPoll::new(window);
    }

    /// The worker looks no more by itself, except when a delayed interrupt is due. Returns when the
    /// timer has to go off for that, if it does not go off before.
    pub(super) fn end_window(&mut self) -> Option<Instant> {
        self.looking = false;
        let deadlines = self.tasks.iter().filter_map(|task| task.deadline);
        let deadline = deadlines.min()?;
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return None;
        }
        self.armed = Some(deadline);
        self.armed
    }
}
