//! Units that come, go and change size while the guest runs.

use std::sync::Arc;
use std::time::Duration;

use super::address::Place;
use super::cdb::{Kind, Profile};
use super::cdrom;
use super::config::{ScsiError, UnitConfig};
use super::events::Notice;
use super::hub::{Filter, Hub, Order, Sweep, Waiter};
use super::identity::{Facts, Identity};
use super::mode::Modes;
use super::reserve::store::Store;
use super::sense::attention;
use super::unit::{NewNexus, Nexus, Unit, lock};
use crate::disk::config::Media;
use crate::disk::{Disk, Geometry, ImageId};

/// How long a removal waits for commands that are with the host.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);

/// A controller's units, from outside the guest. Clones are the same controller.
#[derive(Clone)]
pub struct ScsiHandle(Arc<Hub>);

/// One unit of a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
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

impl ScsiHandle {
    pub(super) fn new(hub: &Arc<Hub>) -> Self {
        Self(Arc::clone(hub))
    }

    /// Every unit, by target and number.
    #[must_use]
    pub fn units(&self) -> Vec<UnitInfo> {
        self.0.map().iter().map(|nexus| info(nexus)).collect()
    }

    /// Adds a unit and tells the guest. The disk has to be open already: nothing is opened here.
    ///
    /// # Errors
    /// Its place or name is taken or out of range, or its blocks don't fit.
    pub fn add(&self, unit: UnitConfig, disk: Arc<dyn Disk>) -> Result<UnitInfo, ScsiError> {
        let nexus = self.attach(unit, disk)?;
        self.tell_of_luns(&nexus);
        self.0.events.push(Notice::Added(nexus.place));
        Ok(info(&nexus))
    }

    /// Removes a unit and tells the guest. Returns when nothing of it is in flight and its image is let go.
    ///
    /// # Errors
    /// There is no such unit; or the host does not give its last commands back in time.
    pub fn remove(&self, id: &str) -> Result<(), ScsiError> {
        let _one_at_a_time = lock(&self.0.changes);
        let removed = self.0.change(|map| {
            let place = map.named(id)?.place;
            map.remove(place)
        });
        let nexus = removed.ok_or_else(|| ScsiError::NoUnit {
            controller: self.0.id.clone(),
            id: id.to_owned(),
        })?;
        self.tell_of_luns(&nexus);
        self.0.events.push(Notice::Removed(nexus.place));
        let sweep = Sweep::start(
            Order::Detach,
            vec![Filter::Nexus(Arc::clone(&nexus))],
            Waiter::thread(),
        );
        let done = sweep.wait(REMOVE_LIMIT);
        nexus.unit.forget(nexus.port);
        if done {
            Ok(())
        } else {
            Err(ScsiError::Busy { id: id.to_owned() })
        }
    }

    /// Looks at the size of a unit's image again and tells the guest, on every path, if it changed. Returns bytes.
    ///
    /// # Errors
    /// There is no such unit, or the host can't tell the size.
    pub fn resize(&self, id: &str) -> Result<u64, ScsiError> {
        let nexus = self.named(id)?;
        for path in nexus.unit.paths() {
            let before = path.blocks();
            path.disk.rescan().map_err(|source| ScsiError::Disk {
                id: path.id.clone(),
                source,
            })?;
            if path.measure() != before {
                path.attend(attention::CAPACITY_CHANGED);
                if let Some(hub) = path.hub.upgrade() {
                    hub.events
                        .push(Notice::Changed(path.place, attention::CAPACITY_CHANGED));
                }
            }
        }
        Ok(info(&nexus).capacity)
    }

    /// Puts the medium of a removable unit in or out, as by hand; the guest's prevention does not count.
    ///
    /// # Errors
    /// There is no such unit.
    pub fn load(&self, id: &str, loaded: bool) -> Result<(), ScsiError> {
        let nexus = self.named(id)?;
        let changed = nexus
            .unit
            .with(|state| std::mem::replace(&mut state.loaded, loaded) != loaded);
        if changed {
            nexus.unit.tell(attention::MEDIUM_CHANGED, None);
            self.0
                .events
                .push(Notice::Changed(nexus.place, attention::MEDIUM_CHANGED));
        }
        Ok(())
    }

    fn named(&self, id: &str) -> Result<Arc<Nexus>, ScsiError> {
        let map = self.0.map();
        map.named(id).cloned().ok_or_else(|| ScsiError::NoUnit {
            controller: self.0.id.clone(),
            id: id.to_owned(),
        })
    }

    /// The other units of the target report that its list changed (SPC-4 §5.14).
    fn tell_of_luns(&self, nexus: &Nexus) {
        for other in self.0.map().iter() {
            if other.place.target == nexus.place.target && other.place != nexus.place {
                other.attend(attention::LUNS_CHANGED);
            }
        }
    }

    /// Adds a unit without telling the guest.
    pub(super) fn attach(
        &self,
        unit: UnitConfig,
        disk: Arc<dyn Disk>,
    ) -> Result<Arc<Nexus>, ScsiError> {
        unit.check()?;
        let _one_at_a_time = lock(&self.0.changes);
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
            slot: self.0.map().free_slot(),
            port: self.0.port,
            unit: shared,
            disk,
            facts,
            hub: Arc::downgrade(&self.0),
        });
        self.0.change(|map| map.insert(Arc::clone(&nexus)));
        Ok(nexus)
    }

    /// Where a unit goes.
    fn place(&self, unit: &UnitConfig) -> Result<Place, ScsiError> {
        let map = self.0.map();
        if map.named(&unit.id).is_some() {
            return Err(ScsiError::NameTaken {
                controller: self.0.id.clone(),
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

fn info(nexus: &Nexus) -> UnitInfo {
    UnitInfo {
        id: nexus.id.clone(),
        target: nexus.place.target,
        lun: nexus.place.lun,
        capacity: nexus.blocks().saturating_mul(nexus.facts.block.into()),
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
    let thin = kind == Kind::Disk && geometry.discard.is_some();
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
