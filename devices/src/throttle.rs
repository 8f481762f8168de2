//! A limit on how often something happens, for log lines that a guest can cause (see `log.rs`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lines that get through at once after a pause.
const BURST: u64 = 5;
/// Milliseconds a line costs: one a second gets through in the long run.
const INTERVAL: u64 = 1000;
/// How far ahead of time may be spent.
const AHEAD: u64 = (BURST - 1) * INTERVAL;

/// Lets five lines through at once and then one a second, and counts the others. Shared; takes no lock.
#[derive(Debug)]
pub struct Throttle {
    start: Instant,
    /// When all that got through is paid for, in milliseconds since `start`.
    paid: AtomicU64,
    suppressed: AtomicU64,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            paid: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }
}

impl Throttle {
    /// Returns how many lines were suppressed since the last one that got through, or `None` if this one is to be
    /// suppressed, too.
    pub fn admit(&self) -> Option<u64> {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.admit_at(now)
    }

    fn admit_at(&self, now: u64) -> Option<u64> {
        let pay = |paid: u64| {
            let paid = paid.max(now);
            (paid.saturating_sub(now) <= AHEAD).then(|| paid.saturating_add(INTERVAL))
        };
        let paid = self
            .paid
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay);
        if paid.is_ok() {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_a_burst_and_one_line_a_second_and_the_rest_is_counted() {
        let throttle = Throttle::default();
        let flood = |second: u64| -> Vec<u64> {
            let lines = (0..1000).filter_map(|_| throttle.admit_at(second * 1000));
            lines.collect()
        };
        assert_eq!(flood(0), [0; 5]);
        assert_eq!(flood(1), [995]);
        assert_eq!(flood(2), [999]);
        assert!((2000..3000).all(|now| throttle.admit_at(now).is_none()));
        assert_eq!(flood(60), [1999, 0, 0, 0, 0], "a burst after a pause");
    }
}
