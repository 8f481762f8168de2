//! A logical unit, and the paths to it.
//!
//! A [`Unit`] is what an image is as a SCSI device: its identity, reservations, modes and medium. One image opened
//! by several controllers of a machine is one unit. So is one opened by several machines of this process if each of
//! them says `share=on`; machines that do not say so have nothing in common, even where the locks on the image let
//! both read it: otherwise a guest could reserve or eject what another one reads. A [`Nexus`] is one controller's
//! path to a unit: the image as that controller opened it, and the unit attentions waiting for that initiator.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::address::Place;
use super::cdrom::TrayEvent;
use super::events::Events;
use super::identity::{Facts, Identity};
use super::lock::{Held, Locks};
use super::mode::Modes;
use super::reserve::store::Store;
use super::reserve::{Port, Reservations};
use super::sense::{Code, Sense, Status, attention};
use super::slot::Slot;
use super::sync::lock;
use super::table::Access;
use super::workers::{Filter, Mailbox, Target, Workers};
use crate::disk::faults::Faults;
use crate::disk::metrics::DiskMetrics;
use crate::disk::{Disk, ImageId};
use crate::throttle::Throttle;

/// Number of a machine in this process. Units that are not shared belong to one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scope(u64);

impl Scope {
    /// One that nobody else has.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What commands change of a unit, all of it behind one lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) reservations: Reservations,
    pub(crate) modes: Modes,
    /// There is a medium.
    pub(crate) loaded: bool,
    /// Who prevents its removal.
    pub(crate) preventers: Vec<Port>,
    pub(crate) tray_event: Option<TrayEvent>,
}

/// Bits of the state that every command looks at, readable without the lock.
mod flag {
    /// Somebody holds a reservation.
    pub(super) const RESTRICTED: u8 = 0x01;
    pub(super) const NO_MEDIUM: u8 = 0x02;
    /// SWP.
    pub(super) const PROTECTED: u8 = 0x04;
    /// WCE is off: writes are stable before they are answered.
    pub(super) const STABLE: u8 = 0x08;
    /// D_SENSE.
    pub(super) const DESCRIPTORS: u8 = 0x10;
}

/// A logical unit.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) identity: Identity,
    /// Modes after power on.
    pub(crate) defaults: Modes,
    /// Bytes of a logical block.
    pub(crate) block: u32,
    image: Option<ImageId>,
    /// The machine it belongs to; `None` for what every machine that shares the image has.
    scope: Option<Scope>,
    state: Mutex<State>,
    flags: AtomicU8,
    /// Ranges that COMPARE AND WRITE and ORWRITE are at work on.
    pub(crate) locks: Locks,
    /// Where reservations are kept over a power loss.
    pub(crate) store: Option<Store>,
    /// Whose turn it is to change the reservations: a range of one byte.
    turns: Locks,
    paths: Mutex<Vec<Weak<Nexus>>>,
}

/// What a [`Unit`] is made of.
pub(crate) struct NewUnit {
    /// A disk without an identity is always a unit of its own.
    pub(crate) image: Option<ImageId>,
    pub(crate) scope: Option<Scope>,
    pub(crate) identity: Identity,
    pub(crate) defaults: Modes,
    pub(crate) block: u32,
    pub(crate) store: Option<(Store, Reservations)>,
}

/// The units of this process, for as long as somebody has them open.
///
/// An entry is found by image and [`Scope`] only, so what is not shared is visible to its own machine alone. Whoever
/// holds a unit must hold its disk as well: while the image is open, its inode number is no other file's.
static UNITS: Mutex<Vec<Weak<Unit>>> = Mutex::new(Vec::new());

impl Unit {
    /// The unit that `new` describes: the one there is, or a new one. `defaults`, `identity` and `store` count only
    /// if it is new.
    pub(crate) fn open(new: NewUnit) -> Arc<Self> {
        let mut units = lock(&UNITS);
        units.retain(|unit| unit.strong_count() > 0);
        let same = |unit: &Arc<Self>| {
            new.image.is_some() && unit.image == new.image && unit.scope == new.scope
        };
        if let Some(unit) = units.iter().filter_map(Weak::upgrade).find(same) {
            return unit;
        }
        let (store, reservations) = new.store.unzip();
        let state = State {
            reservations: reservations.unwrap_or_default(),
            modes: new.defaults,
            loaded: true,
            preventers: Vec::new(),
            tray_event: None,
        };
        let unit = Arc::new(Self {
            identity: new.identity,
            defaults: new.defaults,
            block: new.block,
            image: new.image,
            scope: new.scope,
            flags: AtomicU8::new(flags_of(&state)),
            state: Mutex::new(state),
            locks: Locks::default(),
            store,
            turns: Locks::default(),
            paths: Mutex::new(Vec::new()),
        });
        units.push(Arc::downgrade(&unit));
        unit
    }

    /// Whether it is one machine's own, and not shared with whoever opens the image.
    pub(crate) fn is_private(&self) -> bool {
        self.scope.is_some()
    }

    /// Takes the turn to change the reservations; if somebody has it, `waiter` is told when to try again.
    pub(crate) fn turn(&self, waiter: &Arc<Mailbox>) -> Option<Held> {
        self.turns.take(0, 1, waiter)
    }

    /// The initiator at `port` is powered on, and with it the unit if nobody else uses it (SPC-4 §5.13.5): what was
    /// not made to persist is as at first.
    pub(crate) fn power_on(&self, port: Port) {
        if !self.paths().is_empty() {
            return self.forget(port);
        }
        self.with(|state| {
            state.reservations.power_on();
            state.modes = self.defaults;
            state.preventers.clear();
            state.tray_event = None;
        });
    }

    /// Works on the state, and publishes what of it the data path looks at.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let result = work(&mut state);
        self.flags.store(flags_of(&state), Ordering::Release);
        result
    }

    fn has(&self, flag: u8) -> bool {
        self.flags.load(Ordering::Acquire) & flag != 0
    }

    pub(crate) fn loaded(&self) -> bool {
        !self.has(flag::NO_MEDIUM)
    }

    pub(crate) fn write_protected(&self) -> bool {
        self.has(flag::PROTECTED)
    }

    /// Writes have to be stable before they are answered.
    pub(crate) fn stable_writes(&self) -> bool {
        self.has(flag::STABLE)
    }

    pub(crate) fn descriptor_sense(&self) -> bool {
        self.has(flag::DESCRIPTORS)
    }

    /// Whether a reservation keeps `port` from a command.
    pub(crate) fn conflicts(&self, port: Port, access: Access) -> bool {
        self.has(flag::RESTRICTED) && lock(&self.state).reservations.conflicts(port, access)
    }

    /// Every path there is now.
    pub(crate) fn paths(&self) -> Vec<Arc<Nexus>> {
        let mut paths = lock(&self.paths);
        paths.retain(|path| path.strong_count() > 0);
        paths.iter().filter_map(Weak::upgrade).collect()
    }

    /// Establishes a unit attention on every path but that of `except`.
    pub(crate) fn tell(&self, code: Code, except: Option<Port>) {
        for path in self.paths().iter().filter(|path| Some(path.port) != except) {
            path.attend(code);
        }
    }

    /// A logical unit reset (SAM-5 §6.3.3), after its commands have been aborted.
    pub(crate) fn reset(&self) {
        self.with(|state| {
            state.reservations.reset();
            state.modes = self.defaults;
            state.preventers.clear();
        });
        self.tell(attention::UNIT_RESET, None);
    }

    /// The initiator at `port` has reset its target or its controller: what it changed is as at first. Mode pages
    /// are common to all initiators, so the others are told if theirs change (SPC-4 §5.14, §6.11).
    pub(crate) fn reset_by(&self, port: Port) {
        self.forget(port);
        let before = self.with(|state| std::mem::replace(&mut state.modes, self.defaults));
        if before != self.defaults {
            self.tell(attention::MODE_CHANGED, Some(port));
        }
    }

    /// The initiator at `port` is gone or starts anew.
    pub(crate) fn forget(&self, port: Port) {
        self.with(|state| {
            if state.reservations.legacy == Some(port) {
                state.reservations.legacy = None;
            }
            state.preventers.retain(|preventer| *preventer != port);
        });
    }
}

fn flags_of(state: &State) -> u8 {
    let bit = |on, flag| if on { flag } else { 0 };
    bit(state.reservations.restricts(), flag::RESTRICTED)
        | bit(!state.loaded, flag::NO_MEDIUM)
        | bit(state.modes.write_protect, flag::PROTECTED)
        | bit(!state.modes.write_cache, flag::STABLE)
        | bit(state.modes.descriptor_sense, flag::DESCRIPTORS)
}

/// A disk of a controller, without anything that belongs to one start of the machine.
#[derive(Clone)]
pub(crate) struct Attached {
    /// The operator's name for it.
    pub(crate) id: String,
    pub(crate) place: Place,
    pub(crate) unit: Arc<Unit>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) facts: Facts,
}

/// One controller's path to a unit.
pub(crate) struct Nexus {
    /// The operator's name for it.
    pub(crate) id: String,
    pub(crate) place: Place,
    /// Its number among the controller's units.
    pub(crate) slot: Arc<Slot>,
    pub(crate) port: Port,
    pub(crate) unit: Arc<Unit>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) facts: Facts,
    /// The threads of its controller.
    workers: Arc<Workers>,
    /// Where what its driver should know goes.
    pub(crate) events: Arc<Events>,
    pub(crate) metrics: DiskMetrics,
    /// For lines about it that its guest can cause.
    pub(crate) throttle: Throttle,
    pub(crate) faults: Faults,
    blocks: AtomicU64,
    attentions: Mutex<Vec<Code>>,
    attention_waits: AtomicBool,
}

/// Most unit attentions kept for one path; beyond it the oldest go.
const MAX_ATTENTIONS: usize = 8;

/// What a [`Nexus`] is made of.
pub(crate) struct NewNexus {
    pub(crate) attached: Attached,
    pub(crate) slot: Arc<Slot>,
    pub(crate) port: Port,
    pub(crate) workers: Arc<Workers>,
    pub(crate) events: Arc<Events>,
    /// Request queues, each with counters of its own.
    pub(crate) queues: u16,
}

impl Nexus {
    /// Makes the path and tells the unit of it. Its first report is the power-on condition.
    pub(crate) fn new(new: NewNexus) -> Arc<Self> {
        let NewNexus {
            attached,
            slot,
            port,
            workers,
            events,
            queues,
        } = new;
        let Attached {
            id,
            place,
            unit,
            disk,
            facts,
        } = attached;
        let nexus = Arc::new(Self {
            id,
            place,
            slot,
            port,
            unit,
            disk,
            facts,
            workers,
            events,
            metrics: DiskMetrics::new(queues),
            throttle: Throttle::default(),
            faults: Faults::default(),
            blocks: AtomicU64::new(0),
            attentions: Mutex::new(vec![attention::POWER_ON]),
            attention_waits: AtomicBool::new(true),
        });
        nexus.measure();
        lock(&nexus.unit.paths).push(Arc::downgrade(&nexus));
        nexus
    }

    /// All its commands, wherever they are.
    pub(crate) fn commands(&self) -> Target {
        self.target(Filter::Path(Arc::clone(&self.slot)))
    }

    /// The command with this identifier, wherever it is.
    pub(crate) fn command(&self, id: u64) -> Target {
        self.target(Filter::Task(Arc::clone(&self.slot), id))
    }

    fn target(&self, filter: Filter) -> Target {
        Target {
            workers: Arc::clone(&self.workers),
            filter,
        }
    }

    /// Takes over the disk's present capacity and returns it, in blocks.
    pub(crate) fn measure(&self) -> u64 {
        let bytes = self.disk.geometry().capacity;
        let blocks = bytes.checked_div(self.facts.block.into()).unwrap_or(0);
        self.blocks.store(blocks, Ordering::Release);
        blocks
    }

    /// Capacity in blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    /// Establishes a unit attention, once.
    pub(crate) fn attend(&self, code: Code) {
        let mut waiting = lock(&self.attentions);
        if !waiting.contains(&code) {
            if waiting.len() >= MAX_ATTENTIONS {
                waiting.remove(0);
            }
            waiting.push(code);
        }
        self.attention_waits.store(true, Ordering::Release);
    }

    /// Takes the next unit attention, to be reported.
    pub(crate) fn attention(&self) -> Option<Sense> {
        if !self.attention_waits.load(Ordering::Acquire) {
            return None;
        }
        let mut waiting = lock(&self.attentions);
        let next = (!waiting.is_empty()).then(|| waiting.remove(0));
        self.attention_waits
            .store(!waiting.is_empty(), Ordering::Release);
        next.map(Sense::unit_attention)
    }

    /// A reset makes all that waited obsolete: only `code` is left to report.
    pub(crate) fn restart(&self, code: Code) {
        *lock(&self.attentions) = vec![code];
        self.attention_waits.store(true, Ordering::Release);
    }

    /// The unit attentions that wait.
    pub(crate) fn attentions(&self) -> Vec<Code> {
        lock(&self.attentions).clone()
    }

    /// Replaces them; only the latest are kept.
    pub(crate) fn set_attentions(&self, codes: &[Code]) {
        let mut waiting = lock(&self.attentions);
        waiting.clear();
        waiting.extend(codes.iter().rev().take(MAX_ATTENTIONS).rev());
        self.attention_waits
            .store(!waiting.is_empty(), Ordering::Release);
    }

    /// Drops a unit attention that the driver has learnt of otherwise.
    pub(crate) fn settle(&self, code: Code) {
        let mut waiting = lock(&self.attentions);
        waiting.retain(|other| *other != code);
        self.attention_waits
            .store(!waiting.is_empty(), Ordering::Release);
    }

    /// Why a write is not even tried.
    pub(crate) fn write_refusal(&self) -> Option<Status> {
        if self.facts.read_only {
            Some(Sense::WRITE_PROTECTED.into())
        } else if self.unit.write_protected() {
            Some(Sense::SOFTWARE_WRITE_PROTECTED.into())
        } else {
            None
        }
    }
}

impl std::fmt::Debug for Nexus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nexus")
            .field("id", &self.id)
            .field("place", &self.place)
            .field("port", &self.port)
            .finish()
    }
}
