//! Memory that two drivers and two devices share in one process, each in its own view: this crate's
//! ends, `virtio-drivers` (as its `Hal` and `Transport`) and `virtio-queue` (as `vm-memory`).
//!
//! Addresses are the same everywhere: a guest address is the pointer.
#![expect(unsafe_code, reason = "vouches for one mapping to four engines")]
#![allow(dead_code, reason = "each of its users needs another part of it")]

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

/// The one mapping: handed out piece by piece, never taken back.
pub(crate) struct Arena {
    /// As `virtio-queue` wants it.
    pub(crate) mapping: Arc<GuestMemoryMmap<()>>,
    start: usize,
    next: AtomicUsize,
}

/// The mapping all of a process's tests share.
pub(crate) fn arena() -> &'static Arena {
    static ARENA: OnceLock<Arena> = OnceLock::new();
    ARENA.get_or_init(|| {
        // Before there is a mapping that it might be taken together with.
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

/// Where the heap of whoever asks first starts: the peer puts its indirect tables there, and its `Hal`
/// may leave them.
fn heap() -> Option<usize> {
    // By what lies in it, since its name is missing where an instruction counter lends the heap.
    let lies_in_it = Box::new(0u8);
    let address = (&raw const *lies_in_it).addr();
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut ranges = maps.lines().filter_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        Some(number(start)?..number(end)?)
    });
    Some(ranges.find(|range| range.contains(&address))?.start)
}

/// The heap, and room for it to grow, short of `mapping`.
fn heap_region(start: usize, mapping: usize) -> Option<MmapRegion<()>> {
    const ROOM: usize = 1 << 30;
    let room = mapping
        .checked_sub(start)
        .map_or(ROOM, |room| room.min(ROOM));
    let ptr = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: what lies in the heap is reached only by the addresses of live allocations.
    unsafe { MmapRegion::build_raw(ptr, room, libc::PROT_READ | libc::PROT_WRITE, 0) }.ok()
}

impl Arena {
    /// The next `len` bytes, at a multiple of `align`.
    fn carve(&self, len: usize, align: usize) -> NonNull<u8> {
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

    /// Bytes for a driver's end of ours.
    pub(crate) fn bytes(&self, len: usize) -> DmaBytes {
        let ptr = self.carve(len, 64);
        // SAFETY: inside the mapping, which is never unmapped, and handed out once.
        unsafe { DmaBytes::from_raw(ptr, len) }
    }

    /// Bytes for a driver that takes slices.
    pub(crate) fn slice(&self, len: usize) -> &'static mut [u8] {
        let ptr = self.carve(len, 64);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(ptr.as_ptr(), len) }
    }
}

/// A 16-bit word of a ring, as a device of a few lines uses it.
#[inline]
pub(crate) fn load16(addr: u64) -> u16 {
    // SAFETY: tests pass addresses of rings they set up, inside the mapping and aligned.
    unsafe { pointer::<u16>(addr).read_volatile() }
}

/// See [`load16`].
#[inline]
pub(crate) fn store16(addr: u64, value: u16) {
    // SAFETY: as above.
    unsafe { pointer::<u16>(addr).write_volatile(value) }
}

/// Writes a used entry.
#[inline]
pub(crate) fn store_used(addr: u64, id: u16, len: u32) {
    // SAFETY: as above.
    unsafe { pointer::<u64>(addr).write_unaligned(u64::from(id) | u64::from(len) << 32) }
}

#[inline]
fn pointer<T>(addr: u64) -> *mut T {
    std::ptr::with_exposed_provenance_mut(usize::try_from(addr).expect("64 bits"))
}

/// The mapping as our device's end sees it.
#[derive(Clone, Copy)]
pub(crate) struct ArenaRam;

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

/// The mapping as a whole device of ours sees it.
pub(crate) fn device_ram() -> Ram {
    let arena = arena();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the region is never unmapped.
    let region = unsafe {
        MmapRegionBuilder::new_with_bitmap(LEN, None)
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

/// The mapping as `virtio-drivers` sees it. Buffers are shared where they are.
pub(crate) struct PeerHal;

// SAFETY: pages come from the mapping, zero and once; addresses are pointers.
unsafe impl Hal for PeerHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let ptr = arena().carve(pages * PAGE_SIZE, PAGE_SIZE);
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

/// The mapping as `virtio-drivers` sees it, with copies of all that lies elsewhere: on stacks, and
/// on the heaps of test threads.
pub(crate) struct BouncingHal;

thread_local! {
    /// Copies that are free, by length.
    static COPIES: RefCell<Vec<NonNull<[u8]>>> = const { RefCell::new(Vec::new()) };
}

// SAFETY: as for `PeerHal`; a copy is used by one buffer until it is unshared.
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
        let copy = COPIES.with_borrow_mut(|free| {
            let found = free.iter().position(|copy| copy.len() == buffer.len());
            found.map(|at| free.swap_remove(at))
        });
        let copy = copy.map_or_else(|| arena().carve(buffer.len(), 16), NonNull::cast);
        // SAFETY: both are valid for the buffer's length, and the copy is nobody else's.
        unsafe {
            buffer
                .cast::<u8>()
                .copy_to_nonoverlapping(copy, buffer.len())
        };
        address(copy)
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        let copy = NonNull::new(pointer::<u8>(paddr)).expect("an address share answered");
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: as in `share`.
            unsafe { copy.copy_to_nonoverlapping(buffer.cast(), buffer.len()) };
        }
        let copy = NonNull::slice_from_raw_parts(copy, buffer.len());
        COPIES.with_borrow_mut(|free| free.push(copy));
    }
}

/// Where a driver put a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Areas {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
}

/// A device as `virtio-drivers` reaches it: what it offers, and what rings its bell.
pub(crate) struct Board {
    pub(crate) kind: DeviceType,
    pub(crate) offered: u64,
    pub(crate) config: Vec<u8>,
    pub(crate) max: u32,
    pub(crate) accepted: u64,
    pub(crate) queues: Vec<(u16, Areas)>,
    status: DeviceStatus,
}

impl Board {
    pub(crate) fn new(kind: DeviceType, offered: u64, config: Vec<u8>) -> Self {
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

    pub(crate) fn shared(self) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(self))
    }
}

/// Adds a buffer to a queue of the peer's.
#[inline]
pub(crate) fn peer_add<'a, 'b, H: Hal, const SIZE: usize>(
    queue: &mut VirtQueue<H, SIZE>,
    readable: &'a [&'b [u8]],
    writable: &'a mut [&'b mut [u8]],
) -> virtio_drivers::Result<u16> {
    // SAFETY: the slices are the arena's, there for good, and not looked at until they are reaped.
    unsafe { queue.add(readable, writable) }
}

/// Takes a buffer back from a queue of the peer's, the next one used.
#[inline]
pub(crate) fn peer_reap<H: Hal, const SIZE: usize>(
    queue: &mut VirtQueue<H, SIZE>,
    token: u16,
    readable: &[&'static [u8]],
    writable: &mut [&'static mut [u8]],
) -> virtio_drivers::Result<u32> {
    // SAFETY: the signature asks that the slices live no longer than the list of them, which their
    // being 'static forbids to say; it does not keep them.
    #[expect(clippy::unnecessary_cast, reason = "it changes the lifetime")]
    let writable = unsafe { &mut *(&raw mut *writable as *mut [&mut [u8]]) };
    // SAFETY: the same slices as were added under this token.
    unsafe { queue.pop_used(token, readable, writable) }
}

/// The transport: shares the board with the test, and runs the device when it is notified.
pub(crate) struct Wire {
    pub(crate) board: Rc<RefCell<Board>>,
    pub(crate) bell: Box<dyn FnMut(u16)>,
}

impl Wire {
    /// A transport whose device is not run by notifications.
    pub(crate) fn new(board: &Rc<RefCell<Board>>) -> Self {
        Self {
            board: Rc::clone(board),
            bell: Box::new(|_| ()),
        }
    }
}

impl Transport for Wire {
    fn device_type(&self) -> DeviceType {
        self.board.borrow().kind
    }

    fn read_device_features(&mut self) -> u64 {
        self.board.borrow().offered
    }

    fn write_driver_features(&mut self, driver_features: u64) {
        self.board.borrow_mut().accepted = driver_features;
    }

    fn max_queue_size(&mut self, _queue: u16) -> u32 {
        self.board.borrow().max
    }

    fn notify(&mut self, queue: u16) {
        (self.bell)(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        self.board.borrow().status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.board.borrow_mut().status = status;
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
        let areas = Areas {
            size,
            descriptors,
            driver,
            device,
        };
        self.board.borrow_mut().queues.push((queue, areas));
    }

    fn queue_unset(&mut self, queue: u16) {
        self.board
            .borrow_mut()
            .queues
            .retain(|(index, _)| *index != queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.board
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
        let board = self.board.borrow();
        let field = board
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

/// Starts reading one sector by the peer's block driver.
pub(crate) fn read_begin(
    driver: &mut VirtIOBlk<BouncingHal, Wire>,
    sector: usize,
    request: &mut BlkReq,
    data: &mut [u8],
    response: &mut BlkResp,
) -> virtio_drivers::Result<u16> {
    // SAFETY: the caller's buffers outlive the request, which it completes.
    unsafe { driver.read_blocks_nb(sector, request, data, response) }
}

/// Completes what [`read_begin`] started.
pub(crate) fn read_complete(
    driver: &mut VirtIOBlk<BouncingHal, Wire>,
    token: u16,
    request: &BlkReq,
    data: &mut [u8],
    response: &mut BlkResp,
) -> virtio_drivers::Result<()> {
    // SAFETY: the same buffers as at the start.
    unsafe { driver.complete_read_blocks(token, request, data, response) }
}
