//! What a device's handler waits for beside its queues: descriptors and timers.
//!
//! It knows no event loop: a handler writes down here what it wants, and its worker does it after the call.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

/// A descriptor a handler waits for. The handler keeps it open until it is dropped.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// What to wait for.
    pub fd: BorrowedFd<'a>,
    /// Comes back in [`Cause::Source`](crate::device::Cause::Source).
    pub token: u32,
    /// Readable, or writable too.
    pub interest: Interest,
    /// Whether an event repeats until its reason is gone.
    pub trigger: Trigger,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Something to read.
    Read,
    /// Room to write.
    Write,
    /// Either.
    Both,
}

/// When to report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// As long as it is ready; the handler must consume the reason.
    Level,
    /// Each time something arrives. An eventfd waited for so need never be read.
    Edge,
}

impl<'a> Source<'a> {
    /// Waits for `fd` to become readable, edge-triggered: right for eventfds and for handlers that read until
    /// there is no more.
    pub fn edge(fd: BorrowedFd<'a>, token: u32) -> Self {
        Self {
            fd,
            token,
            interest: Interest::Read,
            trigger: Trigger::Edge,
        }
    }

    /// Waits for `fd` as long as it is readable.
    pub fn level(fd: BorrowedFd<'a>, token: u32) -> Self {
        Self {
            trigger: Trigger::Level,
            ..Self::edge(fd, token)
        }
    }
}

/// Changes of what a task waits for, made while its handler runs.
///
/// They take effect, in order, when the call that was lent the registry returns. Everything a task waits for ends with
/// the task. A paused task waits for nothing; a timer that runs out meanwhile goes off after the pause.
#[derive(Debug, Default)]
pub struct Registry {
    changes: Vec<Change>,
}

/// One change.
#[derive(Debug)]
pub(crate) enum Change {
    Add {
        fd: OwnedFd,
        token: u32,
        interest: Interest,
        trigger: Trigger,
    },
    Modify {
        token: u32,
        interest: Interest,
        trigger: Trigger,
    },
    Remove {
        token: u32,
    },
    /// `None` stops it.
    Timer {
        token: u32,
        at: Option<Instant>,
    },
}

impl Registry {
    /// Waits for `fd` from now on, in addition to what has the same token. The worker keeps the descriptor until it is
    /// removed or the task ends, so another handle on the same file may be closed at any time. If the kernel refuses to
    /// wait for it, the device needs a reset.
    pub fn add(&mut self, fd: OwnedFd, token: u32, interest: Interest, trigger: Trigger) {
        self.changes.push(Change::Add {
            fd,
            token,
            interest,
            trigger,
        });
    }

    /// Waits for something else at all descriptors with this token.
    pub fn modify(&mut self, token: u32, interest: Interest, trigger: Trigger) {
        self.changes.push(Change::Modify {
            token,
            interest,
            trigger,
        });
    }

    /// Waits no more for the descriptors with this token. The handler is not run for their sake after this call.
    pub fn remove(&mut self, token: u32) {
        self.changes.push(Change::Remove { token });
    }

    /// Runs the handler once with [`Cause::Timer`](crate::device::Cause::Timer) when `at` has come, instead of whenever
    /// the timer `token` was set to before. Timers have tokens of their own.
    pub fn set_timer(&mut self, token: u32, at: Instant) {
        let at = Some(at);
        self.changes.push(Change::Timer { token, at });
    }

    /// Stops the timer `token`, if it is set.
    pub fn stop_timer(&mut self, token: u32) {
        self.changes.push(Change::Timer { token, at: None });
    }

    /// Makes the changes that were written down in `other` after those in here.
    pub fn append(&mut self, other: &mut Registry) {
        self.changes.append(&mut other.changes);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Change> {
        self.changes.drain(..)
    }
}
