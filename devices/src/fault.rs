//! The fault that ends a device's work until the driver resets it.

use std::fmt;

/// The guest broke the protocol in a way no status can tell it, or the device can't go on: it needs a reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The queue it happened on, if on one.
    pub queue: Option<u16>,
    /// What was wrong.
    pub reason: String,
}

impl Broken {
    /// `reason` is what was wrong on `queue`.
    pub fn new(queue: u16, reason: impl fmt::Display) -> Self {
        Self {
            queue: Some(queue),
            reason: reason.to_string(),
        }
    }

    /// `reason` is what was wrong with the device as a whole.
    pub fn device(reason: impl fmt::Display) -> Self {
        Self {
            queue: None,
            reason: reason.to_string(),
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(queue) = self.queue {
            write!(f, "queue {queue}: ")?;
        }
        f.write_str(&self.reason)
    }
}
