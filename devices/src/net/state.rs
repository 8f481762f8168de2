//! What the parts of a network card share: the control path writes it, the queue pairs follow it.
//!
//! The data path reads atomics only; the filter it keeps a copy of, renewed when its generation moved.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use splitring_virtio::spec::net::feature;

use super::filter::{Filter, Mac};
use super::metrics::NetMetrics;
use crate::throttle::Throttle;

/// Shared by the device, its control queue and its queue pairs.
pub(super) struct State {
    /// The card's name.
    pub(super) id: String,
    pub(super) metrics: NetMetrics,
    /// For lines that the guest or the network can cause; a reset does not renew it.
    pub(super) throttle: Throttle,
    link_up: AtomicBool,
    announce: AtomicBool,
    /// The driver negotiated it.
    can_announce: AtomicBool,
    /// What the driver negotiated; nothing while it does not run the card.
    features: AtomicU64,
    /// Feature bits of what received frames may leave to the guest, as it wants it now.
    guest_offloads: AtomicU64,
    /// Queue pairs that the guest listens at.
    pairs: AtomicU16,
    filter: Mutex<Filter>,
    /// Moves on with every change of `filter`.
    filter_generation: AtomicU32,
}

impl State {
    pub(super) fn new(id: &str, mac: Mac, pairs: u16) -> Self {
        Self {
            id: id.to_owned(),
            metrics: NetMetrics::new(pairs),
            throttle: Throttle::default(),
            link_up: AtomicBool::new(true),
            announce: AtomicBool::new(false),
            can_announce: AtomicBool::new(false),
            features: AtomicU64::new(0),
            guest_offloads: AtomicU64::new(0),
            pairs: AtomicU16::new(1),
            filter: Mutex::new(Filter::new(mac, false, false)),
            filter_generation: AtomicU32::new(0),
        }
    }

    pub(super) fn link_up(&self) -> bool {
        self.link_up.load(Ordering::Relaxed)
    }

    /// Returns whether that is a change.
    pub(super) fn set_link(&self, up: bool) -> bool {
        self.link_up.swap(up, Ordering::Relaxed) != up
    }

    pub(super) fn announcing(&self) -> bool {
        self.announce.load(Ordering::Relaxed)
    }

    pub(super) fn set_announcing(&self, on: bool) {
        self.announce.store(on, Ordering::Relaxed);
    }

    pub(super) fn can_announce(&self) -> bool {
        self.can_announce.load(Ordering::Relaxed)
    }

    /// The features of the driver that runs the card from now on, or none.
    pub(super) fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::Relaxed);
        self.can_announce
            .store(features & feature::GUEST_ANNOUNCE != 0, Ordering::Relaxed);
    }

    pub(super) fn features(&self) -> u64 {
        self.features.load(Ordering::Relaxed)
    }

    /// Notes what the backend was told: feature bits of the offloads.
    pub(super) fn note_guest_offloads(&self, wanted: u64) {
        self.guest_offloads.store(wanted, Ordering::Relaxed);
    }

    pub(super) fn guest_offloads(&self) -> u64 {
        self.guest_offloads.load(Ordering::Relaxed)
    }

    /// Notes what the backend was told.
    pub(super) fn note_pairs(&self, pairs: u16) {
        self.pairs.store(pairs, Ordering::Relaxed);
    }

    pub(super) fn pairs(&self) -> u16 {
        self.pairs.load(Ordering::Relaxed)
    }

    /// Changes the filter; queue pairs see it with their next frame.
    pub(super) fn change_filter<T>(&self, change: impl FnOnce(&mut Filter) -> T) -> T {
        let result = change(&mut self.lock());
        self.filter_generation.fetch_add(1, Ordering::Release);
        result
    }

    /// The address frames are sent to, and the `mac` field of the configuration space.
    pub(super) fn mac(&self) -> Mac {
        self.lock().mac
    }

    /// The filter as it is now, with its generation.
    pub(super) fn filter(&self) -> (u32, Filter) {
        let generation = self.filter_generation();
        (generation, self.lock().clone())
    }

    pub(super) fn filter_generation(&self) -> u32 {
        self.filter_generation.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Filter> {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
