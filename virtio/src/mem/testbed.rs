//! For tests: memory shared by both ends of a queue, and raw views of it.

use core::ptr::NonNull;

use super::dma::{DmaBuf, DmaBytes, DmaMap, Place, RawSegment, Window};
use super::driver_ring::QueueMemoryError;
use super::reset::{DeviceId, ResetProof};
use super::{Access, GuestRam, PlainRam};
use crate::device::queue::{ActiveQueue, QueueConfig, RingFeatures};
use crate::driver::{Queue, QueueAreas, QueueOptions};

/// Guest address of the memory.
pub(crate) const BASE: u64 = 0x10_0000;

pub(crate) struct Bed {
    pub(crate) ram: PlainRam,
    pub(crate) device: DeviceId,
    rest: DmaBytes,
}

impl Bed {
    pub(crate) fn new(len: usize) -> Self {
        // SAFETY: tests touch lent bytes only through `read` and `write` below.
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

    /// The next `len` bytes, at a multiple of 64.
    pub(crate) fn take(&mut self, len: usize) -> DmaBytes {
        let mut piece = self
            .rest
            .split_to(len.next_multiple_of(64))
            .expect("testbed memory");
        piece.split_to(len).unwrap()
    }

    /// Bytes of a piece's own, with these contents.
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

    /// The device's end of a queue.
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

    /// Writes a used entry as a device would, without regard to what is in flight.
    pub(crate) fn forge_used(&self, areas: QueueAreas, idx: u16, id: u32, len: u32) {
        let slot = u64::from(idx.wrapping_sub(1) % areas.size);
        let mut entry = id.to_le_bytes().to_vec();
        entry.extend(len.to_le_bytes());
        self.write(areas.device + 4 + slot * 8, &entry);
        self.write(areas.device + 2, &idx.to_le_bytes());
    }

    /// The guest address of a piece of this memory.
    pub(crate) fn address(&self, piece: &impl DmaBuf) -> u64 {
        let region = piece.region();
        let Place::Memory(ptr) = region.place else {
            panic!("not memory")
        };
        self.window().shared(ptr, region.len).unwrap()
    }
}

/// A pointer outside every window.
pub(crate) fn elsewhere() -> DmaBytes {
    // SAFETY: never dereferenced: no hook answers an address for it.
    unsafe { DmaBytes::from_raw(NonNull::dangling(), 16) }
}

/// A raw segment that no device of a test is shown.
pub(crate) fn raw(address: u64, len: u32) -> RawSegment {
    // SAFETY: tests only look at the descriptor.
    unsafe { RawSegment::new(address, len) }
}
