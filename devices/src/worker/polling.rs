//! Whether a worker looks at the rings by itself for a while before it asks to be told and sleeps.
//!
//! A kick costs the guest an exit and the worker a wake-up; a driver that adds its next buffer within microseconds
//! gets neither while the worker still looks. It looks as long as that pays: while each sleep follows a window in which
//! work was found, or is shorter than a window. How soon the driver would have come can't be seen from a sleep, which
//! includes the wake-up, so now and then a window is tried; ever more rarely while that finds nothing. An idle guest
//! costs nothing.

use std::thread;
use std::time::{Duration, Instant};

/// How long descriptors may go unlooked at while rings keep the worker busy.
const ROUND: Duration = Duration::from_micros(50);

/// Sleeps before a window is tried: at first, and at most.
const TRY_AFTER: u32 = 8;
const TRY_AFTER_MOST: u32 = 512;

pub(super) struct Polling {
    /// How long a window lasts from the last work on.
    window: Duration,
    /// Whether there are to be windows now.
    open: bool,
    /// Whether work was found in one since the last sleep.
    found: bool,
    /// Sleeps since windows ended, and the number at which one is tried.
    slept: u32,
    try_after: u32,
    /// When there was work last.
    last: Instant,
    /// Tasks whose rings are looked at, with their kicks off.
    slots: Vec<u16>,
}

/// What to do after a look that began a round at some time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Look again.
    Look,
    /// Look at descriptors first.
    Events,
    /// The window is over.
    Sleep,
}

impl Polling {
    /// With windows of this length; none where the guest could not run meanwhile.
    pub(super) fn new(window: Duration) -> Self {
        let alone = thread::available_parallelism().is_ok_and(|count| count.get() == 1);
        Self {
            window: if alone { Duration::ZERO } else { window },
            open: false,
            found: false,
            slept: 0,
            try_after: TRY_AFTER,
            last: Instant::now(),
            slots: Vec::new(),
        }
    }

    /// Whether a task that ran out of work is to be looked at.
    pub(super) fn is_on(&self) -> bool {
        self.open && !self.window.is_zero()
    }

    pub(super) fn add(&mut self, slot: u16) {
        if !self.slots.contains(&slot) {
            self.slots.push(slot);
        }
    }

    pub(super) fn remove(&mut self, slot: u16) {
        self.slots.retain(|&other| other != slot);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The task in place `index`.
    pub(super) fn get(&self, index: usize) -> Option<u16> {
        self.slots.get(index).copied()
    }

    /// Ends the window: the tasks that have to ask for kicks again.
    pub(super) fn close(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.slots)
    }

    /// A look found work at `now`.
    pub(super) fn found(&mut self, now: Instant) {
        self.found = true;
        self.last = now;
    }

    /// The worker slept and has work at `now`.
    pub(super) fn woke(&mut self, now: Instant) {
        let pause = now.saturating_duration_since(self.last);
        if self.found || pause <= self.window {
            self.open = true;
            self.slept = 0;
            self.try_after = TRY_AFTER;
        } else if self.open {
            self.open = false;
            self.slept = 0;
            self.try_after = self.try_after.saturating_mul(2).min(TRY_AFTER_MOST);
        } else {
            self.slept = self.slept.saturating_add(1);
            self.open = self.slept >= self.try_after;
        }
        self.found = false;
        self.last = now;
    }

    /// How to go on at `now` in a round that began at `start`.
    pub(super) fn turn(&self, start: Instant, now: Instant) -> Turn {
        if now.saturating_duration_since(self.last) >= self.window {
            Turn::Sleep
        } else if now.saturating_duration_since(start) >= ROUND {
            Turn::Events
        } else {
            Turn::Look
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(32);

    fn micros(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    fn polling(window: Duration) -> Polling {
        let mut polling = Polling::new(Duration::ZERO);
        polling.window = window;
        polling
    }

    /// Sleeps for `pause` after finding work in a window or not; whether the next one is looked at.
    fn sleep(polling: &mut Polling, found: bool, pause: u64) -> bool {
        if found {
            polling.found(polling.last);
        }
        polling.woke(polling.last + micros(pause));
        polling.is_on()
    }

    #[test]
    fn windows_go_on_while_work_is_found_and_end_when_it_is_not() {
        let mut polling = polling(WINDOW);
        assert!(sleep(&mut polling, false, 20), "it would have paid");
        assert!(sleep(&mut polling, true, 5000), "it did pay");
        assert!(!sleep(&mut polling, false, 5000));
        assert!(!sleep(&mut polling, false, 5000));
    }

    #[test]
    fn a_window_is_tried_now_and_then_and_ever_more_rarely() {
        let mut polling = polling(WINDOW);
        let mut tried = Vec::new();
        for sleeps in 0..200 {
            if sleep(&mut polling, false, 45) {
                tried.push(sleeps);
            }
        }
        assert_eq!(tried, [7, 24, 57, 122]);
        assert!(sleep(&mut polling, true, 45), "and kept when it finds work");
    }

    #[test]
    fn there_is_no_window_where_none_is_wanted() {
        let mut polling = polling(Duration::ZERO);
        assert!((0..1000).all(|pause| !sleep(&mut polling, true, pause)));
    }

    #[test]
    fn a_round_ends_with_the_window_or_for_the_descriptors() {
        let mut polling = polling(WINDOW);
        let start = polling.last;
        assert_eq!(polling.turn(start, start + micros(31)), Turn::Look);
        assert_eq!(polling.turn(start, start + micros(32)), Turn::Sleep);
        polling.found(start + micros(40));
        assert_eq!(polling.turn(start, start + micros(49)), Turn::Look);
        assert_eq!(polling.turn(start, start + micros(50)), Turn::Events);
    }
}
