//! The worker as its callers see it, with rings written by hand.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use splitring_virtio::device::queue::RingFeatures;
use splitring_virtio::spec::feature;

use super::*;
use crate::device::{Broken, Cause, Outcome, QueueHandler, QueueSet, Source, TaskQueue};
use crate::eventfd::eventfd;
use crate::interrupt::InterruptSink;
use crate::ram::Ram;
use crate::testing::pci::{PATIENCE, wait_until};
use crate::testing::probe::{Handler, Manner, Record};
use crate::testing::{GuestRing, Sink, memory};

#[path = "worker_pause_tests.rs"]
mod pause;
#[path = "worker_sources_tests.rs"]
mod sources;

struct Bench {
    worker: Arc<Worker>,
    ram: Ram,
    failures: Arc<Mutex<Vec<Failure>>>,
}

/// One task's guest side.
struct Side {
    ring: GuestRing,
    kick: Arc<EventFd>,
    sink: Arc<Sink>,
    id: TaskId,
}

impl Bench {
    fn new() -> Self {
        Self::polling(Duration::from_micros(32))
    }

    fn polling(window: Duration) -> Self {
        let failures = Arc::new(Mutex::new(Vec::new()));
        let failed = Arc::clone(&failures);
        let on_failure = Arc::new(move |failure| failed.lock().unwrap().push(failure));
        Self {
            worker: Worker::spawn("bench", Some(window), on_failure).unwrap(),
            ram: memory(),
            failures,
        }
    }

    fn add(&self, index: u16, features: u64, handler: impl QueueHandler + 'static) -> Side {
        let ring = GuestRing::new(&self.ram, index, 256);
        let features = RingFeatures::from_bits(features);
        let queue = ring.config().activate(self.ram.clone(), features).unwrap();
        let kick = Arc::new(eventfd().unwrap());
        let sink = Arc::new(Sink::default());
        let task = NewTask {
            label: format!("task{index}"),
            queues: vec![(TaskQueue { index, queue }, Arc::clone(&kick))],
            handler: Box::new(handler),
            sink: sink.clone(),
        };
        let id = self.worker.add(task).unwrap();
        Side {
            ring,
            kick,
            sink,
            id,
        }
    }

    /// Returns when the worker has been through everything that was ready.
    fn settle(&self) {
        // A call may run in the turn in which the one before it did, before any task does.
        let has_ready = |ops: &mut Ops<'_>, id| loop_of(ops, id).unwrap().has_ready();
        wait_until("no task is ready", || !self.worker.ask(has_ready).unwrap());
        self.worker.ask(|_, _| ()).unwrap();
    }
}

fn probe(manner: Manner) -> (Handler, Arc<Record>) {
    let record = Arc::new(Record::default());
    (Handler::new(manner, Arc::clone(&record)), record)
}

impl Side {
    fn offer(&mut self) {
        self.ring.offer(&[(0x1000, 1, true)]);
    }

    fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    fn wait(&mut self, count: usize) {
        let mut used = 0;
        wait_until("the buffers are used", || {
            used += self.ring.used().len();
            used >= count
        });
    }
}

#[test]
fn a_batch_is_published_with_one_interrupt() {
    let bench = Bench::new();
    let mut side = bench.add(0, feature::VERSION_1, probe(Manner::Answer).0);
    // A task runs once when it is taken in: that must not find a part of the batch.
    bench.settle();
    for _ in 0..100 {
        side.offer();
    }
    side.kick();
    side.wait(100);
    bench.settle();
    assert_eq!(side.sink.interrupts(), 1);
}

/// Has nothing to do, and says it is flooded.
struct Flooded;

impl QueueHandler for Flooded {
    fn run(&mut self, _: &mut QueueSet<'_>, _: Cause) -> Result<Outcome, Broken> {
        Ok(Outcome::Idle)
    }
    fn flooded(&self) -> bool {
        true
    }
    fn stop(&mut self, _: &mut QueueSet<'_>) {}
}

#[test]
fn the_thread_gives_way_as_long_as_a_task_is_flooded() {
    let bench = Bench::new();
    let policy = || bench.worker.ask(|_, _| precedence::policy()).unwrap();
    let _calm = bench.add(0, feature::VERSION_1, probe(Manner::Answer).0);
    bench.settle();
    assert_eq!(policy(), libc::SCHED_OTHER);
    let side = bench.add(1, feature::VERSION_1, Flooded);
    bench.settle();
    assert_eq!(policy(), libc::SCHED_BATCH);
    assert!(bench.worker.stop(side.id).unwrap().is_some());
    assert_eq!(policy(), libc::SCHED_OTHER);
}

#[test]
fn no_interrupt_when_the_driver_asks_for_none() {
    let bench = Bench::new();
    let mut side = bench.add(0, feature::VERSION_1, probe(Manner::Answer).0);
    side.ring.set_available_flags(1);
    side.offer();
    side.kick();
    side.wait(1);
    bench.settle();
    assert_eq!(side.sink.interrupts(), 0);
}

/// Answers each request at once, and has a backend that can be looked at.
struct Polled;

impl QueueHandler for Polled {
    fn run(&mut self, queues: &mut QueueSet<'_>, _: Cause) -> Result<Outcome, Broken> {
        let (_, queue) = queues.iter().next().unwrap();
        while let Some(chain) = queue.pop().map_err(|error| Broken::new(0, error))? {
            queue.complete(chain, 1);
        }
        Ok(Outcome::Idle)
    }
    fn poll(&mut self) -> Option<bool> {
        Some(false)
    }
    fn stop(&mut self, _: &mut QueueSet<'_>) {}
}

/// A driver that kept many requests in flight and then adds a single one hears of it, whether or
/// not the worker polls.
#[test]
fn a_delayed_interrupt_comes_without_another_request() {
    for window in [0, 1000] {
        let bench = Bench::polling(Duration::from_micros(window));
        let mut side = bench.add(0, feature::EVENT_IDX, Polled);
        bench.settle();
        for _ in 0..100 {
            for _ in 0..64 {
                side.offer();
            }
            side.kick();
            side.wait(64);
            let mut handled = side.sink.interrupts();
            side.offer();
            side.kick();
            // One for those before may still be under way.
            while side.ring.used().is_empty() {
                wait_until("it is interrupted", || side.sink.interrupts() > handled);
                handled = side.sink.interrupts();
            }
        }
    }
}

/// A driver that kicks only when asked to must never be left waiting.
#[test]
fn no_buffer_is_forgotten_between_emptying_the_ring_and_asking_for_kicks() {
    for (features, polled) in [
        (0, false),
        (0, true),
        (feature::EVENT_IDX, false),
        (feature::EVENT_IDX, true),
    ] {
        let bench = Bench::new();
        let mut side = match polled {
            true => bench.add(0, features, Polled),
            false => bench.add(0, features, probe(Manner::Answer).0),
        };
        // Where an interrupt is delayed, kicks are off meanwhile: that takes its time.
        let rounds = if polled { 4000 } else { 20_000_u16 };
        for round in 0..rounds {
            let before = side.ring.available_index();
            side.offer();
            if side
                .ring
                .wants_kick(features & feature::EVENT_IDX != 0, before)
            {
                side.kick();
            }
            if round % 3 == 0 {
                continue;
            }
            wait_until("every buffer so far is used", || {
                side.ring.used();
                side.ring.used_index() == side.ring.available_index()
            });
        }
    }
}

/// Offers a new buffer for each one completed, without end.
struct Refilling(Arc<AtomicUsize>, Mutex<GuestRing>);

impl QueueHandler for Refilling {
    fn run(&mut self, queues: &mut QueueSet<'_>, _cause: Cause) -> Result<Outcome, Broken> {
        let (_, queue) = queues.iter().next().unwrap();
        while let Some(chain) = queue.pop().unwrap() {
            queue.complete(chain, 1);
            self.1.get_mut().unwrap().offer(&[(0x1000, 1, true)]);
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        Ok(Outcome::Idle)
    }
    fn stop(&mut self, _queues: &mut QueueSet<'_>) {}
}

#[test]
fn a_guest_that_refills_for_ever_starves_nobody() {
    let bench = Bench::new();
    let done = Arc::new(AtomicUsize::new(0));
    let mut ring = GuestRing::new(&bench.ram, 0, 256);
    let queue = ring
        .config()
        .activate(bench.ram.clone(), RingFeatures::default())
        .unwrap();
    ring.offer(&[(0x1000, 1, true)]);
    let task = NewTask {
        label: "greedy".to_owned(),
        queues: vec![(TaskQueue { index: 0, queue }, Arc::new(eventfd().unwrap()))],
        handler: Box::new(Refilling(Arc::clone(&done), Mutex::new(ring))),
        sink: Arc::new(Sink::default()),
    };
    let greedy = bench.worker.add(task).unwrap();
    let mut side = bench.add(1, 0, probe(Manner::Answer).0);
    for _ in 0..10 {
        side.offer();
        side.kick();
        side.wait(1);
    }
    let so_far = done.load(Ordering::SeqCst);
    wait_until("the greedy one goes on too", || {
        done.load(Ordering::SeqCst) > so_far + 1000
    });
    assert!(bench.worker.stop(greedy).unwrap().is_some());
}

#[test]
fn stop_gives_back_handler_and_queues_with_nothing_in_flight() {
    let bench = Bench::new();
    let (handler, record) = probe(Manner::Hold);
    let mut side = bench.add(4, 0, handler);
    for _ in 0..7 {
        side.offer();
    }
    side.kick();
    wait_until("they are held", || record.held.load(Ordering::SeqCst) == 7);
    let stopped = bench.worker.stop(side.id).unwrap().unwrap();
    assert_eq!(stopped.in_flight, 0);
    assert_eq!(side.ring.used().len(), 7, "what was completed is shown");
    assert!(matches!(
        bench.worker.stop(side.id),
        Err(WorkerError::NoTask)
    ));
    // Its kick is nobody's now.
    let runs = record.runs.load(Ordering::SeqCst);
    side.kick();
    bench.settle();
    assert_eq!(record.runs.load(Ordering::SeqCst), runs);
}

#[test]
fn nothing_runs_in_a_pause_and_everything_after_it() {
    let bench = Bench::new();
    let (handler, record) = probe(Manner::Answer);
    let mut side = bench.add(0, 0, handler);
    bench.settle();
    bench.worker.resume().unwrap();
    bench.worker.pause(PATIENCE).unwrap();
    bench.worker.pause(PATIENCE).unwrap();
    let runs = record.runs.load(Ordering::SeqCst);
    side.offer();
    side.kick();
    // A task that comes in the meantime waits too.
    let mut late = bench.add(1, 0, probe(Manner::Answer).0);
    late.offer();
    bench.settle();
    assert_eq!(record.runs.load(Ordering::SeqCst), runs);
    assert!(side.ring.used().is_empty() && late.ring.used().is_empty());
    bench.worker.resume().unwrap();
    side.wait(1);
    late.wait(1);
    late.offer();
    late.kick();
    late.wait(1);
    // A task can be stopped in a pause.
    bench.worker.pause(PATIENCE).unwrap();
    assert!(bench.worker.stop(side.id).unwrap().is_some());
    bench.worker.resume().unwrap();
}

#[test]
fn a_panic_ends_the_worker_with_a_report_and_callers_get_an_error() {
    let bench = Bench::new();
    let mut side = bench.add(0, 0, probe(Manner::Panic).0);
    let (held, record) = probe(Manner::Hold);
    bench.add(1, 0, held);
    side.offer();
    side.kick();
    wait_until("it is reported", || {
        !bench.failures.lock().unwrap().is_empty()
    });
    assert!(matches!(
        bench.worker.stop(side.id),
        Err(WorkerError::Gone(_))
    ));
    assert!(matches!(
        bench.worker.pause(PATIENCE),
        Err(PauseError::Worker(WorkerError::Gone(_)))
    ));
    wait_until("the other task is stopped", || {
        record.stops.load(Ordering::SeqCst) == 1
    });
    assert_eq!(bench.failures.lock().unwrap().len(), 1);
}

/// Waits for an eventfd that it never reads.
struct Waiting(OwnedFd, Arc<Mutex<Vec<Cause>>>, bool);

/// An eventfd, and a second handle on it.
fn backend() -> (OwnedFd, OwnedFd) {
    let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    (fd.try_clone().unwrap(), fd)
}

fn signal(fd: &OwnedFd) {
    rustix::io::write(fd, &1_u64.to_ne_bytes()).unwrap();
}

impl QueueHandler for Waiting {
    fn sources(&self) -> Vec<Source<'_>> {
        let fd = self.0.as_fd();
        vec![if self.2 {
            Source::level(fd, 77)
        } else {
            Source::edge(fd, 77)
        }]
    }
    fn run(&mut self, _queues: &mut QueueSet<'_>, cause: Cause) -> Result<Outcome, Broken> {
        self.1.lock().unwrap().push(cause);
        if self.2 && matches!(cause, Cause::Source(_)) {
            return Err(Broken::device("the backend is gone"));
        }
        Ok(Outcome::Idle)
    }
    fn stop(&mut self, _queues: &mut QueueSet<'_>) {}
}

#[test]
fn an_edge_source_comes_once_a_signal_without_being_read() {
    let bench = Bench::new();
    let causes = Arc::new(Mutex::new(Vec::new()));
    let (other, backend) = backend();
    let handler = Waiting(other, Arc::clone(&causes), false);
    bench.add(0, 0, handler);
    for count in 1..=3 {
        signal(&backend);
        let sources = || {
            causes
                .lock()
                .unwrap()
                .iter()
                .filter(|c| **c == Cause::Source(77))
                .count()
        };
        wait_until("it came", || sources() == count);
        bench.settle();
        assert_eq!(sources(), count);
    }
}

#[test]
fn a_broken_device_is_not_run_again_even_if_its_backend_stays_ready() {
    let bench = Bench::new();
    let causes = Arc::new(Mutex::new(Vec::new()));
    let (other, backend) = backend();
    let handler = Waiting(other, Arc::clone(&causes), true);
    let mut side = bench.add(0, 0, handler);
    signal(&backend);
    wait_until("it broke", || side.sink.is_broken());
    bench.settle();
    let count = causes.lock().unwrap().len();
    side.offer();
    side.kick();
    signal(&backend);
    bench.worker.pause(PATIENCE).unwrap();
    bench.worker.resume().unwrap();
    bench.settle();
    assert_eq!(causes.lock().unwrap().len(), count);
    assert!(bench.worker.stop(side.id).unwrap().is_some());
}

#[test]
fn a_watch_calls_its_action_until_it_is_stopped() {
    let bench = Bench::new();
    let fd = Arc::new(eventfd().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let action = Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let id = bench.worker.watch("line", Arc::clone(&fd), action).unwrap();
    fd.write(1).unwrap();
    wait_until("it is called", || count.load(Ordering::SeqCst) == 1);
    assert!(bench.worker.stop(id).unwrap().is_none());
    fd.write(1).unwrap();
    bench.settle();
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[test]
fn a_descriptor_that_cannot_be_waited_for_is_an_error_and_leaves_nothing() {
    let bench = Bench::new();
    // A regular file is always ready; epoll refuses it.
    struct OnFile(std::fs::File);
    impl QueueHandler for OnFile {
        fn sources(&self) -> Vec<Source<'_>> {
            vec![Source::edge(self.0.as_fd(), 0)]
        }
        fn run(&mut self, _q: &mut QueueSet<'_>, _c: Cause) -> Result<Outcome, Broken> {
            Ok(Outcome::Idle)
        }
        fn stop(&mut self, _queues: &mut QueueSet<'_>) {}
    }
    let ring = GuestRing::new(&bench.ram, 0, 256);
    let queue = ring
        .config()
        .activate(bench.ram.clone(), RingFeatures::default())
        .unwrap();
    let kick = Arc::new(eventfd().unwrap());
    let task = NewTask {
        label: "disk0".to_owned(),
        queues: vec![(TaskQueue { index: 0, queue }, Arc::clone(&kick))],
        handler: Box::new(OnFile(tempfile::tempfile().unwrap())),
        sink: Arc::new(Sink::default()),
    };
    let refused = bench.worker.add(task);
    assert!(matches!(refused, Err(WorkerError::Watch { ref task, .. }) if task == "disk0"));
    kick.write(1).unwrap();
    bench.settle();
    assert!(bench.failures.lock().unwrap().is_empty());
}

#[test]
fn a_task_that_never_ran_is_only_dropped_and_one_on_a_worker_is_stopped_however_it_goes() {
    let bench = Bench::new();
    let task = || {
        let (handler, record) = probe(Manner::Hold);
        let ring = GuestRing::new(&bench.ram, 0, 256);
        let queue = ring
            .config()
            .activate(bench.ram.clone(), RingFeatures::default())
            .unwrap();
        let task = NewTask {
            label: "task".to_owned(),
            queues: vec![(TaskQueue { index: 0, queue }, Arc::new(eventfd().unwrap()))],
            handler: Box::new(handler),
            sink: Arc::new(Sink::default()),
        };
        (task, record)
    };
    let (new, record) = task();
    drop(new);
    assert_eq!(record.stops.load(Ordering::SeqCst), 0);
    let (new, record) = task();
    drop(Running::new(new, Processor::Own, Duration::ZERO));
    assert_eq!(record.stops.load(Ordering::SeqCst), 1);
    let (new, record) = task();
    Running::new(new, Processor::Own, Duration::ZERO).stop();
    assert_eq!(record.stops.load(Ordering::SeqCst), 1, "once");
}

#[test]
fn a_worker_s_thread_can_be_found() {
    let bench = Bench::new();
    let id = bench.worker.thread_id();
    let own = |_: &mut Ops<'_>, _| rustix::thread::gettid().as_raw_nonzero().get();
    assert_eq!(bench.worker.ask(own).unwrap(), id);
    let name = std::fs::read_to_string(format!("/proc/self/task/{id}/comm")).unwrap();
    assert_eq!(name, "bench\n");
}

#[test]
fn a_worker_that_lost_all_its_tasks_runs_new_ones() {
    let bench = Bench::new();
    for _ in 0..3 {
        let mut sides = [0, 1].map(|index| bench.add(index, 0, probe(Manner::Answer).0));
        for side in &mut sides {
            side.offer();
            side.kick();
            side.wait(1);
        }
        // The next ones are added in the pause in which these end.
        bench.worker.pause(PATIENCE).unwrap();
        for side in sides {
            assert!(bench.worker.stop(side.id).unwrap().is_some());
        }
        let mut next = bench.add(0, 0, probe(Manner::Answer).0);
        next.offer();
        bench.settle();
        assert!(next.ring.used().is_empty());
        bench.worker.resume().unwrap();
        next.wait(1);
        assert!(bench.worker.stop(next.id).unwrap().is_some());
    }
}

#[test]
fn dropping_the_last_handle_stops_the_tasks_and_ends_the_thread() {
    let bench = Bench::new();
    let (handler, record) = probe(Manner::Hold);
    let mut side = bench.add(0, 0, handler);
    side.offer();
    side.kick();
    wait_until("it is held", || record.held.load(Ordering::SeqCst) == 1);
    bench.worker.pause(PATIENCE).unwrap();
    drop(bench);
    assert_eq!(record.stops.load(Ordering::SeqCst), 1);
    assert_eq!(
        Arc::strong_count(&side.sink),
        1,
        "the loop holds nothing any more"
    );
}
