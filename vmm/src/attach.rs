//! The devices of a machine: each that the configuration names is built and put into its slot, on
//! its worker.
//!
//! [`KINDS`] and the entries in `registry.rs` are all that can be attached. Opens nothing, and
//! knows neither how a device works nor KVM.

use std::any::Any;
use std::ops::RangeInclusive;
use std::sync::Arc;

use splitring_devices::blk::Blk;
use splitring_devices::device::VirtioDevice;
use splitring_devices::disk::Disk;
use splitring_devices::disk::config::DiskConfig;
use splitring_devices::events::EventSink;
use splitring_devices::net::{MacAddress, Net, NetBackend, NetConfig};
use splitring_devices::pci::root::PciRoot;
use splitring_devices::pci::virtio::{VirtioParts, VirtioPci};
use splitring_devices::ram::Ram;
use splitring_devices::wiring::Wiring;
use splitring_devices::worker::Worker;

use crate::config::{DeviceValue, VmConfig};
use crate::error::AttachError;
use crate::registry::devices;
use crate::resources::Resources;

/// The slots that devices can have; the host bridge has the first.
const SLOTS: RangeInclusive<u8> = 1..=31;

/// A kind of device: how those that the configuration names are built, and which slots they get.
struct Kind {
    slots: Slots,
    /// Returns the devices of this kind, in the order in which they get their slots.
    build: fn(&VmConfig, &Resources, &EventSink) -> Result<Vec<Built>, AttachError>,
}

/// The kinds of device that there can be several of, or that need something opened beforehand.
const KINDS: [Kind; 3] = [
    Kind {
        slots: Slots::Upwards(3),
        build: build_disks,
    },
    Kind {
        slots: Slots::AtThenUpwards(2, 16),
        build: build_controllers,
    },
    Kind {
        slots: Slots::Downwards(*SLOTS.end()),
        build: build_nets,
    },
];

/// The kinds of device that are registered in `registry.rs`.
macro_rules! single_kinds {
    ([$(
        #[doc = $_about:literal]
        $(#[$_meta:meta])*
        $key:ident: $type:ty = $_initial:expr => {
            keys: $_keys:expr,
            validate: $_validate:expr,
            slots: $slots:expr,
            build: $build:expr,
        }
    )*]) => {
        [$(Kind {
            slots: $slots,
            build: |config, _, _| {
                type Config = <$type as DeviceValue>::Config;
                let build: fn(&Config, &str, &VmConfig) -> Result<Built, AttachError> = $build;
                let device = config.$key.present().map(|device| build(device, stringify!($key), config));
                Ok(device.transpose()?.into_iter().collect())
            },
        }),*]
    };
}

/// Which slots the devices of a kind get: so that a device more of one kind moves no device of
/// another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slots {
    /// The only device gets this one.
    At(u8),
    /// Neighbouring ones, from this one on.
    Upwards(u8),
    /// Neighbouring ones, from this one down.
    Downwards(u8),
    /// The first device gets the first of these, the others neighbouring ones from the second on.
    AtThenUpwards(u8, u8),
    /// One that no other kind has taken, from the middle down.
    Free,
}

impl Slots {
    /// The slot of the device `number` of a kind, where `taken` are taken already.
    fn of(self, number: u8, taken: &[u8]) -> Option<u8> {
        match self {
            Self::At(slot) => (number == 0).then_some(slot),
            Self::Upwards(first) => first.checked_add(number),
            Self::Downwards(last) => last.checked_sub(number),
            Self::AtThenUpwards(slot, _) if number == 0 => Some(slot),
            Self::AtThenUpwards(_, first) => first.checked_add(number - 1),
            Self::Free => {
                let (low, high) = (*SLOTS.start()..=15, 16..=*SLOTS.end());
                low.rev().chain(high).find(|slot| !taken.contains(slot))
            }
        }
        .filter(|slot| SLOTS.contains(slot) && !taken.contains(slot))
    }
}

/// A device that is ready to be attached.
pub(crate) struct Built {
    device: Arc<dyn VirtioDevice>,
    handle: Handle,
}

/// What the library's user can do with a device while the guest runs: a `BlkHandle`, a `NetHandle`
/// and so on.
type Handle = Option<Arc<dyn Any + Send + Sync>>;

impl Built {
    fn new(device: impl VirtioDevice + 'static) -> Self {
        Self::shared(Arc::new(device))
    }

    fn shared(device: Arc<dyn VirtioDevice>) -> Self {
        Self {
            device,
            handle: None,
        }
    }

    fn with_handle(mut self, handle: impl Any + Send + Sync) -> Self {
        self.handle = Some(Arc::new(handle));
        self
    }
}

/// A device on the PCI bus and its address, which stays the same over a reboot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct PciDevice {
    /// The device's id.
    pub id: String,
    /// Its slot on PCI bus 0.
    pub slot: u8,
}

impl PciDevice {
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

/// The devices of a machine, in the order in which they were attached.
#[derive(Default)]
pub(crate) struct Devices(Vec<Attached>);

struct Attached {
    at: PciDevice,
    handle: Handle,
}

impl Devices {
    /// Returns the devices and their addresses.
    pub(crate) fn list(&self) -> Vec<PciDevice> {
        self.0.iter().map(|device| device.at.clone()).collect()
    }

    /// Returns the slots that are taken.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u8> {
        self.0.iter().map(|device| device.at.slot)
    }

    /// Returns the handles of type `H`: those of one kind of device, in the order of the
    /// configuration.
    pub(crate) fn handles<H: Any + Clone>(&self) -> Vec<H> {
        let handles = self.0.iter().filter_map(|device| device.handle.as_deref());
        handles
            .filter_map(|handle| handle.downcast_ref().cloned())
            .collect()
    }
}

/// What devices are attached to.
pub(crate) struct DeviceManager<'a> {
    pub(crate) root: &'a PciRoot,
    pub(crate) ram: Ram,
    pub(crate) wiring: Arc<dyn Wiring>,
    pub(crate) workers: &'a [Arc<Worker>],
    /// Where the devices report what happens to them.
    pub(crate) events: &'a EventSink,
}

/// Returns every kind. Those that take what the others leave come last.
fn kinds() -> impl Iterator<Item = Kind> {
    let (free, fixed): (Vec<_>, Vec<_>) = devices! { single_kinds! {} }
        .into_iter()
        .partition(|kind| kind.slots == Slots::Free);
    fixed.into_iter().chain(KINDS).chain(free)
}

fn build_disks(
    config: &VmConfig,
    resources: &Resources,
    events: &EventSink,
) -> Result<Vec<Built>, AttachError> {
    let build = |(id, disk): (String, &DiskConfig)| {
        let Some(image) = resources.disks.get(&id) else {
            return Err(AttachError::NotOpened { id });
        };
        let device = build_disk(&id, disk, Arc::clone(image));
        device.report_to(events.clone());
        let handle = device.handle();
        Ok(Built::shared(device).with_handle(handle))
    };
    config.virtio_disks().map(build).collect()
}

fn build_controllers(
    _: &VmConfig,
    resources: &Resources,
    events: &EventSink,
) -> Result<Vec<Built>, AttachError> {
    let controllers = resources.controllers.iter().map(|opened| {
        let controller = opened.build();
        controller.report_to(events.clone());
        let handle = controller.handle();
        Built::new(controller).with_handle(handle)
    });
    Ok(controllers.collect())
}

fn build_nets(
    config: &VmConfig,
    resources: &Resources,
    events: &EventSink,
) -> Result<Vec<Built>, AttachError> {
    let build = |(number, (id, net)): (usize, (String, &NetConfig))| {
        let Some(backend) = resources.nets.get(&id) else {
            return Err(AttachError::NotOpened { id });
        };
        let machine = config.name.as_deref();
        let device = build_net(&id, number, net, Arc::clone(backend), machine);
        device.report_to(events.clone());
        let handle = device.handle();
        Ok(Built::shared(device).with_handle(handle))
    };
    config.nets().enumerate().map(build).collect()
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

impl DeviceManager<'_> {
    /// Attaches everything that `config` names, over `resources`. Opens nothing.
    pub(crate) fn attach_all(
        &self,
        config: &VmConfig,
        resources: &Resources,
    ) -> Result<Devices, AttachError> {
        let mut devices = Devices::default();
        for kind in kinds() {
            let built = (kind.build)(config, resources, self.events)?;
            for (number, device) in (0..).zip(built) {
                self.attach(&mut devices, kind.slots, number, device)?;
            }
        }
        Ok(devices)
    }

    fn attach(
        &self,
        devices: &mut Devices,
        slots: Slots,
        number: u8,
        built: Built,
    ) -> Result<(), AttachError> {
        let Built { device, handle } = built;
        let id = device.id().to_owned();
        let taken: Vec<u8> = devices.slots().collect();
        let Some(slot) = slots.of(number, &taken) else {
            return Err(AttachError::Full { id });
        };
        let parts = VirtioParts {
            mask: device.mask(),
            device,
            ram: self.ram.clone(),
            wiring: Arc::clone(&self.wiring),
            workers: in_turn(self.workers, taken.len()),
            events: self.events.clone(),
        };
        match VirtioPci::plug(self.root, slot, parts) {
            Ok(_) => {
                tracing::debug!(id, address = address(slot), "attached");
                let at = PciDevice { id, slot };
                devices.0.push(Attached { at, handle });
                Ok(())
            }
            Err(error) => Err(AttachError::Pci { id, error }),
        }
    }
}

/// The workers in the order in which a device uses them that is plugged after `plugged` others: its
/// first task goes to the next worker. The list itself keeps its order, so that after a reboot the
/// same configuration assigns every disk to the same workers: its rings are bound to the threads
/// that served them first.
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
    fn an_address_is_shown_as_linux_shows_it() {
        let at = |slot| PciDevice {
            id: "disk0".to_owned(),
            slot,
        };
        assert_eq!(at(3).address(), "00:03.0");
        assert_eq!(at(31).address(), "00:1f.0");
    }

    #[test]
    fn each_kind_has_slots_of_its_own_until_they_run_out() {
        let first = |slots: Slots, taken: &[u8]| [0, 1, 2].map(|number| slots.of(number, taken));
        assert_eq!(first(Slots::At(1), &[]), [Some(1), None, None]);
        assert_eq!(first(Slots::Upwards(3), &[]), [Some(3), Some(4), Some(5)]);
        assert_eq!(first(Slots::Upwards(30), &[]), [Some(30), Some(31), None]);
        assert_eq!(first(Slots::Upwards(3), &[4]), [Some(3), None, Some(5)]);
        assert_eq!(
            first(Slots::Downwards(31), &[]),
            [Some(31), Some(30), Some(29)]
        );
        assert_eq!(first(Slots::Downwards(1), &[]), [Some(1), None, None]);
        let controllers = Slots::AtThenUpwards(2, 16);
        assert_eq!(first(controllers, &[]), [Some(2), Some(16), Some(17)]);
        assert_eq!(Slots::Free.of(0, &[1, 2, 3, 15, 31]), Some(14));
        let most: Vec<u8> = (1..=29).collect();
        assert_eq!(Slots::Free.of(0, &most), Some(30));
        let all: Vec<u8> = SLOTS.collect();
        assert_eq!(Slots::Free.of(0, &all), None);
    }

    #[test]
    fn every_key_of_a_device_is_a_kind() {
        assert_eq!(kinds().count(), VmConfig::DEVICES.len() + KINDS.len());
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
