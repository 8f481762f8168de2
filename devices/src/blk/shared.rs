//! What the configuration side of a block device shares with its queues.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64};

use splitring_virtio::spec::blk::ID_BYTES;

use crate::disk::faults::Faults;
use crate::disk::metrics::DiskMetrics;
use crate::events::EventSink;

/// What the configuration side and the queues share.
pub(super) struct Shared {
    pub(super) id: String,
    /// Bytes; what requests are checked against.
    pub(super) capacity: AtomicU64,
    /// The `writeback` field of the configuration space.
    pub(super) writeback: AtomicBool,
    pub(super) serial: [u8; ID_BYTES],
    pub(super) metrics: DiskMetrics,
    pub(super) faults: Faults,
    pub(super) events: OnceLock<EventSink>,
}
