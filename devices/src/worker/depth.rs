//! How many requests a driver has under way, learned from its bursts where it runs beside the worker.
//!
//! A burst that was answered whole and then went quiet shows the depth: the driver waits for what it is owed. From then
//! on the interrupt need not wait for the quiet, but comes with the last answer. And a driver that is ahead of the
//! worker, or whose requests take long, is told after every half, so that it adds the next ones while the other half is
//! answered.

use super::processor::Processor;

/// Requests answered without an interrupt, at most, and what is taken for the depth as long as it is not known.
pub(super) const MOST: u16 = 64;

/// Depths below this are not halved: there is too little to overlap.
const SHALLOW: u16 = 16;

/// Bursts that go by what is known; the next is let run, in case that the driver has more under way by now.
const KNOWN_FOR: u8 = 16;

/// Quiet ends that are remembered: a driver that is held up in the middle of a burst goes quiet as well, but not every
/// time.
const REMEMBERED: usize = 4;

#[derive(Debug)]
pub(super) struct Depth {
    /// Where both share a processor there is nothing to learn, and nothing to overlap.
    processor: Processor,
    /// What had been answered when bursts went quiet, the oldest first.
    quiet: [u16; REMEMBERED],
    /// Bursts that went by it.
    bursts: u8,
}

impl Depth {
    pub(super) fn new(processor: Processor) -> Self {
        Self {
            processor,
            quiet: [MOST; REMEMBERED],
            bursts: 0,
        }
    }

    fn usual(&self) -> u16 {
        self.quiet.into_iter().fold(1, u16::max)
    }

    /// Whether a burst that this many requests were answered of goes on, as far as is known; `slow` if answering them
    /// took so long that an interrupt costs little beside it.
    pub(super) fn goes_on(&self, answered: u16, slow: bool) -> bool {
        let usual = if self.bursts < KNOWN_FOR {
            self.usual()
        } else {
            MOST
        };
        answered < self.half().filter(|_| slow).unwrap_or(usual)
    }

    /// Half of it, if that is worth an interrupt.
    pub(super) fn half(&self) -> Option<u16> {
        let usual = self.usual();
        let overlaps = self.processor == Processor::Own && usual >= SHALLOW;
        overlaps.then(|| usual.div_ceil(2))
    }

    /// A burst went quiet when this many requests of it were answered.
    pub(super) fn quiet(&mut self, answered: u16) {
        if self.processor == Processor::Shared {
            return;
        }
        self.quiet.rotate_left(1);
        if let Some(newest) = self.quiet.last_mut() {
            *newest = answered.min(MOST);
        }
        self.bursts = 0;
    }

    /// A burst was told of by what is known.
    pub(super) fn complete(&mut self) {
        self.bursts = if self.bursts < KNOWN_FOR {
            self.bursts.saturating_add(1)
        } else {
            0
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `depth` is after bursts that went quiet after so many answers.
    fn after(depth: &mut Depth, quiet: &[u16]) -> u16 {
        quiet.iter().for_each(|&answered| depth.quiet(answered));
        (0..MOST)
            .find(|&answered| !depth.goes_on(answered, false))
            .unwrap_or(MOST)
    }

    #[test]
    fn a_burst_ends_where_bursts_go_quiet() {
        let mut depth = Depth::new(Processor::Own);
        assert_eq!(after(&mut depth, &[]), MOST);
        assert_eq!(after(&mut depth, &[32; 3]), MOST);
        assert_eq!(after(&mut depth, &[32]), 32);
        assert!(depth.goes_on(15, true) && !depth.goes_on(16, true));
        assert_eq!(after(&mut depth, &[1, 1, 1]), 32, "some were held up");
        assert_eq!(after(&mut depth, &[1]), 1);
        assert!(depth.goes_on(0, true) && !depth.goes_on(1, true));
        assert_eq!(after(&mut depth, &[200]), MOST);
    }

    #[test]
    fn a_deeper_driver_is_noticed_after_some_bursts() {
        let mut depth = Depth::new(Processor::Own);
        after(&mut depth, &[8; REMEMBERED]);
        for _ in 0..KNOWN_FOR {
            assert_eq!(after(&mut depth, &[]), 8);
            depth.complete();
        }
        assert_eq!(after(&mut depth, &[]), MOST, "one is let run");
        depth.complete();
        assert_eq!(after(&mut depth, &[]), 8);
    }

    #[test]
    fn nothing_is_learned_of_a_driver_that_shares_the_processor() {
        let mut depth = Depth::new(Processor::Shared);
        assert_eq!(after(&mut depth, &[32; REMEMBERED]), MOST);
        assert_eq!(depth.half(), None);
        assert!(depth.goes_on(MOST - 1, true), "however slow it is");
    }
}
