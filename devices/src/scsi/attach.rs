//! Units into a controller: where a unit goes, what its disk is as a SCSI device, whose unit its image is.

use std::sync::Arc;

use super::address::Place;
use super::cdb::{Kind, Profile};
use super::cdrom;
use super::config::{ScsiError, UnitConfig};
use super::hub::Hub;
use super::identity::{Facts, Identity};
use super::mode::Modes;
use super::opened::Opened;
use super::reserve::store::Store;
use super::sense::attention;
use super::unit::{Attached, NewNexus, NewUnit, Nexus, Unit};
use crate::disk::config::Media;
use crate::disk::{Disk, Geometry, ImageId};

impl Hub {
    /// The unit of this name.
    pub(super) fn named(&self, id: &str) -> Result<Arc<Nexus>, ScsiError> {
        let map = self.map();
        map.named(id).cloned().ok_or_else(|| ScsiError::NoUnit {
            controller: self.opened.config.id.clone(),
            id: id.to_owned(),
        })
    }

    /// The other units of the target report that its list changed (SPC-4 §5.14).
    pub(super) fn tell_of_luns(&self, nexus: &Nexus) {
        for other in self.map().iter() {
            if other.place.target == nexus.place.target && other.place != nexus.place {
                other.attend(attention::LUNS_CHANGED);
            }
        }
    }

    /// Adds a unit, for this controller and those built after it, without telling the guest.
    pub(super) fn attach(
        self: &Arc<Self>,
        unit: UnitConfig,
        disk: Arc<dyn Disk>,
    ) -> Result<Arc<Nexus>, ScsiError> {
        let _one_at_a_time = self.opened.changes_of(self.generation)?;
        let attached = self.opened.attach(unit, disk)?;
        Ok(self.plug(attached))
    }

    /// Takes a unit off this controller and those built after it, without telling the guest.
    pub(super) fn detach(self: &Arc<Self>, id: &str) -> Result<Arc<Nexus>, ScsiError> {
        let _one_at_a_time = self.opened.changes_of(self.generation)?;
        let nexus = self.named(id)?;
        self.opened.disks().retain(|disk| disk.id != id);
        self.change(|map| map.remove(nexus.place));
        Ok(nexus)
    }

    /// Makes this controller's path to a unit.
    pub(super) fn plug(self: &Arc<Self>, attached: Attached) -> Arc<Nexus> {
        let nexus = Nexus::new(NewNexus {
            attached,
            slot: self.slots.lease(),
            port: self.opened.port,
            workers: Arc::clone(&self.workers),
            events: Arc::clone(&self.events),
            queues: self.opened.config.queues,
        });
        self.change(|map| map.insert(Arc::clone(&nexus)));
        nexus
    }
}

impl Opened {
    /// Enters a disk into the list.
    pub(super) fn attach(
        &self,
        unit: UnitConfig,
        disk: Arc<dyn Disk>,
    ) -> Result<Attached, ScsiError> {
        unit.check()?;
        let geometry = disk.geometry();
        let facts = facts(&unit, &geometry)?;
        let mut disks = self.disks();
        let place = self.place(&disks, &unit)?;
        let id = unit.id.clone();
        let shared = self.open_unit(unit, disk.identity(), &geometry, facts.block)?;
        if shared.block != facts.block {
            return Err(ScsiError::BlockSize { id });
        }
        let attached = Attached {
            id,
            place,
            unit: shared,
            disk,
            facts,
        };
        disks.push(attached.clone());
        Ok(attached)
    }

    /// Where a unit goes.
    fn place(&self, disks: &[Attached], unit: &UnitConfig) -> Result<Place, ScsiError> {
        if disks.iter().any(|disk| disk.id == unit.id) {
            return Err(ScsiError::NameTaken {
                controller: self.config.id.clone(),
                id: unit.id.clone(),
            });
        }
        let at = |place| disks.iter().find(|disk| disk.place == place);
        let lun = unit.lun.unwrap_or(0);
        let free = || (0..=u8::MAX).find(|&target| at(Place { target, lun }).is_none());
        let target = unit
            .target
            .or_else(free)
            .ok_or_else(|| ScsiError::NoTarget {
                id: unit.id.clone(),
            })?;
        let place = Place { target, lun };
        match at(place) {
            None => Ok(place),
            Some(other) => Err(ScsiError::PlaceTaken {
                id: unit.id.clone(),
                target,
                lun,
                by: other.id.clone(),
            }),
        }
    }

    /// The unit of a disk: what other machines have of the image if both share it, else this machine's own.
    fn open_unit(
        &self,
        unit: UnitConfig,
        image: Option<ImageId>,
        geometry: &Geometry,
        block: u32,
    ) -> Result<Arc<Unit>, ScsiError> {
        let name = match image {
            Some(ImageId { device, inode }) => format!("image-{device:x}-{inode:x}"),
            None => unit.id.clone(),
        };
        let store = unit.reservations.map(Store::open).transpose();
        Ok(Unit::open(NewUnit {
            image,
            scope: (!unit.share).then(|| self.scope()),
            identity: Identity::new(unit.serial.as_deref(), unit.wwn, &name),
            defaults: Modes {
                write_cache: geometry.write_cache,
                write_protect: false,
                descriptor_sense: false,
            },
            block,
            store: store.map_err(|source| ScsiError::Reservations {
                path: unit.id.into(),
                source,
            })?,
        }))
    }
}

/// What a disk is as a SCSI device.
fn facts(unit: &UnitConfig, geometry: &Geometry) -> Result<Facts, ScsiError> {
    let (kind, block) = match unit.media {
        Media::Disk => (Kind::Disk, geometry.logical_block),
        Media::Cdrom if geometry.logical_block > cdrom::BLOCK => {
            return Err(ScsiError::CdromBlock {
                id: unit.id.clone(),
                block: geometry.logical_block,
            });
        }
        Media::Cdrom => (Kind::Cdrom, cdrom::BLOCK),
    };
    let blocks = |bytes: u32| bytes.checked_div(block).unwrap_or(0);
    // A read-only disk knows the commands that deallocate and refuses them as it refuses every write: as protected.
    let thin = kind == Kind::Disk && (geometry.discard.is_some() || geometry.read_only);
    let exponent = geometry
        .physical_block
        .trailing_zeros()
        .saturating_sub(block.trailing_zeros());
    Ok(Facts {
        profile: Profile { kind, thin },
        removable: unit.removable || kind == Kind::Cdrom,
        block,
        physical_exponent: u8::try_from(exponent).unwrap_or(0),
        lowest_aligned: u16::try_from(geometry.alignment_offset).unwrap_or(0),
        granularity: u16::try_from(blocks(geometry.min_io)).unwrap_or(0),
        optimal: blocks(geometry.opt_io),
        unmap_granularity: geometry
            .discard
            .map_or(0, |range| blocks(range.granularity)),
        unmapped_reads_zero: thin && geometry.discard_zeroes,
        read_only: geometry.read_only || kind == Kind::Cdrom,
        write_cache: geometry.write_cache,
    })
}
