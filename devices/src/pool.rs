//! Things made before the guest runs and used by one owner after the other, each in a place of its
//! own.
//!
//! Knows nothing of what it keeps. Nothing is made here later: a sandbox may forbid it by then.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The places.
pub(crate) struct Pool<T>(Vec<Mutex<Option<Box<T>>>>);

impl<T> fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl<T> Pool<T> {
    /// A pool of these, numbered from 0 on.
    pub(crate) fn new(items: impl IntoIterator<Item = T>) -> Arc<Self> {
        let places = items
            .into_iter()
            .map(|item| Mutex::new(Some(Box::new(item))));
        Arc::new(Self(places.collect()))
    }

    /// How many places it has.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes what is in place `index`. `None` while it is in use, or if there is no such place.
    pub(crate) fn take(self: &Arc<Self>, index: u16) -> Option<Lease<T>> {
        let item = self.place(index)?.take()?;
        Some(Lease {
            pool: Arc::clone(self),
            index,
            item: Some(item),
        })
    }

    fn place(&self, index: u16) -> Option<MutexGuard<'_, Option<Box<T>>>> {
        let place = self.0.get(usize::from(index))?;
        Some(place.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Something taken from a [`Pool`]. Dropping it, on whatever thread, puts it back as it is and does
/// nothing else.
pub(crate) struct Lease<T> {
    pool: Arc<Pool<T>>,
    index: u16,
    /// `None` only while it is being dropped.
    item: Option<Box<T>>,
}

impl<T> Lease<T> {
    /// What was taken.
    pub(crate) fn get(&self) -> Option<&T> {
        self.item.as_deref()
    }

    /// As [`Self::get`].
    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        self.item.as_deref_mut()
    }
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        let item = self.item.take();
        if let Some(mut place) = self.pool.place(self.index) {
            *place = item;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_nobody_elses_until_it_is_dropped_on_any_thread() {
        let pool = Pool::new([1, 2]);
        let mut first = pool.take(0).expect("free");
        assert!(pool.take(0).is_none() && pool.take(2).is_none());
        assert_eq!(pool.take(1).and_then(|other| other.get().copied()), Some(2));
        *first.get_mut().expect("taken") = 7;
        std::thread::spawn(move || drop(first))
            .join()
            .expect("no panic");
        assert_eq!(pool.take(0).and_then(|again| again.get().copied()), Some(7));
    }
}
