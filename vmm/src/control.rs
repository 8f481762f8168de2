//! What the vCPU threads of one machine share: whether they should run, and why the machine ended.
//!
//! Knows no ioctl. The first reason to end wins; everything after it is a consequence.

use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::kick::Kicks;

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest powered itself off.
    Poweroff,
    /// The guest asked for a reboot.
    Reboot,
    /// `stop` or the drop of the handle.
    Stopped,
    /// The guest faulted three deep, or reset itself that way.
    TripleFault {
        /// The vCPU it happened on.
        cpu: u32,
    },
    /// KVM can't go on with the guest: an instruction it can't emulate, an entry the hardware refused.
    Crashed {
        /// The vCPU it happened on.
        cpu: u32,
        /// What KVM said, with registers.
        detail: String,
    },
    /// Splitring itself failed: a panic on one of the machine's threads.
    Failed(String),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Poweroff => f.write_str("the guest powered off"),
            Self::Reboot => f.write_str("the guest asked for a reboot"),
            Self::Stopped => f.write_str("stopped"),
            Self::TripleFault { cpu } => write!(f, "triple fault on vCPU {cpu}"),
            Self::Crashed { cpu, detail } => write!(f, "vCPU {cpu} cannot go on: {detail}"),
            Self::Failed(what) => write!(f, "internal failure: {what}"),
        }
    }
}

/// What the vCPU threads are asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Run,
    Pause,
    Stop,
}

/// What a vCPU thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Enter the guest.
    Run,
    /// Enter it after a pause: time passed that the guest did not see.
    Resume,
    /// Leave.
    End,
}

#[derive(Debug)]
struct State {
    wanted: Wanted,
    /// vCPU threads that started and have not ended.
    alive: usize,
    /// Of those, how many wait in `hold`.
    parked: usize,
    end: Option<End>,
}

/// One machine's switchboard.
#[derive(Debug)]
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
    ended: OwnedFd,
    kicks: Kicks,
}

impl Control {
    /// Everything is to run. `ended` is written when the machine ends.
    pub(crate) fn new(ended: OwnedFd) -> Self {
        let state = State {
            wanted: Wanted::Run,
            alive: 0,
            parked: 0,
            end: None,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            ended,
            kicks: Kicks::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The list vCPU threads put themselves on.
    pub(crate) fn kicks(&self) -> &Kicks {
        &self.kicks
    }

    /// Ends the machine unless it ended before, and calls the vCPUs out of the guest.
    pub(crate) fn end(&self, end: End) {
        {
            let mut state = self.state();
            state.wanted = Wanted::Stop;
            if state.end.is_none() {
                tracing::debug!(reason = %end, "the machine ends");
                state.end = Some(end);
                // A counter at its limit is readable too.
                let _ = rustix::io::write(&self.ended, &1u64.to_ne_bytes());
            }
        }
        self.changed.notify_all();
        self.kicks.kick_all();
    }

    /// Why the machine ended, if it did.
    pub(crate) fn reason(&self) -> Option<End> {
        self.state().end.clone()
    }

    /// Counts a vCPU thread in; `leave` counts it out.
    pub(crate) fn join(&self) {
        self.state().alive += 1;
    }

    /// See `join`.
    pub(crate) fn leave(&self) {
        self.state().alive -= 1;
        self.changed.notify_all();
    }

    /// Called by a vCPU thread before it enters the guest. Waits while the machine is paused.
    pub(crate) fn turn(&self) -> Turn {
        let mut state = self.state();
        let paused = state.wanted == Wanted::Pause;
        if paused {
            state.parked += 1;
            self.changed.notify_all();
            while state.wanted == Wanted::Pause {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.parked -= 1;
        }
        match state.wanted {
            Wanted::Stop => Turn::End,
            _ if paused => Turn::Resume,
            _ => Turn::Run,
        }
    }

    /// Parks every vCPU; returns when they are, or the machine ended.
    pub(crate) fn pause(&self) {
        let mut state = self.state();
        if state.wanted == Wanted::Stop {
            return;
        }
        state.wanted = Wanted::Pause;
        self.kicks.kick_all();
        while state.wanted == Wanted::Pause && state.parked < state.alive {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes `pause` back.
    pub(crate) fn resume(&self) {
        let mut state = self.state();
        if state.wanted == Wanted::Pause {
            state.wanted = Wanted::Run;
            self.changed.notify_all();
        }
    }

    /// Waits for the end, at most `timeout`.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Option<End> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut state = self.state();
        while state.end.is_none() {
            state = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => break,
                Some(left) => {
                    self.changed
                        .wait_timeout(state, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        state.end.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_wins() {
        let control = Control::new(crate::assemble::changed().expect("eventfd"));
        assert_eq!(control.wait(Some(Duration::ZERO)), None);
        control.end(End::Reboot);
        control.end(End::Stopped);
        assert_eq!(control.wait(None), Some(End::Reboot));
        assert_eq!(control.turn(), Turn::End);
    }

    #[test]
    fn pause_waits_for_the_vcpu_and_resume_lets_it_go() {
        let control = Control::new(crate::assemble::changed().expect("eventfd"));
        control.join();
        std::thread::scope(|scope| {
            let vcpu = scope.spawn(|| while control.turn() != Turn::End {});
            control.pause();
            assert_eq!(control.state().parked, 1);
            control.resume();
            control.pause();
            control.end(End::Stopped);
            vcpu.join().expect("vcpu thread");
        });
        control.leave();
        assert_eq!(control.state().parked, 0);
    }
}
