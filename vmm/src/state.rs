//! The states of a machine, its exit reason, and waiting for its end.
//!
//! Knows no threads and no devices: the life-cycle thread writes the status, every other thread
//! reads it and waits.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MachineState {
    /// Built; its guest has not run yet.
    Created,
    /// The guest runs, or is being restarted.
    Running,
    /// The vCPUs are stopped and the devices have no request in flight.
    Paused,
    /// The machine has ended.
    Ended,
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "not started",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ended => "ended",
        })
    }
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExitReason {
    /// The guest powered itself off.
    PowerOff,
    /// The guest requested a reboot, and the configuration makes that the end of the machine.
    Reboot,
    /// It was stopped by the embedder.
    Stopped,
    /// A triple fault, or a guest that uses one to reset itself.
    TripleFault {
        /// The vCPU it happened on.
        cpu: u32,
    },
    /// KVM can't continue the guest: an instruction that it can't emulate, or an entry that the
    /// processor refused.
    Crashed {
        /// The vCPU it happened on.
        cpu: u32,
        /// The details from KVM, with registers.
        detail: String,
    },
    /// The VMM failed: a panic on one of the machine's threads, a device thread that hangs, or a
    /// failed restart.
    Failed(String),
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reboot => f.write_str("the guest requested a reboot"),
            Self::Stopped => f.write_str("stopped"),
            Self::TripleFault { cpu } => write!(f, "triple fault on vCPU {cpu}"),
            Self::Crashed { cpu, detail } => write!(f, "vCPU {cpu} cannot continue: {detail}"),
            Self::Failed(what) => write!(f, "internal failure: {what}"),
        }
    }
}

/// The outcome of [`Machine::shutdown`](crate::Machine::shutdown).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShutdownOutcome {
    /// The guest powered off.
    PoweredOff,
    /// The guest rebooted instead. With `on-reboot=restart` it is running again.
    Rebooted,
    /// The guest did not power off within the timeout; it continues to run.
    TimedOut,
    /// The machine had already ended.
    AlreadyEnded(ExitReason),
    /// The machine ended in another way while the guest was shutting down.
    Ended(ExitReason),
}

#[derive(Debug)]
struct StatusInner {
    state: MachineState,
    reason: Option<ExitReason>,
    /// How often the machine was rebuilt.
    restarts: u64,
}

/// A machine's status, shared by all threads.
#[derive(Debug)]
pub(crate) struct Status {
    now: Mutex<StatusInner>,
    changed: Condvar,
    /// Written once, when the machine has ended.
    ended: OwnedFd,
}

impl Status {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let ended = rustix::event::eventfd(0, flags)?;
        Ok(Self {
            now: Mutex::new(StatusInner {
                state: MachineState::Created,
                reason: None,
                restarts: 0,
            }),
            changed: Condvar::new(),
            ended,
        })
    }

    fn now(&self) -> MutexGuard<'_, StatusInner> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the state.
    pub(crate) fn state(&self) -> MachineState {
        self.now().state
    }

    /// Returns why the machine ended, or `None` while it has not.
    pub(crate) fn reason(&self) -> Option<ExitReason> {
        self.now().reason.clone()
    }

    /// Sets the state of a machine that has not ended.
    pub(crate) fn set(&self, state: MachineState) {
        self.now().state = state;
        self.changed.notify_all();
    }

    /// Counts a restart.
    pub(crate) fn restarted(&self) {
        self.now().restarts += 1;
        self.changed.notify_all();
    }

    /// Ends the machine; the first reason stays.
    pub(crate) fn end(&self, reason: ExitReason) {
        let mut now = self.now();
        now.state = MachineState::Ended;
        if now.reason.is_none() {
            now.reason = Some(reason);
            // A counter at its limit is readable too.
            let _ = rustix::io::write(&self.ended, &1u64.to_ne_bytes());
        }
        drop(now);
        self.changed.notify_all();
    }

    /// Returns a descriptor that is readable after the end of the machine, until
    /// [`Status::take_end`].
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Returns why the machine ended, and makes the descriptor unreadable.
    pub(crate) fn take_end(&self) -> Option<ExitReason> {
        let now = self.now();
        if now.reason.is_some() {
            let _ = rustix::io::read(&self.ended, &mut [0; 8]);
        }
        now.reason.clone()
    }

    /// Blocks until the machine ends.
    pub(crate) fn wait(&self) -> ExitReason {
        let mut now = self.now();
        loop {
            if let Some(reason) = &now.reason {
                return reason.clone();
            }
            now = self
                .changed
                .wait(now)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns how often the machine was built again.
    pub(crate) fn restarts(&self) -> u64 {
        self.now().restarts
    }

    /// Blocks until the machine ends or its restarts exceed `before`, at most for `timeout`.
    pub(crate) fn wait_for_shutdown(&self, before: u64, timeout: Duration) -> ShutdownOutcome {
        // A timeout that the clock can't represent is no limit.
        let deadline = Instant::now().checked_add(timeout);
        let mut now = self.now();
        loop {
            match &now.reason {
                Some(ExitReason::PowerOff) => return ShutdownOutcome::PoweredOff,
                Some(ExitReason::Reboot) => return ShutdownOutcome::Rebooted,
                Some(other) => return ShutdownOutcome::Ended(other.clone()),
                None if now.restarts > before => return ShutdownOutcome::Rebooted,
                None => {}
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            now = match left {
                Some(Duration::ZERO) => return ShutdownOutcome::TimedOut,
                Some(left) => {
                    self.changed
                        .wait_timeout(now, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self
                    .changed
                    .wait(now)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

#[cfg(test)]
mod tests;
