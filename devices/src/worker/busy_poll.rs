//! How long a worker looks for work by itself before it sleeps: one busy-poll window per worker.
//!
//! A kick costs the guest an exit and the worker a wake-up; a driver that adds its next request
//! within microseconds gets neither while the worker still looks. The window grows and shrinks by
//! the rule of KVM's `halt_poll_ns`: a sleep that a longer window would have spared makes it grow,
//! and one that the longest would not have spared makes it shrink, unless the window before it
//! found work: requests come in bursts. An idle guest costs nothing.

use std::time::Duration;

/// `halt_poll_ns_grow` and `halt_poll_ns_shrink`.
const GROW: u32 = 2;
const SHRINK: u32 = 2;

/// `halt_poll_ns_grow_start`, as a part of the longest window: growing begins here, and shrinking
/// ends.
const GROW_START: u32 = 4;

#[derive(Debug)]
pub(super) struct BusyPoll {
    window: Duration,
    max: Duration,
    /// Whether it found work since the last sleep.
    found: bool,
}

impl BusyPoll {
    /// Never longer than `max`, and closed at first.
    pub(super) fn new(max: Duration) -> Self {
        Self {
            window: Duration::ZERO,
            max,
            found: false,
        }
    }

    /// How long to look after the last work.
    pub(super) fn window(&self) -> Duration {
        self.window
    }

    /// Whether there may be a window at all.
    pub(super) fn is_possible(&self) -> bool {
        !self.max.is_zero()
    }

    /// There was work while the worker looked.
    pub(super) fn found(&mut self) {
        self.found = true;
    }

    /// The worker slept, and there is work again `pause` after the last.
    pub(super) fn slept(&mut self, pause: Duration) {
        let found = std::mem::take(&mut self.found);
        if pause <= self.window {
            // It would have been found: the worker was kept from looking.
        } else if pause > self.max {
            if !found {
                self.shrink();
            }
        } else {
            self.grow();
        }
    }

    fn start(&self) -> Duration {
        self.max.checked_div(GROW_START).unwrap_or_default()
    }

    fn grow(&mut self) {
        let longer = self.window.saturating_mul(GROW);
        self.window = longer.max(self.start()).min(self.max);
    }

    fn shrink(&mut self) {
        let shorter = self.window.checked_div(SHRINK).unwrap_or_default();
        self.window = if shorter < self.start() {
            Duration::ZERO
        } else {
            shorter
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(64);

    /// The windows after sleeps of so many microseconds.
    fn after(poll: &mut BusyPoll, sleeps: &[u64]) -> Vec<u64> {
        let window = |&pause| {
            poll.slept(Duration::from_micros(pause));
            poll.window().as_micros().try_into().unwrap()
        };
        sleeps.iter().map(window).collect()
    }

    #[test]
    fn a_window_grows_while_longer_ones_would_have_found_work() {
        let mut poll = BusyPoll::new(MAX);
        assert_eq!(after(&mut poll, &[50; 4]), [16, 32, 64, 64]);
    }

    #[test]
    fn a_window_stays_where_it_is_long_enough() {
        let mut poll = BusyPoll::new(MAX);
        assert_eq!(after(&mut poll, &[30, 30, 30, 5]), [16, 32, 32, 32]);
    }

    #[test]
    fn a_window_shrinks_to_nothing_when_work_comes_rarely() {
        let mut poll = BusyPoll::new(MAX);
        after(&mut poll, &[50; 3]);
        assert_eq!(after(&mut poll, &[5000; 4]), [32, 16, 0, 0]);
        assert_eq!(after(&mut poll, &[60, 5000, 60, 60]), [16, 0, 16, 32]);
    }

    #[test]
    fn a_window_that_finds_bursts_stays_between_them() {
        let mut poll = BusyPoll::new(MAX);
        after(&mut poll, &[50; 3]);
        for _ in 0..100 {
            poll.found();
            assert_eq!(after(&mut poll, &[5000]), [64]);
        }
        assert_eq!(after(&mut poll, &[5000]), [32]);
    }

    #[test]
    fn there_is_no_window_where_none_is_wanted() {
        let mut poll = BusyPoll::new(Duration::ZERO);
        assert_eq!(after(&mut poll, &[0, 1, 1000]), [0; 3]);
        assert!(!poll.is_possible());
    }
}
