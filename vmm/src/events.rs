//! The events of a machine, for an embedder, the command line or a control API.
//!
//! Each reader has a bounded queue of its own, with a descriptor that is readable while the queue
//! is not empty. Sending never blocks: events that find no room in a reader's queue are counted and
//! reported.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::event::{EventfdFlags, eventfd};

use splitring_devices::events::{DeviceEvent, EventSink};

use crate::error::{BuildError, Error};
use crate::state::ExitReason;

/// The most events in a reader's queue.
const CAPACITY: usize = 256;

/// An event of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The serial console is a pseudo-terminal at this path. Precedes [`Event::Started`].
    ConsolePty(PathBuf),
    /// The guest starts to run for the first time.
    Started,
    /// The vCPUs are stopped and nothing writes guest memory.
    Paused,
    /// The machine continues after a pause.
    Resumed,
    /// The machine was rebuilt after a reboot by the guest or a reset by the embedder.
    Rebooted,
    /// The guest's kernel reported a panic (pvpanic).
    GuestPanicked {
        /// Whether it continues with a crash kernel.
        crash_kernel: bool,
    },
    /// A device stopped until the guest resets it.
    DeviceNeedsReset {
        /// Its id.
        device: String,
        /// The cause.
        reason: String,
    },
    /// A disk's host storage failed. At most one event per second and disk.
    DiskError {
        /// Its id.
        disk: String,
        /// What failed.
        error: String,
    },
    /// The link of a network card changed.
    LinkChanged {
        /// Its id.
        net: String,
        /// Whether the link is up now.
        up: bool,
    },
    /// A disk was added while the guest runs.
    DiskAdded {
        /// Its id.
        disk: String,
    },
    /// A disk was removed while the guest runs.
    DiskRemoved {
        /// Its id.
        disk: String,
    },
    /// The machine ended. This is the last event.
    Ended(ExitReason),
    /// This many events were lost at this point, because the reader's queue was full.
    Lost(u64),
}

impl Event {
    /// Converts a device's event; `None` if this library does not know it.
    fn of_device(event: DeviceEvent) -> Option<Self> {
        Some(match event {
            DeviceEvent::NeedsReset { device, reason } => Self::DeviceNeedsReset { device, reason },
            DeviceEvent::DiskError { device, error } => Self::DiskError {
                disk: device,
                error,
            },
            DeviceEvent::LinkChanged { device, up } => Self::LinkChanged { net: device, up },
            DeviceEvent::DiskAdded { device, .. } => Self::DiskAdded { disk: device },
            DeviceEvent::DiskRemoved { device, .. } => Self::DiskRemoved { disk: device },
            DeviceEvent::GuestPanicked { crash_kernel } => Self::GuestPanicked { crash_kernel },
            _ => return None,
        })
    }
}

#[derive(Debug)]
struct EventQueue {
    events: VecDeque<Event>,
    lost: u64,
}

#[derive(Debug)]
struct EventReader {
    queue: Mutex<EventQueue>,
    ready: OwnedFd,
}

impl EventReader {
    fn queue(&self) -> MutexGuard<'_, EventQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Event) {
        let mut queue = self.queue();
        // `Ended` is always accepted: no reader may miss it.
        let last = matches!(event, Event::Ended(_));
        if queue.events.len() >= CAPACITY && !last {
            queue.lost += 1;
            return;
        }
        let lost = std::mem::take(&mut queue.lost);
        if lost > 0 {
            queue.events.push_back(Event::Lost(lost));
        }
        queue.events.push_back(event);
        let _ = rustix::io::write(&self.ready, &1u64.to_ne_bytes());
    }
}

/// Events of one machine, from the creation of this reader on.
///
/// The descriptor ([`AsFd`]) is readable while events are queued, so it works with `poll`, epoll
/// and asynchronous runtimes.
#[derive(Debug)]
pub struct Events(Arc<EventReader>);

impl Events {
    /// Returns the next event, or `None` if the queue is empty. Does not block.
    #[must_use]
    pub fn try_next(&self) -> Option<Event> {
        let mut queue = self.0.queue();
        let event = queue.events.pop_front().or_else(|| {
            let lost = std::mem::take(&mut queue.lost);
            (lost > 0).then_some(Event::Lost(lost))
        });
        if queue.events.is_empty() && queue.lost == 0 {
            // Under the lock, so that no event is queued in between.
            let _ = rustix::io::read(&self.0.ready, &mut [0; 8]);
        }
        event
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.ready.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.ready.as_raw_fd()
    }
}

/// Sends a machine's events to its readers. Clones send to the same readers.
#[derive(Debug, Clone, Default)]
pub(crate) struct EventHub(Arc<Mutex<Vec<Weak<EventReader>>>>);

impl EventHub {
    fn readers(&self) -> MutexGuard<'_, Vec<Weak<EventReader>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a reader.
    pub(crate) fn subscribe(&self) -> Result<Events, Error> {
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| BuildError::Event(error.into()))?;
        let reader = Arc::new(EventReader {
            queue: Mutex::new(EventQueue {
                events: VecDeque::new(),
                lost: 0,
            }),
            ready,
        });
        self.readers().push(Arc::downgrade(&reader));
        Ok(Events(reader))
    }

    /// Returns the sink to which the machine's devices send their events.
    pub(crate) fn sink(&self) -> EventSink {
        let hub = self.clone();
        EventSink::new(move |event| {
            if let Some(event) = Event::of_device(event) {
                hub.send(&event);
            }
        })
    }

    /// Sends an event to every reader.
    pub(crate) fn send(&self, event: &Event) {
        self.readers().retain(|reader| match reader.upgrade() {
            Some(reader) => {
                reader.push(event.clone());
                true
            }
            None => false,
        });
    }
}

#[cfg(test)]
mod tests;
