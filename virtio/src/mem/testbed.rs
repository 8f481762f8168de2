//! Test support: memory shared by both ends of a queue, raw access to it, and a PCI function.
#![expect(
    clippy::cast_possible_truncation,
    reason = "narrow reads of a model's registers"
)]

use core::cell::RefCell;
use core::ptr::NonNull;
use std::rc::Rc;

use super::dma::{DmaBuf, DmaBytes, DmaMap, MemoryLocation, RawSegment, Window};
use super::driver_ring::QueueMemoryError;
use super::mmio::{Mmio, PciFunction, Registers};
use super::reset::{DeviceId, ResetProof};
use super::{Access, GuestRam, PlainRam};
use crate::device::queue::{ActiveQueue, QueueConfig, RingFeatures};
use crate::driver::{Queue, QueueAreas, QueueOptions};

/// Guest address of the memory.
pub(crate) const BASE: u64 = 0x10_0000;

pub(crate) struct Testbed {
    pub(crate) ram: PlainRam,
    pub(crate) device: DeviceId,
    rest: DmaBytes,
}

impl Testbed {
    pub(crate) fn new(len: usize) -> Self {
        // SAFETY: tests access bytes in use by a device only through `read` and `write` below.
        let (ram, rest) = unsafe { PlainRam::leak(len, BASE) }.unwrap();
        Self {
            ram,
            device: DeviceId::new(),
            rest,
        }
    }

    pub(crate) fn window(&self) -> Window {
        self.ram.window().unwrap()
    }

    /// Allocates the next `len` bytes, at a multiple of 64.
    pub(crate) fn take(&mut self, len: usize) -> DmaBytes {
        let mut piece = self
            .rest
            .split_to(len.next_multiple_of(64))
            .expect("testbed memory");
        piece.split_to(len).unwrap()
    }

    /// Allocates bytes with these contents.
    pub(crate) fn piece(&mut self, contents: &[u8]) -> DmaBytes {
        let mut piece = self.take(contents.len());
        piece.bytes_mut().copy_from_slice(contents);
        piece
    }

    pub(crate) fn queue<T>(&mut self, options: QueueOptions) -> Queue<T, Window> {
        let hook = self.window();
        self.queue_with(options, hook).unwrap()
    }

    pub(crate) fn queue_with<T, M: DmaMap>(
        &mut self,
        options: QueueOptions,
        hook: M,
    ) -> Result<Queue<T, M>, QueueMemoryError> {
        let memory = self.take(options.memory_len());
        Queue::new(options, memory, hook, &self.device)
    }

    /// Returns the device's end of a queue.
    pub(crate) fn device_end(&self, areas: QueueAreas, features: u64) -> ActiveQueue<PlainRam> {
        let mut config = QueueConfig::new(areas.size);
        config.set_desc(areas.descriptors);
        config.set_avail(areas.driver);
        config.set_used(areas.device);
        config.set_ready(true);
        config
            .activate(self.ram, RingFeatures::from_bits(features))
            .unwrap()
    }

    pub(crate) fn proof(&self) -> ResetProof {
        // SAFETY: tests reset by no longer using the device's end.
        unsafe { self.device.was_reset() }
    }

    fn host(&self, addr: u64, len: usize) -> *mut u8 {
        let region = self.ram.region(addr, Access::Write).unwrap();
        region.segment(addr, len).unwrap().as_ptr()
    }

    pub(crate) fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let host = self.host(addr, len);
        // SAFETY: inside the region, which is never freed.
        (0..len)
            .map(|at| unsafe { host.add(at).read_volatile() })
            .collect()
    }

    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        let host = self.host(addr, bytes.len());
        for (at, byte) in bytes.iter().enumerate() {
            // SAFETY: inside the region, which is never freed.
            unsafe { host.add(at).write_volatile(*byte) }
        }
    }

    /// Writes a used entry as a device would, regardless of the buffers in flight.
    pub(crate) fn forge_used(&self, areas: QueueAreas, idx: u16, id: u32, len: u32) {
        let slot = u64::from(idx.wrapping_sub(1) % areas.size);
        let mut entry = id.to_le_bytes().to_vec();
        entry.extend(len.to_le_bytes());
        self.write(areas.device + 4 + slot * 8, &entry);
        self.write(areas.device + 2, &idx.to_le_bytes());
    }

    /// Returns the guest address of a buffer in this memory.
    pub(crate) fn address(&self, piece: &impl DmaBuf) -> u64 {
        let region = piece.region();
        let MemoryLocation::Memory(ptr) = region.place else {
            panic!("not memory")
        };
        self.window().shared(ptr, region.len).unwrap()
    }
}

/// Returns memory outside every window.
pub(crate) fn elsewhere() -> DmaBytes {
    // SAFETY: never dereferenced: no hook returns an address for it.
    unsafe { DmaBytes::from_raw(NonNull::dangling(), 16) }
}

/// Returns a raw segment that no device of a test accesses.
pub(crate) fn raw(address: u64, len: u32) -> RawSegment {
    // SAFETY: tests only look at the descriptor.
    unsafe { RawSegment::new(address, len) }
}

/// A PCI function of a test, as plain calls.
pub(crate) trait PlainFunction {
    fn config(&mut self, offset: u16) -> u32;
    fn set_config(&mut self, offset: u16, value: u32);
    /// Reads or, with a value, writes `width` bytes of a BAR.
    fn bar(&mut self, bar: u8, offset: u64, width: u8, write: Option<u32>) -> u32;
    fn bar_len(&self, bar: u8) -> u64;
}

/// A [`PlainFunction`] for the PCI driver.
pub(crate) struct Function<P>(pub(crate) Rc<RefCell<P>>);

pub(crate) struct FunctionRegisters<P> {
    function: Rc<RefCell<P>>,
    bar: u8,
    start: u64,
    len: u64,
}

// SAFETY: every range maps the one function inside; its queues are never served by anything that
// outlives a test.
unsafe impl<P: PlainFunction> PciFunction for Function<P> {
    type Registers = FunctionRegisters<P>;

    fn read_config(&self, offset: u16) -> u32 {
        self.0.borrow_mut().config(offset)
    }

    fn write_config(&mut self, offset: u16, value: u32) {
        self.0.borrow_mut().set_config(offset, value);
    }

    fn map_bar(&mut self, bar: u8, offset: u64, len: u64) -> Option<FunctionRegisters<P>> {
        let end = offset.checked_add(len)?;
        (end <= self.0.borrow().bar_len(bar)).then(|| FunctionRegisters {
            function: Rc::clone(&self.0),
            bar,
            start: offset,
            len,
        })
    }
}

impl<P: PlainFunction> FunctionRegisters<P> {
    fn access(&self, offset: u64, width: u8, write: Option<u32>) -> u32 {
        if offset
            .checked_add(width.into())
            .is_none_or(|end| end > self.len)
        {
            return u32::MAX;
        }
        let mut function = self.function.borrow_mut();
        function.bar(self.bar, self.start + offset, width, write)
    }
}

// SAFETY: as above.
unsafe impl<P: PlainFunction> Registers for FunctionRegisters<P> {
    fn read8(&self, offset: u64) -> u8 {
        self.access(offset, 1, None) as u8
    }
    fn read16(&self, offset: u64) -> u16 {
        self.access(offset, 2, None) as u16
    }
    fn read32(&self, offset: u64) -> u32 {
        self.access(offset, 4, None)
    }
    fn write8(&self, offset: u64, value: u8) {
        self.access(offset, 1, Some(value.into()));
    }
    fn write16(&self, offset: u64, value: u16) {
        self.access(offset, 2, Some(value.into()));
    }
    fn write32(&self, offset: u64, value: u32) {
        self.access(offset, 4, Some(value));
    }
}

/// Ordinary memory as device registers.
pub(crate) fn registers_in_memory(words: &'static mut [u32]) -> Mmio {
    let len = u64::try_from(size_of_val(words)).unwrap();
    // SAFETY: the memory is never freed and has no other user.
    unsafe { Mmio::new(NonNull::from(words).cast(), len) }
}
