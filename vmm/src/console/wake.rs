//! An event that one thread signals and another polls.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// A flag with a descriptor that is readable while the flag is set; or, if unused, nothing at all.
#[derive(Debug)]
pub(super) struct WakeEvent(Option<OwnedFd>);

impl WakeEvent {
    /// Returns an event that is not signalled.
    pub(super) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(Some(eventfd(0, flags)?)))
    }

    /// Returns an event that nobody waits for.
    pub(super) fn unused() -> Self {
        Self(None)
    }

    /// Sets the flag.
    pub(super) fn signal(&self) {
        if let Some(fd) = &self.0 {
            // A counter at its limit is already readable.
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
    }

    /// Clears the flag.
    pub(super) fn clear(&self) {
        if let Some(fd) = &self.0 {
            // It may be clear already.
            let _ = rustix::io::read(fd, &mut [0; 8]);
        }
    }

    /// Returns the descriptor that is readable while the flag is set.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(AsFd::as_fd)
    }
}
