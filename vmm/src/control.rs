//! The state that the vCPU threads of one machine share: whether they run, pause or exit, the jobs
//! they have to do, and why they ended.
//!
//! Knows no device. The first exit reason is kept; later ones are consequences of it. A reboot
//! creates a new instance, so an old guest can't end the new one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

use crate::console::Console;
use crate::error::BuildError;
use crate::kick::Kicks;
use crate::state::ExitReason;

/// How long a vCPU may take for a job: longer than any device takes for one register access.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A job for the thread of a vCPU.
pub(crate) type Job = Box<dyn FnOnce(&mut VcpuFd) + Send>;

/// The state that the vCPU threads are to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunState {
    Run,
    Pause,
    Leave,
}

/// What a vCPU thread does next.
pub(crate) enum VcpuStep {
    /// Enter the guest.
    Run,
    /// Enter the guest after a pause, which the guest's clock did not see.
    Resume,
    /// Run this job, and ask again.
    Job(Job),
    /// End the thread.
    Leave,
}

struct ControlState {
    run_state: RunState,
    /// Number of vCPU threads that have started and not ended.
    alive: usize,
    /// How many of them are paused.
    parked: usize,
    end: Option<ExitReason>,
    /// Indexed by vCPU.
    jobs: Vec<VecDeque<Job>>,
    /// The kernel's thread ids, indexed by vCPU; 0 for a thread that has not started or has ended.
    thread_ids: Vec<i32>,
}

/// Controls the vCPU threads of one build of a machine.
pub(crate) struct VcpuControl {
    state: Mutex<ControlState>,
    changed: Condvar,
    /// Whether a thread has to call `next_step`. Atomic, since it is checked after each port
    /// access.
    attention: AtomicBool,
    kicks: Kicks,
    console: Console,
    on_end: Box<dyn Fn() + Send + Sync>,
}

impl VcpuControl {
    /// Creates the control of vCPUs that run as soon as their threads start, or are paused if
    /// `paused`. They may wait for room in `console`. `on_end` is called once, on any thread, and
    /// must not block.
    pub(crate) fn new(
        cpus: u32,
        paused: bool,
        console: Console,
        on_end: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let state = ControlState {
            run_state: if paused {
                RunState::Pause
            } else {
                RunState::Run
            },
            alive: 0,
            parked: 0,
            end: None,
            jobs: (0..cpus).map(|_| VecDeque::new()).collect(),
            thread_ids: (0..cpus).map(|_| 0).collect(),
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            attention: AtomicBool::new(paused),
            kicks: Kicks::default(),
            console,
            on_end: Box::new(on_end),
        }
    }

    /// Returns the console that vCPU threads wait for.
    pub(crate) fn console(&self) -> &Console {
        &self.console
    }

    /// Interrupts the vCPUs in the guest and in a wait for the console.
    fn kick_all(&self) {
        self.kicks.kick_all();
        self.console.interrupt();
    }

    fn state(&self) -> MutexGuard<'_, ControlState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the list on which vCPU threads register for kicks.
    pub(crate) fn kicks(&self) -> &Kicks {
        &self.kicks
    }

    /// Ends these vCPUs, unless they have ended before, and interrupts them.
    pub(crate) fn end(&self, reason: ExitReason) {
        let first = {
            let mut state = self.state();
            state.run_state = RunState::Leave;
            let first = state.end.is_none();
            if first {
                tracing::debug!(%reason, "the guest ends");
                state.end = Some(reason);
            }
            first
        };
        self.call();
        if first {
            (self.on_end)();
        }
    }

    /// Wakes paused threads, and interrupts the others.
    fn call(&self) {
        // Set before the kick, whose handler makes the next KVM_RUN return: the thread then checks
        // it.
        self.attention.store(true, Ordering::SeqCst);
        self.changed.notify_all();
        self.kick_all();
    }

    /// Returns why these vCPUs ended, if they did.
    pub(crate) fn reason(&self) -> Option<ExitReason> {
        self.state().end.clone()
    }

    /// Counts a vCPU thread as started; `leave` counts it as ended.
    pub(crate) fn join(&self) {
        self.state().alive += 1;
    }

    /// See `join`.
    pub(crate) fn leave(&self) {
        self.state().alive -= 1;
        self.changed.notify_all();
    }

    /// Records that the calling thread is that of vCPU `index`, or that it no longer is.
    pub(crate) fn note_thread(&self, index: u32, here: bool) {
        let id = if here {
            rustix::thread::gettid().as_raw_nonzero().get()
        } else {
            0
        };
        let mut state = self.state();
        if let Some(noted) = usize::try_from(index)
            .ok()
            .and_then(|index| state.thread_ids.get_mut(index))
        {
            *noted = id;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Returns the kernel's ids of the vCPU threads, in the order of the vCPUs. Blocks until those
    /// that were counted have started.
    pub(crate) fn threads(&self) -> Vec<i32> {
        let deadline = Instant::now() + ANSWER_LIMIT;
        let mut state = self.state();
        loop {
            let known: Vec<i32> = state
                .thread_ids
                .iter()
                .copied()
                .filter(|id| *id != 0)
                .collect();
            let left = deadline.saturating_duration_since(Instant::now());
            if known.len() >= state.alive || state.end.is_some() || left.is_zero() {
                return known;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Returns whether a vCPU thread has to call [`VcpuControl::next_step`] before it enters the
    /// guest.
    pub(crate) fn wants_attention(&self) -> bool {
        self.attention.load(Ordering::SeqCst)
    }

    /// Returns what the thread of vCPU `index` does next. To be called with no I/O of the vCPU
    /// pending. Blocks while the machine is paused and there is no job.
    pub(crate) fn next_step(&self, index: u32) -> VcpuStep {
        let mut state = self.state();
        let mut parked = false;
        loop {
            if state.run_state == RunState::Leave {
                return VcpuStep::Leave;
            }
            if let Some(job) = state.next_job(index) {
                return VcpuStep::Job(job);
            }
            if state.run_state == RunState::Run {
                // Cleared only if no other vCPU has a job left.
                if state.jobs.iter().all(VecDeque::is_empty) {
                    self.attention.store(false, Ordering::SeqCst);
                }
                return if parked {
                    VcpuStep::Resume
                } else {
                    VcpuStep::Run
                };
            }
            parked = true;
            state.parked += 1;
            self.changed.notify_all();
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.parked -= 1;
        }
    }

    /// Pauses every vCPU. Blocks until all are paused, with their I/O completed.
    ///
    /// # Errors
    /// The exit reason, if the vCPUs ended instead.
    pub(crate) fn pause(&self) -> Result<(), ExitReason> {
        let mut state = self.state();
        if state.run_state == RunState::Run {
            state.run_state = RunState::Pause;
        }
        self.call();
        loop {
            if let Some(reason) = &state.end {
                return Err(reason.clone());
            }
            if state.parked >= state.alive {
                return Ok(());
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Resumes paused vCPUs.
    pub(crate) fn resume(&self) {
        let mut state = self.state();
        if state.run_state == RunState::Pause {
            state.run_state = RunState::Run;
            self.changed.notify_all();
        }
    }

    /// Runs `work` on the thread of vCPU `cpu`, running or paused, and returns its result.
    ///
    /// # Errors
    /// There is no such vCPU, it has ended, or it does not respond within ten seconds.
    pub(crate) fn run_on<T: Send + 'static>(
        &self,
        cpu: u32,
        work: impl FnOnce(&mut VcpuFd) -> T + Send + 'static,
    ) -> Result<T, BuildError> {
        let problem = |problem: &str| BuildError::Vcpu {
            cpu,
            problem: problem.to_owned(),
        };
        let (send, answer) = sync_channel(1);
        {
            let mut state = self.state();
            if let Some(reason) = &state.end {
                return Err(BuildError::Ended(reason.clone()));
            }
            let jobs = usize::try_from(cpu)
                .ok()
                .and_then(|index| state.jobs.get_mut(index));
            jobs.ok_or_else(|| problem("the machine has no such vCPU"))?
                .push_back(Box::new(move |fd| {
                    // The caller may have given up.
                    let _ = send.send(work(fd));
                }));
        }
        self.call();
        answer.recv_timeout(ANSWER_LIMIT).map_err(|_| {
            self.reason()
                .map_or_else(|| problem("it does not respond"), BuildError::Ended)
        })
    }

    /// Drops the jobs that no thread will run, so that no caller waits for them.
    pub(crate) fn discard_jobs(&self) {
        self.state().jobs.clear();
    }
}

impl ControlState {
    fn next_job(&mut self, index: u32) -> Option<Job> {
        let index = usize::try_from(index).ok()?;
        self.jobs.get_mut(index)?.pop_front()
    }
}

#[cfg(test)]
mod tests;
