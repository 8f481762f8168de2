//! What a controller has open: its disks, their reservation files and its rings.
//!
//! An [`OpenController`] is made once for a machine and outlives the controllers that are built from it one after
//! another, one each time the machine starts. Nothing is opened when one is built. Disks that come and go at run time
//! are entered here, so that the next controller has them as well.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use super::config::{ScsiConfig, ScsiError, UnitConfig};
use super::identity;
use super::reserve::Port;
use super::sync::lock;
use super::unit::{Attached, Scope};
use crate::disk::{Disk, SharedRings};

/// Disks a shared ring has seats for; what a process may have open by default bounds it.
const SEATS: u64 = 1024;

/// Number of a controller among those built from one [`Opened`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation(u64);

/// The disks, reservation files and io_uring instances of one controller, from which [`build`](Self::build) makes the
/// controller. Clones share them.
///
/// Images stay open and locked until the last clone, the last controller built from it and the last command at work
/// are gone. A disk that [`ScsiHandle::add`](super::ScsiHandle::add) adds is kept here, one that is removed is not, so
/// that a controller which is built later has the disks of the one before.
#[derive(Clone)]
pub struct OpenController(pub(super) Arc<Opened>);

/// The insides of an [`OpenController`].
pub(crate) struct Opened {
    pub(crate) config: ScsiConfig,
    pub(crate) port: Port,
    /// `None` where there are no descriptors for them.
    pub(crate) rings: Option<SharedRings>,
    scope: Scope,
    /// The controller built last. The lock serialises changes of the list of disks.
    current: Mutex<Generation>,
    disks: Mutex<Vec<Attached>>,
}

/// One unit of a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnitInfo {
    /// Its name.
    pub id: String,
    /// Its target.
    pub target: u8,
    /// Its logical unit number.
    pub lun: u16,
    /// Its size in bytes.
    pub capacity: u64,
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
            current: Mutex::default(),
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
    fn changes(&self) -> MutexGuard<'_, Generation> {
        lock(&self.current)
    }

    /// The same lock for the next controller, which is the present one from now on.
    pub(super) fn next(&self) -> MutexGuard<'_, Generation> {
        let mut current = self.changes();
        current.0 = current.0.wrapping_add(1);
        current
    }

    /// The same lock for a change that the controller of this generation makes.
    ///
    /// # Errors
    /// Another controller was built meanwhile.
    pub(super) fn changes_of(
        &self,
        generation: Generation,
    ) -> Result<MutexGuard<'_, Generation>, ScsiError> {
        let current = self.changes();
        if *current == generation {
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

/// One ring for each request queue, for all disks together, or one thread where the host refuses
/// io_uring.
fn shared_rings(config: &ScsiConfig) -> Option<SharedRings> {
    use rustix::process::{Resource, getrlimit};
    let files = getrlimit(Resource::Nofile).current.unwrap_or(SEATS);
    let seats = u16::try_from(files.min(SEATS)).unwrap_or(u16::MAX);
    let (queues, depth) = (config.queues, config.queue_size);
    let rings = SharedRings::new(queues, depth, seats).or_else(|error| {
        tracing::warn!(
            "{}: the host refuses io_uring ({error}), so requests of a queue wait for one another, whatever their \
             disk; see /proc/sys/kernel/io_uring_disabled, seccomp filters and the memlock limit",
            config.id
        );
        SharedRings::blocking(queues, depth, seats)
    });
    let lacking = |error: &std::io::Error| {
        tracing::warn!(
            "{}: each of its disks has threads of its own: {error}",
            config.id
        );
    };
    rings.inspect_err(lacking).ok()
}
