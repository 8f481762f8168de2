//! Failed requests of one disk as the operator learns of them: lines in the log and events, neither too many.

use super::IoFault;
use super::metrics::RequestKind;
use crate::events::{DeviceEvent, EventSink, OncePerSecond};
use crate::log;
use crate::throttle::Throttle;

/// The limits of one disk, shared by all its queues.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    lines: Throttle,
    events: OncePerSecond,
}

impl Faults {
    /// A request to `disk` failed.
    #[cold]
    pub(crate) fn report(&self, disk: &str, kind: RequestKind, fault: IoFault, events: &EventSink) {
        log::warn!(self.lines, "{disk}: {kind:?} failed: {fault}");
        if is_of_the_host(fault) && self.events.admit() {
            events.send(|| DeviceEvent::DiskError {
                device: disk.to_owned(),
                error: format!("{kind:?} failed: {fault}"),
            });
        }
    }
}

/// Whether the storage is to blame, rather than the request or who cancelled it.
fn is_of_the_host(fault: IoFault) -> bool {
    match fault {
        IoFault::OutOfRange
        | IoFault::ReadOnly
        | IoFault::BadMemory
        | IoFault::Cancelled
        | IoFault::Unsupported => false,
        IoFault::NoSpace
        | IoFault::Short
        | IoFault::FlushLost
        | IoFault::Stuck
        | IoFault::Host(_) => true,
    }
}
