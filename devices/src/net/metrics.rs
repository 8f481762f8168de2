//! What a network card has counted: frames, bytes, and what became of those that did not get through.
//!
//! Each queue pair has counters of its own, written by its one thread without locked instructions and added up by
//! whoever asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Why a frame is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drop {
    /// No frame can be like that: too short, too long, or with an impossible header.
    Malformed,
    /// From the guest, and needs an offload that the driver did not negotiate.
    NotNegotiated,
    /// From the guest under an address that is not its own, where that is checked.
    ForeignAddress,
    /// The link was down, or the driver reset the card.
    LinkDown,
    /// The guest's filter does not want it.
    Filtered,
    /// Longer than the guest's buffers can be.
    TooLong,
}

/// The counters of one direction of one pair.
#[derive(Debug, Default)]
pub(super) struct Counters {
    frames: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    waits: AtomicU64,
    malformed: AtomicU64,
    not_negotiated: AtomicU64,
    foreign_address: AtomicU64,
    link_down: AtomicU64,
    filtered: AtomicU64,
    too_long: AtomicU64,
}

impl Counters {
    /// A frame of `bytes` got through.
    pub(super) fn deliver(&self, bytes: u64) {
        bump(&self.frames, 1);
        bump(&self.bytes, bytes);
    }

    /// A frame was dropped.
    pub(super) fn drop_one(&self, why: Drop) {
        let counter = match why {
            Drop::Malformed => &self.malformed,
            Drop::NotNegotiated => &self.not_negotiated,
            Drop::ForeignAddress => &self.foreign_address,
            Drop::LinkDown => &self.link_down,
            Drop::Filtered => &self.filtered,
            Drop::TooLong => &self.too_long,
        };
        bump(counter, 1);
    }

    /// The host refused a frame, or failed to give one.
    pub(super) fn fail_one(&self) {
        bump(&self.errors, 1);
    }

    /// The other side has no room: frames wait.
    pub(super) fn wait_once(&self) {
        bump(&self.waits, 1);
    }

    fn add_to(&self, totals: &mut DirectionTotals) {
        let dropped = &mut totals.dropped;
        for (total, counter) in [
            (&mut totals.frames, &self.frames),
            (&mut totals.bytes, &self.bytes),
            (&mut totals.errors, &self.errors),
            (&mut totals.waits, &self.waits),
            (&mut dropped.malformed, &self.malformed),
            (&mut dropped.not_negotiated, &self.not_negotiated),
            (&mut dropped.foreign_address, &self.foreign_address),
            (&mut dropped.link_down, &self.link_down),
            (&mut dropped.filtered, &self.filtered),
            (&mut dropped.too_long, &self.too_long),
        ] {
            *total = total.wrapping_add(counter.load(Ordering::Relaxed));
        }
    }
}

/// Adds to a counter that only this thread writes.
fn bump(counter: &AtomicU64, by: u64) {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(by);
    counter.store(sum, Ordering::Relaxed);
}

/// The counters of one queue pair, written by the thread that serves it.
#[derive(Debug, Default)]
pub(super) struct PairMetrics {
    pub(super) received: Counters,
    pub(super) sent: Counters,
}

impl PairMetrics {
    /// Frames and bytes that got through so far, in both directions.
    pub(super) fn moved(&self) -> (u64, u64) {
        let sum = |counter: fn(&Counters) -> &AtomicU64| {
            let both = [&self.received, &self.sent];
            let loads = both.map(|counters| counter(counters).load(Ordering::Relaxed));
            loads.into_iter().fold(0, u64::wrapping_add)
        };
        (sum(|c| &c.frames), sum(|c| &c.bytes))
    }
}

/// The counters of a card.
#[derive(Debug)]
pub struct NetMetrics(Vec<Arc<PairMetrics>>);

impl NetMetrics {
    /// Counters for `pairs` queue pairs, all zero.
    pub(super) fn new(pairs: u16) -> Self {
        Self((0..pairs).map(|_| Arc::default()).collect())
    }

    /// The counters of queue pair `pair`.
    pub(super) fn pair(&self, pair: u16) -> Arc<PairMetrics> {
        self.0.get(usize::from(pair)).cloned().unwrap_or_default()
    }

    /// The sums at this moment.
    #[must_use]
    pub fn totals(&self) -> NetTotals {
        let mut totals = NetTotals::default();
        for pair in &self.0 {
            pair.received.add_to(&mut totals.received);
            pair.sent.add_to(&mut totals.sent);
        }
        totals
    }
}

/// Sums over all queue pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NetTotals {
    /// Host to guest.
    pub received: DirectionTotals,
    /// Guest to host.
    pub sent: DirectionTotals,
}

/// Sums of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DirectionTotals {
    /// Frames that got through.
    pub frames: u64,
    /// Bytes of them, without the virtio header.
    pub bytes: u64,
    /// Frames the host refused, and failed reads.
    pub errors: u64,
    /// How often there was no room: no buffer of the guest's, or none at the host. Frames waited, if there were any.
    pub waits: u64,
    /// Frames that were dropped.
    pub dropped: DropTotals,
}

/// Frames that were dropped, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct DropTotals {
    /// The header contradicts itself or the frame.
    pub malformed: u64,
    /// The header asks for an offload the driver did not negotiate.
    pub not_negotiated: u64,
    /// The guest sent from an address that is not its own (`mac-filter`).
    pub foreign_address: u64,
    /// The link was down.
    pub link_down: u64,
    /// The guest's receive filter does not want it.
    pub filtered: u64,
    /// The guest's buffers can't hold it.
    pub too_long: u64,
}

impl DropTotals {
    /// All causes together.
    #[must_use]
    pub fn sum(&self) -> u64 {
        [
            self.malformed,
            self.not_negotiated,
            self.foreign_address,
            self.link_down,
            self.filtered,
            self.too_long,
        ]
        .into_iter()
        .fold(0, u64::wrapping_add)
    }
}
