//! Units that come, go and change size while the guest runs.

use std::sync::{Arc, Weak};
use std::time::Duration;

use splitring_virtio::spec::scsi::response;

use super::config::{ScsiConfig, ScsiError, UnitConfig};
use super::events::Notice;
use super::hub::Hub;
use super::opened::UnitInfo;
use super::sense::attention;
use super::unit::Nexus;
use super::workers::{Order, Sweep, Waiter};
use crate::disk::Disk;
use crate::disk::metrics::DiskTotals;
use crate::events::DeviceEvent;

/// How long a removal waits for commands that are with the host: to end by themselves, then to be given up.
const REMOVE_LIMITS: [Duration; 2] = match cfg!(test) {
    false => [Duration::from_secs(5); 2],
    true => [Duration::from_millis(200); 2],
};

/// A controller's units, from outside the guest. Clones are the same controller. It does not keep the controller, or
/// any image, alive.
#[derive(Clone, Debug)]
pub struct ScsiHandle {
    id: String,
    hub: Weak<Hub>,
}

impl ScsiHandle {
    pub(super) fn new(hub: &Arc<Hub>) -> Self {
        Self {
            id: hub.opened.config.id.clone(),
            hub: Arc::downgrade(hub),
        }
    }

    /// The controller's name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The controller as it was configured.
    pub(super) fn config(&self) -> Result<ScsiConfig, ScsiError> {
        Ok(self.hub()?.opened.config.clone())
    }

    fn hub(&self) -> Result<Arc<Hub>, ScsiError> {
        let gone = || ScsiError::Gone {
            controller: self.id.clone(),
        };
        self.hub.upgrade().ok_or_else(gone)
    }

    /// Every unit, by target and number.
    #[must_use]
    pub fn units(&self) -> Vec<UnitInfo> {
        let hub = self.hub.upgrade();
        hub.iter()
            .flat_map(|hub| {
                hub.map()
                    .iter()
                    .map(|nexus| info(nexus))
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    /// What the requests to each unit came to so far.
    #[must_use]
    pub fn totals(&self) -> Vec<(String, DiskTotals)> {
        let Some(hub) = self.hub.upgrade() else {
            return Vec::new();
        };
        let map = hub.map();
        map.iter()
            .map(|nexus| (nexus.id.clone(), nexus.metrics.totals()))
            .collect()
    }

    /// Adds a unit and tells the guest. The disk has to be open already: nothing is opened here.
    ///
    /// # Errors
    /// Its place or name is taken or out of range, or its blocks don't fit.
    pub fn add(&self, unit: UnitConfig, disk: Arc<dyn Disk>) -> Result<UnitInfo, ScsiError> {
        let hub = self.hub()?;
        let nexus = hub.attach(unit, disk)?;
        hub.tell_of_luns(&nexus);
        hub.events.push(Notice::Added(nexus.place));
        let info = info(&nexus);
        hub.observer().send(|| DeviceEvent::DiskAdded {
            controller: self.id.clone(),
            device: info.id.clone(),
            target: info.target,
            lun: info.lun,
            capacity: info.capacity,
        });
        Ok(info)
    }

    /// Removes a unit and tells the guest. Returns when nothing of it is in flight and its image is closed; commands
    /// that hang in the host are cancelled after a while.
    ///
    /// # Errors
    /// There is no such unit; or its last commands do not come back in time even so. Then it is removed all the same,
    /// its name and place are free, and its image is closed as soon as they have come back.
    pub fn remove(&self, id: &str) -> Result<(), ScsiError> {
        let hub = self.hub()?;
        let nexus = hub.detach(id)?;
        hub.tell_of_luns(&nexus);
        hub.events.push(Notice::Removed(nexus.place));
        let order = |order| Sweep::start(order, vec![nexus.commands()], Waiter::thread());
        let [patience, limit] = REMOVE_LIMITS;
        let detached = order(Order::Detach);
        let done = detached.wait(patience) || {
            order(Order::End(response::BAD_TARGET));
            detached.wait(limit)
        };
        nexus.unit.forget(nexus.port);
        hub.observer().send(|| DeviceEvent::DiskRemoved {
            controller: self.id.clone(),
            device: id.to_owned(),
        });
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
        let nexus = self.hub()?.named(id)?;
        for path in nexus.unit.paths() {
            let before = path.blocks();
            path.disk.rescan().map_err(|source| ScsiError::Disk {
                id: path.id.clone(),
                source,
            })?;
            if path.measure() != before {
                path.attend(attention::CAPACITY_CHANGED);
                path.events
                    .push(Notice::Changed(path.place, attention::CAPACITY_CHANGED));
            }
        }
        Ok(info(&nexus).capacity)
    }

    /// Puts the medium of a removable unit in or out, as by hand; the guest's prevention does not count.
    ///
    /// # Errors
    /// There is no such unit.
    pub fn load(&self, id: &str, loaded: bool) -> Result<(), ScsiError> {
        let hub = self.hub()?;
        let nexus = hub.named(id)?;
        let changed = nexus
            .unit
            .with(|state| std::mem::replace(&mut state.loaded, loaded) != loaded);
        if changed {
            nexus.unit.tell(attention::MEDIUM_CHANGED, None);
            hub.events
                .push(Notice::Changed(nexus.place, attention::MEDIUM_CHANGED));
        }
        Ok(())
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
