//! A worker: one thread with one event loop that owns queues and the handlers that serve them.
//!
//! It turns a kick or a ready backend into one pass of a handler, publishes what the pass completed once, and
//! raises at most one interrupt a queue. Nothing on that way takes a lock. It doesn't know what the devices do,
//! nor how interrupts reach the guest. The thread is made with the machine, not by the guest.

mod busy_poll;
mod calls;
mod coalesce;
mod drain;
mod error;
mod event_loop;
mod pause;
mod poll_loop;
mod polled;
mod precedence;
mod processor;
mod running;
mod serve;
mod timers;
mod watches;

use std::io;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberId};
use splitring_virtio::device::queue::QueueState;
use vmm_sys_util::eventfd::EventFd;

use crate::debug::opaque_debug;
use crate::signals::block_file_size_signal;
use crate::threads::inherited;

use calls::{Caller, calls};
use event_loop::{Entry, Loop, Ops, Watcher, events_of, loop_of};
use pause::{Asker, Reached};
use processor::Processor;
use running::Running;
use serve::{Reporter, add_loop, serve};
use timers::Timers;

pub use error::{Failure, OnFailure, WorkerError};
pub use pause::{PauseError, Unfinished};
pub use running::{NewTask, Stopped};

/// How long a caller waits for the loop. Handlers stop in far less; longer means that one hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How long a caller of [`Worker::finish`] waits between two steps.
const FINISH_STEP: Duration = Duration::from_millis(1);

/// Round trips between two threads that the longest busy-poll window is worth when nobody says how
/// long it is to be. A sleep that it saves spares the worker one, and the guest a kick and an
/// interrupt, which cost several.
const WINDOW_TRIPS: u32 = 8;
/// The same for the delay of a coalesced interrupt.
const DELAY_TRIPS: u32 = 4;
/// Tried so often; the fastest counts, since others may have been held up.
const TRIPS: usize = 8;
/// The shortest and longest round trip that is believed.
const TRIP_RANGE: RangeInclusive<Duration> = Duration::from_micros(2)..=Duration::from_micros(125);

/// Names a task of one worker until it is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskId(u16);

/// A handle on a worker's thread. The thread ends with the last handle.
pub struct Worker {
    name: String,
    caller: Caller<Loop>,
    subscriber: SubscriberId,
    processor: Processor,
    /// How long interrupts are delayed where they are coalesced.
    delay: Duration,
    thread: Mutex<Option<JoinHandle<()>>>,
    thread_id: i32,
    on_failure: OnFailure,
}

opaque_debug! { Worker |it| { name: it.name, thread_id: it.thread_id } }

impl Worker {
    /// Starts a thread called `name` (the kernel keeps 15 bytes of it) that looks at busy rings by
    /// itself for up to `max_window` before it sleeps. Zero is never; without one it follows from
    /// the time that threads take to wake each other here.
    pub fn spawn(
        name: &str,
        max_window: Option<Duration>,
        on_failure: OnFailure,
    ) -> io::Result<Arc<Worker>> {
        let processor = Processor::of_this_machine();
        let mut manager = EventManager::new().map_err(|e| io::Error::other(e.to_string()))?;
        let (caller, calls) = calls()?;
        let state = Loop::new(max_window.unwrap_or_default(), processor, Timers::new()?);
        let subscriber = add_loop(&mut manager, state, &calls)?;
        let reporter = Reporter {
            worker: name.to_owned(),
            on_failure: Arc::clone(&on_failure),
        };
        let (started, thread_id) = sync_channel(1);
        let span = tracing::Span::current();
        let thread = thread::Builder::new()
            .name(name.chars().take(15).collect())
            .spawn(inherited(move || {
                block_file_size_signal();
                // Whoever spawned it waits for this.
                let _ = started.send(rustix::thread::gettid().as_raw_nonzero().get());
                span.in_scope(|| serve(manager, subscriber, calls, &reporter));
            }))?;
        let thread_id = thread_id.recv().map_err(io::Error::other)?;
        let mut worker = Worker {
            name: name.to_owned(),
            caller,
            subscriber,
            processor,
            delay: Duration::ZERO,
            thread: Mutex::new(Some(thread)),
            thread_id,
            on_failure,
        };
        worker.tune(max_window).map_err(io::Error::other)?;
        Ok(Arc::new(worker))
    }

    /// Makes delays and windows as long as what they save costs on this machine.
    fn tune(&mut self, max_window: Option<Duration>) -> Result<(), WorkerError> {
        let mut trip = *TRIP_RANGE.end();
        for _ in 0..TRIPS {
            let start = Instant::now();
            self.ask(|_, _| ())?;
            trip = trip.min(start.elapsed());
        }
        let trip = trip.max(*TRIP_RANGE.start());
        self.delay = trip.saturating_mul(DELAY_TRIPS);
        let window = max_window.unwrap_or(trip.saturating_mul(WINDOW_TRIPS));
        let (name, delay) = (&self.name, self.delay);
        tracing::debug!("{name}: polls for up to {window:?}, delays interrupts by {delay:?}");
        self.ask(move |ops, subscriber| {
            loop_of(ops, subscriber)?.polled.set_max_window(window);
            Ok(())
        })?
    }

    /// The worker's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The thread's identifier as the kernel knows it (gettid(2)), for pinning it or for its control group. It is no
    /// other thread's for as long as this handle exists and the worker has not failed.
    pub fn thread_id(&self) -> i32 {
        self.thread_id
    }

    /// Takes a task in and runs it for the first time.
    pub fn add(&self, task: NewTask) -> Result<TaskId, WorkerError> {
        let (processor, delay) = (self.processor, self.delay);
        self.add_entry(move || Entry::Task(Running::new(task, processor, delay)))
    }

    /// Calls `action` on the loop's thread whenever `fd` is signalled. Stop it like a task.
    pub fn watch(
        &self,
        label: &str,
        fd: Arc<EventFd>,
        action: Box<dyn FnMut() + Send>,
    ) -> Result<TaskId, WorkerError> {
        let label = label.to_owned();
        self.add_entry(move || Entry::Watch(Watcher { label, fd, action }))
    }

    fn add_entry(
        &self,
        make: impl FnOnce() -> Entry + Send + 'static,
    ) -> Result<TaskId, WorkerError> {
        self.ask(move |ops, subscriber| {
            let state = loop_of(ops, subscriber)?;
            let slot = state.free_slot().ok_or(WorkerError::NoTask)?;
            let runs = state.runs();
            let entry = make();
            if runs {
                entry.watch(slot, &mut events_of(ops, subscriber)?)?;
            }
            let state = loop_of(ops, subscriber)?;
            state.put(slot, Some(entry));
            if !runs {
                state.parked.insert(slot);
            }
            Ok(TaskId(slot))
        })?
    }

    /// Ends a task: nothing of it runs or is in flight when this returns. This is the one operation behind
    /// reset, unplugging, a snapshot and the machine's end. Bounded; not to be called on the loop's own thread.
    ///
    /// A watch returns no [`Stopped`].
    pub fn stop(&self, id: TaskId) -> Result<Option<Stopped>, WorkerError> {
        self.ask(move |ops, subscriber| {
            let state = loop_of(ops, subscriber)?;
            let entry = state.take(id.0).ok_or(WorkerError::NoTask)?;
            state.timers.remove(id.0);
            entry.unwatch(&mut events_of(ops, subscriber)?);
            Ok(match entry {
                Entry::Task(running) => Some(running.stop()),
                Entry::Watch(_) => None,
            })
        })?
    }

    /// Has a task whose sink does not let it run finish what it has in flight; nothing of it writes guest memory
    /// afterwards until [`Worker::wake`]. Returns how many requests are left if they take longer than `limit`. Not to
    /// be called on the loop's own thread.
    pub fn finish(&self, id: TaskId, limit: Duration) -> Result<usize, WorkerError> {
        let start = Instant::now();
        loop {
            let left = self.ask(move |ops, subscriber| {
                let left = loop_of(ops, subscriber)?.finish(id.0);
                left.ok_or(WorkerError::NoTask)
            })??;
            if left == 0 || start.elapsed() >= limit {
                return Ok(left);
            }
            thread::sleep(FINISH_STEP);
        }
    }

    /// Returns the queues of a task as they are, with their numbers. It must be paused.
    ///
    /// # Errors
    /// The task runs, or holds requests that can't be begun anew.
    pub fn save(&self, id: TaskId) -> Result<Vec<(u16, QueueState)>, WorkerError> {
        self.ask(move |ops, subscriber| loop_of(ops, subscriber)?.save(id.0))?
    }

    /// Has a task look at everything, since it may run again.
    pub fn wake(&self, id: TaskId) -> Result<(), WorkerError> {
        self.ask(move |ops, subscriber| {
            loop_of(ops, subscriber)?.wake(id.0);
            Ok(())
        })?
    }

    /// Returns when the loop has finished what it was doing: what it wrote before is seen by the caller, and what the
    /// caller wrote before, by the loop. Not to be called on the loop's own thread.
    ///
    /// # Errors
    /// The worker has failed.
    pub fn sync(&self) -> Result<(), WorkerError> {
        self.ask(|_, _| ())
    }

    /// As [`pause_all`], for this worker alone.
    ///
    /// # Errors
    /// As [`pause_all`].
    pub fn pause(&self, limit: Duration) -> Result<(), PauseError> {
        pause_together(std::iter::once(self), limit, &AtomicBool::new(false))
    }

    /// Ends a pause, or one that is on its way, however often it was asked for; every task looks at everything once.
    /// Does nothing if there is none.
    ///
    /// # Errors
    /// The worker has failed, or a descriptor can't be waited for any more.
    pub fn resume(&self) -> Result<(), WorkerError> {
        self.ask(drain::resume)?
    }

    /// Asks for a pause and does not wait for it.
    fn begin_pause(&self) -> Result<Asker, WorkerError> {
        let (asker, drain) = pause::pause();
        let subscriber = self.subscriber;
        let begin = move |ops: &mut Ops<'_>| {
            if let Ok(state) = loop_of(ops, subscriber) {
                state.asked.push(drain);
            }
        };
        let fired = self.caller.fire(begin);
        fired
            .map(|()| asker)
            .map_err(|_| WorkerError::Gone(self.name.clone()))
    }

    /// Runs `work` on the loop's thread and waits for its result.
    fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Ops<'_>, SubscriberId) -> T + Send + 'static,
    ) -> Result<T, WorkerError> {
        let gone = || WorkerError::Gone(self.name.clone());
        let (answer, answered) = sync_channel(1);
        let subscriber = self.subscriber;
        self.caller
            .fire(move |ops| {
                // The asker may have given up; then the answer goes away with whatever it holds.
                let _ = answer.send(work(ops, subscriber));
            })
            .map_err(|_| gone())?;
        answered.recv_timeout(ANSWER_LIMIT).map_err(|error| {
            if error == RecvTimeoutError::Timeout {
                let worker = self.name.clone();
                (self.on_failure)(Failure::Stuck { worker });
            }
            gone()
        })
    }
}

/// Pauses `workers` together: all of them, or on an error none.
///
/// Their tasks take no more from the rings, and what is in flight completes as usual: nothing is cancelled. When this
/// returns `Ok`, nothing of these workers runs or writes guest memory, and no descriptor or timer of theirs is looked
/// at, until [`Worker::resume`]. What the driver makes available meanwhile stays in the rings. A task that is added to
/// a paused worker is paused, too; one can be stopped in a pause. To be called when the vCPUs stand still: one of them
/// may be waiting for a worker. Pausing a paused worker is no error. Requests that an earlier reset gave up because the
/// host did not answer (see [`DiskQueue::drain`](crate::disk::DiskQueue::drain)) belong to no task any more and are not
/// waited for.
///
/// # Errors
/// Requests did not complete within `limit`, or somebody set `cancelled` or resumed a worker meanwhile, or one has
/// failed. All the workers then run as before, those that had paused already included, and nothing of the requests was
/// lost. Blocks for hardly longer than `limit` whatever a backend does.
pub fn pause_all(
    workers: &[Arc<Worker>],
    limit: Duration,
    cancelled: &AtomicBool,
) -> Result<(), PauseError> {
    pause_together(workers.iter().map(Arc::as_ref), limit, cancelled)
}

fn pause_together<'a>(
    workers: impl Iterator<Item = &'a Worker>,
    limit: Duration,
    cancelled: &AtomicBool,
) -> Result<(), PauseError> {
    let deadline = Instant::now().checked_add(limit);
    let asked: Vec<_> = workers
        .map(|worker| (worker, worker.begin_pause()))
        .collect();
    let mut failed = None;
    let mut unfinished = Vec::new();
    let mut paused = Vec::new();
    for (worker, asker) in asked {
        // After a failure nobody else is waited for, but each is told that it is off.
        let deadline = match failed {
            None => deadline,
            Some(_) => Some(Instant::now()),
        };
        let gone = || WorkerError::Gone(worker.name.clone()).into();
        match asker.map(|asker| asker.wait(deadline, cancelled)) {
            Ok(Reached::Paused) => paused.push(worker),
            Ok(_) if cancelled.load(Ordering::Acquire) => failed = Some(PauseError::Cancelled),
            Ok(Reached::Unfinished(left)) => unfinished.extend(left),
            Ok(Reached::Silent) => {
                let worker = worker.name.clone();
                failed = failed.or(Some(PauseError::NoAnswer { worker, limit }));
            }
            Ok(Reached::Resumed) => failed = failed.or(Some(PauseError::Resumed)),
            Ok(Reached::Ended) | Err(_) => failed = failed.or_else(|| Some(gone())),
        }
    }
    let failed = match failed {
        None if unfinished.is_empty() => return Ok(()),
        None => PauseError::Timeout { limit, unfinished },
        Some(failed) => failed,
    };
    for worker in paused {
        // One that can't has failed, which it has told the machine.
        let _ = worker.resume();
    }
    Err(failed)
}

impl Drop for Worker {
    fn drop(&mut self) {
        let subscriber = self.subscriber;
        // A loop that has ended already needs no telling.
        let _ = self.caller.fire(move |ops| {
            if let Ok(state) = ops.subscriber_mut(subscriber) {
                state.quit = true;
            }
        });
        let thread = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread.filter(|t| t.thread().id() != thread::current().id()) {
            // `serve` catches panics, so there is no other result.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
