//! From the disks of a configuration to what controllers have open: which disk goes where, and what its image is
//! opened as.
//!
//! The one place here that opens paths, before the machine starts.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use super::config::{MAX_QUEUES, ScsiConfig, ScsiError, UnitConfig, open_reservations};
use super::handle::ScsiHandle;
use super::opened::{OpenController, UnitInfo};
use super::unit::Scope;
use crate::disk::config::{Bus, DiskConfig};
use crate::disk::{self, Disk, RawDisk};

/// Opens all disks with `bus=scsi`, each given with its id, for the controllers they name; those are called `scsi0`,
/// `scsi1`… by their numbers.
///
/// `machine` is what initiators are called after, see [`ScsiConfig::machine`]. A controller has as many queues, and
/// as large ones, as the largest wish among its disks. A disk whose id is in `own` is taken from there instead of
/// being opened: its path is a name only, its limits are not enforced, and its reservations are not kept over a power
/// loss.
///
/// # Errors
/// What is wrong with a disk, its image or its place.
pub fn open_controllers<'a>(
    machine: &str,
    disks: impl IntoIterator<Item = (String, &'a DiskConfig)>,
    own: &mut BTreeMap<String, Arc<dyn Disk>>,
) -> Result<Vec<OpenController>, ScsiError> {
    let mut controllers: BTreeMap<u8, Vec<(String, &DiskConfig)>> = BTreeMap::new();
    for (id, disk) in disks.into_iter().filter(|(_, disk)| disk.bus == Bus::Scsi) {
        controllers
            .entry(disk.controller.unwrap_or(0))
            .or_default()
            .push((id, disk));
    }
    let scope = Scope::new();
    let open = |(number, disks): (u8, Vec<(String, &DiskConfig)>)| {
        let widest = disks.iter().map(|(_, disk)| disk.queue_count()).max();
        let longest = disks.iter().map(|(_, disk)| disk.queue_len()).max();
        let config = ScsiConfig {
            machine: machine.to_owned(),
            queues: widest.unwrap_or(1).min(MAX_QUEUES),
            queue_size: longest.unwrap_or(256),
            ..ScsiConfig::new(format!("scsi{number}"))
        };
        // Units with a place come first, so that those without don't take it.
        let (placed, others): (Vec<_>, Vec<_>) = disks
            .into_iter()
            .partition(|(_, disk)| disk.target.is_some());
        let units = placed
            .into_iter()
            .chain(others)
            .map(|(id, disk)| match own.remove(&id) {
                Some(own) => Ok((unit(id, disk, None), own)),
                None => open_unit(id, disk, &config),
            });
        let units = units.collect::<Result<_, _>>()?;
        OpenController::in_machine(scope, &config, units)
    };
    controllers.into_iter().map(open).collect()
}

/// Opens one disk for a controller.
fn open_unit(
    id: String,
    disk: &DiskConfig,
    controller: &ScsiConfig,
) -> Result<(UnitConfig, Arc<dyn Disk>), ScsiError> {
    let config = DiskConfig {
        queue_size: Some(controller.queue_size),
        ..disk.clone()
    };
    let opened = disk::open_shared(&config, controller.queues);
    let opened = opened.map_err(|source| ScsiError::Disk {
        id: id.clone(),
        source,
    })?;
    let reservations = reservations(disk)?;
    Ok((unit(id, disk, reservations), opened))
}

fn unit(id: String, disk: &DiskConfig, reservations: Option<File>) -> UnitConfig {
    UnitConfig {
        target: disk.target,
        lun: disk.lun,
        serial: disk.serial.clone(),
        wwn: disk.wwn.map(|wwn| wwn.0),
        media: disk.media,
        removable: disk.removable,
        share: disk.share,
        reservations,
        ..UnitConfig::new(id)
    }
}

impl ScsiHandle {
    /// Opens the image that `config` names and adds it, called `id`. The keys that place it on a controller or size
    /// its queues don't count here, but for `target` and `lun`.
    ///
    /// # Errors
    /// What is wrong with the image, or with its place.
    pub fn add_disk(&self, id: &str, config: &DiskConfig) -> Result<UnitInfo, ScsiError> {
        let controller = self.config()?;
        let (unit, disk) = open_unit(id.to_owned(), config, &controller)?;
        self.add(unit, disk)
    }

    /// As [`add_disk`](Self::add_disk), with an image that somebody else has opened as `config` says; no path is
    /// opened. Reservations of it are not kept over a power loss, and limits are not enforced.
    ///
    /// # Errors
    /// As [`add_disk`](Self::add_disk).
    pub fn add_file(
        &self,
        id: &str,
        config: &DiskConfig,
        file: File,
    ) -> Result<UnitInfo, ScsiError> {
        let controller = self.config()?;
        let opened = RawDisk::from_file(file, config, 0, controller.queue_size);
        let disk = opened.map_err(|source| ScsiError::Disk {
            id: id.to_owned(),
            source,
        })?;
        let disk = disk.shared_by(controller.queues);
        self.add(unit(id.to_owned(), config, None), Arc::new(disk))
    }
}

/// Reservations outlive a power loss where images are shared, and where they did before.
fn reservations(disk: &DiskConfig) -> Result<Option<File>, ScsiError> {
    open_reservations(&disk.path, disk.share && !disk.readonly)
}
