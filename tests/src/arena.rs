//! Memory that several virtio implementations share in one process: both ends of
//! `splitring-virtio`, `virtio-drivers` (through its `Hal` and `Transport`) and `virtio-queue`
//! (through `vm-memory`).
//!
//! A guest address is the pointer's value, so that all of them use the same addresses.
#![expect(
    unsafe_code,
    reason = "one mapping is guest memory for four implementations"
)]

use std::cell::RefCell;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use splitring_devices::ram::{Mapping, Ram};
use splitring_virtio::driver::DmaBytes;
use splitring_virtio::mem::{Access, GuestRam, RamRegion};
use virtio_drivers::device::blk::{BlkReq, BlkResp, VirtIOBlk};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const LEN: usize = 256 << 20;

/// The process's one mapping. Its memory is allocated once and never freed.
pub struct Arena {
    /// The mapping in the form that `virtio-queue` takes.
    pub mapping: Arc<GuestMemoryMmap<()>>,
    start: usize,
    next: AtomicUsize,
}

/// Returns the mapping that all tests of the process share.
pub fn arena() -> &'static Arena {
    static ARENA: OnceLock<Arena> = OnceLock::new();
    ARENA.get_or_init(|| {
        // Looked up before the mapping exists: the kernel may merge adjacent mappings into one
        // line.
        let heap = heap();
        let region = MmapRegion::new(LEN).expect("256 MiB can be mapped");
        let start = region.as_ptr().addr();
        let mut regions: Vec<_> = heap
            .and_then(|heap| heap_region(heap, start))
            .into_iter()
            .chain([region])
            .collect();
        regions.sort_by_key(|region| region.as_ptr().addr());
        let regions = regions.into_iter().map(|region| {
            let address = GuestAddress(u64::try_from(region.as_ptr().addr()).expect("64 bits"));
            GuestRegionMmap::new(region, address).expect("in the address space")
        });
        let mapping = GuestMemoryMmap::from_regions(regions.collect()).expect("apart");
        Arena {
            mapping: Arc::new(mapping),
            start,
            next: AtomicUsize::new(PAGE_SIZE),
        }
    })
}

/// Returns the start of the calling thread's heap. `virtio-drivers` allocates its indirect tables
/// there, and a `Hal` that shares buffers in place leaves them there.
fn heap() -> Option<usize> {
    // Found by an allocation, because valgrind's heap is not named `[heap]`.
    let allocation = Box::new(0u8);
    let address = (&raw const *allocation).addr();
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut ranges = maps.lines().filter_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        Some(number(start)?..number(end)?)
    });
    Some(ranges.find(|range| range.contains(&address))?.start)
}

/// Returns a region for the heap with room to grow, which ends before `mapping`.
fn heap_region(start: usize, mapping: usize) -> Option<MmapRegion<()>> {
    const ROOM: usize = 1 << 30;
    let room = mapping
        .checked_sub(start)
        .map_or(ROOM, |room| room.min(ROOM));
    let ptr = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the region is accessed only at addresses of live allocations.
    unsafe { MmapRegion::build_raw(ptr, room, libc::PROT_READ | libc::PROT_WRITE, 0) }.ok()
}

impl Arena {
    /// Allocates `len` bytes, aligned to `align`.
    fn allocate(&self, len: usize, align: usize) -> NonNull<u8> {
        let step = len.next_multiple_of(align) + align;
        let at = self
            .next
            .fetch_add(step, Ordering::Relaxed)
            .next_multiple_of(align);
        assert!(at + len <= LEN, "the arena is used up");
        let ptr = self.base().wrapping_add(at);
        NonNull::new(ptr).expect("inside the mapping")
    }

    fn base(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.start)
    }

    /// Allocates `len` bytes for a driver of `splitring-virtio`.
    pub fn bytes(&self, len: usize) -> DmaBytes {
        let ptr = self.allocate(len, 64);
        // SAFETY: inside the mapping, which is never unmapped, and allocated once.
        unsafe { DmaBytes::from_raw(ptr, len) }
    }

    /// Allocates `len` bytes for a driver that takes slices.
    pub fn slice(&self, len: usize) -> &'static mut [u8] {
        let ptr = self.allocate(len, 64);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(ptr.as_ptr(), len) }
    }
}

/// Reads a 16-bit word of a ring, for devices of a few lines.
#[inline]
pub fn load16(addr: u64) -> u16 {
    // SAFETY: tests pass addresses of rings they set up, inside the mapping and aligned.
    unsafe { pointer::<u16>(addr).read_volatile() }
}

/// Writes a 16-bit word of a ring, for devices of a few lines.
#[inline]
pub fn store16(addr: u64, value: u16) {
    // SAFETY: as above.
    unsafe { pointer::<u16>(addr).write_volatile(value) }
}

/// Writes an entry of a used ring.
#[inline]
pub fn store_used(addr: u64, id: u16, len: u32) {
    // SAFETY: as above.
    unsafe { pointer::<u64>(addr).write_unaligned(u64::from(id) | u64::from(len) << 32) }
}

#[inline]
fn pointer<T>(addr: u64) -> *mut T {
    std::ptr::with_exposed_provenance_mut(usize::try_from(addr).expect("64 bits"))
}

/// The mapping as guest memory for the device end of `splitring-virtio`.
#[derive(Clone, Copy)]
pub struct ArenaRam;

// SAFETY: the one region is never unmapped.
unsafe impl GuestRam for ArenaRam {
    fn region(&self, addr: u64, _access: Access) -> Option<RamRegion> {
        let arena = arena();
        let start = u64::try_from(arena.start).ok()?;
        // SAFETY: the mapping is this long and there for good.
        let region = unsafe { RamRegion::new(start, LEN as u64, arena.base()) };
        (region.available(addr) > 0).then_some(region)
    }
}

/// Returns the mapping as guest memory for a device of `splitring-devices`.
pub fn device_ram() -> Ram {
    let arena = arena();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the region is never unmapped.
    let region = unsafe {
        MmapRegionBuilder::new_with_bitmap(LEN, splitring_devices::dirty::DirtyPages::new(LEN))
            .with_mmap_prot(protection)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
            .with_raw_mmap_pointer(arena.base())
            .build()
            .expect("a mapping that is there")
    };
    let start = GuestAddress(u64::try_from(arena.start).expect("64 bits"));
    let region = GuestRegionMmap::new(region, start).expect("in the address space");
    Ram::new(Arc::new(
        Mapping::from_regions(vec![region]).expect("one region"),
    ))
}

/// The mapping for `virtio-drivers`. Buffers are shared in place.
pub struct PeerHal;

// SAFETY: pages come from the mapping, are zero and allocated once; addresses are pointers.
unsafe impl Hal for PeerHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let ptr = arena().allocate(pages * PAGE_SIZE, PAGE_SIZE);
        (address(ptr), ptr)
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        panic!("no device of these tests is mapped")
    }

    #[inline]
    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        address(buffer.cast())
    }

    #[inline]
    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}

#[inline]
fn address(ptr: NonNull<u8>) -> u64 {
    ptr.as_ptr().expose_provenance() as u64
}

/// The mapping for `virtio-drivers`, with bounce buffers for memory outside of it: stacks, and the
/// heaps of test threads.
pub struct BouncingHal;

thread_local! {
    /// Free bounce buffers.
    static FREE_BOUNCE_BUFFERS: RefCell<Vec<NonNull<[u8]>>> = const { RefCell::new(Vec::new()) };
}

// SAFETY: as for `PeerHal`; a bounce buffer serves one buffer until that is unshared.
unsafe impl Hal for BouncingHal {
    fn dma_alloc(pages: usize, direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        PeerHal::dma_alloc(pages, direction)
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        panic!("no device of these tests is mapped")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        let copy = FREE_BOUNCE_BUFFERS.with_borrow_mut(|free| {
            let found = free.iter().position(|copy| copy.len() == buffer.len());
            found.map(|at| free.swap_remove(at))
        });
        let copy = copy.map_or_else(|| arena().allocate(buffer.len(), 16), NonNull::cast);
        // SAFETY: both are valid for the buffer's length, and nothing else uses the copy.
        unsafe {
            buffer
                .cast::<u8>()
                .copy_to_nonoverlapping(copy, buffer.len())
        };
        address(copy)
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        let copy = NonNull::new(pointer::<u8>(paddr)).expect("an address that share returned");
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: as in `share`.
            unsafe { copy.copy_to_nonoverlapping(buffer.cast(), buffer.len()) };
        }
        let copy = NonNull::slice_from_raw_parts(copy, buffer.len());
        FREE_BOUNCE_BUFFERS.with_borrow_mut(|free| free.push(copy));
    }
}

/// The size and the addresses of a queue, as the driver configured them.
#[derive(Clone, Copy, Debug)]
pub struct QueueAddresses {
    /// Number of descriptors.
    pub size: u16,
    /// Address of the descriptor table.
    pub descriptors: u64,
    /// Address of the available ring.
    pub driver: u64,
    /// Address of the used ring.
    pub device: u64,
}

/// What `virtio-drivers` sees of a device, and what it has configured.
pub struct SharedDevice {
    /// The device's type.
    pub kind: DeviceType,
    /// Feature bits that the device offers.
    pub offered: u64,
    /// The device's configuration space.
    pub config: Vec<u8>,
    /// The largest size of a queue.
    pub max: u32,
    /// Feature bits that the driver has accepted.
    pub accepted: u64,
    /// The queues that the driver has enabled, by their index.
    pub queues: Vec<(u16, QueueAddresses)>,
    status: DeviceStatus,
}

impl SharedDevice {
    /// Returns a device that is reset, with queues of up to 256 descriptors.
    pub fn new(kind: DeviceType, offered: u64, config: Vec<u8>) -> Self {
        Self {
            kind,
            offered,
            config,
            max: 256,
            accepted: 0,
            queues: Vec::new(),
            status: DeviceStatus::empty(),
        }
    }

    /// Returns the device in the form that [`PeerTransport`] shares with the test.
    pub fn shared(self) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(self))
    }
}

/// Adds a buffer to a queue of `virtio-drivers`.
#[inline]
pub fn peer_add<'a, 'b, H: Hal, const SIZE: usize>(
    queue: &mut VirtQueue<H, SIZE>,
    readable: &'a [&'b [u8]],
    writable: &'a mut [&'b mut [u8]],
) -> virtio_drivers::Result<u16> {
    // SAFETY: the slices are the arena's, never freed, and not accessed until they are popped.
    unsafe { queue.add(readable, writable) }
}

/// Takes the next used buffer back from a queue of `virtio-drivers`.
#[inline]
pub fn peer_pop<H: Hal, const SIZE: usize>(
    queue: &mut VirtQueue<H, SIZE>,
    token: u16,
    readable: &[&'static [u8]],
    writable: &mut [&'static mut [u8]],
) -> virtio_drivers::Result<u32> {
    // SAFETY: `pop_used` asks for slices with the lifetime of the list, which slices that are
    // 'static can't have; it does not keep them.
    #[expect(clippy::unnecessary_cast, reason = "it changes the lifetime")]
    let writable = unsafe { &mut *(&raw mut *writable as *mut [&mut [u8]]) };
    // SAFETY: the same slices as were added under this token.
    unsafe { queue.pop_used(token, readable, writable) }
}

/// A transport for `virtio-drivers` that shares the device with the test and runs it when notified.
pub struct PeerTransport {
    /// The device behind this transport.
    pub device: Rc<RefCell<SharedDevice>>,
    /// Called with the queue's index when the driver notifies the device.
    pub doorbell: Box<dyn FnMut(u16)>,
}

impl PeerTransport {
    /// Returns a transport that ignores notifications.
    pub fn new(device: &Rc<RefCell<SharedDevice>>) -> Self {
        Self {
            device: Rc::clone(device),
            doorbell: Box::new(|_| ()),
        }
    }
}

impl Transport for PeerTransport {
    fn device_type(&self) -> DeviceType {
        self.device.borrow().kind
    }

    fn read_device_features(&mut self) -> u64 {
        self.device.borrow().offered
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.device.borrow_mut().accepted = driver_features;
    }

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        self.device.borrow().max
    }

    fn notify(&mut self, queue: u16) {
        (self.doorbell)(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        self.device.borrow().status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.device.borrow_mut().status = status;
    }

    fn set_guest_page_size(&mut self, _guest_page_size: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        let size = u16::try_from(size).expect("a sound size");
        let areas = QueueAddresses {
            size,
            descriptors,
            driver,
            device,
        };
        self.device.borrow_mut().queues.push((queue, areas));
    }

    fn queue_unset(&mut self, queue: u16) {
        self.device
            .borrow_mut()
            .queues
            .retain(|(index, _)| *index != queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.device
            .borrow()
            .queues
            .iter()
            .any(|(index, _)| *index == queue)
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
        let device = self.device.borrow();
        let field = device
            .config
            .get(offset..)
            .and_then(|rest| T::read_from_prefix(rest).ok());
        field
            .map(|(value, _)| value)
            .ok_or(virtio_drivers::Error::ConfigSpaceTooSmall)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _offset: usize,
        _value: T,
    ) -> virtio_drivers::Result<()> {
        Err(virtio_drivers::Error::ConfigSpaceMissing)
    }
}

/// Starts a read of one sector by the block driver of `virtio-drivers`.
pub fn read_begin(
    driver: &mut VirtIOBlk<BouncingHal, PeerTransport>,
    sector: usize,
    request: &mut BlkReq,
    data: &mut [u8],
    response: &mut BlkResp,
) -> virtio_drivers::Result<u16> {
    // SAFETY: the caller's buffers outlive the request, which it completes.
    unsafe { driver.read_blocks_nb(sector, request, data, response) }
}

/// Completes the request that [`read_begin`] started.
pub fn read_complete(
    driver: &mut VirtIOBlk<BouncingHal, PeerTransport>,
    token: u16,
    request: &BlkReq,
    data: &mut [u8],
    response: &mut BlkResp,
) -> virtio_drivers::Result<()> {
    // SAFETY: the same buffers as in `read_begin`.
    unsafe { driver.complete_read_blocks(token, request, data, response) }
}
