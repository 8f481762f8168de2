//! A guest with a PCI bus and a worker: it drives a function the way a kernel does, through configuration space and
//! BAR accesses, with a stand-in for the hypervisor.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use splitring_virtio::spec::pci::common as reg;
use splitring_virtio::spec::{feature, status};
use vm_memory::{Bytes, GuestAddress};

use super::ring::{Buffer, GuestRing};
use super::wiring::FakeWiring;
use super::{memory, observed};
use crate::bus::Bus;
use crate::device::VirtioDevice;
use crate::events::{DeviceEvent, EventSink};
use crate::pci::root::{PciError, PciPlan, PciRoot};
use crate::pci::virtio::{VirtioParts, VirtioPci};
use crate::ram::Ram;
use crate::worker::{Failure, OnFailure, Worker};

pub(crate) const ECAM: u64 = 0xe000_0000;
/// Where BARs may be.
pub(crate) const WINDOW: std::ops::Range<u64> = 0xc000_0000..0xd000_0000;
/// Offsets of the regions in the BAR, as a driver finds them in the capabilities.
pub(crate) const ISR: u64 = 0x1000;
pub(crate) const DEVICE: u64 = 0x2000;
pub(crate) const PENDING: u64 = 0x3000;
pub(crate) const NOTIFY: u64 = 0x4000;
pub(crate) const TABLE: u64 = 0x8000;
/// The device's slot.
pub(crate) const SLOT: u8 = 3;
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A machine with one virtio device.
pub(crate) struct Guest {
    pub(crate) ram: Ram,
    pub(crate) mmio: Arc<Bus>,
    pub(crate) root: Arc<PciRoot>,
    pub(crate) function: Arc<VirtioPci>,
    pub(crate) wiring: Arc<FakeWiring>,
    /// The first one.
    pub(crate) worker: Arc<Worker>,
    pub(crate) failures: Arc<Mutex<Vec<Failure>>>,
    /// What the function reported.
    pub(crate) events: Arc<Mutex<Vec<DeviceEvent>>>,
    pub(crate) rings: Vec<GuestRing>,
    /// What the driver accepts of what is offered.
    pub(crate) wants: u64,
}

impl Guest {
    /// A machine whose driver has not looked yet.
    pub(crate) fn new(device: Arc<dyn VirtioDevice>) -> Self {
        Self::with_mask(device, u64::MAX)
    }

    pub(crate) fn with_mask(device: Arc<dyn VirtioDevice>, mask: u64) -> Self {
        Self::with_workers(device, mask, 1)
    }

    pub(crate) fn with_workers(device: Arc<dyn VirtioDevice>, mask: u64, workers: usize) -> Self {
        let failures = Arc::default();
        let workers = spawn_workers(workers, &failures);
        Self::on_workers(device, mask, &workers, failures)
    }

    /// A machine that is run by workers that may have run others before.
    pub(crate) fn on_workers(
        device: Arc<dyn VirtioDevice>,
        mask: u64,
        workers: &[Arc<Worker>],
        failures: Arc<Mutex<Vec<Failure>>>,
    ) -> Self {
        Self::with_memory(device, mask, workers, failures, memory())
    }

    /// A machine whose memory may have been another's.
    pub(crate) fn with_memory(
        device: Arc<dyn VirtioDevice>,
        mask: u64,
        workers: &[Arc<Worker>],
        failures: Arc<Mutex<Vec<Failure>>>,
        ram: Ram,
    ) -> Self {
        let mmio = Arc::new(Bus::new());
        let plan = PciPlan {
            mmio: Arc::clone(&mmio),
            windows: vec![WINDOW, 0x10_0000_0000..0x20_0000_0000],
            intx: 16..24,
        };
        let root = PciRoot::new(plan).unwrap();
        mmio.insert(ECAM, 1 << 20, root.clone()).unwrap();
        let wiring = Arc::new(FakeWiring::default());
        let (sink, events) = observed();
        let parts = VirtioParts {
            device,
            ram: ram.clone(),
            wiring: wiring.clone(),
            workers: workers.to_vec(),
            mask,
            events: sink,
        };
        let function = VirtioPci::plug(&root, SLOT, parts).unwrap();
        Self {
            ram,
            mmio,
            root,
            function,
            wiring,
            worker: Arc::clone(&workers[0]),
            failures,
            events,
            rings: Vec::new(),
            wants: u64::MAX,
        }
    }

    /// A machine whose driver runs all the device's queues.
    pub(crate) fn started(device: Arc<dyn VirtioDevice>) -> Self {
        let mut guest = Self::new(device);
        guest.decode_memory();
        guest.restart();
        guest
    }

    /// Puts a function of `device` into the slot, which must be empty.
    pub(crate) fn insert(&mut self, device: Arc<dyn VirtioDevice>) {
        self.function = self.plug(SLOT, device).unwrap();
    }

    /// Puts a function of `device` into `slot`.
    pub(crate) fn plug(
        &self,
        slot: u8,
        device: Arc<dyn VirtioDevice>,
    ) -> Result<Arc<VirtioPci>, PciError> {
        let parts = VirtioParts {
            mask: device.mask(),
            device,
            ram: self.ram.clone(),
            wiring: self.wiring.clone(),
            workers: vec![Arc::clone(&self.worker)],
            events: EventSink::default(),
        };
        VirtioPci::plug(&self.root, slot, parts)
    }

    // Configuration space

    pub(crate) fn config_read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.root_bus_read(SLOT, offset, &mut data);
        data
    }

    pub(crate) fn root_bus_read(&self, slot: u8, offset: u64, data: &mut [u8]) {
        let at = ECAM + (u64::from(slot) << 15) + offset;
        assert!(self.mmio.read(at, data));
    }

    pub(crate) fn config_read32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.config_read(offset))
    }

    pub(crate) fn config_write(&self, offset: u64, data: &[u8]) {
        let at = ECAM + (u64::from(SLOT) << 15) + offset;
        assert!(self.mmio.write(at, data));
    }

    /// Memory decoding and bus mastering on, as `pci_enable_device` does.
    pub(crate) fn decode_memory(&self) {
        self.config_write(4, &0x0006_u16.to_le_bytes());
    }

    pub(crate) fn bar(&self) -> u64 {
        u64::from_le_bytes(self.config_read(0x10)) & !0xf
    }

    /// Offset of the first capability `id` for which `pick` holds.
    pub(crate) fn capability(&self, id: u8, pick: impl Fn(u64) -> bool) -> Option<u64> {
        let mut at = u64::from(self.config_read::<1>(0x34)[0]);
        while at != 0 {
            let [found, next] = self.config_read(at);
            if found == id && pick(at) {
                return Some(at);
            }
            at = u64::from(next);
        }
        None
    }

    // Registers

    pub(crate) fn bar_read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.mmio.read(self.bar() + offset, &mut data);
        data
    }

    /// A write goes to a bound doorbell first, as KVM has it.
    pub(crate) fn bar_write(&self, offset: u64, data: &[u8]) {
        let addr = self.bar() + offset;
        if !self.wiring.ring_doorbell(addr) {
            self.mmio.write(addr, data);
        }
    }

    pub(crate) fn common<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.bar_read(offset)
    }

    pub(crate) fn common16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.common(offset))
    }

    pub(crate) fn set16(&self, offset: u64, value: u16) {
        self.bar_write(offset, &value.to_le_bytes());
    }

    pub(crate) fn set32(&self, offset: u64, value: u32) {
        self.bar_write(offset, &value.to_le_bytes());
    }

    /// A 64-bit field, as two halves.
    pub(crate) fn set64(&self, offset: u64, value: u64) {
        let bytes = value.to_le_bytes();
        self.bar_write(offset, &bytes[..4]);
        self.bar_write(offset + 4, &bytes[4..]);
    }

    pub(crate) fn status(&self) -> u8 {
        let [status] = self.common(reg::DEVICE_STATUS);
        status
    }

    pub(crate) fn set_status(&self, value: u8) {
        self.bar_write(reg::DEVICE_STATUS, &[value]);
    }

    pub(crate) fn add_status(&self, bits: u8) {
        self.set_status(self.status() | bits);
    }

    pub(crate) fn offered(&self) -> u64 {
        let half = |select: u32| {
            self.set32(reg::DEVICE_FEATURE_SELECT, select);
            u64::from(u32::from_le_bytes(self.common(reg::DEVICE_FEATURE)))
        };
        half(0) | half(1) << 32
    }

    pub(crate) fn accept(&self, features: u64) {
        let bytes = features.to_le_bytes();
        for (select, half) in [(0, &bytes[..4]), (1, &bytes[4..])] {
            self.set32(reg::DRIVER_FEATURE_SELECT, select);
            self.bar_write(reg::DRIVER_FEATURE, half);
        }
    }

    /// Reset and negotiation up to FEATURES_OK.
    pub(crate) fn negotiate(&self) {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        self.accept(self.offered() & self.wants | feature::VERSION_1);
        self.add_status(status::FEATURES_OK);
        assert_ne!(self.status() & status::FEATURES_OK, 0, "features refused");
    }

    /// A fresh ring of the offered size for queue `index`, enabled.
    pub(crate) fn enable_queue(&self, index: u16) -> GuestRing {
        self.set16(reg::QUEUE_SELECT, index);
        let size = self.common16(reg::QUEUE_SIZE);
        let ring = GuestRing::new(&self.ram, index, size);
        self.set64(reg::QUEUE_DESC, ring.descriptors());
        self.set64(reg::QUEUE_DRIVER, ring.available_ring());
        self.set64(reg::QUEUE_DEVICE, ring.used_ring());
        self.set16(reg::QUEUE_ENABLE, 1);
        ring
    }

    /// Resets the device and starts it with fresh rings for all queues.
    pub(crate) fn restart(&mut self) {
        self.negotiate();
        let queues = self.common16(reg::NUM_QUEUES);
        self.rings = (0..queues).map(|index| self.enable_queue(index)).collect();
        self.add_status(status::DRIVER_OK);
    }

    // MSI-X

    /// Turns MSI-X on with vector `n` sending the value `n`, all unmasked.
    pub(crate) fn enable_msix(&self) {
        let at = self.capability(0x11, |_| true).unwrap();
        let [low, high] = self.config_read(at + 2);
        let last = u16::from_le_bytes([low, high]) & 0x7ff;
        self.config_write(at + 2, &0x8000_u16.to_le_bytes());
        for vector in 0..=last {
            self.set_vector(vector, false);
        }
    }

    pub(crate) fn set_vector(&self, vector: u16, masked: bool) {
        let at = TABLE + u64::from(vector) * 16;
        self.set64(at, 0xfee0_0000);
        self.set32(at + 8, u32::from(vector));
        self.set32(at + 12, u32::from(masked));
    }

    // Rings

    /// Makes a chain available in queue `index`; returns its head.
    pub(crate) fn offer(&mut self, index: usize, buffers: &[Buffer]) -> u16 {
        self.rings[index].offer(buffers)
    }

    pub(crate) fn kick(&self, index: u16) {
        self.set16(NOTIFY + 4 * u64::from(index), index);
    }

    /// Waits for `count` used entries of queue `index`: heads and lengths.
    pub(crate) fn wait_used(&mut self, index: usize, count: usize) -> Vec<(u16, u32)> {
        let mut all = Vec::new();
        wait_until("the queue answers", || {
            all.extend(self.rings[index].used());
            all.len() >= count
        });
        all
    }

    pub(crate) fn wait_for_status(&self, bits: u8) {
        wait_until("the status bits are set", || self.status() & bits == bits);
    }

    pub(crate) fn peek(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        let mapping = self.ram.mapping();
        Bytes::read_slice(&*mapping, &mut data, GuestAddress(addr)).unwrap();
        data
    }

    pub(crate) fn poke(&self, addr: u64, data: &[u8]) {
        let mapping = self.ram.mapping();
        Bytes::write_slice(&*mapping, data, GuestAddress(addr)).unwrap();
    }
}

/// Workers that say in `failures` why they can't go on.
pub(crate) fn spawn_workers(count: usize, failures: &Arc<Mutex<Vec<Failure>>>) -> Vec<Arc<Worker>> {
    let failed = Arc::clone(failures);
    let on_failure: OnFailure = Arc::new(move |failure| failed.lock().unwrap().push(failure));
    let window = Some(Duration::from_micros(32));
    let spawn = |index| Worker::spawn(&format!("test{index}"), window, on_failure.clone());
    (0..count).map(|index| spawn(index).unwrap()).collect()
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.function.stop();
    }
}

pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::yield_now();
    }
}
