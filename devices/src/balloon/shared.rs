//! What a balloon, its queues and its handles share.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use splitring_virtio::spec::balloon::Config;

use super::statistics::BalloonStatistics;
use crate::interrupt::ConfigNotifier;
use crate::throttle::Throttle;

/// State of the device, of its queues and of its handles.
pub(super) struct Shared {
    pub(super) id: String,
    pub(super) features: u64,
    pub(super) queue_sizes: &'static [u16],
    /// Pages of guest memory: the most that the balloon can hold.
    pub(super) memory: u32,
    /// Pages wanted in the balloon, and those that the driver says are in it.
    pub(super) target: AtomicU32,
    pub(super) actual: AtomicU32,
    /// What the guest fills free pages with.
    pub(super) poison: AtomicU32,
    pub(super) counters: Counters,
    pub(super) statistics: Mutex<Option<BalloonStatistics>>,
    /// Statistics are wanted.
    pub(super) request: OwnedFd,
    /// They are wanted again and again.
    pub(super) interval: Option<Duration>,
    /// Of a device that is running.
    pub(super) notifier: Mutex<Option<ConfigNotifier>>,
    pub(super) throttle: Throttle,
}

/// Bytes, since the device was made.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) inflated: AtomicU64,
    pub(super) deflated: AtomicU64,
    pub(super) reported: AtomicU64,
    pub(super) released: AtomicU64,
    pub(super) ignored: AtomicU64,
}

impl Shared {
    pub(super) fn statistics(&self) -> MutexGuard<'_, Option<BalloonStatistics>> {
        let statistics = self.statistics.lock();
        statistics.unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn notifier(&self) -> MutexGuard<'_, Option<ConfigNotifier>> {
        self.notifier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn config(&self) -> Config {
        Config {
            num_pages: self.target.load(Ordering::Relaxed).into(),
            actual: self.actual.load(Ordering::Relaxed).into(),
            free_page_hint_cmd_id: 0.into(),
            poison_val: self.poison.load(Ordering::Relaxed).into(),
        }
    }
}
