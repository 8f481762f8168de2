//! What devices report to whoever runs the machine: events, and the sink that they go to.
//!
//! A leaf: it knows no device, and not what becomes of an event.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::now;

/// Nanoseconds between two events that a guest or a failing host could cause without end.
const PAUSE: u64 = 1_000_000_000;

/// Something that happened to a device or is reported by one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceEvent {
    /// The device stopped until its driver resets it (DEVICE_NEEDS_RESET, VIRTIO 1.2 §2.1.2). At most one a second and
    /// device.
    NeedsReset {
        /// Its id.
        device: String,
        /// What was wrong, and on which queue.
        reason: String,
    },
    /// The host failed to do what a request to a disk asked for. At most one a second and disk.
    DiskError {
        /// The disk's id.
        device: String,
        /// What was tried, and the host's reason.
        error: String,
    },
    /// A network card's link was switched.
    LinkChanged {
        /// Its id.
        device: String,
        /// Whether it is up now.
        up: bool,
    },
    /// A disk was added to a running controller.
    DiskAdded {
        /// The controller's id.
        controller: String,
        /// The disk's id.
        device: String,
        /// Its target.
        target: u8,
        /// Its logical unit number.
        lun: u16,
        /// Its size in bytes.
        capacity: u64,
    },
    /// A disk was removed from a running controller.
    DiskRemoved {
        /// The controller's id.
        controller: String,
        /// The disk's id.
        device: String,
    },
    /// The guest's kernel panicked and said so through the pvpanic device.
    GuestPanicked {
        /// It has loaded a crash kernel, which goes on.
        crash_kernel: bool,
    },
}

/// Where a machine's devices send their events. Clones are the same sink; the default one discards everything.
#[derive(Clone, Default)]
pub struct EventSink(Option<Arc<dyn Fn(DeviceEvent) + Send + Sync>>);

/// For devices that were given no sink.
pub(crate) static NO_EVENTS: EventSink = EventSink(None);

impl EventSink {
    /// A sink that calls `take` with each event, on the thread on which it happens: a vCPU's, a worker's or that of
    /// whoever called a device's handle. It must not block, nor call back into the machine.
    pub fn new(take: impl Fn(DeviceEvent) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(take)))
    }

    /// Sends what `event` makes, which is not called where events are discarded.
    pub fn send(&self, event: impl FnOnce() -> DeviceEvent) {
        if let Some(take) = &self.0 {
            take(event());
        }
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.0.is_some() {
            "connected"
        } else {
            "none"
        };
        write!(f, "EventSink({kind})")
    }
}

/// Lets one event through a second. Shared; takes no lock.
#[derive(Debug, Default)]
pub(crate) struct OncePerSecond {
    /// When the next one may pass, in nanoseconds of [`now`].
    next: AtomicU64,
}

impl OncePerSecond {
    /// Whether an event may be sent now.
    pub(crate) fn admit(&self) -> bool {
        self.admit_at(now())
    }

    fn admit_at(&self, now: u64) -> bool {
        let pass = |next| (now >= next).then(|| now.saturating_add(PAUSE));
        self.next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, pass)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::observed;

    #[test]
    fn a_sink_gets_each_event_and_without_one_none_is_made() {
        let (sink, seen) = observed();
        let event = DeviceEvent::GuestPanicked {
            crash_kernel: false,
        };
        sink.clone().send(|| event.clone());
        assert_eq!(*seen.lock().unwrap(), [event]);
        EventSink::default().send(|| unreachable!("nobody listens"));
    }

    #[test]
    fn one_event_passes_in_a_second() {
        let limit = OncePerSecond::default();
        let passed = |second: u64| {
            let times = (0..1000).map(|milli| second * PAUSE + milli * 1_000_000);
            times.filter(|time| limit.admit_at(*time)).count()
        };
        assert_eq!([1, 2, 9].map(passed), [1, 1, 1]);
    }
}
