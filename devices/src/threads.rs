//! Which machine a thread works for.
//!
//! An embedder's code runs on threads of a machine: a disk's on a worker or on a blocking thread,
//! an event sink on any. What waits for the machine's end must not do so there. Every thread that
//! works for a machine is started by one that does, and inherits its group.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static CURRENT: Cell<Option<ThreadGroup>> = const { Cell::new(None) };
}

/// The threads of one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadGroup(u64);

/// The calling thread is in a group until this is dropped.
#[derive(Debug)]
#[must_use = "the thread leaves the group when this is dropped"]
pub struct Entered {
    before: Option<ThreadGroup>,
}

impl ThreadGroup {
    /// A group without threads.
    #[expect(clippy::new_without_default, reason = "each one is another")]
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes the calling thread one of the group.
    pub fn enter(self) -> Entered {
        Entered {
            before: CURRENT.replace(Some(self)),
        }
    }

    /// Whether the calling thread is one of the group.
    #[must_use]
    pub fn is_current(self) -> bool {
        CURRENT.get() == Some(self)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

/// What a thread that is about to be started is to do, as one of the calling thread's group.
pub fn inherited<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let group = CURRENT.get();
    move || {
        let _entered = group.map(ThreadGroup::enter);
        work()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_in_the_group_of_the_one_that_started_it_and_in_no_other() {
        let (ours, other) = (ThreadGroup::new(), ThreadGroup::new());
        let entered = ours.enter();
        let inner = other.enter();
        assert!(other.is_current() && !ours.is_current());
        drop(inner);
        let look = inherited(move || (ours.is_current(), other.is_current()));
        let plain = std::thread::spawn(move || ours.is_current());
        assert_eq!(std::thread::spawn(look).join().unwrap(), (true, false));
        assert!(!plain.join().unwrap());
        drop(entered);
        assert!(!ours.is_current());
    }
}
