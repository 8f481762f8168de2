//! Whose processor a worker runs on: its own, or the one that the guest needs too. Decided once,
//! when it starts.

use std::hint::spin_loop;
use std::thread;

/// Whether vCPUs have another processor to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Processor {
    /// The driver runs while the worker does.
    Own,
    /// There is only one: the driver runs when the worker sleeps or gives the processor away, and
    /// the worker does not spend time on looking that the driver needs.
    Shared,
}

impl Processor {
    pub(super) fn of_this_machine() -> Self {
        match thread::available_parallelism() {
            Ok(count) if count.get() == 1 => Self::Shared,
            _ => Self::Own,
        }
    }

    /// Between two looks.
    pub(super) fn relax(self) {
        match self {
            Self::Own => spin_loop(),
            Self::Shared => thread::yield_now(),
        }
    }
}
