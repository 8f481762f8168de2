//! A controller's middle: where its threads find the units and each other.
//!
//! The map of units is replaced as a whole and each thread keeps the version it last saw, so looking a unit up takes
//! no lock.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::address::Place;
use super::events::Events;
use super::opened::{Generation, Opened};
use super::slot::Slots;
use super::sync::lock;
use super::unit::Nexus;
use super::workers::Workers;
use crate::events::{EventSink, NO_EVENTS};

/// The units of a controller.
#[derive(Debug, Default, Clone)]
pub(crate) struct Map {
    units: BTreeMap<Place, Arc<Nexus>>,
    /// Units a target, for a quick "no such target".
    targets: BTreeMap<u8, Vec<u16>>,
}

impl Map {
    pub(crate) fn get(&self, place: Place) -> Option<&Arc<Nexus>> {
        self.units.get(&place)
    }

    /// Logical unit numbers of a target; `None` if there is no such target.
    pub(crate) fn luns(&self, target: u8) -> Option<&[u16]> {
        self.targets.get(&target).map(Vec::as_slice)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Nexus>> {
        self.units.values()
    }

    pub(crate) fn named(&self, id: &str) -> Option<&Arc<Nexus>> {
        self.iter().find(|nexus| nexus.id == id)
    }

    pub(crate) fn insert(&mut self, nexus: Arc<Nexus>) {
        self.units.insert(nexus.place, nexus);
        self.count();
    }

    pub(crate) fn remove(&mut self, place: Place) -> Option<Arc<Nexus>> {
        let removed = self.units.remove(&place);
        self.count();
        removed
    }

    fn count(&mut self) {
        self.targets.clear();
        for place in self.units.keys() {
            self.targets
                .entry(place.target)
                .or_default()
                .push(place.lun);
        }
    }
}

/// What the parts of a controller share.
pub(crate) struct Hub {
    pub(crate) opened: Arc<Opened>,
    /// Which of the controllers built from `opened` this is.
    pub(crate) generation: Generation,
    map: Mutex<Arc<Map>>,
    version: AtomicU64,
    pub(crate) slots: Arc<Slots>,
    /// The running request threads.
    pub(crate) workers: Arc<Workers>,
    pub(crate) events: Arc<Events>,
    /// Where the operator's events go; those above are the driver's.
    observer: OnceLock<EventSink>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("config", &self.opened.config)
            .finish_non_exhaustive()
    }
}

impl Hub {
    pub(crate) fn new(opened: &Arc<Opened>, generation: Generation) -> Arc<Self> {
        Arc::new(Self {
            opened: Arc::clone(opened),
            generation,
            map: Mutex::new(Arc::default()),
            version: AtomicU64::new(1),
            slots: Arc::default(),
            workers: Arc::default(),
            events: Arc::default(),
            observer: OnceLock::new(),
        })
    }

    /// Only the first sink counts.
    pub(crate) fn report_to(&self, sink: EventSink) {
        let _ = self.observer.set(sink);
    }

    pub(crate) fn observer(&self) -> &EventSink {
        self.observer.get().unwrap_or(&NO_EVENTS)
    }

    pub(crate) fn map(&self) -> Arc<Map> {
        Arc::clone(&lock(&self.map))
    }

    /// Changes with every change of the map.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Replaces the map by a changed copy.
    pub(crate) fn change<T>(&self, work: impl FnOnce(&mut Map) -> T) -> T {
        let mut map = lock(&self.map);
        let mut next = Map::clone(&map);
        let result = work(&mut next);
        *map = Arc::new(next);
        self.version.fetch_add(1, Ordering::AcqRel);
        result
    }
}
