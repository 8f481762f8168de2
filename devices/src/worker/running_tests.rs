//! A pass over a task, with rings written by hand: what is shown, and when the driver is
//! interrupted.

use splitring_virtio::device::queue::RingFeatures;
use splitring_virtio::spec::feature;

use super::*;
use crate::device::DescriptorChain;
use crate::eventfd::eventfd;
use crate::testing::{GuestRing, Sink, memory};
use crate::worker::coalesce::MAX_FRAMES;
use crate::worker::event_loop::{Entry, Loop};
use crate::worker::timers::Timers;

const DELAY: Duration = Duration::from_secs(3600);
const DEPTH: u16 = 12;

/// Keeps the first few chains of each queue, and answers the others.
struct Backend {
    keeps: u16,
    kept: Vec<(u16, DescriptorChain)>,
    pollable: bool,
}

impl QueueHandler for Backend {
    fn run(&mut self, queues: &mut QueueSet<'_>, _: Cause) -> Result<Outcome, Broken> {
        for (index, queue) in queues.iter() {
            while let Some(chain) = queue.pop().map_err(|error| Broken::new(index, error))? {
                if self.keeps > 0 {
                    self.keeps -= 1;
                    self.kept.push((index, chain));
                } else {
                    queue.complete(chain, 1);
                }
            }
        }
        Ok(Outcome::Idle)
    }
    fn poll(&mut self) -> Option<bool> {
        self.pollable.then_some(false)
    }
    fn stop(&mut self, queues: &mut QueueSet<'_>) {
        for (index, chain) in self.kept.drain(..) {
            queues.get(index).unwrap().complete(chain, 0);
        }
    }
}

struct Bench {
    running: Running,
    rings: Vec<GuestRing>,
    sink: Arc<Sink>,
}

impl Bench {
    fn with(count: u16, keeps: u16, pollable: bool, delay: Duration) -> Self {
        let ram = memory();
        let rings: Vec<_> = (0..count)
            .map(|index| GuestRing::new(&ram, index, 256))
            .collect();
        let queue = |(index, ring): (u16, &GuestRing)| {
            let features = RingFeatures::from_bits(feature::EVENT_IDX);
            let queue = ring.config().activate(ram.clone(), features).unwrap();
            (TaskQueue { index, queue }, Arc::new(eventfd().unwrap()))
        };
        let sink = Arc::new(Sink::default());
        let task = NewTask {
            label: "task".to_owned(),
            queues: (0..).zip(&rings).map(queue).collect(),
            handler: Box::new(Backend {
                keeps,
                kept: Vec::new(),
                pollable,
            }),
            sink: sink.clone(),
        };
        Self {
            running: Running::new(task, Processor::Own, delay),
            rings,
            sink,
        }
    }

    fn new() -> Self {
        Self::with(1, 0, true, DELAY)
    }

    fn offer(&mut self, index: usize, count: u16) {
        for _ in 0..count {
            self.rings[index].offer(&[(0x1000, 1, true)]);
        }
    }

    /// Whether the driver is interrupted.
    fn pass(&mut self) -> bool {
        let before = self.sink.interrupts();
        let next = self.running.pass(Cause::Resume, true);
        let interrupted = self.sink.interrupts() > before;
        assert_eq!(matches!(next, Next::Delayed(_)), !interrupted, "{next:?}");
        interrupted
    }

    /// Queue `index` is left to a driver that has been seen with `DEPTH` requests in flight, and
    /// has none now.
    fn deepen(&mut self, index: usize) {
        self.offer(index, DEPTH);
        assert!(self.pass());
        self.handle(index);
    }

    /// The driver handles its interrupt.
    fn handle(&mut self, index: usize) -> usize {
        self.rings[index].used().len()
    }
}

#[test]
fn completions_are_shown_at_once_and_one_interrupt_comes_with_the_last_in_flight() {
    let mut bench = Bench::new();
    bench.deepen(0);
    for completed in 1..=DEPTH {
        bench.offer(0, 1);
        assert_eq!(bench.pass(), completed == DEPTH);
        let shown = bench.running.queues[0].queue.save().published;
        assert_eq!(shown, DEPTH + completed);
    }
}

#[test]
fn a_driver_with_one_request_in_flight_is_interrupted_for_each() {
    let mut bench = Bench::new();
    for _ in 0..1000 {
        bench.offer(0, 1);
        assert!(bench.pass());
        assert_eq!(bench.handle(0), 1);
    }
}

#[test]
fn requests_that_come_before_the_interrupt_is_handled_show_the_depth() {
    let mut bench = Bench::new();
    for _ in 0..5 {
        bench.offer(0, 1);
        // One interrupt is under way for all of them.
        bench.running.pass(Cause::Resume, true);
    }
    assert_eq!(bench.sink.interrupts(), 1);
    bench.handle(0);
    for completed in 1..=5 {
        bench.offer(0, 1);
        assert_eq!(bench.pass(), completed == 5);
    }
}

#[test]
fn no_queue_delays_another_one_s_interrupt() {
    let mut bench = Bench::with(2, 0, true, DELAY);
    bench.deepen(0);
    for _ in 0..10 {
        bench.offer(0, 1);
        bench.offer(1, 1);
        let before = bench.sink.interrupts();
        bench.running.pass(Cause::Resume, true);
        assert_eq!(bench.sink.interrupts(), before + 1);
        assert_eq!(bench.handle(1), 1);
    }
}

#[test]
fn an_interrupt_is_raised_when_its_delay_is_over() {
    let mut bench = Bench::with(1, 0, true, Duration::ZERO);
    bench.deepen(0);
    bench.offer(0, 1);
    assert!(!bench.pass());
    assert!(bench.running.deadline().unwrap() <= Instant::now());
    assert!(bench.pass());
    assert!(bench.running.deadline().is_none());
}

#[test]
fn a_device_whose_backend_cannot_be_looked_at_delays_nothing() {
    let mut bench = Bench::with(1, 0, false, DELAY);
    bench.deepen(0);
    for _ in 0..10 {
        bench.offer(0, 1);
        assert!(bench.pass());
        bench.handle(0);
    }
}

#[test]
fn a_driver_that_polls_is_never_made_to_wait_for_kicks() {
    let mut bench = Bench::new();
    bench.deepen(0);
    // It stops asking for interrupts: its event index stays behind.
    for _ in 0..1000 {
        bench.offer(0, 1);
        let next = bench.running.pass(Cause::Resume, true);
        bench.rings[0].take_without_asking();
        if bench.sink.interrupts() > 2 {
            assert_eq!(next, Next::Poll);
        }
    }
    assert!(bench.sink.interrupts() <= 3);
}

#[test]
fn the_driver_hears_of_a_part_while_the_backend_works_and_of_half_where_it_is_ahead() {
    let mut bench = Bench::with(1, 1, true, DELAY);
    bench.offer(0, 4 * DEPTH + 1);
    assert!(bench.pass(), "one is with the backend");
    bench.handle(0);
    let mut bench = Bench::new();
    bench.offer(0, MAX_FRAMES);
    assert!(bench.pass());
    bench.handle(0);
    bench.offer(0, MAX_FRAMES);
    for _ in 0..2 {
        let before = bench.sink.interrupts();
        assert_eq!(bench.running.pass(Cause::Resume, true), Next::Again);
        assert_eq!(bench.sink.interrupts(), before + 1);
        assert_eq!(bench.handle(0), usize::from(MAX_FRAMES / 2));
    }
}

#[test]
fn a_pause_and_a_stop_raise_what_is_delayed() {
    let delaying = || {
        let mut bench = Bench::new();
        bench.deepen(0);
        bench.offer(0, 1);
        assert!(!bench.pass());
        let before = bench.sink.interrupts();
        (bench.running, bench.sink, before)
    };
    let (running, sink, before) = delaying();
    let deadline = running.deadline();
    let timers = Timers::new().unwrap();
    let mut state = Loop::new(Duration::from_micros(32), Processor::Own, timers);
    state.put(3, Some(Entry::Task(running)));
    state.polled.put(3, deadline);
    state.stop_polling();
    assert_eq!(sink.interrupts(), before + 1);
    let (running, sink, before) = delaying();
    running.stop();
    assert_eq!(sink.interrupts(), before + 1);
}
