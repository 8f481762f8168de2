//! From the disks of a configuration to controllers: which disk goes where, and what its image is opened as.
//!
//! The one place here that opens paths, before the machine starts.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use super::config::{ScsiConfig, ScsiError, UnitConfig, open_reservations};
use super::{MAX_QUEUES, Scsi};
use crate::disk::config::{Bus, DiskConfig};
use crate::disk::{self, Disk};

/// The controllers for all disks with `bus=scsi`, each disk with its id; called `scsi0`, `scsi1`… by their numbers.
///
/// `machine` is what initiators are called after, see [`ScsiConfig::machine`]. A controller has as many queues, and
/// as large ones, as the largest wish among its disks.
///
/// # Errors
/// What is wrong with a disk, its image or its place.
pub fn open_controllers<'a>(
    machine: &str,
    disks: impl IntoIterator<Item = (String, &'a DiskConfig)>,
) -> Result<Vec<Scsi>, ScsiError> {
    let mut controllers: BTreeMap<u8, Vec<(String, &DiskConfig)>> = BTreeMap::new();
    for (id, disk) in disks.into_iter().filter(|(_, disk)| disk.bus == Bus::Scsi) {
        controllers
            .entry(disk.controller.unwrap_or(0))
            .or_default()
            .push((id, disk));
    }
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
            .map(|(id, disk)| open_unit(id, disk, &config));
        Scsi::new(&config, units.collect::<Result<_, _>>()?)
    };
    controllers.into_iter().map(open).collect()
}

/// Opens one disk for a controller: for [`open_controllers`], and to be handed to [`ScsiHandle::add`].
///
/// [`ScsiHandle::add`]: super::ScsiHandle::add
///
/// # Errors
/// What is wrong with the disk or its image.
pub fn open_unit(
    id: String,
    disk: &DiskConfig,
    controller: &ScsiConfig,
) -> Result<(UnitConfig, Arc<dyn Disk>), ScsiError> {
    let shares_ring = disk.iops.is_none() && disk.bandwidth.is_none();
    // A disk without limits takes a seat in the controller's rings and needs none of its own.
    let queues = if shares_ring { 0 } else { controller.queues };
    let config = DiskConfig {
        queue_size: Some(controller.queue_size),
        ..disk.clone()
    };
    let opened = disk::open_with(&config, queues).map_err(|source| ScsiError::Disk {
        id: id.clone(),
        source,
    })?;
    let unit = UnitConfig {
        target: disk.target,
        lun: disk.lun,
        serial: disk.serial.clone(),
        wwn: disk.wwn.map(|wwn| wwn.0),
        media: disk.media,
        removable: disk.removable,
        reservations: reservations(disk)?,
        ..UnitConfig::new(id)
    };
    Ok((unit, opened))
}

/// Reservations outlive a power loss where images are shared, and where they did before.
fn reservations(disk: &DiskConfig) -> Result<Option<File>, ScsiError> {
    open_reservations(&disk.path, disk.share && !disk.readonly)
}
