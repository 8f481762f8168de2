//! How long a worker looks at the rings by itself before it asks to be told and sleeps.
//!
//! A kick costs the guest an exit and the worker a wake-up; a driver that adds its next buffer within microseconds
//! gets neither while the worker still looks. The window adjusts itself to the pauses seen: it grows while the next
//! work comes soon after it ended and shrinks when it does not, down to nothing, so that an idle guest costs nothing.

use std::thread;
use std::time::{Duration, Instant};

/// Where a window starts to grow, and below which it closes.
const FIRST: Duration = Duration::from_micros(4);

/// How long descriptors may go unlooked at while rings keep the worker busy.
const ROUND: Duration = Duration::from_micros(50);

pub(super) struct Polling {
    /// The longest window.
    limit: Duration,
    window: Duration,
    /// When work was last found.
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
    /// With windows up to `limit`; none where the guest could not run meanwhile.
    pub(super) fn new(limit: Duration) -> Self {
        let alone = thread::available_parallelism().is_ok_and(|count| count.get() == 1);
        Self {
            limit: if alone { Duration::ZERO } else { limit },
            window: Duration::ZERO,
            last: Instant::now(),
            slots: Vec::new(),
        }
    }

    /// Whether a task that ran out of work is to be looked at.
    pub(super) fn is_on(&self) -> bool {
        !self.window.is_zero()
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

    /// Work was found at `now`.
    pub(super) fn found(&mut self, now: Instant) {
        self.last = now;
    }

    /// The worker slept and has work at `now`: would a longer window have saved the sleep?
    pub(super) fn woke(&mut self, now: Instant) {
        let pause = now.saturating_duration_since(self.last);
        self.window = if pause <= self.window {
            self.window
        } else if pause <= self.limit {
            self.window.saturating_mul(2).clamp(FIRST, self.limit)
        } else {
            let half = self.window.checked_div(2).unwrap_or_default();
            if half < FIRST { Duration::ZERO } else { half }
        };
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

    const LIMIT: Duration = Duration::from_micros(32);

    fn micros(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    /// Wakes after each of `pauses` in turn; the windows in between, in microseconds.
    fn windows(limit: Duration, pauses: &[u64]) -> Vec<u128> {
        let mut polling = Polling::new(Duration::ZERO);
        polling.limit = limit;
        pauses
            .iter()
            .map(|&pause| {
                polling.woke(polling.last + micros(pause));
                polling.window.as_micros()
            })
            .collect()
    }

    #[test]
    fn a_window_grows_while_work_comes_soon_and_closes_when_it_does_not() {
        let busy = windows(LIMIT, &[20, 20, 20, 20, 20]);
        assert_eq!(busy, [4, 8, 16, 32, 32]);
        let ends = windows(LIMIT, &[20, 20, 20, 20, 5000, 5000, 5000, 5000]);
        assert_eq!(ends[4..], [16, 8, 4, 0]);
    }

    #[test]
    fn an_idle_guest_opens_no_window() {
        assert_eq!(windows(LIMIT, &[33, 1000, 1_000_000]), [0, 0, 0]);
        assert_eq!(windows(Duration::ZERO, &[0, 1, 2]), [0, 0, 0]);
    }

    #[test]
    fn a_round_ends_with_the_window_or_for_the_descriptors() {
        let mut polling = Polling::new(Duration::ZERO);
        polling.window = micros(32);
        let start = polling.last;
        assert_eq!(polling.turn(start, start + micros(31)), Turn::Look);
        assert_eq!(polling.turn(start, start + micros(32)), Turn::Sleep);
        polling.found(start + micros(40));
        assert_eq!(polling.turn(start, start + micros(49)), Turn::Look);
        assert_eq!(polling.turn(start, start + micros(50)), Turn::Events);
    }
}
