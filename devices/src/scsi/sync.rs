//! Locks whose data stays valid whatever happens to a holder.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex whose data is valid whatever happened to its last holder.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
