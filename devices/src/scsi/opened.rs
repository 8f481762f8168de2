//! What a controller has open: its disks, their reservation files and its rings.
//!
//! An [`OpenController`] is made once for a machine and outlives the controllers that are built from it one after
//! another, one each time the machine starts. Nothing is opened when one is built. Disks that come and go at run time
//! are entered here, so that the next controller has them as well.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::Scsi;
use super::address::Place;
use super::config::{ScsiConfig, ScsiError, UnitConfig};
use super::handle::UnitInfo;
use super::hub::Hub;
use super::identity::{self, Facts};
use super::reserve::Port;
use super::unit::{Unit, lock};
use crate::disk::{Disk, SharedRings};

/// Disks a shared ring has seats for; what a process may have open by default bounds it.
const SEATS: u64 = 1024;

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

/// The disks, reservation files and io_uring instances of one controller, from which [`build`](Self::build) makes the
/// controller. Clones share them.
///
/// Images stay open and locked until the last clone, the last controller built from it and the last command at work
/// are gone. A disk that [`ScsiHandle::add`](super::ScsiHandle::add) adds is kept here, one that is removed is not, so
/// that a controller which is built later has the disks of the one before.
#[derive(Clone)]
pub struct OpenController(Arc<Opened>);

/// The insides of an [`OpenController`].
pub(crate) struct Opened {
    pub(crate) config: ScsiConfig,
    pub(crate) port: Port,
    /// `None` where the host refuses io_uring.
    pub(crate) rings: Option<SharedRings>,
    scope: Scope,
    /// The controller built last. The lock serialises changes of the list of disks.
    current: Mutex<Weak<Hub>>,
    disks: Mutex<Vec<Attached>>,
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

impl OpenController {
    /// Takes over disks that are open and makes the rings. Disks without a target get the first free one.
    ///
    /// # Errors
    /// A number is out of range, two disks want the same place or name, or a reservations file cannot be read.
    pub fn new(
        config: &ScsiConfig,
        units: Vec<(UnitConfig, Arc<dyn Disk>)>,
    ) -> Result<Self, ScsiError> {
        Self::in_machine(Scope::new(), config, units)
    }

    /// As [`new`](Self::new), for one of several controllers of a machine.
    pub(crate) fn in_machine(
        scope: Scope,
        config: &ScsiConfig,
        units: Vec<(UnitConfig, Arc<dyn Disk>)>,
    ) -> Result<Self, ScsiError> {
        config.check()?;
        let name = format!("{}/{}", config.machine, config.id);
        let opened = Opened {
            config: config.clone(),
            port: Port(identity::local_name(&name)),
            rings: shared_rings(config),
            scope,
            current: Mutex::new(Weak::new()),
            disks: Mutex::default(),
        };
        for (unit, disk) in units {
            opened.attach(unit, disk)?;
        }
        Ok(Self(Arc::new(opened)))
    }

    /// The controller's name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.config.id
    }

    /// The disks it has now, by target and number.
    #[must_use]
    pub fn units(&self) -> Vec<UnitInfo> {
        let mut units: Vec<_> = self
            .0
            .disks()
            .iter()
            .map(|disk| UnitInfo {
                id: disk.id.clone(),
                target: disk.place.target,
                lun: disk.place.lun,
                capacity: disk.disk.geometry().capacity,
            })
            .collect();
        units.sort_unstable_by_key(|unit| (unit.target, unit.lun));
        units
    }

    /// Makes the controller as it is after power-on. Opens nothing and cannot fail.
    ///
    /// The controller that was built before must have been dropped, with its tasks stopped. Rings are bound to the
    /// thread that used them first, so every controller must run its queues on the same workers as the first one.
    ///
    /// Mode pages, reservations that were not made to persist through a power loss and the prevention of medium
    /// removal are as after power-on, unless another machine of this process has the same image at work. Registrations
    /// and reservations that persist, and whether there is a medium, stay as they are.
    #[must_use]
    pub fn build(&self) -> Scsi {
        let mut current = self.0.changes();
        let hub = Hub::new(&self.0);
        for disk in self.0.disks().iter() {
            disk.unit.power_on(self.0.port);
            hub.plug(disk.clone());
        }
        *current = Arc::downgrade(&hub);
        drop(current);
        Scsi::with_hub(hub)
    }
}

impl fmt::Debug for OpenController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenController")
            .field("config", &self.0.config)
            .field("units", &self.units())
            .finish()
    }
}

impl Opened {
    /// The list of disks.
    pub(super) fn disks(&self) -> MutexGuard<'_, Vec<Attached>> {
        lock(&self.disks)
    }

    /// The lock that serialises changes of the list with all that has to happen before the next one.
    fn changes(&self) -> MutexGuard<'_, Weak<Hub>> {
        lock(&self.current)
    }

    /// The same lock for a change that `hub` makes.
    ///
    /// # Errors
    /// Another controller was built meanwhile.
    pub(super) fn changes_of(
        &self,
        hub: &Arc<Hub>,
    ) -> Result<MutexGuard<'_, Weak<Hub>>, ScsiError> {
        let current = self.changes();
        if std::ptr::eq(current.as_ptr(), Arc::as_ptr(hub)) {
            Ok(current)
        } else {
            Err(ScsiError::Gone {
                controller: self.config.id.clone(),
            })
        }
    }

    /// Which machine's units those of this controller are.
    pub(super) fn scope(&self) -> Scope {
        self.scope
    }
}

/// One ring for each request queue, for all disks together.
fn shared_rings(config: &ScsiConfig) -> Option<SharedRings> {
    use rustix::process::{Resource, getrlimit};
    let files = getrlimit(Resource::Nofile).current.unwrap_or(SEATS);
    let seats = u16::try_from(files.min(SEATS)).unwrap_or(u16::MAX);
    match SharedRings::new(config.queues, config.queue_size, seats) {
        Ok(rings) => Some(rings),
        Err(error) => {
            tracing::info!("{}: no io_uring for its disks to share: {error}", config.id);
            None
        }
    }
}
