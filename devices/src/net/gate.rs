//! A card's rate limits, as one direction of one queue pair meets them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::clock::now;
use crate::limits::{Alarm, Limits};

/// Lets frames through as fast as the limit of its direction allows; the limit is shared by all pairs.
#[derive(Debug)]
pub(super) struct Gate {
    limits: Arc<Limits>,
    alarm: Alarm,
}

impl Gate {
    pub(super) fn new(limits: Arc<Limits>) -> io::Result<Self> {
        Ok(Self {
            limits,
            alarm: Alarm::new()?,
        })
    }

    /// Whether a frame may pass now; if not, the descriptor becomes readable when one may.
    pub(super) fn open(&self) -> bool {
        match self.limits.wait(now()) {
            0 => true,
            wait => {
                self.alarm.set(wait);
                false
            }
        }
    }

    /// Counts a frame that passed.
    pub(super) fn charge(&self, bytes: u64) {
        self.limits.charge(now(), bytes);
    }
}

impl AsFd for Gate {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }
}
