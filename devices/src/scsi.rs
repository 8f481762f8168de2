//! SCSI host adapter with its targets: the configuration side (VIRTIO 1.2 §5.6).
//!
//! A controller offers one control, one event and several request queues. Behind it are logical units, each on a
//! [`Disk`]; they come and go while the guest runs ([`ScsiHandle`]). The way of a command: `requests` takes it from
//! the ring, `request` takes its frame apart, `parse` and `table` make it a typed command, `exec` decides and answers
//! it or makes a `job`, `backend` brings the job's requests to the disk. Knows no PCI, no threads and no paths.

mod address;
mod admit;
mod attach;
mod backend;
mod cdb;
mod cdrom;
mod config;
mod control;
mod events;
mod exec;
mod handle;
mod hub;
mod identity;
mod job;
mod lock;
mod luns;
mod mode;
mod opcodes;
mod opened;
mod parse;
mod plan;
mod request;
mod requests;
mod reserve;
mod reserving;
mod saved;
mod sense;
mod slot;
mod sync;
mod table;
mod unit;
mod wire;
mod workers;

use std::sync::{Arc, Mutex};

use splitring_virtio::spec::id;
use splitring_virtio::spec::scsi::{
    Config, DEFAULT_CDB_SIZE, DEFAULT_SENSE_SIZE, Event, REQUEST_QUEUE, feature,
};
use zerocopy::IntoBytes;

use crate::debug::opaque_debug;
use crate::device::{DeviceKind, Start, StartError, Task, VirtioDevice, read_window};
use crate::disk::Disk;
use crate::events::EventSink;
use crate::saved::{StateError, Versioned};
use control::Control;
use events::Wanted;
use hub::Hub;
use request::{CDB_SIZES, SENSE_SIZES, Sizes};
use requests::Requests;
use saved::ScsiState;
use sense::attention;
use sync::lock;

/// A SCSI bus controller.
const KIND: DeviceKind = DeviceKind {
    type_id: id::SCSI,
    pci_class: 0x01_0000,
};

pub use config::{ScsiConfig, ScsiError, UnitConfig, open_reservations};
pub use handle::ScsiHandle;
pub use opened::{OpenController, UnitInfo};
pub use plan::open_controllers;

/// Descriptors of the control and of the event queue.
const SMALL_QUEUE: u16 = 64;
/// Most sectors of a transfer: what the block limits page says, at 512 bytes.
const MAX_SECTORS: u32 = identity::MAX_TRANSFER_BLOCKS;
/// Commands a unit takes at a time, unless the queue is smaller.
const COMMANDS_PER_UNIT: u32 = 128;

/// A SCSI host adapter.
pub struct Scsi {
    hub: Arc<Hub>,
    queue_sizes: Vec<u16>,
    max_target: u8,
    /// As the driver wrote them; clamped when they are used.
    sizes: Mutex<Sizes>,
}

opaque_debug! { Scsi |it| { id: it.id(), max_target: it.max_target } }

impl Scsi {
    /// A controller with these units, for a machine that is started once; see [`OpenController`] for others. Units
    /// without a place get the first free target.
    ///
    /// # Errors
    /// A number is out of range, or two units want the same place or name.
    pub fn new(
        config: &ScsiConfig,
        units: Vec<(UnitConfig, Arc<dyn Disk>)>,
    ) -> Result<Self, ScsiError> {
        Ok(OpenController::new(config, units)?.build())
    }

    /// The controller in front of `hub`.
    fn with_hub(hub: Arc<Hub>) -> Self {
        let config = &hub.opened.config;
        let highest = hub
            .map()
            .iter()
            .map(|nexus| nexus.place.target)
            .max()
            .unwrap_or(0);
        let mut queue_sizes = vec![SMALL_QUEUE; 2];
        queue_sizes.extend(std::iter::repeat_n(
            config.queue_size,
            usize::from(config.queues),
        ));
        Self {
            max_target: config.max_target.unwrap_or(highest).max(highest),
            queue_sizes,
            sizes: Mutex::new(DEFAULT_SIZES),
            hub,
        }
    }

    /// Sends the events of the controller and its disks to `sink` from now on. Only the first call counts.
    pub fn report_to(&self, sink: EventSink) {
        self.hub.report_to(sink);
    }

    /// Adds, removes and resizes units while the guest runs.
    #[must_use]
    pub fn handle(&self) -> ScsiHandle {
        ScsiHandle::new(&self.hub)
    }

    fn request_queue_size(&self) -> u16 {
        self.queue_sizes
            .get(usize::from(REQUEST_QUEUE))
            .copied()
            .unwrap_or(1)
    }

    fn config(&self) -> Config {
        let size = u32::from(self.request_queue_size());
        let sizes = self.sizes();
        let requests = self
            .queue_sizes
            .len()
            .saturating_sub(usize::from(REQUEST_QUEUE));
        Config {
            num_queues: u32::try_from(requests).unwrap_or(1).into(),
            // Request and response take a descriptor each.
            seg_max: size.saturating_sub(2).max(1).into(),
            max_sectors: MAX_SECTORS.into(),
            cmd_per_lun: size.min(COMMANDS_PER_UNIT).into(),
            event_info_size: u32::try_from(size_of::<Event>()).unwrap_or(16).into(),
            sense_size: sizes.sense.into(),
            cdb_size: sizes.cdb.into(),
            max_channel: 0.into(),
            max_target: u16::from(self.max_target).into(),
            max_lun: u32::from(crate::disk::config::MAX_LUN).into(),
        }
    }

    /// The sizes in force.
    fn sizes(&self) -> Sizes {
        let written = *lock(&self.sizes);
        Sizes {
            cdb: written.cdb.clamp(*CDB_SIZES.start(), *CDB_SIZES.end()),
            sense: written
                .sense
                .clamp(*SENSE_SIZES.start(), *SENSE_SIZES.end()),
        }
    }
}

impl OpenController {
    /// Makes the controller as it is after power-on. Opens nothing and cannot fail.
    ///
    /// The controller that was built before must have been dropped, with its tasks stopped. Rings are bound to the
    /// thread that used them first, so every controller must run its queues on the same workers as the first one.
    ///
    /// Mode pages, reservations that were not made to persist through a power loss and the prevention of medium
    /// removal are as after power-on, unless another machine of this process has the same image at work. Registrations
    /// and reservations that persist, and whether there is a medium, stay as they are.
    #[must_use]
    pub fn build(&self) -> Scsi {
        let current = self.0.next();
        let hub = Hub::new(&self.0, *current);
        for disk in self.0.disks().iter() {
            disk.unit.power_on(self.0.port);
            hub.plug(disk.clone());
        }
        drop(current);
        Scsi::with_hub(hub)
    }
}

const DEFAULT_SIZES: Sizes = Sizes {
    cdb: DEFAULT_CDB_SIZE,
    sense: DEFAULT_SENSE_SIZE,
};
const SENSE_SIZE_AT: usize = 20;
const CDB_SIZE_AT: usize = 24;

/// Takes over what a write of `data` at `offset` says about the four bytes at `field`.
fn overlay(value: u32, field: usize, offset: usize, data: &[u8]) -> u32 {
    let mut bytes = value.to_le_bytes();
    for (at, byte) in (field..).zip(&mut bytes) {
        if let Some(new) = at.checked_sub(offset).and_then(|index| data.get(index)) {
            *byte = *new;
        }
    }
    u32::from_le_bytes(bytes)
}

impl VirtioDevice for Scsi {
    fn id(&self) -> &str {
        &self.hub.opened.config.id
    }

    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        feature::HOTPLUG | feature::CHANGE
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_window(self.config().as_bytes(), offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut sizes = lock(&self.sizes);
        sizes.sense = overlay(sizes.sense, SENSE_SIZE_AT, offset, data);
        sizes.cdb = overlay(sizes.cdb, CDB_SIZE_AT, offset, data);
    }

    fn start(&self, start: Start) -> Result<Vec<Task>, StartError> {
        let failed = |error| {
            StartError::new(format_args!(
                "{}: cannot make its mailboxes: {error}",
                self.hub.opened.config.id
            ))
        };
        let sizes = self.sizes();
        let wanted = Wanted {
            hotplug: start.features & feature::HOTPLUG != 0,
            change: start.features & feature::CHANGE != 0,
        };
        let small: Vec<u16> = start
            .queues
            .iter()
            .map(|queue| queue.index)
            .filter(|index| *index < REQUEST_QUEUE)
            .collect();
        let control = Control::new(&self.hub, wanted).map_err(failed)?;
        let mut tasks = vec![Task {
            queues: small,
            handler: Box::new(control),
        }];
        for queue in start
            .queues
            .iter()
            .filter(|queue| queue.index >= REQUEST_QUEUE)
        {
            let ring = queue.index.saturating_sub(REQUEST_QUEUE);
            let ram = start.ram.clone();
            let handler = Requests::new(&self.hub, queue.index, ring, queue.size, ram, sizes)
                .map_err(failed)?;
            tasks.push(Task {
                queues: vec![queue.index],
                handler: Box::new(handler),
            });
        }
        Ok(tasks)
    }

    fn reset(&self) {
        *lock(&self.sizes) = DEFAULT_SIZES;
        for nexus in self.hub.map().iter() {
            nexus.unit.reset_by(nexus.port);
            nexus.restart(attention::POWER_ON);
        }
    }

    fn save(&self) -> Result<Versioned, StateError> {
        let sizes = *lock(&self.sizes);
        Versioned::new(&ScsiState::of(&self.hub, sizes))
    }

    fn restore(&self, state: &Versioned) -> Result<(), StateError> {
        let state: ScsiState = state.read()?;
        state.apply(&self.hub)?;
        *lock(&self.sizes) = state.sizes();
        Ok(())
    }
}

#[cfg(test)]
#[path = "scsi_tests.rs"]
mod tests;
