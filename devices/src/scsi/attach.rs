//! Units into a controller: where a unit goes, what its disk is as a SCSI device, whose unit its image is.

use std::sync::Arc;

use super::address::Place;
use super::cdb::{Kind, Profile};
use super::cdrom;
use super::config::{ScsiError, UnitConfig};
use super::hub::Hub;
use super::identity::{Facts, Identity};
use super::mode::Modes;
use super::reserve::store::Store;
use super::sense::attention;
use super::unit::{NewNexus, Nexus, Unit, lock};
use crate::disk::config::Media;
use crate::disk::{Disk, Geometry, ImageId};

impl Hub {
    /// The unit of this name.
    pub(super) fn named(&self, id: &str) -> Result<Arc<Nexus>, ScsiError> {
        let map = self.map();
        map.named(id).cloned().ok_or_else(|| ScsiError::NoUnit {
            controller: self.config.id.clone(),
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

    /// Adds a unit without telling the guest.
    pub(super) fn attach(
        self: &Arc<Self>,
        unit: UnitConfig,
        disk: Arc<dyn Disk>,
    ) -> Result<Arc<Nexus>, ScsiError> {
        unit.check()?;
        let _one_at_a_time = lock(&self.changes);
        let geometry = disk.geometry();
        let facts = facts(&unit, &geometry)?;
        let place = self.place(&unit)?;
        let shared = open_unit(&unit, disk.identity(), &geometry)?;
        if shared
            .paths()
            .iter()
            .any(|path| path.facts.block != facts.block)
        {
            return Err(ScsiError::BlockSize { id: unit.id });
        }
        let nexus = Nexus::new(NewNexus {
            id: unit.id,
            place,
            slot: self.map().free_slot(),
            port: self.port,
            unit: shared,
            disk,
            facts,
            hub: Arc::downgrade(self),
            queues: self.config.queues,
        });
        self.change(|map| map.insert(Arc::clone(&nexus)));
        Ok(nexus)
    }

    /// Where a unit goes.
    fn place(&self, unit: &UnitConfig) -> Result<Place, ScsiError> {
        let map = self.map();
        if map.named(&unit.id).is_some() {
            return Err(ScsiError::NameTaken {
                controller: self.config.id.clone(),
                id: unit.id.clone(),
            });
        }
        let lun = unit.lun.unwrap_or(0);
        let free = || {
            (0..=u8::MAX).find(|target| {
                map.get(Place {
                    target: *target,
                    lun,
                })
                .is_none()
            })
        };
        let target = unit
            .target
            .or_else(free)
            .ok_or_else(|| ScsiError::NoTarget {
                id: unit.id.clone(),
            })?;
        let place = Place { target, lun };
        match map.get(place) {
            None => Ok(place),
            Some(other) => Err(ScsiError::PlaceTaken {
                id: unit.id.clone(),
                target,
                lun,
                by: other.id.clone(),
            }),
        }
    }
}

fn open_unit(
    unit: &UnitConfig,
    image: Option<ImageId>,
    geometry: &Geometry,
) -> Result<Arc<Unit>, ScsiError> {
    let name = match image {
        Some(ImageId { device, inode }) => format!("image-{device:x}-{inode:x}"),
        None => unit.id.clone(),
    };
    let identity = Identity::new(unit.serial.as_deref(), unit.wwn, &name);
    let defaults = Modes {
        write_cache: geometry.write_cache,
        write_protect: false,
        descriptor_sense: false,
    };
    let store = match &unit.reservations {
        None => None,
        Some(file) => {
            let opened = file.try_clone().and_then(Store::open);
            Some(opened.map_err(|source| ScsiError::Reservations {
                path: unit.id.clone().into(),
                source,
            })?)
        }
    };
    Ok(Unit::open(image, identity, defaults, store))
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
        read_only: geometry.read_only || kind == Kind::Cdrom,
        write_cache: geometry.write_cache,
    })
}
