//! Whose processor a worker runs on: its own, or the one that the guest needs too. Decided once, when it starts.

use std::hint::spin_loop;
use std::thread;
use std::time::Duration;

/// How many of the usual pauses between two requests make a burst's end.
const PAUSES: u32 = 8;
/// The same where the driver runs between two looks.
const PAUSES_SHARED: u32 = 3;

/// The window where the processor is given away between two looks: it is not the window then that costs.
const WINDOW_SHARED: Duration = Duration::from_micros(200);

/// Whether vCPUs have another processor to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Processor {
    /// The driver runs while the worker does: it goes quiet when it waits, the depth of its bursts can be learned, and
    /// halves overlap.
    Own,
    /// There is only one: the driver comes with all it has when the worker gives the processor away, and only the
    /// quiet tells. A window then pays only for bursts.
    Shared,
}

impl Processor {
    pub(super) fn of_this_machine() -> Self {
        match thread::available_parallelism() {
            Ok(count) if count.get() == 1 => Self::Shared,
            _ => Self::Own,
        }
    }

    /// How long a window is to be, unless that is to be measured.
    pub(super) fn window(self) -> Option<Duration> {
        (self == Self::Shared).then_some(WINDOW_SHARED)
    }

    /// Between two looks.
    pub(super) fn rest(self) {
        match self {
            Self::Own => spin_loop(),
            Self::Shared => thread::yield_now(),
        }
    }

    /// How long a burst has to be quiet to be over, with this usual pause between two requests, if it is known.
    pub(super) fn quiet_end(self, pause: Option<Duration>, window: Duration) -> Duration {
        let (pauses, least) = match self {
            Self::Own => (PAUSES, window.checked_div(2).unwrap_or_default()),
            Self::Shared => (PAUSES_SHARED, Duration::ZERO),
        };
        pause.map_or(window, |usual| {
            usual.saturating_mul(pauses).clamp(least, window)
        })
    }
}
