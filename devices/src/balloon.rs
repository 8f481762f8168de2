//! Memory balloon (VIRTIO 1.2 §5.5): takes memory from the guest and returns it to the host.
//!
//! The driver names pages that it does without, because the target wants them (inflating) or
//! because they are free just now (reporting); the host's memory behind them is released, and comes
//! back as zeroes when the guest touches them. Pages that come out of the balloon therefore need
//! nothing from the device, and the driver need not tell it before it uses them: `MUST_TELL_HOST`
//! is not offered. Free page hinting, which serves a migration, is not offered either.
//!
//! A guest can name any page. What is no memory is ignored; what is memory is the guest's own. It
//! doesn't know how memory is mapped, which `ram.rs` does.

mod config;
mod queues;
mod saved;
mod shared;
mod statistics;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use serde::Serialize;
use splitring_virtio::spec::balloon::{PAGE_SIZE, feature, queue};
use splitring_virtio::spec::id;
use zerocopy::IntoBytes;

pub use config::{BalloonConfig, InvalidBalloon};
pub use statistics::BalloonStatistics;

use crate::bytes::Bytes;
use crate::debug::opaque_debug;
use crate::device::{DeviceKind, Start, StartError, Task, VirtioDevice, read_window};
use crate::kind::ErrorKind;
use crate::saved::{StateError, Versioned};
use crate::throttle::Throttle;
use queues::{Queues, Role};
use saved::BalloonState;
use shared::{Counters, Shared};

/// A memory controller of no particular kind.
const KIND: DeviceKind = DeviceKind {
    type_id: id::BALLOON,
    pci_class: 0x05_8000,
};

/// A balloon.
pub struct Balloon(Arc<Shared>);

opaque_debug! { Balloon |it| { id: it.0.id } }

impl Balloon {
    /// A balloon called `id` in a machine with so much `memory`.
    ///
    /// # Errors
    /// The target is more than the memory, or no multiple of 4096; or no descriptor can be had.
    pub fn new(id: &str, config: &BalloonConfig, memory: Bytes) -> Result<Self, BalloonError> {
        let target = config.target(memory)?;
        let mut features = feature::STATS_VQ;
        if config.deflate_on_oom {
            features |= feature::DEFLATE_ON_OOM;
        }
        if config.free_page_reporting {
            features |= feature::PAGE_REPORTING | feature::PAGE_POISON;
        }
        let interval = Duration::from_secs(config.stats_interval.into());
        let shared = Shared {
            id: id.to_owned(),
            features,
            queue_sizes: queues::sizes(config.free_page_reporting),
            memory: u32::try_from(memory.0 / PAGE_SIZE).unwrap_or(u32::MAX),
            target: target.into(),
            actual: 0.into(),
            poison: 0.into(),
            counters: Counters::default(),
            statistics: Mutex::default(),
            request: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
                .map_err(io::Error::from)?,
            interval: Some(interval).filter(|interval| !interval.is_zero()),
            notifier: Mutex::default(),
            throttle: Throttle::default(),
        };
        Ok(Self(Arc::new(shared)))
    }

    /// Returns a handle for run-time changes that does not keep the balloon.
    #[must_use]
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(Arc::downgrade(&self.0))
    }
}

impl VirtioDevice for Balloon {
    fn id(&self) -> &str {
        &self.0.id
    }

    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        self.0.features
    }

    fn queue_sizes(&self) -> &[u16] {
        self.0.queue_sizes
    }

    /// All queues are one task: none has much to do, and each request's work is limited together
    /// with the others'.
    fn task_number(&self, _queue: u16) -> u16 {
        0
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_window(self.0.config().as_bytes(), offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut config = self.0.config();
        let place = config.as_mut_bytes().get_mut(offset..).unwrap_or_default();
        for (to, from) in place.iter_mut().zip(data) {
            *to = *from;
        }
        self.0.actual.store(config.actual.get(), Ordering::Relaxed);
        self.0
            .poison
            .store(config.poison_val.get(), Ordering::Relaxed);
    }

    fn start(&self, start: Start) -> Result<Vec<Task>, StartError> {
        *self.0.notifier() = Some(start.config);
        let roles = start.queues.iter().filter_map(|ready| {
            let role = Role::of(ready.index, start.features)?;
            Some((ready.index, role))
        });
        let roles: Vec<_> = roles.collect();
        if roles.is_empty() {
            return Ok(Vec::new());
        }
        let poison = start.features & feature::PAGE_POISON != 0;
        Ok(vec![Task {
            queues: roles.iter().map(|(index, _)| *index).collect(),
            handler: Box::new(Queues::new(Arc::clone(&self.0), start.ram, roles, poison)),
        }])
    }

    /// The driver has all its pages back.
    fn reset(&self) {
        self.0.notifier().take();
        self.0.actual.store(0, Ordering::Relaxed);
        self.0.poison.store(0, Ordering::Relaxed);
        self.0.statistics().take();
    }

    fn save(&self) -> Result<Versioned, StateError> {
        Versioned::new(&BalloonState::of(&self.0))
    }

    fn restore(&self, state: &Versioned) -> Result<(), StateError> {
        state.read::<BalloonState>()?.apply(&self.0)
    }
}

/// What an embedder may do to a balloon while the guest runs.
#[derive(Clone)]
pub struct BalloonHandle(Weak<Shared>);

opaque_debug! { BalloonHandle |it| { totals: it.totals() } }

/// Why a balloon was not made or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BalloonError {
    /// Its size.
    #[error(transparent)]
    Invalid(#[from] InvalidBalloon),
    /// No descriptor.
    #[error("cannot create a descriptor for it: {0}; raise the limit on open files (`ulimit -n`)")]
    Descriptor(#[from] io::Error),
    /// The machine was built anew or has ended.
    #[error(
        "the balloon's machine has been restarted or has ended; ask the machine for its balloon again"
    )]
    Gone,
}

impl BalloonError {
    /// Returns what kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(error) => error.kind(),
            Self::Descriptor(_) => ErrorKind::Limit,
            Self::Gone => ErrorKind::State,
        }
    }
}

/// What a balloon holds and has done. All numbers are bytes; those from `inflated` on count since
/// the machine was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BalloonTotals {
    /// What the guest is to give up.
    pub target: u64,
    /// What it says that it has given up.
    pub actual: u64,
    /// Pages named when they went into the balloon.
    pub inflated: u64,
    /// Pages named when they came out of it.
    pub deflated: u64,
    /// Pages reported as free.
    pub reported: u64,
    /// Memory released to the host, for either reason.
    pub released: u64,
    /// What was named and is no memory.
    pub ignored: u64,
    /// The last statistics that the guest has sent, if it has sent any.
    pub statistics: Option<BalloonStatistics>,
}

impl BalloonHandle {
    fn shared(&self) -> Result<Arc<Shared>, BalloonError> {
        self.0.upgrade().ok_or(BalloonError::Gone)
    }

    /// Asks the guest to give up `size` of its memory, in place of what it was asked for before.
    /// Does not wait for the guest, which does as it can; [`BalloonTotals::actual`] says how far it
    /// is.
    ///
    /// # Errors
    /// More than the guest's memory, no multiple of 4096, or the balloon is gone.
    pub fn set_target(&self, size: impl Into<Bytes>) -> Result<(), BalloonError> {
        let shared = self.shared()?;
        let pages = config::pages(size.into(), shared.memory)?;
        let set = || shared.target.store(pages, Ordering::Relaxed);
        // Cloned, since the device may be reset meanwhile.
        let notifier = shared.notifier().clone();
        match notifier {
            Some(notifier) => notifier.change(set),
            // The driver reads it when it starts.
            None => set(),
        }
        Ok(())
    }

    /// Returns what the balloon holds and has done. `None` once it is gone.
    #[must_use]
    pub fn totals(&self) -> Option<BalloonTotals> {
        let shared = self.0.upgrade()?;
        let bytes =
            |pages: &AtomicU32| u64::from(pages.load(Ordering::Relaxed)).saturating_mul(PAGE_SIZE);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &shared.counters;
        Some(BalloonTotals {
            target: bytes(&shared.target),
            actual: bytes(&shared.actual),
            inflated: count(&counters.inflated),
            deflated: count(&counters.deflated),
            reported: count(&counters.reported),
            released: count(&counters.released),
            ignored: count(&counters.ignored),
            statistics: shared.statistics().clone(),
        })
    }

    /// Asks the guest for new statistics, without waiting for them: [`BalloonStatistics::received`]
    /// tells them from the last ones.
    ///
    /// # Errors
    /// The balloon is gone.
    pub fn request_statistics(&self) -> Result<(), BalloonError> {
        // An eventfd at its limit is signalled already.
        let _ = rustix::io::write(&self.shared()?.request, &1_u64.to_ne_bytes());
        Ok(())
    }
}

// The layout of the queues is the specification's.
const _: () = assert!(queue::REPORTING + 1 == queue::COUNT);
