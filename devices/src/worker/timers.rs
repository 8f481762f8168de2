//! The one-shot timers of a worker's tasks, behind one timerfd that is set for the earliest.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// The timers that are set. There are few: one for each rate limit that holds something back.
pub(super) struct Timers {
    fd: OwnedFd,
    /// When each goes off, by slot and token.
    set: BTreeMap<(u16, u32), Instant>,
    /// What the descriptor is set for.
    armed: Option<Instant>,
    changed: bool,
}

impl Timers {
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self {
            fd: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            set: BTreeMap::new(),
            armed: None,
            changed: false,
        })
    }

    /// Signalled when a timer runs out, edge-triggered: it is never read.
    pub(super) fn descriptor(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Sets a timer, or stops it.
    pub(super) fn set(&mut self, slot: u16, token: u32, at: Option<Instant>) {
        match at {
            Some(at) => self.set.insert((slot, token), at),
            None => self.set.remove(&(slot, token)),
        };
        self.changed = true;
    }

    /// Stops all timers of a task.
    pub(super) fn remove(&mut self, slot: u16) {
        self.set.retain(|(owner, _), _| *owner != slot);
        self.changed = true;
    }

    /// Takes those that have run out by `now`: slots and tokens, the earliest first.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<(u16, u32)> {
        let mut over: Vec<_> = self.set.extract_if(.., |_, at| *at <= now).collect();
        over.sort_by_key(|(_, at)| *at);
        self.changed = true;
        over.into_iter().map(|(timer, _)| timer).collect()
    }

    /// Has the descriptor signal again what has run out already.
    pub(super) fn repeat(&mut self) {
        self.armed = None;
        self.changed = true;
    }

    /// Sets the descriptor for the earliest, if that has changed.
    pub(super) fn arm(&mut self, now: Instant) -> io::Result<()> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        let earliest = self.set.values().min().copied();
        if earliest == self.armed {
            return Ok(());
        }
        // A time of zero would stop it.
        let soonest = Duration::from_nanos(1);
        let wait = earliest.map(|at| at.saturating_duration_since(now).max(soonest));
        let wait = wait.unwrap_or_default();
        let value = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &value)?;
        self.armed = earliest;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(10);

    fn signalled(timers: &Timers) -> bool {
        let mut fds = [rustix::event::PollFd::new(
            &timers.fd,
            rustix::event::PollFlags::IN,
        )];
        let wait = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        rustix::event::poll(&mut fds, Some(&wait)).unwrap() == 1
    }

    #[test]
    fn timers_go_off_in_order_once_and_only_those_that_are_still_set() {
        let mut timers = Timers::new().unwrap();
        let now = Instant::now();
        let at = |steps: u32| Some(now + STEP * steps);
        for (slot, token, when) in [(1, 0, 3), (1, 1, 1), (2, 0, 2), (3, 0, 1), (4, 0, 9)] {
            timers.set(slot, token, at(when));
        }
        timers.set(1, 1, at(4));
        timers.set(2, 0, None);
        timers.remove(3);
        assert_eq!(timers.expired(now + STEP * 2), []);
        assert_eq!(timers.expired(now + STEP * 4), [(1, 0), (1, 1)]);
        assert_eq!(timers.expired(now + STEP * 8), []);
    }

    #[test]
    fn the_descriptor_is_set_for_the_earliest_and_for_none() {
        let mut timers = Timers::new().unwrap();
        let now = Instant::now();
        timers.set(0, 0, Some(now + STEP));
        timers.arm(now).unwrap();
        assert!(!signalled(&timers));
        timers.set(0, 1, Some(now));
        timers.arm(now).unwrap();
        assert!(signalled(&timers), "one that is past goes off at once");
        timers.remove(0);
        timers.arm(now).unwrap();
        assert!(!signalled(&timers));
    }
}
