//! A pause on its way: what a loop and those who asked it to pause tell each other.
//!
//! Each who asks waits with a time limit of its own, so that a loop that hangs in a backend costs it no more than
//! that. Whether the loop paused or the asker gave up is decided under one lock: they never differ about it. Knows
//! no tasks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::error::WorkerError;

/// How often an asker that waits looks whether it is to go on waiting.
const LOOK: Duration = Duration::from_millis(10);

/// A device whose requests keep a pause from being reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// The device's name.
    pub device: String,
    /// Requests that its backend has.
    pub in_flight: usize,
}

/// Why workers did not pause. All that were asked run on as if they had not been.
#[derive(Debug, Error)]
pub enum PauseError {
    /// Requests did not complete in time.
    #[error(
        "requests did not complete within {limit:?}: {}; the devices run on. What is behind them does not answer: \
         pause again when it does, or stop the machine",
        list(.unfinished)
    )]
    Timeout {
        /// How long they were given.
        limit: Duration,
        /// Whose they are.
        unfinished: Vec<Unfinished>,
    },
    /// A worker's thread did not get to it in time: a handler hangs in a call to the host.
    #[error(
        "device thread {worker} did not answer within {limit:?}; the devices run on. A call to the host hangs: pause \
         again when it has returned, or stop the machine"
    )]
    NoAnswer {
        /// The worker's name.
        worker: String,
        /// How long it was given.
        limit: Duration,
    },
    /// Whoever asked did not want it any more.
    #[error("the pause was cancelled")]
    Cancelled,
    /// The workers were resumed meanwhile.
    #[error("the devices were resumed before they had paused")]
    Resumed,
    /// A worker has failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

fn list(unfinished: &[Unfinished]) -> String {
    let each = unfinished
        .iter()
        .map(|one| format!("{} has {} in flight", one.device, one.in_flight));
    each.collect::<Vec<_>>().join(", ")
}

#[derive(Debug)]
enum State {
    /// The loop has not begun.
    Asked,
    /// These have requests in flight.
    Draining(Vec<Unfinished>),
    Paused,
    /// The loop was resumed meanwhile.
    Resumed,
    /// The loop has ended.
    Ended,
    /// Nobody waits any more.
    GivenUp,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of who asks.
#[derive(Debug)]
pub(super) struct Asker(Arc<Shared>);

/// The loop's end. Dropping it says that the loop has ended.
#[derive(Debug)]
pub(super) struct Drain(Arc<Shared>);

/// What became of a pause when its asker looked last.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reached {
    Paused,
    Resumed,
    Ended,
    /// Not in time; the loop had not begun.
    Silent,
    /// Not in time, because of these.
    Unfinished(Vec<Unfinished>),
}

/// Both ends of a pause.
pub(super) fn pause() -> (Asker, Drain) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State::Asked),
        changed: Condvar::new(),
    });
    (Asker(Arc::clone(&shared)), Drain(shared))
}

impl Asker {
    /// Waits until the loop has paused, until the deadline, or until `cancelled` is set. Whatever comes back, if it is
    /// not [`Reached::Paused`] the loop does not pause for this asker any more.
    pub(super) fn wait(&self, deadline: Option<Instant>, cancelled: &AtomicBool) -> Reached {
        let mut state = self.0.lock();
        while matches!(*state, State::Asked | State::Draining(_)) {
            let left = deadline.map_or(LOOK, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() || cancelled.load(Ordering::Acquire) {
                break;
            }
            let waited = self.0.changed.wait_timeout(state, left.min(LOOK));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        match std::mem::replace(&mut *state, State::GivenUp) {
            State::Asked => Reached::Silent,
            State::Draining(unfinished) => Reached::Unfinished(unfinished),
            State::Paused => Reached::Paused,
            State::Resumed => Reached::Resumed,
            State::Ended | State::GivenUp => Reached::Ended,
        }
    }
}

impl Drain {
    /// Whether somebody still waits for this pause.
    pub(super) fn is_wanted(&self) -> bool {
        matches!(*self.0.lock(), State::Asked | State::Draining(_))
    }

    /// Says what is left to do. False if nobody waits for this pause any more.
    pub(super) fn report(&self, unfinished: &[Unfinished]) -> bool {
        let mut state = self.0.lock();
        let wanted = matches!(*state, State::Asked | State::Draining(_));
        if wanted {
            *state = State::Draining(unfinished.to_vec());
        }
        wanted
    }

    /// The loop has paused. False if nobody waits for that any more, and it must not.
    pub(super) fn paused(self) -> bool {
        self.end(State::Paused)
    }

    /// The loop was resumed.
    pub(super) fn resumed(self) {
        self.end(State::Resumed);
    }

    fn end(&self, how: State) -> bool {
        let mut state = self.0.lock();
        let wanted = matches!(*state, State::Asked | State::Draining(_));
        if wanted {
            *state = how;
            self.0.changed.notify_all();
        }
        wanted
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.end(State::Ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static GOES_ON: AtomicBool = AtomicBool::new(false);

    #[test]
    fn asker_and_loop_agree_whether_it_paused() {
        let now = Some(Instant::now());
        let (asker, drain) = pause();
        assert!(drain.report(&[]));
        assert!(drain.paused());
        assert_eq!(asker.wait(now, &GOES_ON), Reached::Paused);
        let (asker, drain) = pause();
        assert_eq!(asker.wait(now, &GOES_ON), Reached::Silent);
        assert!(!drain.report(&[]), "given up");
        assert!(!drain.paused());
    }

    #[test]
    fn who_gives_up_learns_what_was_left() {
        let (asker, drain) = pause();
        let left = [Unfinished {
            device: "disk0".into(),
            in_flight: 3,
        }];
        drain.report(&[]);
        drain.report(&left);
        assert_eq!(
            asker.wait(Some(Instant::now()), &GOES_ON),
            Reached::Unfinished(left.to_vec())
        );
    }

    #[test]
    fn a_loop_that_ends_or_is_resumed_says_so() {
        let (asker, drain) = pause();
        drain.resumed();
        assert_eq!(asker.wait(None, &GOES_ON), Reached::Resumed);
        let (asker, drain) = pause();
        drop(drain);
        assert_eq!(asker.wait(None, &GOES_ON), Reached::Ended);
    }
}
