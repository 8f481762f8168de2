//! The guest side of virtio-pci with the function of `splitring-devices`: two register models of
//! section 4.1, one for the driver and one for the device. Configuration space by ECAM, registers
//! through the bus, doorbells and interrupts by eventfds, the device on a worker thread. Tier:
//! quick.
#![expect(unsafe_code, reason = "the accesses reach the one function")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use splitring_devices::blk::Blk as Device;
use splitring_devices::bus::Bus;
use splitring_devices::device::{DeviceKind, SharedRegion, Start, StartError, Task, VirtioDevice};
use splitring_devices::disk::doubles::MemoryDisk;
use splitring_devices::events::EventSink;
use splitring_devices::pci::root::{PciPlan, PciRoot};
use splitring_devices::pci::virtio::{VirtioParts, VirtioPci};
use splitring_devices::wiring::{IntxLine, MsiLine, MsiMessage, Wiring, WiringError};
use splitring_devices::worker::Worker;
use splitring_tests::machine::TestMachine;
use splitring_virtio::driver::blk::{self, Bio, Blk, CompletedRequest, Info, Transfer, Work};
use splitring_virtio::driver::pci::{BarRange, Pci, PciError};
use splitring_virtio::driver::{DmaBytes, Identity, PciFunction, Queue, QueueOptions, Registers};
use splitring_virtio::scatterlist::ScatterList;
use splitring_virtio::spec::feature::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use splitring_virtio::spec::{pci, status};
use vmm_sys_util::eventfd::EventFd;
use zerocopy::FromZeros;
use zerocopy::IntoBytes;

const ECAM: u64 = 0xe000_0000;
const SLOT: u8 = 5;
const LINE: u32 = 16;
const SIZE: u16 = 16;
const SECTORS: usize = 64;
const TIMEOUT: Duration = Duration::from_secs(60);

/// The hypervisor's part: eventfds at addresses, and the messages that they send.
#[derive(Default)]
struct FakeHypervisor {
    doorbells: Mutex<Vec<(u64, Arc<EventFd>)>>,
    messages: Mutex<Vec<(Arc<EventFd>, Message)>>,
    line: Mutex<Option<(Arc<EventFd>, Arc<EventFd>)>>,
}

type Message = Arc<Mutex<MsiMessage>>;

struct Line(Message);

struct Connected;

impl IntxLine for Connected {}

impl MsiLine for Line {
    fn route(&self, message: MsiMessage) -> Result<(), WiringError> {
        *self.0.lock().unwrap() = message;
        Ok(())
    }

    fn attach(&self, _: &Arc<EventFd>) -> Result<(), WiringError> {
        unreachable!("no queue is handed over")
    }

    fn detach(&self, _: &Arc<EventFd>) -> Result<(), WiringError> {
        unreachable!("no queue is handed over")
    }
}

impl Wiring for FakeHypervisor {
    fn bind_notify(&self, addr: u64, fd: &Arc<EventFd>) -> Result<(), WiringError> {
        let fd = Arc::clone(fd);
        self.doorbells.lock().unwrap().push((addr, fd));
        Ok(())
    }

    fn unbind_notify(&self, addr: u64, _fd: &Arc<EventFd>) -> Result<(), WiringError> {
        self.doorbells.lock().unwrap().retain(|(at, _)| *at != addr);
        Ok(())
    }

    fn msi(&self, trigger: &Arc<EventFd>) -> Result<Box<dyn MsiLine>, WiringError> {
        let message = Message::default();
        let seen = (Arc::clone(trigger), Arc::clone(&message));
        self.messages.lock().unwrap().push(seen);
        Ok(Box::new(Line(message)))
    }

    fn intx(
        &self,
        gsi: u32,
        trigger: &Arc<EventFd>,
        resample: &Arc<EventFd>,
    ) -> Result<Box<dyn IntxLine>, WiringError> {
        assert_eq!(gsi, LINE);
        let pair = (Arc::clone(trigger), Arc::clone(resample));
        *self.line.lock().unwrap() = Some(pair);
        Ok(Box::new(Connected))
    }
}

impl FakeHypervisor {
    /// Signals the eventfd of a write to `addr`, if there is one.
    fn ring(&self, addr: u64) -> bool {
        let doorbells = self.doorbells.lock().unwrap();
        let bell = doorbells.iter().find(|(at, _)| *at == addr);
        bell.inspect(|(_, fd)| fd.write(1).unwrap()).is_some()
    }

    /// Returns the message of a pending interrupt, if there is one.
    fn interrupted(&self) -> Option<MsiMessage> {
        let messages = self.messages.lock().unwrap();
        let sent = messages.iter().find(|(fd, _)| fd.read().is_ok());
        sent.map(|(_, message)| *message.lock().unwrap())
    }

    fn line_raised(&self) -> bool {
        let line = self.line.lock().unwrap();
        line.as_ref()
            .is_some_and(|(trigger, _)| trigger.read().is_ok())
    }

    fn end_of_interrupt(&self) {
        let line = self.line.lock().unwrap();
        line.as_ref().unwrap().1.write(1).unwrap();
    }
}

/// The function in its slot, as the driver sees it.
struct SlotFunction {
    mmio: Arc<Bus>,
    hypervisor: Arc<FakeHypervisor>,
}

/// A range of the BAR, by its address on the bus.
struct Bar {
    mmio: Arc<Bus>,
    hypervisor: Arc<FakeHypervisor>,
    start: u64,
    len: u64,
}

fn at(offset: u16) -> u64 {
    ECAM + (u64::from(SLOT) << 15) + u64::from(offset)
}

// SAFETY: there is one function in the slot, and `map_bar` reads the BAR from it.
unsafe impl PciFunction for SlotFunction {
    type Registers = Bar;

    fn read_config(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        assert!(self.mmio.read(at(offset), &mut data));
        u32::from_le_bytes(data)
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        assert!(self.mmio.write(at(offset), &value.to_le_bytes()));
    }

    fn map_bar(&mut self, bar: u8, offset: u64, len: u64) -> Option<Bar> {
        if bar != 0 {
            return None;
        }
        let low = self.read_config(0x10);
        assert_eq!(
            low & 0xf,
            0x4,
            "a 64-bit memory BAR that is not prefetchable"
        );
        let base = u64::from(low & !0xf) | u64::from(self.read_config(0x14)) << 32;
        Some(Bar {
            mmio: Arc::clone(&self.mmio),
            hypervisor: Arc::clone(&self.hypervisor),
            start: base + offset,
            len,
        })
    }
}

impl Bar {
    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xff; N];
        if offset + N as u64 <= self.len {
            assert!(self.mmio.read(self.start + offset, &mut data));
        }
        data
    }

    /// A doorbell receives a write before the bus does, as in KVM.
    fn write(&self, offset: u64, data: &[u8]) {
        let addr = self.start + offset;
        if offset + data.len() as u64 <= self.len && !self.hypervisor.ring(addr) {
            assert!(self.mmio.write(addr, data));
        }
    }
}

// SAFETY: as above.
unsafe impl Registers for Bar {
    fn read8(&self, offset: u64) -> u8 {
        u8::from_le_bytes(self.read(offset))
    }
    fn read16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }
    fn read32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }
    fn write8(&self, offset: u64, value: u8) {
        self.write(offset, &value.to_le_bytes());
    }
    fn write16(&self, offset: u64, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }
    fn write32(&self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }
}

/// A disk that shares memory with its driver.
struct Sharing(Device);

impl VirtioDevice for Sharing {
    fn id(&self) -> &str {
        self.0.id()
    }
    fn kind(&self) -> DeviceKind {
        self.0.kind()
    }
    fn features(&self) -> u64 {
        self.0.features()
    }
    fn queue_sizes(&self) -> &[u16] {
        self.0.queue_sizes()
    }
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.0.read_config(offset, data);
    }
    fn shared_memory(&self) -> &[SharedRegion] {
        &[
            SharedRegion { id: 3, len: 0x8000 },
            SharedRegion { id: 1, len: 0x1000 },
        ]
    }
    fn start(&self, start: Start) -> Result<Vec<Task>, StartError> {
        self.0.start(start)
    }
}

/// A machine with a disk in its slot, and the driver's side of the function.
struct Guest {
    pci: Pci<SlotFunction>,
    hypervisor: Arc<FakeHypervisor>,
    disk: Arc<MemoryDisk>,
    machine: TestMachine,
    // Kept as long as the driver.
    _function: Arc<VirtioPci>,
    _root: Arc<PciRoot>,
}

impl Guest {
    fn new() -> Self {
        let disk = MemoryDisk::new((SECTORS * 512) as u64);
        let device = Device::new("disk0", Arc::new(disk.clone()), 1, SIZE, "pci");
        let machine = TestMachine::new(Sharing(device));
        let mmio = Arc::new(Bus::new());
        let plan = PciPlan {
            mmio: Arc::clone(&mmio),
            windows: std::iter::once(0xc000_0000..0xd000_0000).collect(),
            intx: LINE..LINE + 1,
        };
        let root = PciRoot::new(plan).unwrap();
        mmio.insert(ECAM, 1 << 20, root.clone()).unwrap();
        let failed = Arc::new(|failure| panic!("the worker failed: {failure:?}"));
        let worker = Worker::spawn("pci", Some(Duration::ZERO), failed).unwrap();
        let hypervisor = Arc::new(FakeHypervisor::default());
        let parts = VirtioParts {
            device: Arc::clone(&machine.device),
            ram: machine.ram.clone(),
            wiring: hypervisor.clone(),
            workers: vec![worker],
            mask: u64::MAX,
            events: EventSink::default(),
        };
        let function = VirtioPci::plug(&root, SLOT, parts).unwrap();
        let slot = SlotFunction {
            mmio,
            hypervisor: Arc::clone(&hypervisor),
        };
        Self {
            pci: Pci::new(slot).unwrap(),
            hypervisor,
            disk,
            machine,
            _function: function,
            _root: root,
        }
    }

    /// Resets, negotiates and returns the driver of the one queue, which is not enabled yet.
    fn driver(&mut self) -> Blk {
        self.pci.reset().unwrap();
        let wanted = blk::FEATURES | EVENT_IDX | INDIRECT_DESC;
        let features = self.pci.negotiate(wanted).unwrap();
        assert_eq!(features, self.pci.offered() & (wanted | VERSION_1));
        let mut config = splitring_virtio::spec::blk::Config::new_zeroed();
        self.pci.read_config(0, config.as_mut_bytes()).unwrap();
        let info = Info::new(&config, features);
        assert_eq!(info.capacity, SECTORS as u64);
        let options = QueueOptions::new(SIZE, features).tables(SIZE);
        let ring = self.machine.bytes(options.memory_len(), 64);
        let queue = Queue::new(options, ring, Identity, self.pci.id()).unwrap();
        let frames = self.machine.bytes(Blk::<DmaBytes>::frame_len(1) * 8, 64);
        Blk::new(queue, frames, 1, info)
    }

    fn bio(&mut self, transfer: Transfer, sector: u64, fill: u8) -> Bio {
        let pieces = [512, 1024].map(|len| {
            let mut bytes = self.machine.bytes(len, 16);
            bytes.bytes_mut().fill(fill);
            bytes
        });
        Bio {
            transfer,
            sector,
            data: ScatterList::from_buffers(pieces),
        }
    }

    /// Writes three sectors and reads them back; `wait` returns after an interrupt.
    fn write_and_read(&mut self, driver: &mut Blk, wait: impl Fn(&Self)) {
        for (transfer, fill) in [(Transfer::Write, 0xa5), (Transfer::Read, 0)] {
            let bio = self.bio(transfer, 7, fill);
            driver.bio(1, bio).map_err(|it| it.why).unwrap();
            assert!(!driver.enable_interrupts(), "nothing was in flight");
            driver.publish().send(|| self.pci.notify(0));
            wait(self);
            let done = driver.poll().unwrap().expect("it was interrupted for");
            assert_eq!(done.result, Ok(()));
            bytes_are(done, 0xa5);
        }
        let disk = self.disk.contents();
        let wrong = (0..disk.len()).find(|n| {
            let inside = (7 * 512..10 * 512).contains(n);
            disk[*n] != if inside { 0xa5 } else { 0 }
        });
        assert_eq!(wrong, None, "the disk differs from what was written");
    }
}

fn bytes_are(done: CompletedRequest<DmaBytes>, fill: u8) {
    let Work::Bio(mut bio) = done.work else {
        panic!("it was a bio")
    };
    let mut len = 0;
    bio.data.for_each_mut(|piece| {
        assert!(piece.bytes().iter().all(|byte| *byte == fill));
        len += piece.len();
    });
    assert_eq!(len, 3 * 512);
}

/// Waits until `found` returns something.
fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(start.elapsed() < TIMEOUT, "{what} does not arrive");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_disk_is_driven_by_msix() {
    let mut guest = Guest::new();
    assert_eq!(guest.pci.kind(), 2);
    let mut driver = guest.driver();
    let mut msix = guest.pci.msix().unwrap();
    assert_eq!(msix.vectors(), 2);
    assert!(msix.set(0, 0xfee0_0000, 0x30));
    assert!(msix.set(1, 0xfee0_1000, 0x31));
    assert!(!msix.set(2, 0, 0), "there are two");
    guest.pci.set_config_vector(Some(0)).unwrap();
    guest.pci.set_up_queue(0, &driver.areas(), Some(1)).unwrap();
    guest.pci.set_driver_ok();
    guest.write_and_read(&mut driver, |guest| {
        let message = wait_for("the interrupt", || guest.hypervisor.interrupted());
        assert_eq!((message.address, message.data), (0xfee0_1000, 0x31));
        assert_eq!(message.requester, u16::from(SLOT) << 3);
    });
    // A masked vector's interrupt is delivered when it is unmasked.
    msix.mask(1, true);
    driver.flush(9).map_err(|it| it.why).unwrap();
    assert!(!driver.enable_interrupts());
    driver.publish().send(|| guest.pci.notify(0));
    wait_for("the flush", || driver.poll().unwrap());
    assert_eq!(guest.hypervisor.interrupted(), None);
    msix.mask(1, false);
    wait_for("the pending interrupt", || guest.hypervisor.interrupted());
}

#[test]
fn a_disk_is_driven_by_its_interrupt_line() {
    let mut guest = Guest::new();
    let mut driver = guest.driver();
    guest.pci.set_up_queue(0, &driver.areas(), None).unwrap();
    guest.pci.set_driver_ok();
    guest.write_and_read(&mut driver, |guest| {
        wait_for("the interrupt", || {
            guest.hypervisor.line_raised().then_some(())
        });
        assert_eq!(guest.pci.interrupt_status(), pci::isr::QUEUE);
        assert_eq!(guest.pci.interrupt_status(), 0, "reading clears it");
        guest.hypervisor.end_of_interrupt();
    });
}

#[test]
fn a_reset_returns_buffers_and_the_device_starts_again() {
    let mut guest = Guest::new();
    let mut driver = guest.driver();
    guest.pci.set_up_queue(0, &driver.areas(), None).unwrap();
    guest.pci.set_driver_ok();
    for tag in 0..3 {
        let bio = guest.bio(Transfer::Write, 0, 0x11);
        driver.bio(tag, bio).map_err(|it| it.why).unwrap();
    }
    // Exposed without a notification: the device has not seen it.
    let _ = driver.publish();
    let proof = guest.pci.reset().unwrap();
    assert_eq!(guest.pci.status(), 0);
    let mut back = Vec::new();
    driver.reclaim(&proof, |done| back.push(done.tag)).unwrap();
    back.sort_unstable();
    assert_eq!(back, [0, 1, 2]);
    assert!(guest.disk.contents().iter().all(|byte| *byte == 0));
    let features = guest
        .pci
        .negotiate(blk::FEATURES | EVENT_IDX | INDIRECT_DESC);
    assert!(features.is_ok());
    guest.pci.set_up_queue(0, &driver.areas(), None).unwrap();
    guest.pci.set_driver_ok();
    guest.write_and_read(&mut driver, |guest| {
        wait_for("the interrupt", || {
            guest.hypervisor.line_raised().then_some(())
        });
        let _ = guest.pci.interrupt_status();
        guest.hypervisor.end_of_interrupt();
    });
}

#[test]
fn what_the_device_does_not_offer_is_refused() {
    let mut guest = Guest::new();
    let driver = guest.driver();
    let mut areas = driver.areas();
    assert_eq!(guest.pci.queues(), 1);
    assert_eq!(guest.pci.queue_max(0), SIZE);
    assert_eq!(guest.pci.queue_max(1), 0);
    let refused = guest.pci.set_up_queue(1, &areas, None);
    assert_eq!(
        refused,
        Err(PciError::NoQueue {
            queue: 1,
            size: SIZE
        })
    );
    areas.size = SIZE * 2;
    let refused = guest.pci.set_up_queue(0, &areas, None);
    let size = SIZE * 2;
    assert_eq!(refused, Err(PciError::NoQueue { queue: 0, size }));
    areas.size = SIZE;
    let refused = guest.pci.set_up_queue(0, &areas, Some(2));
    assert_eq!(refused, Err(PciError::NoVector(2)));
    guest.pci.set_up_queue(0, &areas, None).unwrap();
}

#[test]
fn a_device_that_fails_sets_needs_reset() {
    let mut guest = Guest::new();
    let driver = guest.driver();
    let mut areas = driver.areas();
    // The ring's address is outside of memory.
    areas.descriptors = 0x1000;
    guest.pci.set_up_queue(0, &areas, None).unwrap();
    guest.pci.set_driver_ok();
    assert!(guest.pci.needs_reset());
    assert_ne!(guest.pci.status() & status::NEEDS_RESET, 0);
    guest.pci.reset().unwrap();
    assert!(!guest.pci.needs_reset());
}

#[test]
fn the_driver_finds_the_shared_memory_of_the_device() {
    let guest = Guest::new();
    let range = |offset, len| {
        Some(BarRange {
            bar: 2,
            offset,
            len,
        })
    };
    assert_eq!(guest.pci.shared_memory(3), range(0, 0x8000));
    assert_eq!(guest.pci.shared_memory(1), range(0x8000, 0x1000));
    assert_eq!(guest.pci.shared_memory(0), None);
}
