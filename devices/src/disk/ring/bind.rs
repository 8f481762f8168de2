//! Whose a ring is. A ring that was made or given back belongs to no queue's thread yet and can't
//! reach the kernel; only binding it makes one that can.
//!
//! The kernel takes entries for a ring from the thread alone that enabled it
//! (IORING_SETUP_SINGLE_ISSUER). So it is enabled when a queue is used for the first time, by the
//! thread that uses it, and never by one that only drops it. A ring stays its thread's when it is
//! given back: a later queue of the same thread binds it again.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use io_uring::IoUring;

use super::setup::Ring;
use crate::pool::Lease;
use crate::throttle::Throttle;

/// A ring that nobody submits to. It may be moved to and dropped on any thread.
pub(in crate::disk) struct Unbound(Lease<Ring>);

/// A ring of the thread that bound it. It moves to another thread only to be dropped, with nothing
/// in flight.
pub(super) struct Bound(Lease<Ring>);

/// Why a ring can't be bound.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// Another thread has bound it, and the kernel lets nobody else use it.
    #[error("another thread has used its io_uring before")]
    Foreign,
    /// It failed earlier, or the host kept what it was given.
    #[error("its io_uring was lost when the host did not answer")]
    Lost,
    /// The kernel refuses.
    #[error("the host does not enable its io_uring: {0}")]
    Host(io::Error),
}

impl Unbound {
    pub(in crate::disk) fn new(lease: Lease<Ring>) -> Self {
        Self(lease)
    }

    /// The limit on log lines about it.
    pub(super) fn throttle(&self) -> Option<Arc<Throttle>> {
        self.0.get().map(|ring| Arc::clone(&ring.throttle))
    }

    /// The eventfd of its completions.
    pub(super) fn event(&self) -> Option<Arc<OwnedFd>> {
        self.0.get().map(|ring| Arc::clone(&ring.event))
    }

    /// Whether it stands for one that the host refuses.
    pub(super) fn is_refused(&self) -> bool {
        self.0.get().is_none_or(|ring| ring.refused)
    }

    /// Makes it the calling thread's.
    pub(super) fn bind(mut self) -> Result<Bound, (Self, Refusal)> {
        match self.0.get_mut().ok_or(Refusal::Lost).and_then(claim) {
            Ok(()) => Ok(Bound(self.0)),
            Err(refusal) => Err((self, refusal)),
        }
    }
}

/// Lets a ring work for this thread.
fn claim(ring: &mut Ring) -> Result<(), Refusal> {
    let here = thread::current().id();
    let io = ring.io.as_mut().ok_or(Refusal::Lost)?;
    match ring.owner {
        None => {
            let enabled = io.submitter().register_enable_rings();
            enabled.map_err(Refusal::Host)?;
            ring.owner = Some(here);
        }
        Some(owner) if owner != here && ring.single_issuer => return Err(Refusal::Foreign),
        Some(_) => {}
    }
    // Whoever had it before may have left its signals off.
    io.completion().enable_eventfd();
    Ok(())
}

impl Bound {
    /// The ring, unless it is lost.
    pub(super) fn io(&mut self) -> Option<&mut IoUring> {
        self.0.get_mut()?.io.as_mut()
    }

    /// Takes the ring out for good: it is not given back to be used again.
    pub(super) fn lose(&mut self) -> Option<IoUring> {
        self.0.get_mut()?.io.take()
    }
}
