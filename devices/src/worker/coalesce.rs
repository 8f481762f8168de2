//! When the driver is interrupted for what a queue has completed: one interrupt coalescer per
//! queue.
//!
//! As with ethtool's `rx-frames` and `rx-usecs`, or the aggregation threshold and time of NVMe, an
//! interrupt is raised after a number of completions or after a delay, whichever comes first. The
//! number follows the driver: it is the most requests that the ring has shown it to keep in flight.
//! So an interrupt comes at once when nothing of the queue is in flight any more, and a driver that
//! waits for each request is interrupted for each.

use std::time::{Duration, Instant};

use super::processor::Processor;

/// The most completions without an interrupt.
pub(super) const MAX_FRAMES: u16 = 64;

/// The most delays between the first completion and the interrupt, however many completions follow.
const MAX_DELAYS: u32 = 8;

/// The depth from which an interrupt is delayed for the whole delay.
const FULL_DELAY: u16 = 8;

/// Interrupts in a row that only the delay raised, before a driver is taken to keep fewer requests
/// in flight. One whose processor was taken away for a moment looks the same, but not every time.
const SHORT_CYCLES: u8 = 4;

/// Below this depth a batch is not answered in halves: there is too little to overlap.
const SHALLOW: u16 = 16;

/// Interrupts between two probes: at first, and at most.
const PROBE_AFTER: u16 = 8;
const PROBE_AFTER_MAX: u16 = 512;

/// A queue at the end of a pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueState {
    /// Requests completed that the driver has not been interrupted for.
    pub(super) completed: u16,
    /// Requests the backend has.
    pub(super) in_flight: u16,
    /// Whether the ring has more.
    pub(super) available: bool,
    /// Requests the driver has made available and not taken back.
    pub(super) outstanding: u16,
    /// Whether the driver wants an interrupt for those completed.
    pub(super) wanted: bool,
}

#[derive(Debug)]
pub(super) struct Coalescer {
    processor: Processor,
    /// From a deep driver's last completion to the interrupt. Where the driver has the worker's
    /// processor it is no time, but as long as the driver runs when the worker gives the processor
    /// away.
    delay: Duration,
    /// How many requests the driver keeps in flight.
    depth: u16,
    /// Interrupts in a row that the delay raised below this depth, and the most completions of one
    /// of them.
    short_cycles: u8,
    short_depth: u16,
    pending: Option<Pending>,
    probe: Probe,
}

/// Completions without an interrupt.
#[derive(Clone, Copy, Debug)]
struct Pending {
    completed: u16,
    first: Instant,
    last: Instant,
}

/// A driver on the worker's processor is stopped by the worker's first pass, and so never shows
/// more than one request. Now and then, ever more rarely, its interrupt is delayed to see whether
/// it goes on.
#[derive(Debug)]
struct Probe {
    /// Interrupts since the last one, and the number at which the next one is made.
    interrupts: u16,
    after: u16,
}

impl Coalescer {
    /// For a queue whose driver runs on that processor.
    pub(super) fn new(processor: Processor, delay: Duration) -> Self {
        let delay = match processor {
            Processor::Own => delay,
            Processor::Shared => Duration::ZERO,
        };
        Self {
            processor,
            delay,
            depth: 1,
            short_cycles: 0,
            short_depth: 0,
            pending: None,
            probe: Probe {
                interrupts: 0,
                after: PROBE_AFTER,
            },
        }
    }

    /// Whether the driver keeps several requests in flight.
    pub(super) fn is_deep(&self) -> bool {
        self.depth > 1
    }

    /// The most requests for one pass, if fewer than usual: half of those that a deep driver keeps
    /// in flight, so that it can go on while the worker does the other half.
    pub(super) fn budget(&self) -> Option<u16> {
        let overlaps = self.processor == Processor::Own && self.depth >= SHALLOW;
        overlaps.then(|| self.depth.min(MAX_FRAMES).div_ceil(2))
    }

    /// Whether an interrupt is due. To be asked after every pass, and once
    /// [`deadline`](Self::deadline) has passed.
    pub(super) fn due(&mut self, queue: QueueState, clock: impl FnOnce() -> Instant) -> bool {
        self.observe(queue.outstanding);
        if queue.completed == 0 || !queue.wanted {
            self.pending = None;
            return true;
        }
        if queue.completed >= self.max_frames(queue) {
            self.raise();
            self.short_cycles = 0;
            return true;
        }
        let now = clock();
        let (pending, grew) = match self.pending {
            Some(pending) if pending.completed == queue.completed => (pending, false),
            earlier => {
                let pending = Pending {
                    completed: queue.completed,
                    first: earlier.map_or(now, |earlier| earlier.first),
                    last: now,
                };
                (pending, true)
            }
        };
        let due = match grew {
            true => self.late(pending).is_some_and(|late| now >= late),
            false => now >= self.deadline_of(pending),
        };
        if !due {
            self.pending = Some(pending);
            return false;
        }
        self.raise();
        if !grew && queue.in_flight == 0 && !queue.available {
            self.fell_short(queue.completed);
        }
        true
    }

    /// When to ask again, if no interrupt was due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.pending.map(|pending| self.deadline_of(pending))
    }

    /// The interrupt was raised without asking.
    pub(super) fn raised(&mut self) {
        self.pending = None;
    }

    /// The number of completions at which an interrupt is due.
    fn max_frames(&self, queue: QueueState) -> u16 {
        let depth = self.depth.min(MAX_FRAMES);
        if queue.in_flight > 0 {
            // Early, so that the driver adds more before the backend runs out of work.
            depth.div_ceil(4)
        } else if queue.available {
            depth.div_ceil(2)
        } else if self.processor == Processor::Own {
            depth
        } else if self.is_deep() || self.probe.interrupts >= self.probe.after {
            // It adds all it has when the worker gives the processor away.
            MAX_FRAMES
        } else {
            1
        }
    }

    /// The driver is seen to keep at least so many requests in flight.
    fn observe(&mut self, outstanding: u16) {
        if outstanding > self.depth {
            (self.depth, self.short_cycles) = (outstanding, 0);
            self.probe.after = PROBE_AFTER;
        }
    }

    fn raise(&mut self) {
        self.pending = None;
        if self.probe.interrupts < self.probe.after {
            self.probe.interrupts = self.probe.interrupts.saturating_add(1);
        } else {
            let after = self.probe.after.saturating_mul(2).min(PROBE_AFTER_MAX);
            self.probe = Probe {
                interrupts: 0,
                after,
            };
        }
    }

    /// The driver added nothing more after so many completions.
    fn fell_short(&mut self, completed: u16) {
        if completed >= self.depth {
            self.short_cycles = 0;
            return;
        }
        self.short_depth = match self.short_cycles {
            0 => completed,
            _ => self.short_depth.max(completed),
        };
        self.short_cycles = self.short_cycles.saturating_add(1);
        if self.short_cycles >= SHORT_CYCLES {
            (self.depth, self.short_cycles) = (self.short_depth, 0);
        }
    }

    /// From the last completion to the interrupt: less where fewer requests could share it.
    fn usecs(&self) -> Duration {
        let share = self.delay.saturating_mul(self.depth.min(FULL_DELAY).into());
        share.checked_div(FULL_DELAY.into()).unwrap_or_default()
    }

    fn deadline_of(&self, pending: Pending) -> Instant {
        let quiet = later(pending.last, self.usecs());
        self.late(pending).map_or(quiet, |late| late.min(quiet))
    }

    /// When an interrupt is due although completions go on. Without a time, the number alone bounds
    /// them.
    fn late(&self, pending: Pending) -> Option<Instant> {
        let most = self.usecs().saturating_mul(MAX_DELAYS);
        (!most.is_zero()).then(|| later(pending.first, most))
    }
}

fn later(time: Instant, by: Duration) -> Instant {
    // Delays are at most a millisecond.
    time.checked_add(by).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_micros(20);

    fn micros(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    /// A coalescer, and a driver that keeps up to some requests in flight and adds them one by one.
    struct Bench {
        coalescer: Coalescer,
        now: Instant,
        /// Requests since the last interrupt.
        completed: u16,
    }

    impl Bench {
        fn new(processor: Processor) -> Self {
            Self {
                coalescer: Coalescer::new(processor, DELAY),
                now: Instant::now(),
                completed: 0,
            }
        }

        fn ask(&mut self, queue: QueueState) -> bool {
            let now = self.now;
            let due = self.coalescer.due(queue, || now);
            if due {
                self.completed = 0;
            }
            due
        }

        fn look(&mut self) -> bool {
            self.ask(QueueState {
                completed: self.completed,
                in_flight: 0,
                available: false,
                outstanding: self.completed,
                wanted: true,
            })
        }

        /// The next request is completed: whether an interrupt is due.
        fn complete(&mut self) -> bool {
            self.now += micros(1);
            self.completed += 1;
            self.look()
        }

        /// Completes `depth` requests one by one as long as no interrupt is raised, then waits for
        /// it: how many were completed before it, and how long after the last.
        fn cycle(&mut self, depth: u16) -> (u16, Duration) {
            for completed in 1..=depth {
                if self.complete() {
                    return (completed, Duration::ZERO);
                }
            }
            let last = self.now;
            self.now = self.coalescer.deadline().unwrap();
            assert!(self.look(), "it is due at the deadline");
            (depth, self.now - last)
        }

        /// The driver added so many before its interrupt was handled.
        fn show(&mut self, outstanding: u16) {
            self.ask(QueueState {
                completed: 0,
                in_flight: 0,
                available: false,
                outstanding,
                wanted: false,
            });
        }
    }

    #[test]
    fn a_driver_that_waits_for_each_request_is_interrupted_for_each_at_once() {
        let mut bench = Bench::new(Processor::Own);
        for _ in 0..10_000 {
            assert_eq!(bench.cycle(1), (1, Duration::ZERO));
        }
    }

    #[test]
    fn an_interrupt_comes_with_the_last_completion_of_a_deep_driver() {
        let mut bench = Bench::new(Processor::Own);
        bench.show(32);
        for _ in 0..1000 {
            assert_eq!(bench.cycle(32), (32, Duration::ZERO));
        }
        bench.show(200);
        assert_eq!(bench.cycle(200), (MAX_FRAMES, Duration::ZERO));
    }

    #[test]
    fn a_driver_that_keeps_fewer_in_flight_waits_for_the_delay_only_a_few_times() {
        let mut bench = Bench::new(Processor::Own);
        bench.show(32);
        for depth in [3, 5, 4, 1] {
            assert_eq!(bench.cycle(depth), (depth, DELAY));
        }
        assert_eq!(bench.cycle(5), (5, Duration::ZERO));
        for _ in 0..SHORT_CYCLES {
            assert_eq!(bench.cycle(1), (1, DELAY * 5 / 8));
        }
        assert_eq!(bench.cycle(1), (1, Duration::ZERO));
    }

    #[test]
    fn a_driver_that_is_held_up_now_and_then_keeps_its_depth() {
        let mut bench = Bench::new(Processor::Own);
        bench.show(32);
        for _ in 0..100 {
            for _ in 1..SHORT_CYCLES {
                bench.cycle(7);
            }
            assert_eq!(bench.cycle(32), (32, Duration::ZERO));
        }
    }

    #[test]
    fn an_interrupt_is_not_delayed_for_long_by_more_completions() {
        let mut bench = Bench::new(Processor::Own);
        bench.show(64);
        let start = bench.now;
        while !bench.complete() {
            bench.now += DELAY / 2;
        }
        let delayed = bench.now - start;
        assert!(delayed >= DELAY * MAX_DELAYS && delayed < DELAY * (MAX_DELAYS + 1));
        assert!(bench.coalescer.deadline().is_none());
    }

    #[test]
    fn a_driver_hears_of_a_part_while_there_is_more_to_do() {
        for (in_flight, available, expected) in [(1, false, 8), (0, true, 16), (0, false, 32)] {
            let mut bench = Bench::new(Processor::Own);
            bench.show(32);
            let due = (1..=32).find(|&completed| {
                bench.ask(QueueState {
                    completed,
                    in_flight,
                    available,
                    outstanding: 32,
                    wanted: true,
                })
            });
            assert_eq!(due, Some(expected));
        }
        let mut bench = Bench::new(Processor::Own);
        bench.show(32);
        assert_eq!(bench.coalescer.budget(), Some(16));
    }

    #[test]
    fn nothing_is_delayed_for_a_driver_that_wants_no_interrupt() {
        let mut bench = Bench::new(Processor::Own);
        bench.show(32);
        let unwanted = QueueState {
            completed: 1,
            in_flight: 0,
            available: false,
            outstanding: 1,
            wanted: false,
        };
        assert!(bench.ask(unwanted));
    }

    #[test]
    fn on_one_processor_an_interrupt_comes_when_the_driver_adds_nothing_more() {
        let mut bench = Bench::new(Processor::Shared);
        bench.show(2);
        for depth in [2, 32, 32, 63] {
            assert_eq!(bench.cycle(depth), (depth, Duration::ZERO));
        }
        assert_eq!(bench.cycle(100), (MAX_FRAMES, Duration::ZERO));
        assert_eq!(bench.coalescer.budget(), None);
    }

    #[test]
    fn on_one_processor_the_depth_is_found_by_probes_that_get_rare() {
        let mut bench = Bench::new(Processor::Shared);
        let mut probes = Vec::new();
        for interrupt in 0..200 {
            if !bench.complete() {
                probes.push(interrupt);
                assert!(bench.look(), "nothing more came");
            }
        }
        assert_eq!(probes, [8, 25, 58, 123]);
        while bench.complete() {}
        assert!(!bench.complete(), "more came");
        assert_eq!(bench.cycle(30).0, 30);
        assert_eq!(bench.cycle(32).0, 32);
    }
}
