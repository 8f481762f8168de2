//! A limit on log lines that a guest can cause.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lines a second that get through.
const LINES: u64 = 5;
/// Low bits of the state that count lines; the rest is the second they belong to.
const COUNT_BITS: u32 = 16;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// Lets through five lines a second and counts none of the rest. Shared; takes no lock.
#[derive(Debug)]
pub struct Throttle {
    start: Instant,
    state: AtomicU64,
}

impl Default for Throttle {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            state: AtomicU64::new(0),
        }
    }
}

impl Throttle {
    /// Whether a line may be logged now.
    pub fn allow(&self) -> bool {
        self.allow_at(self.start.elapsed().as_secs())
    }

    fn allow_at(&self, second: u64) -> bool {
        let count = |state: u64| {
            if state >> COUNT_BITS == second {
                state & COUNT_MASK
            } else {
                0
            }
        };
        let counted = |state| {
            let lines = count(state);
            (lines < LINES).then(|| second << COUNT_BITS | lines.saturating_add(1))
        };
        self.state
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_to_five_lines_a_second() {
        let throttle = Throttle::default();
        for second in [0, 1, 7] {
            let passed = (0..1000).filter(|_| throttle.allow_at(second)).count();
            assert_eq!(passed, 5);
        }
    }
}
