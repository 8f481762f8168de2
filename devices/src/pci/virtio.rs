//! A virtio device as a PCI function (VIRTIO 1.2 §4.1, modern only).
//!
//! Registers are mapped onto the transport's state machine and the device; what runs the queues is a worker's.
//! It doesn't know KVM nor any device's chapter.
//!
//! ```text
//! BAR 0, 64 KiB   0x0000 common · 0x1000 ISR · 0x2000 device · 0x3000 pending bits
//!                 0x4000 notify, 4 bytes a queue · 0x8000 MSI-X table
//! BAR 2           shared memory regions, if the device has any
//! ```

mod common;
mod layout;
mod run;
mod save;
#[cfg(test)]
mod tests;
mod window;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use splitring_virtio::device::transport::Transport;
use splitring_virtio::spec::pci as spec;
use vmm_sys_util::eventfd::EventFd;

use super::config::{ConfigSpace, Identity};
use super::interrupts::{Interrupts, Shared};
use super::msix::{MAX_VECTORS, Msix};
use super::root::{PciError, PciFunction, PciRoot};
use crate::bus::BusDevice;
use crate::debug::opaque_debug;
use crate::device::VirtioDevice;
use crate::eventfd::eventfd;
use crate::events::EventSink;
use crate::ram::Ram;
use crate::wiring::Wiring;
use crate::worker::{TaskId, Worker};

use layout::{REGISTERS_BAR, Region, SHARED_BAR, SharedLayout, add_bars, add_capabilities, region};

/// Most queues: each wants a vector, and configuration changes one more.
const MAX_QUEUES: usize = MAX_VECTORS as usize - 1;
/// What a virtio function is made of.
pub struct VirtioParts {
    /// The device.
    pub device: Arc<dyn VirtioDevice>,
    /// The machine's memory.
    pub ram: Ram,
    /// The way to the hypervisor.
    pub wiring: Arc<dyn Wiring>,
    /// Who runs its queues, which are spread over them evenly. At least one.
    pub workers: Vec<Arc<Worker>>,
    /// Features that may be offered, all ones for all; the others are hidden from the driver.
    pub mask: u64,
    /// Where it is reported that the device needs a reset.
    pub events: EventSink,
}

opaque_debug! { VirtioParts |it| { device: it.device.id(), mask: it.mask } }

/// A virtio device on the PCI bus.
pub struct VirtioPci {
    device: Arc<dyn VirtioDevice>,
    ram: Ram,
    wiring: Arc<dyn Wiring>,
    workers: Vec<Arc<Worker>>,
    config: ConfigSpace,
    /// Offset of the MSI-X capability.
    msix_at: u16,
    /// Offset of the window capability.
    window_at: u16,
    /// Where the device's shared memory is in its BAR.
    shared: SharedLayout,
    gsi: u32,
    interrupts: Shared,
    /// A doorbell a queue.
    kicks: Vec<Arc<EventFd>>,
    /// What interrupts the driver for each queue that is served outside this process; none if the device hands none over.
    calls: Vec<Arc<EventFd>>,
    state: Mutex<State>,
}

opaque_debug! { VirtioPci |it| { device: it.device.id(), gsi: it.gsi } }

struct State {
    transport: Transport,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    /// Where BAR 0 answers.
    base: Option<u64>,
    running: Option<RunningDevice>,
    /// The function may write and read memory.
    bus_master: bool,
    /// The driver is ready, but the function may not yet reach its rings.
    deferred: bool,
    /// The function has left the bus, and never starts again.
    ejected: bool,
    /// Who listens for the end of interrupts on the line, once it is connected.
    line_watch: Option<(Arc<Worker>, TaskId)>,
}

/// What a started device has running.
#[derive(Default)]
struct RunningDevice {
    tasks: Vec<(Arc<Worker>, TaskId)>,
    /// The queues that have a doorbell.
    queues: Vec<u16>,
    /// Where the BAR was when they were last bound.
    bound_at: Option<u64>,
    /// Those that are: address and queue.
    bound: Vec<(u64, u16)>,
}

impl VirtioPci {
    /// Makes a function of `parts` and puts it into `slot` of `root`, whether or not a guest runs. It leaves the bus by
    /// [`PciRoot::eject`].
    ///
    /// # Errors
    /// The slot is not free, or the host refuses what the function needs. Nothing is left behind then.
    pub fn plug(root: &PciRoot, slot: u8, parts: VirtioParts) -> Result<Arc<Self>, PciError> {
        let host = |operation| {
            move |source| PciError::Host {
                slot,
                operation,
                source,
            }
        };
        let place = root.reserve(slot)?;
        let page = place.page().clone();
        let sizes = parts.device.queue_sizes();
        let sizes = sizes.get(..MAX_QUEUES).unwrap_or(sizes);
        let vectors = u16::try_from(sizes.len().saturating_add(1)).unwrap_or(MAX_VECTORS);
        let mut config = ConfigSpace::new(page.clone(), identity(parts.device.as_ref()));
        let gsi = root.intx(slot);
        config.set_interrupt(u8::try_from(gsi).unwrap_or(0xff));
        let shared = SharedLayout::new(parts.device.shared_memory());
        let (msix_at, window_at) = add_bars(&mut config, &shared)
            .and_then(|()| add_capabilities(&mut config, vectors, &shared))
            .ok_or_else(|| host("lay capabilities out")(std::io::ErrorKind::OutOfMemory.into()))?;
        let id = parts.device.id().to_owned();
        let requester = u16::from(slot) << 3;
        let msix = Msix::new(vectors, requester, Arc::clone(&parts.wiring), id.clone());
        let msix = msix.map_err(host("create an eventfd"))?;
        let interrupts = Interrupts::new(id, msix, sizes.len(), page, parts.events);
        let events = |sizes: &[u16]| -> std::io::Result<Vec<_>> {
            sizes.iter().map(|_| eventfd().map(Arc::new)).collect()
        };
        let kicks = events(sizes);
        let handed = if parts.device.hands_over() {
            sizes
        } else {
            &[]
        };
        let calls = events(handed);
        let (features, rules) = (parts.device.features(), parts.device.feature_rules());
        let transport = Transport::new(features, parts.mask, rules, sizes);
        let function = Arc::new(Self {
            config,
            msix_at,
            window_at,
            shared,
            gsi,
            interrupts: Arc::new(interrupts.map_err(host("create an eventfd"))?),
            kicks: kicks.map_err(host("create an eventfd"))?,
            calls: calls.map_err(host("create an eventfd"))?,
            state: Mutex::new(State {
                transport,
                device_feature_select: 0,
                driver_feature_select: 0,
                queue_select: 0,
                base: None,
                running: None,
                bus_master: false,
                deferred: false,
                ejected: false,
                line_watch: None,
            }),
            device: parts.device,
            ram: parts.ram,
            wiring: parts.wiring,
            workers: parts.workers,
        });
        let registers: Arc<dyn BusDevice> = function.clone();
        let shared: Arc<dyn BusDevice> = Arc::new(Unmapped);
        let bars = vec![(REGISTERS_BAR, registers), (SHARED_BAR, shared)];
        place.insert(function.clone(), bars)?;
        Ok(function)
    }

    /// The device behind the registers.
    pub fn device(&self) -> &Arc<dyn VirtioDevice> {
        &self.device
    }

    /// Where its workers raise interrupts.
    #[cfg(test)]
    fn sink(&self) -> Arc<dyn crate::interrupt::InterruptSink> {
        self.interrupts.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.stop();
    }
}

fn identity(device: &dyn VirtioDevice) -> Identity {
    let kind = device.kind();
    Identity {
        vendor: spec::VENDOR,
        device: spec::DEVICE_BASE.saturating_add(kind.type_id),
        revision: spec::REVISION,
        class: kind.pci_class,
        subsystem_vendor: spec::VENDOR,
        // Below 0x40 would say transitional (§4.1.2.1).
        subsystem: kind.type_id.saturating_add(0x40),
    }
}

impl PciFunction for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.fill_window(offset, data.len());
        self.config.read(offset, data);
    }

    fn config_written(&self, offset: u16, len: usize) {
        let touches = |from: u16, to: u16| {
            let end = usize::from(offset).saturating_add(len);
            offset < to && usize::from(from) < end
        };
        let control = self.msix_at.saturating_add(2);
        if touches(control, control.saturating_add(2)) {
            let mut word = [0; 2];
            self.config.read(control, &mut word);
            self.interrupts.msix.set_control(u16::from_le_bytes(word));
            self.line_wanted();
        }
        if touches(
            super::config::COMMAND,
            super::config::COMMAND.saturating_add(2),
        ) {
            self.interrupts.resample();
            self.follow_bus_master();
        }
        self.window_written(touches);
    }

    fn bar_moved(&self, index: u8, base: Option<u64>) {
        if index == SHARED_BAR {
            for (id, offset) in self.shared.regions() {
                let address = base.map(|base| base.saturating_add(offset));
                self.device.shared_memory_moved(id, address);
            }
            return;
        }
        let mut state = self.state();
        state.base = base;
        self.move_doorbells(&mut state);
    }

    fn ejected(&self) {
        let mut state = self.state();
        state.ejected = true;
        state.base = None;
        drop(state);
        for (id, _) in self.shared.regions() {
            self.device.shared_memory_moved(id, None);
        }
        self.stop();
        self.interrupts.release();
    }
}

/// Shared memory where the guest can't reach it directly: all ones, and writes are lost.
struct Unmapped;

impl BusDevice for Unmapped {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

impl BusDevice for VirtioPci {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match region(offset, data.len()) {
            Some(Region::Common(at)) => self.read_common(at, data),
            Some(Region::Isr) => data.fill(self.interrupts.read_isr()),
            Some(Region::Device(at)) => self
                .interrupts
                .read_config(|| self.device.read_config(at, data)),
            Some(Region::Pending(at)) => self.interrupts.msix.read_pending(at, data),
            Some(Region::Table(at)) => self.interrupts.msix.read_table(at, data),
            Some(Region::Notify(_)) | None => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match region(offset, data.len()) {
            Some(Region::Common(at)) => self.write_common(at, data),
            Some(Region::Device(at)) => {
                let _one_at_a_time = self.state();
                self.device.write_config(at, data);
            }
            Some(Region::Notify(at)) => self.notify(at),
            Some(Region::Table(at)) => self.interrupts.msix.write_table(at, data),
            Some(Region::Isr | Region::Pending(_)) | None => {}
        }
    }
}
