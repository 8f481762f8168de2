//! What a snapshot keeps of a balloon.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::shared::Shared;
use crate::saved::{Layer, StateError};

/// The state of a balloon. A list of pages that is half done is begun anew.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BalloonState {
    /// Pages wanted in the balloon, and those that the driver says are in it.
    target: u32,
    actual: u32,
    /// What the guest fills free pages with.
    poison: u32,
}

impl Layer for BalloonState {
    const NAME: &'static str = "balloon";
    const VERSION: u32 = 1;
}

impl BalloonState {
    pub(super) fn of(shared: &Shared) -> Self {
        Self {
            target: shared.target.load(Ordering::Relaxed),
            actual: shared.actual.load(Ordering::Relaxed),
            poison: shared.poison.load(Ordering::Relaxed),
        }
    }

    pub(super) fn apply(&self, shared: &Shared) -> Result<(), StateError> {
        if self.target > shared.memory {
            let (target, memory) = (self.target, shared.memory);
            let problem = format!("{target} pages are wanted, and memory has {memory}");
            return Err(StateError::refused::<Self>(problem));
        }
        shared.target.store(self.target, Ordering::Relaxed);
        shared.actual.store(self.actual, Ordering::Relaxed);
        shared.poison.store(self.poison, Ordering::Relaxed);
        Ok(())
    }
}
