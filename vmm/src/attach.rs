//! The devices of a machine: each entry of the configuration becomes a device in its slot, on its worker.
//!
//! The one list of what can be attached. Opens nothing, and knows neither how a device works nor KVM.

use std::sync::Arc;

use splitring_devices::blk::{Blk, BlkHandle};
use splitring_devices::device::VirtioDevice;
use splitring_devices::disk::Disk;
use splitring_devices::disk::config::DiskConfig;
use splitring_devices::events::EventSink;
use splitring_devices::net::{MacAddress, Net, NetBackend, NetConfig, NetHandle};
use splitring_devices::pci::root::PciRoot;
use splitring_devices::pci::virtio::{VirtioParts, VirtioPci};
use splitring_devices::ram::Ram;
use splitring_devices::rng::Rng;
use splitring_devices::scsi::ScsiHandle;
use splitring_devices::wiring::Wiring;
use splitring_devices::worker::Worker;

use crate::config::{RNG_ID, VmConfig};
use crate::error::AttachError;
use crate::resources::Resources;

/// Slots by kind, so that a device more of one kind moves no device of another: the generator, the first SCSI controller and
/// from the middle on the others, disks upwards, networks downwards.
const RNG_SLOT: u8 = 1;
const SCSI_SLOT: u8 = 2;
const MORE_SCSI_SLOTS: u8 = 16;
const FIRST_DISK_SLOT: u8 = 3;
const LAST_SLOT: u8 = 31;

/// Where a device is; recorded, so that the guest finds it there again.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Place {
    /// The device's name.
    pub id: String,
    /// Its slot on PCI bus 0.
    pub slot: u8,
}

impl Place {
    /// Returns its PCI address as Linux writes it: bus, device and function, such as `00:03.0`.
    #[must_use]
    pub fn address(&self) -> String {
        address(self.slot)
    }
}

/// The address of function 0 in a slot of bus 0.
fn address(slot: u8) -> String {
    format!("00:{slot:02x}.0")
}

/// What devices are attached to.
pub(crate) struct Bay<'a> {
    pub(crate) root: &'a PciRoot,
    pub(crate) ram: Ram,
    pub(crate) wiring: Arc<dyn Wiring>,
    pub(crate) workers: Vec<Arc<Worker>>,
    pub(crate) places: Vec<Place>,
    pub(crate) blk: Vec<BlkHandle>,
    pub(crate) scsi: Vec<ScsiHandle>,
    pub(crate) nets: Vec<NetHandle>,
    /// Where the devices report what happens to them.
    pub(crate) events: EventSink,
}

/// Attaches everything `config` names over `resources`. Opens nothing.
pub(crate) fn attach(
    config: &VmConfig,
    resources: &Resources,
    bay: &mut Bay<'_>,
) -> Result<(), AttachError> {
    if config.rng {
        bay.plug(RNG_SLOT, Arc::new(Rng::new(RNG_ID)))?;
    }
    for ((id, disk), slot) in config.virtio_disks().zip(FIRST_DISK_SLOT..) {
        let Some(image) = resources.disks.get(&id) else {
            return Err(AttachError::NotOpened { id });
        };
        let device = build_disk(&id, disk, Arc::clone(image));
        device.report_to(bay.events.clone());
        bay.blk.push(device.handle());
        bay.plug(slot, device)?;
    }
    for (opened, slot) in resources
        .controllers
        .iter()
        .zip(std::iter::once(SCSI_SLOT).chain(MORE_SCSI_SLOTS..))
    {
        let controller = opened.build();
        controller.report_to(bay.events.clone());
        bay.scsi.push(controller.handle());
        bay.plug(slot, Arc::new(controller))?;
    }
    for ((number, (id, net)), slot) in (0..).zip(config.nets()).zip((0..=LAST_SLOT).rev()) {
        let Some(backend) = resources.nets.get(&id) else {
            return Err(AttachError::NotOpened { id });
        };
        let device = build_net(
            &id,
            number,
            net,
            Arc::clone(backend),
            config.name.as_deref(),
        );
        device.report_to(bay.events.clone());
        bay.nets.push(device.handle());
        bay.plug(slot, device)?;
    }
    Ok(())
}

fn build_disk(id: &str, config: &DiskConfig, image: Arc<dyn Disk>) -> Arc<Blk> {
    let (queues, depth) = (config.queue_count(), config.queue_len());
    let serial = config.serial.as_deref().unwrap_or("");
    let blk = Blk::new(id, image, queues, depth, serial);
    Arc::new(blk.without(config.hidden_features()))
}

fn build_net(
    id: &str,
    number: usize,
    config: &NetConfig,
    backend: Arc<dyn NetBackend>,
    machine: Option<&str>,
) -> Arc<Net> {
    // Two machines on one bridge must differ: by name, or else by the TAP each has for itself.
    let owner = machine.or(backend.interface()).unwrap_or_default();
    let mac = MacAddress::stable(owner, number);
    Arc::new(Net::new(id, mac, config, backend))
}

impl Bay<'_> {
    fn plug(&mut self, slot: u8, device: Arc<dyn VirtioDevice>) -> Result<(), AttachError> {
        let id = device.id().to_owned();
        if slot > LAST_SLOT || self.places.iter().any(|place| place.slot == slot) {
            return Err(AttachError::Full { id });
        }
        let parts = VirtioParts {
            mask: device.mask(),
            device,
            ram: self.ram.clone(),
            wiring: Arc::clone(&self.wiring),
            workers: in_turn(&self.workers, self.places.len()),
            events: self.events.clone(),
        };
        match VirtioPci::plug(self.root, slot, parts) {
            Ok(_) => {
                tracing::debug!(id, address = address(slot), "attached");
                self.places.push(Place { id, slot });
                Ok(())
            }
            Err(error) => Err(AttachError::Pci { id, error }),
        }
    }
}

/// The workers in the order in which a device uses them that is plugged after `plugged` others: its first task goes to
/// the next worker. The list itself keeps its order, so that after a reboot the same configuration assigns every disk to
/// the same workers: its rings are bound to the threads that served them first.
fn in_turn(workers: &[Arc<Worker>], plugged: usize) -> Vec<Arc<Worker>> {
    let mut workers = workers.to_vec();
    if let Some(first) = plugged.checked_rem(workers.len()) {
        workers.rotate_left(first);
    }
    workers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_shown_as_linux_shows_it() {
        let place = |slot| Place {
            id: "disk0".to_owned(),
            slot,
        };
        assert_eq!(place(3).address(), "00:03.0");
        assert_eq!(place(31).address(), "00:1f.0");
    }

    #[test]
    fn devices_take_turns_at_the_workers_and_get_the_same_ones_again() {
        let spawn = |name| Worker::spawn(name, None, Arc::new(|_| ())).expect("spawns");
        let workers = ["a", "b", "c"].map(spawn);
        let first = |plugged| in_turn(&workers, plugged)[0].name().to_owned();
        for _generation in 0..2 {
            assert_eq!([0, 1, 2, 3].map(first), ["a", "b", "c", "a"]);
        }
        assert!(in_turn(&[], 1).is_empty());
    }
}
