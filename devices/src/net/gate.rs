//! A card's rate limits, as one direction of one queue pair meets them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::now;
use crate::limits::Limits;

/// Lets frames through as fast as the limit of its direction allows; the limit is shared by all pairs.
#[derive(Debug)]
pub(super) struct Gate {
    limits: Arc<Limits>,
    opens: Option<Instant>,
}

impl Gate {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        Self {
            limits,
            opens: None,
        }
    }

    /// Whether a frame may pass now; if not, [`opens`](Self::opens) says when one may.
    pub(super) fn open(&mut self) -> bool {
        let wait = self.limits.wait(now());
        if wait > 0 {
            self.opens = Instant::now().checked_add(Duration::from_nanos(wait));
        }
        wait == 0
    }

    /// Takes when it is to be asked again, if it was found closed.
    pub(super) fn opens(&mut self) -> Option<Instant> {
        self.opens.take()
    }

    /// Counts a frame that passed.
    pub(super) fn charge(&self, bytes: u64) {
        self.limits.charge(now(), bytes);
    }
}
