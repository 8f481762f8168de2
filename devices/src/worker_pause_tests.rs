//! Pauses: what they wait for, how they end otherwise, and what runs afterwards.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::device::DescriptorChain;
use crate::testing::probe;

/// What a [`Slow`] handler's backend may be done with, and how often it was asked.
struct Backend {
    done: AtomicUsize,
    event: OwnedFd,
}

impl Backend {
    fn new() -> Arc<Self> {
        let done = AtomicUsize::new(0);
        let (event, _) = super::backend();
        Arc::new(Self { done, event })
    }

    fn finish(&self, requests: usize) {
        self.done.fetch_add(requests, Ordering::SeqCst);
        signal(&self.event);
    }
}

/// Gives every chain to its backend.
struct Slow {
    backend: Arc<Backend>,
    kept: VecDeque<DescriptorChain>,
    breaks: bool,
}

impl Slow {
    fn new(backend: &Arc<Backend>) -> Self {
        Self {
            backend: Arc::clone(backend),
            kept: VecDeque::new(),
            breaks: false,
        }
    }
}

impl QueueHandler for Slow {
    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::edge(self.backend.event.as_fd(), 0)]
    }
    fn run(&mut self, queues: &mut QueueSet<'_>, _: Cause) -> Result<Outcome, Broken> {
        let (_, queue) = queues.iter().next().unwrap();
        while let Some(chain) = queue.pop().unwrap() {
            self.kept.push_back(chain);
        }
        if self.breaks && !self.kept.is_empty() {
            return Err(Broken::device("it is told to break"));
        }
        self.quiesce(queues);
        Ok(Outcome::Idle)
    }
    fn quiesce(&mut self, queues: &mut QueueSet<'_>) -> usize {
        let (_, queue) = queues.iter().next().unwrap();
        for _ in 0..self.backend.done.swap(0, Ordering::SeqCst) {
            queue.complete(self.kept.pop_front().unwrap(), 1);
        }
        self.kept.len()
    }
    fn stop(&mut self, queues: &mut QueueSet<'_>) {
        let (_, queue) = queues.iter().next().unwrap();
        for chain in self.kept.drain(..) {
            queue.complete(chain, 0);
        }
    }
}

impl Bench {
    /// A task whose backend has `count` requests.
    fn slow(&self, index: u16, count: usize) -> (Side, Arc<Backend>) {
        let backend = Backend::new();
        let mut side = self.add(index, 0, Slow::new(&backend));
        for _ in 0..count {
            side.offer();
        }
        side.kick();
        wait_until("the requests are taken", || self.in_flight(&side) == count);
        (side, backend)
    }

    fn in_flight(&self, side: &Side) -> usize {
        let slot = side.id.0;
        let look = move |ops: &mut Ops<'_>, subscriber| {
            let state = loop_of(ops, subscriber).unwrap();
            let entry = state.entries().find(|(other, _)| *other == slot);
            match entry.unwrap().1 {
                Entry::Task(running) => running.quiesce(),
                Entry::Watch(_) => 0,
            }
        };
        self.worker.ask(look).unwrap()
    }
}

const SOON: Duration = Duration::from_millis(50);

#[test]
fn a_pause_takes_no_new_requests_and_waits_for_those_in_flight() {
    let bench = Bench::new();
    let (mut side, backend) = bench.slow(0, 3);
    std::thread::scope(|scope| {
        let pausing = scope.spawn(|| bench.worker.pause(PATIENCE));
        std::thread::sleep(SOON);
        side.offer();
        side.kick();
        backend.finish(2);
        side.wait(2);
        assert_eq!(side.sink.interrupts(), 1, "interrupts go on");
        std::thread::sleep(SOON);
        assert!(!pausing.is_finished(), "one is in flight");
        backend.finish(1);
        pausing.join().unwrap().unwrap();
    });
    assert_eq!(side.ring.used().len(), 1);
    bench.settle();
    assert!(side.ring.used().is_empty());
    bench.worker.resume().unwrap();
    wait_until("what came in the pause is taken", || {
        bench.in_flight(&side) == 1
    });
    backend.finish(1);
    side.wait(1);
}

#[test]
fn a_backend_that_hangs_is_named_in_time_and_everything_runs_on() {
    let bench = Bench::new();
    let (mut side, backend) = bench.slow(0, 3);
    let mut other = bench.add(1, 0, probe(Manner::Answer).0);
    let start = Instant::now();
    let error = bench.worker.pause(SOON).unwrap_err();
    assert!(start.elapsed() < PATIENCE);
    let PauseError::Timeout { limit, unfinished } = &error else {
        panic!("{error}");
    };
    let expected = Unfinished {
        device: "task0".into(),
        in_flight: 3,
    };
    assert_eq!((*limit, &unfinished[..]), (SOON, &[expected][..]));
    assert!(error.to_string().contains("task0 has 3 in flight"));
    other.offer();
    other.kick();
    other.wait(1);
    side.offer();
    side.kick();
    wait_until("it is taken", || bench.in_flight(&side) == 4);
    backend.finish(4);
    side.wait(4);
    bench.worker.pause(PATIENCE).unwrap();
}

#[test]
fn everything_runs_between_a_pause_that_failed_and_the_next() {
    for _ in 0..10 {
        let bench = Bench::new();
        let (_side, backend) = bench.slow(0, 1);
        let (calm, record) = probe(Manner::Answer);
        bench.add(1, 0, calm);
        bench.settle();
        let runs = || record.runs.load(Ordering::SeqCst);
        let before = runs();
        bench.worker.pause(Duration::from_millis(5)).unwrap_err();
        let ran = std::thread::scope(|scope| {
            let pausing = scope.spawn(|| bench.worker.pause(Duration::MAX));
            let start = Instant::now();
            while runs() == before && start.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
            let ran = runs() > before;
            backend.finish(1);
            pausing.join().unwrap().unwrap();
            ran
        });
        assert!(ran);
    }
}

#[test]
fn tasks_of_one_device_are_named_once() {
    let bench = Bench::new();
    let sides = [bench.slow(0, 1), bench.slow(1, 2)];
    let relabel = |ops: &mut Ops<'_>, subscriber| {
        for (_, entry) in loop_of(ops, subscriber).unwrap().entries() {
            if let Entry::Task(running) = entry {
                running.label = "disk0".into();
            }
        }
    };
    bench.worker.ask(relabel).unwrap();
    let error = bench.worker.pause(SOON).unwrap_err();
    assert!(error.to_string().contains(": disk0 has 3 in flight;"));
    drop(sides);
}

#[test]
fn workers_pause_together_or_not_at_all() {
    let (first, second) = (Bench::new(), Bench::new());
    let workers = [Arc::clone(&first.worker), Arc::clone(&second.worker)];
    let mut calm = first.add(0, 0, probe(Manner::Answer).0);
    let (mut side, backend) = second.slow(0, 1);
    let cancelled = AtomicBool::new(false);
    assert!(matches!(
        pause_all(&workers, SOON, &cancelled),
        Err(PauseError::Timeout { .. })
    ));
    calm.offer();
    calm.kick();
    calm.wait(1);
    backend.finish(1);
    side.wait(1);
    pause_all(&workers, PATIENCE, &cancelled).unwrap();
    calm.offer();
    calm.kick();
    first.settle();
    assert!(calm.ring.used().is_empty());
    first.worker.resume().unwrap();
    calm.wait(1);
}

#[test]
fn a_pause_can_be_cancelled_while_it_waits() {
    let (first, second) = (Bench::new(), Bench::new());
    let workers = [Arc::clone(&first.worker), Arc::clone(&second.worker)];
    let mut calm = first.add(0, 0, probe(Manner::Answer).0);
    let (mut side, backend) = second.slow(0, 1);
    let cancelled = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pausing = scope.spawn(|| pause_all(&workers, Duration::MAX, &cancelled));
        wait_until("the pause is on its way", || !second.runs());
        cancelled.store(true, Ordering::Release);
        assert!(matches!(
            pausing.join().unwrap(),
            Err(PauseError::Cancelled)
        ));
    });
    calm.offer();
    calm.kick();
    calm.wait(1);
    backend.finish(1);
    side.wait(1);
}

#[test]
fn a_resume_ends_a_pause_on_its_way() {
    let bench = Bench::new();
    let (mut side, backend) = bench.slow(0, 1);
    std::thread::scope(|scope| {
        let pausing = scope.spawn(|| bench.worker.pause(PATIENCE));
        wait_until("the pause is on its way", || !bench.runs());
        bench.worker.resume().unwrap();
        assert!(matches!(pausing.join().unwrap(), Err(PauseError::Resumed)));
    });
    backend.finish(1);
    side.wait(1);
}

impl Bench {
    fn runs(&self) -> bool {
        let look = |ops: &mut Ops<'_>, subscriber| loop_of(ops, subscriber).unwrap().runs();
        self.worker.ask(look).unwrap()
    }
}

#[test]
fn a_task_that_keeps_a_pause_from_being_reached_can_be_stopped_and_others_added() {
    let bench = Bench::new();
    let (side, _backend) = bench.slow(0, 2);
    let (calm, record) = probe(Manner::Answer);
    bench.add(1, 0, calm);
    std::thread::scope(|scope| {
        let pausing = scope.spawn(|| bench.worker.pause(PATIENCE));
        wait_until("the pause is on its way", || !bench.runs());
        let (late, late_record) = probe(Manner::Answer);
        let late = bench.add(2, 0, late);
        late.kick();
        bench.settle();
        assert_eq!(late_record.runs.load(Ordering::SeqCst), 0);
        let stopped = bench.worker.stop(side.id).unwrap().unwrap();
        assert_eq!(stopped.in_flight, 0);
        pausing.join().unwrap().unwrap();
        let runs = record.runs.load(Ordering::SeqCst);
        bench.worker.resume().unwrap();
        wait_until("all run again", || {
            record.runs.load(Ordering::SeqCst) > runs && late_record.runs.load(Ordering::SeqCst) > 0
        });
    });
}

/// A halted task's backend writes guest memory, too.
#[test]
fn a_device_that_needs_a_reset_is_waited_for_as_well() {
    let bench = Bench::new();
    let backend = Backend::new();
    let handler = Slow {
        breaks: true,
        ..Slow::new(&backend)
    };
    let mut side = bench.add(0, 0, handler);
    side.offer();
    side.kick();
    wait_until("it broke", || side.sink.is_broken());
    assert!(matches!(
        bench.worker.pause(SOON),
        Err(PauseError::Timeout { .. })
    ));
    backend.finish(1);
    bench.worker.pause(PATIENCE).unwrap();
    bench.worker.resume().unwrap();
    side.offer();
    side.kick();
    bench.settle();
    assert_eq!(bench.in_flight(&side), 0, "it is not run any more");
}

/// Hangs in its first run until the test lets it go on.
struct Hanging(Receiver<()>, Arc<probe::Record>, bool);

impl QueueHandler for Hanging {
    fn run(&mut self, _: &mut QueueSet<'_>, _: Cause) -> Result<Outcome, Broken> {
        self.1.runs.fetch_add(1, Ordering::SeqCst);
        if !std::mem::replace(&mut self.2, true) {
            let _ = self.0.recv();
        }
        Ok(Outcome::Idle)
    }
    fn stop(&mut self, _: &mut QueueSet<'_>) {}
}

#[test]
fn a_handler_that_hangs_in_a_call_costs_a_pause_no_more_than_its_limit() {
    let bench = Bench::new();
    let (go_on, held): (Sender<()>, _) = channel();
    let record = Arc::new(probe::Record::default());
    bench.add(0, 0, Hanging(held, Arc::clone(&record), false));
    let runs = || record.runs.load(Ordering::SeqCst);
    wait_until("it hangs", || runs() == 1);
    let error = bench.worker.pause(SOON).unwrap_err();
    assert!(
        matches!(&error, PauseError::NoAnswer { worker, .. } if worker == "bench"),
        "{error}"
    );
    go_on.send(()).unwrap();
    wait_until("it runs on", || bench.runs());
    assert!(bench.failures.lock().unwrap().is_empty());
    bench.worker.pause(PATIENCE).unwrap();
}
