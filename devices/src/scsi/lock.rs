//! Ranges of a unit that read-modify-write commands are at work on.
//!
//! COMPARE AND WRITE and ORWRITE are each one indivisible action to the others of their kind, on whatever path and
//! thread (SBC-3 §5.2, §5.11). Who finds its range taken waits for a message to try again.
//!
//! A plain write to the range is not kept out: it may reach the disk between the read and the write of such a command.
//! Keeping it out, as SBC-4 asks, takes a table of all writes in flight that every queue of every controller of the
//! unit enters, at each write. Linux's own target serialises COMPARE AND WRITE in the same way and no further.

use std::sync::{Arc, Mutex};

use super::sync::lock;
use super::workers::{Mail, Mailbox};

/// The ranges in use, and who waits for any of them to become free.
#[derive(Debug, Default)]
pub(crate) struct Locks(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    held: Vec<(u64, u64, u64)>,
    waiting: Vec<Arc<Mailbox>>,
}

/// A range held. Dropping it gives the range back and tells everybody who waits.
#[derive(Debug)]
pub(crate) struct Held {
    id: u64,
    locks: Arc<Mutex<Inner>>,
}

impl Locks {
    /// Takes the bytes from `start` to `end`; if somebody has some of them, `waiter` is told when to try again.
    pub(crate) fn take(&self, start: u64, end: u64, waiter: &Arc<Mailbox>) -> Option<Held> {
        let mut inner = lock(&self.0);
        if inner
            .held
            .iter()
            .any(|(_, from, to)| *from < end && start < *to)
        {
            if !inner.waiting.iter().any(|other| Arc::ptr_eq(other, waiter)) {
                inner.waiting.push(Arc::clone(waiter));
            }
            return None;
        }
        let id = inner.next;
        inner.next = inner.next.wrapping_add(1);
        inner.held.push((id, start, end));
        Some(Held {
            id,
            locks: Arc::clone(&self.0),
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let waiting = {
            let mut inner = lock(&self.locks);
            inner.held.retain(|(id, ..)| *id != self.id);
            std::mem::take(&mut inner.waiting)
        };
        for mailbox in waiting {
            mailbox.post(Mail::Retry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_ranges_wait_and_are_told() {
        let (locks, waiter) = (Locks::default(), Mailbox::new().unwrap());
        let first = locks.take(0, 10, &waiter).unwrap();
        assert!(locks.take(10, 20, &waiter).is_some());
        // However many commands wait there, one message makes them all try again.
        for _ in 0..2 {
            assert!(locks.take(9, 10, &waiter).is_none());
        }
        assert!(waiter.collect().is_empty());
        drop(first);
        assert_eq!(waiter.collect().len(), 1);
        assert!(locks.take(9, 10, &waiter).is_some());
    }
}
