//! Locks on spans of bytes of an image.
//!
//! Where O_DIRECT takes larger blocks than the guest writes, a block is read, patched and written
//! again. Whatever else writes that block meanwhile would be undone, though the guest never wrote
//! the same sector twice. So a patch has its blocks for itself, and everything that writes whole
//! blocks of such an image shares what it writes. Whoever comes first goes first: nobody waits for
//! one that came later, so there is no circle to wait in.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The locks of one image.
#[derive(Debug, Default)]
pub(super) struct Spans {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// In the order in which they came.
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    span: Range<u64>,
    access: Access,
}

/// How a span is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Beside others that say so.
    Shared,
    /// Alone.
    Exclusive,
}

impl Entry {
    fn excludes(&self, span: &Range<u64>, access: Access) -> bool {
        let overlap = self.span.start < span.end && span.start < self.span.end;
        overlap && (self.access, access) != (Access::Shared, Access::Shared)
    }
}

/// A locked span.
#[derive(Debug)]
pub(super) struct Guard {
    spans: Arc<Spans>,
    number: u64,
}

impl Spans {
    /// Locks `span`; blocks until all that came earlier and exclude it are gone.
    pub(super) fn lock(self: &Arc<Self>, span: Range<u64>, access: Access) -> Guard {
        let mut state = self.state();
        let guard = self.enter(&mut state, span.clone(), access);
        let waits = |state: &mut State| {
            let mut entries = state.entries.iter();
            entries.any(|entry| entry.number < guard.number && entry.excludes(&span, access))
        };
        let state = self.changed.wait_while(state, waits);
        drop(state.unwrap_or_else(PoisonError::into_inner));
        guard
    }

    /// Locks `span` unless somebody that excludes it has it or waits for it. Never blocks.
    pub(super) fn try_lock(self: &Arc<Self>, span: Range<u64>, access: Access) -> Option<Guard> {
        let mut state = self.state();
        let mut entries = state.entries.iter();
        if entries.any(|entry| entry.excludes(&span, access)) {
            return None;
        }
        Some(self.enter(&mut state, span, access))
    }

    fn enter(self: &Arc<Self>, state: &mut State, span: Range<u64>, access: Access) -> Guard {
        let number = state.next;
        state.next = number.wrapping_add(1);
        state.entries.push(Entry {
            number,
            span,
            access,
        });
        Guard {
            spans: Arc::clone(self),
            number,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let number = self.number;
        self.spans
            .state()
            .entries
            .retain(|entry| entry.number != number);
        self.spans.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::Access::{Exclusive, Shared};
    use super::*;

    #[test]
    fn only_sharers_overlap() {
        let spans = Arc::new(Spans::default());
        let shared = spans.try_lock(0..4096, Shared).expect("free");
        let other = spans.try_lock(4000..8192, Shared).expect("shared");
        assert!(spans.try_lock(0..1, Exclusive).is_none());
        assert!(spans.try_lock(8192..9000, Exclusive).is_some());
        drop((shared, other));
        let alone = spans.try_lock(0..4096, Exclusive).expect("free");
        for access in [Shared, Exclusive] {
            assert!(spans.try_lock(4095..4096, access).is_none());
        }
        drop(alone);
        assert!(spans.try_lock(0..4096, Shared).is_some());
    }

    #[test]
    fn whoever_waits_goes_before_those_that_come_later() {
        let spans = Arc::new(Spans::default());
        let shared = spans.try_lock(0..4096, Shared).expect("free");
        let (told, heard) = channel();
        let waiter = {
            let spans = Arc::clone(&spans);
            thread::spawn(move || {
                let _alone = spans.lock(0..512, Exclusive);
                told.send(()).expect("the test listens");
            })
        };
        while spans.state().entries.len() < 2 {
            thread::yield_now();
        }
        assert!(spans.try_lock(0..512, Shared).is_none(), "it would starve");
        assert!(spans.try_lock(512..4096, Shared).is_some());
        assert!(heard.recv_timeout(Duration::from_millis(20)).is_err());
        drop(shared);
        heard.recv().expect("its turn");
        waiter.join().expect("no panic");
        assert!(spans.state().entries.is_empty());
    }
}
