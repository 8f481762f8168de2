//! The devices of a machine: each entry of the configuration becomes a device in its slot, on its worker.
//!
//! The one list of what can be attached. Knows how to open each kind of backend; not how a device works, nor KVM.

use std::collections::BTreeMap;
use std::sync::Arc;

use splitring_devices::blk::{Blk, BlkHandle};
use splitring_devices::device::VirtioDevice;
use splitring_devices::disk::config::{Bus as DiskBus, DiskConfig};
use splitring_devices::disk::{self, Disk, DiskError};
use splitring_devices::net::{self, MacAddress, Net, NetConfig, NetError, NetHandle};
use splitring_devices::pci::root::{PciError, PciRoot};
use splitring_devices::pci::virtio::{VirtioParts, VirtioPci};
use splitring_devices::ram::Ram;
use splitring_devices::rng::Rng;
use splitring_devices::scsi::{self, ScsiError, ScsiHandle};
use splitring_devices::wiring::Wiring;
use splitring_devices::worker::Worker;

use crate::config::{RNG_ID, VmConfig};

/// Slots by kind, so that a device more of one kind moves no device of another: the generator, the first SCSI controller and
/// from the middle on the others, disks upwards, networks downwards.
const RNG_SLOT: u8 = 1;
const SCSI_SLOT: u8 = 2;
const MORE_SCSI_SLOTS: u8 = 16;
const FIRST_DISK_SLOT: u8 = 3;
const LAST_SLOT: u8 = 31;

/// Why a device can't be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The image.
    #[error("{id}: {error}")]
    Disk {
        /// The disk.
        id: String,
        /// What is wrong with it.
        error: DiskError,
    },
    /// A SCSI controller or a disk of it.
    #[error(transparent)]
    Scsi(#[from] ScsiError),
    /// The network's other end.
    #[error("{id}: {error}")]
    Net {
        /// The card.
        id: String,
        /// What is wrong.
        error: NetError,
    },
    /// The bus.
    #[error("{id}: {error}")]
    Pci {
        /// The device.
        id: String,
        /// Why it has no place.
        error: PciError,
    },
    /// A disk of the embedder's own that nothing in the configuration stands for.
    #[error(
        "{id}: a disk of your own is given, but the configuration has no virtio disk with this id"
    )]
    NotAsked {
        /// The id it was given for.
        id: String,
    },
    /// More devices than slots.
    #[error("{id}: all 31 PCI slots are taken; give the machine fewer devices")]
    Full {
        /// The first without a slot.
        id: String,
    },
}

/// Where a device is; recorded, so that the guest finds it there again.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Place {
    /// The device's name.
    pub id: String,
    /// Its slot on PCI bus 0.
    pub slot: u8,
}

/// Disks that the embedder serves itself, by the ids of the virtio disks they stand behind: the configuration says all
/// else about those, and its path is no more than a name.
#[derive(Clone, Default)]
pub struct OwnDisks(BTreeMap<String, Arc<dyn Disk>>);

impl OwnDisks {
    /// Adds the disk behind `id`.
    #[must_use]
    pub fn with(mut self, id: &str, disk: Arc<dyn Disk>) -> Self {
        self.0.insert(id.to_owned(), disk);
        self
    }
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
}

/// Attaches everything `config` names.
pub(crate) fn attach(
    config: &VmConfig,
    own: &OwnDisks,
    bay: &mut Bay<'_>,
) -> Result<(), AttachError> {
    let mut own = own.0.clone();
    if config.rng {
        bay.plug(RNG_SLOT, Arc::new(Rng::new(RNG_ID)))?;
    }
    for ((id, disk), slot) in virtio_disks(config).zip(FIRST_DISK_SLOT..) {
        let device = open_disk(&id, disk, own.remove(&id))?;
        bay.blk.push(device.handle());
        bay.plug(slot, device)?;
    }
    if let Some((id, _)) = own.pop_first() {
        return Err(AttachError::NotAsked { id });
    }
    let controllers = open_controllers(config)?;
    for (controller, slot) in controllers
        .into_iter()
        .zip(std::iter::once(SCSI_SLOT).chain(MORE_SCSI_SLOTS..))
    {
        bay.scsi.push(controller.handle());
        bay.plug(slot, Arc::new(controller))?;
    }
    for ((number, (id, net)), slot) in (0..).zip(config.nets()).zip((0..=LAST_SLOT).rev()) {
        let device = open_net(&id, number, net, config.name.as_deref())?;
        bay.nets.push(NetHandle::new(&device));
        bay.plug(slot, device)?;
    }
    Ok(())
}

/// Opens every image as a start would, all of them at once, and closes them again.
pub(crate) fn try_disks(config: &VmConfig) -> Result<(), AttachError> {
    let opened: Result<Vec<_>, _> = virtio_disks(config)
        .map(|(id, disk)| open_disk(&id, disk, None))
        .collect();
    let controllers = open_controllers(config);
    opened?;
    controllers?;
    Ok(())
}

fn virtio_disks(config: &VmConfig) -> impl Iterator<Item = (String, &DiskConfig)> {
    config
        .disks()
        .filter(|(_, disk)| disk.bus == DiskBus::Virtio)
}

fn open_controllers(config: &VmConfig) -> Result<Vec<scsi::Scsi>, ScsiError> {
    scsi::open_controllers(config.name.as_deref().unwrap_or_default(), config.disks())
}

fn open_disk(
    id: &str,
    config: &DiskConfig,
    own: Option<Arc<dyn Disk>>,
) -> Result<Arc<Blk>, AttachError> {
    let (queues, depth) = (config.queue_count(), config.queue_len());
    let disk = own.map_or_else(|| disk::open(config), Ok);
    let disk = disk.map_err(|error| AttachError::Disk {
        id: id.to_owned(),
        error,
    })?;
    let serial = config.serial.as_deref().unwrap_or("");
    let blk = Blk::new(id, disk, queues, depth, serial);
    Ok(Arc::new(blk.without(config.hidden_features())))
}

fn open_net(
    id: &str,
    number: usize,
    config: &NetConfig,
    machine: Option<&str>,
) -> Result<Arc<Net>, AttachError> {
    let backend = net::open(config).map_err(|error| AttachError::Net {
        id: id.to_owned(),
        error,
    })?;
    // Two machines on one bridge must differ: by name, or else by the TAP each has for itself.
    let owner = machine.or(backend.interface()).unwrap_or_default();
    let mac = MacAddress::stable(owner, number);
    Ok(Arc::new(Net::new(id, mac, config, backend)))
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
            workers: self.workers.clone(),
        };
        match VirtioPci::plug(self.root, slot, parts) {
            Ok(_) => {
                tracing::debug!(id, slot, "attached");
                self.places.push(Place { id, slot });
                // The next device's first task goes to the next worker.
                self.workers.rotate_left(1);
                Ok(())
            }
            Err(error) => Err(AttachError::Pci { id, error }),
        }
    }
}
