//! Rate limits: units and bytes a second.
//!
//! Each limit is one number, the time at which everything admitted so far would be paid for (the generic cell rate
//! algorithm); something is admitted while that lies less than a burst ahead. Queues update it without a lock. It
//! doesn't know what is limited.

use std::sync::atomic::{AtomicU64, Ordering};

const SECOND: u64 = 1_000_000_000;
/// How far ahead a limit may be spent: a tenth of a second's worth comes through at once after a pause.
const BURST: u64 = SECOND / 10;

/// What one direction or one disk may do in a second.
#[derive(Debug)]
pub(crate) struct Limits {
    units: Option<Rate>,
    bytes: Option<Rate>,
}

/// One limit.
#[derive(Debug)]
struct Rate {
    /// Units a second, at least 1.
    rate: u64,
    /// When all that was admitted is paid for, in nanoseconds of [`crate::clock::now`].
    paid: AtomicU64,
}

impl Rate {
    fn new(rate: u64) -> Self {
        Self {
            rate: rate.max(1),
            paid: AtomicU64::new(0),
        }
    }

    /// Nanoseconds from `now` until something is admitted; 0 is at once.
    fn wait(&self, now: u64) -> u64 {
        self.paid
            .load(Ordering::Relaxed)
            .saturating_sub(now.saturating_add(BURST))
    }

    fn charge(&self, now: u64, units: u64) {
        let cost = u128::from(units)
            .saturating_mul(u128::from(SECOND))
            .checked_div(u128::from(self.rate));
        let cost = u64::try_from(cost.unwrap_or(0)).unwrap_or(u64::MAX);
        // Always some value to store, so it can't fail.
        let _ = self
            .paid
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| {
                Some(paid.max(now).saturating_add(cost))
            });
    }
}

impl Limits {
    /// At most so many units and bytes a second; `None` is no limit.
    pub(crate) fn new(units: Option<u64>, bytes: Option<u64>) -> Self {
        Self {
            units: units.map(Rate::new),
            bytes: bytes.map(Rate::new),
        }
    }

    /// Nanoseconds from `now` until the next unit is admitted; 0 is at once.
    pub(crate) fn wait(&self, now: u64) -> u64 {
        let wait = |rate: &Option<Rate>| rate.as_ref().map_or(0, |rate| rate.wait(now));
        wait(&self.units).max(wait(&self.bytes))
    }

    /// Counts a unit of `bytes` that was let through at `now`.
    pub(crate) fn charge(&self, now: u64, bytes: u64) {
        if let Some(rate) = &self.units {
            rate.charge(now, 1);
        }
        if let Some(rate) = &self.bytes {
            rate.charge(now, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_lets_a_burst_through_and_then_its_share() {
        let rate = Rate::new(1000);
        let mut admitted = 0;
        let mut time = SECOND;
        while rate.wait(time) == 0 {
            rate.charge(time, 1);
            admitted += 1;
        }
        assert_eq!(
            admitted, 101,
            "a tenth of a second's worth and the one that is under way"
        );
        time += rate.wait(time);
        for _ in 0..1000 {
            assert_eq!(rate.wait(time), 0);
            rate.charge(time, 1);
            time += rate.wait(time);
        }
        assert!(
            (time - SECOND).abs_diff(SECOND) < SECOND / 100,
            "1000 more take a second"
        );
    }

    #[test]
    fn one_request_larger_than_the_burst_goes_through_and_is_paid_for() {
        let rate = Rate::new(100);
        assert_eq!(rate.wait(SECOND), 0);
        rate.charge(SECOND, 1000);
        assert_eq!(rate.wait(SECOND), 10 * SECOND - BURST);
        rate.charge(SECOND, u64::MAX);
        assert!(rate.wait(SECOND) > 0);
    }
}
