//! `virtio-drivers`, an independent driver, with the block device.
#![expect(
    unsafe_code,
    reason = "the driver's memory and its non-blocking calls are unsafe interfaces"
)]

use std::cell::RefCell;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use splitring_devices::blk::Blk;
use splitring_devices::disk::doubles::{Fate, FaultyDisk, MemoryDisk};
use splitring_devices::disk::{Disk, IoFault};
use splitring_tests::machine::TestMachine;
use splitring_virtio::driver::QueueAreas;
use splitring_virtio::spec::feature::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use virtio_drivers::device::blk::{BlkReq, BlkResp, SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const DISK_LEN: u64 = 1 << 20;
const QUEUE: u16 = 16;

thread_local! {
    /// The machine of the test on this thread: the driver's memory functions have no parameter for
    /// it.
    static MACHINE: RefCell<Option<Rc<RefCell<TestMachine>>>> = const { RefCell::new(None) };
}

fn take(len: usize) -> NonNull<u8> {
    MACHINE.with_borrow(|machine| {
        let machine = machine.as_ref().expect("a machine");
        machine.borrow_mut().take(len, PAGE_SIZE)
    })
}

/// Allocates memory of the machine and never frees it; other buffers are copied.
struct Memory;

// SAFETY: pages are in the machine's own mapping, zeroed, aligned and allocated once, at the
// address that the device uses.
unsafe impl Hal for Memory {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let pages = take(pages * PAGE_SIZE);
        (u64::try_from(pages.addr().get()).expect("64 bits"), pages)
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("no registers in this machine")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let copy = take(buffer.len());
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: both are valid for the length, and don't overlap.
            unsafe { copy.copy_from_nonoverlapping(buffer.cast(), buffer.len()) };
        }
        u64::try_from(copy.addr().get()).expect("64 bits")
    }

    unsafe fn unshare(address: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        if direction != BufferDirection::DriverToDevice {
            let copy =
                std::ptr::with_exposed_provenance::<u8>(usize::try_from(address).expect("64 bits"));
            // SAFETY: the copy was made by `share`, is valid for the length, and does not overlap
            // the buffer.
            unsafe {
                buffer
                    .cast::<u8>()
                    .as_ptr()
                    .copy_from_nonoverlapping(copy, buffer.len())
            };
        }
    }
}

/// A transport that calls the device directly.
struct Direct {
    machine: Rc<RefCell<TestMachine>>,
    mask: u64,
    features: u64,
    status: DeviceStatus,
    areas: Vec<QueueAreas>,
}

impl Transport for Direct {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn read_device_features(&mut self) -> u64 {
        let machine = self.machine.borrow();
        (machine.device.features() | VERSION_1 | EVENT_IDX | INDIRECT_DESC) & self.mask
    }

    fn write_driver_features(&mut self, features: u64) {
        self.features = features;
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        let machine = self.machine.borrow();
        machine
            .device
            .queue_sizes()
            .get(usize::from(queue))
            .map_or(0, |size| u32::from(*size))
    }

    fn notify(&mut self, queue: u16) {
        self.machine.borrow_mut().run_queue(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        self.status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        if status.contains(DeviceStatus::DRIVER_OK)
            && !self.status.contains(DeviceStatus::DRIVER_OK)
        {
            self.machine.borrow_mut().start(self.features, &self.areas);
        }
        self.status = status;
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        _: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        let size = u16::try_from(size).expect("small");
        self.areas.push(QueueAreas {
            size,
            descriptors,
            driver,
            device,
        });
    }

    fn queue_unset(&mut self, _: u16) {
        self.machine.borrow_mut().reset();
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        usize::from(queue) < self.areas.len()
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::QUEUE_INTERRUPT
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(
        &self,
        offset: usize,
    ) -> virtio_drivers::Result<T> {
        let mut value = T::new_zeroed();
        self.machine
            .borrow()
            .device
            .read_config(offset, value.as_mut_bytes());
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> virtio_drivers::Result<()> {
        self.machine
            .borrow()
            .device
            .write_config(offset, value.as_bytes());
        Ok(())
    }
}

type Driver = VirtIOBlk<Memory, Direct>;

/// Returns the byte that a sector is filled with.
fn number(sector: usize) -> u8 {
    u8::try_from(sector + 1).expect("small")
}

/// Runs a test on a new machine, with each of the ring's features on and off.
fn with_driver(test: impl Fn(&mut Driver, &FaultyDisk)) {
    for mask in [
        u64::MAX,
        !EVENT_IDX,
        !INDIRECT_DESC,
        !(EVENT_IDX | INDIRECT_DESC),
    ] {
        let disk = Arc::new(FaultyDisk::new(Arc::new(MemoryDisk::new(DISK_LEN))));
        let device = Blk::new(
            "disk0",
            Arc::<FaultyDisk>::clone(&disk) as Arc<dyn Disk>,
            1,
            QUEUE,
            "independent",
        );
        let machine = Rc::new(RefCell::new(TestMachine::new(device)));
        MACHINE.set(Some(Rc::clone(&machine)));
        let transport = Direct {
            machine,
            mask,
            features: 0,
            status: DeviceStatus::empty(),
            areas: Vec::new(),
        };
        let mut driver = Driver::new(transport).expect("the driver takes the device");
        test(&mut driver, &disk);
        drop(driver);
        MACHINE.set(None);
    }
}

#[test]
fn it_finds_the_disk_and_its_properties() {
    with_driver(|driver, _| {
        assert_eq!(driver.capacity(), DISK_LEN / 512);
        assert!(!driver.readonly());
        let mut id = [0; 20];
        assert_eq!(driver.device_id(&mut id), Ok(11));
        assert_eq!(&id[..11], b"independent");
    });
}

#[test]
fn it_reads_what_it_wrote() {
    with_driver(|driver, _| {
        for (seed, (sector, sectors)) in (1_u8..).zip([(0, 1), (7, 8), (2047, 1), (100, 64)]) {
            let data: Vec<u8> = (0..sectors * SECTOR_SIZE)
                .map(|at| seed.wrapping_mul(31) ^ u8::try_from(at % 251).expect("small"))
                .collect();
            driver.write_blocks(sector, &data).expect("written");
            driver.flush().expect("flushed");
            let mut back = vec![0; data.len()];
            driver.read_blocks(sector, &mut back).expect("read");
            assert!(back == data, "sector {sector}");
        }
    });
}

#[test]
fn it_reports_errors_and_continues() {
    with_driver(|driver, disk| {
        let mut sector = [0; SECTOR_SIZE];
        let end = usize::try_from(DISK_LEN).expect("small") / 512;
        assert_eq!(
            driver.read_blocks(end, &mut sector),
            Err(virtio_drivers::Error::IoError)
        );
        disk.plan([
            Fate::Fail(IoFault::NoSpace),
            Fate::Fail(IoFault::Host(libc::EIO)),
        ]);
        assert_eq!(
            driver.write_blocks(0, &sector),
            Err(virtio_drivers::Error::IoError)
        );
        assert_eq!(
            driver.read_blocks(0, &mut sector),
            Err(virtio_drivers::Error::IoError)
        );
        assert_eq!(driver.read_blocks(0, &mut sector), Ok(()));
    });
}

#[test]
fn it_takes_completions_in_any_order() {
    with_driver(|driver, disk| {
        for sector in 0..4 {
            driver
                .write_blocks(sector, &[number(sector); SECTOR_SIZE])
                .expect("written");
        }
        disk.plan([
            Fate::Delay(90),
            Fate::Delay(60),
            Fate::Delay(30),
            Fate::Pass,
        ]);
        let mut requests: Vec<_> = (0..4)
            .map(|_| (BlkReq::default(), [0; SECTOR_SIZE], BlkResp::default()))
            .collect();
        let mut tokens: Vec<u16> = Vec::new();
        for (sector, (request, buffer, response)) in requests.iter_mut().enumerate() {
            // SAFETY: the three stay in `requests` until they are completed below.
            tokens.push(
                unsafe { driver.read_blocks_nb(sector, request, buffer, response) }.expect("room"),
            );
        }
        let mut order = Vec::new();
        while order.len() < 4 {
            let Some(token) = driver.peek_used() else {
                MACHINE.with_borrow(|machine| {
                    machine
                        .as_ref()
                        .expect("a machine")
                        .borrow_mut()
                        .run_queue(0)
                });
                continue;
            };
            let sector = tokens
                .iter()
                .position(|known| *known == token)
                .expect("one of them");
            let (request, buffer, response) = &mut requests[sector];
            // SAFETY: the same three as at submission.
            unsafe { driver.complete_read_blocks(token, request, buffer, response) }.expect("read");
            assert_eq!(*buffer, [number(sector); SECTOR_SIZE]);
            order.push(sector);
        }
        assert_eq!(order, [3, 2, 1, 0]);
    });
}
