//! The translation of a driver's memory to device addresses: the DMA hook of a queue, and the
//! record of its mappings.

use alloc::boxed::Box;
use core::mem;
use core::ptr::NonNull;

use super::{DmaRegion, MemoryLocation};

/// The device's access to a memory buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads.
    Readable,
    /// The device writes.
    Writable,
}

/// Why memory can't be mapped for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The device can't access the memory.
    #[error("the device can't access the memory")]
    Unreachable,
    /// There is no bounce memory left; some is freed with used buffers.
    #[error("no bounce memory is left")]
    Exhausted,
}

/// Translates the driver's memory to device addresses: the DMA hook of a queue.
///
/// # Safety
/// The device only gets addresses that `map` returns. An implementation vouches that a device that
/// accesses `len` bytes there accesses the mapped memory, or a substitute of its own that no safe
/// code accesses, until `unmap`.
pub unsafe trait DmaMap: 'static {
    /// The data that `unmap` needs.
    type Mapping;

    /// Whether `unmap` has an effect. If not, queues keep no record of mappings.
    const UNMAPS: bool;

    /// Maps `len` bytes at `ptr` for the device; returns their device address.
    ///
    /// # Errors
    /// The device can't access the memory, or there is no bounce memory left.
    ///
    /// # Safety
    /// The memory must be valid for reads and writes, and must not be written by others, until it
    /// is unmapped.
    unsafe fn map(
        &mut self,
        ptr: NonNull<u8>,
        len: u32,
        direction: Direction,
    ) -> Result<(u64, Self::Mapping), MapError>;

    /// Undoes `map`. The device wrote at most the first `written` bytes.
    ///
    /// # Safety
    /// `mapping` must come from `map` and be unmapped once, the device must no longer use it, and
    /// the memory must still be valid.
    unsafe fn unmap(&mut self, mapping: Self::Mapping, written: u32);

    /// Returns the device address of memory that both ends use at the same time (the rings), or
    /// `None` if the device can't access it directly.
    fn shared(&self, ptr: NonNull<u8>, len: usize) -> Option<u64>;
}

/// Uses the pointer as the device address: for a guest whose memory is mapped one to one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity;

// SAFETY: under a one-to-one mapping the pointer is the address; the caller of a driver in such an
// environment chose this hook for it.
unsafe impl DmaMap for Identity {
    type Mapping = ();
    const UNMAPS: bool = false;

    #[inline]
    unsafe fn map(
        &mut self,
        ptr: NonNull<u8>,
        _len: u32,
        _direction: Direction,
    ) -> Result<(u64, ()), MapError> {
        Ok((address(ptr), ()))
    }

    #[inline]
    unsafe fn unmap(&mut self, (): (), _written: u32) {}

    fn shared(&self, ptr: NonNull<u8>, _len: usize) -> Option<u64> {
        Some(address(ptr))
    }
}

/// Maps one window of memory at another device address: for direct maps of kernels, and for both
/// ends in one process.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    start: u64,
    len: u64,
    bus: u64,
}

impl Window {
    /// Creates a hook that maps the `len` bytes at `start` to the device address `bus`. Returns
    /// `None` if either range exceeds the address space.
    pub fn new(start: NonNull<u8>, len: u64, bus: u64) -> Option<Self> {
        let start = address(start);
        start.checked_add(len)?;
        bus.checked_add(len)?;
        Some(Self { start, len, bus })
    }

    #[inline]
    fn translate(&self, ptr: NonNull<u8>, len: u64) -> Option<u64> {
        let offset = address(ptr).wrapping_sub(self.start);
        let fits = len <= self.len && offset <= self.len.wrapping_sub(len);
        // Within the window, whose end was checked not to overflow.
        fits.then(|| self.bus.wrapping_add(offset))
    }
}

// SAFETY: returns addresses only for memory inside the window, as named by the constructor's
// caller.
unsafe impl DmaMap for Window {
    type Mapping = ();
    const UNMAPS: bool = false;

    #[inline]
    unsafe fn map(
        &mut self,
        ptr: NonNull<u8>,
        len: u32,
        _direction: Direction,
    ) -> Result<(u64, ()), MapError> {
        let address = self.translate(ptr, u64::from(len));
        Ok((address.ok_or(MapError::Unreachable)?, ()))
    }

    #[inline]
    unsafe fn unmap(&mut self, (): (), _written: u32) {}

    fn shared(&self, ptr: NonNull<u8>, len: usize) -> Option<u64> {
        self.translate(ptr, u64::try_from(len).ok()?)
    }
}

#[inline]
#[expect(
    clippy::as_conversions,
    reason = "the address is what the device is told"
)]
fn address(ptr: NonNull<u8>) -> u64 {
    ptr.as_ptr() as usize as u64
}

/// The mappings of a queue's segments, by a number that the queue assigns (its slot, or its index
/// in a slot's table). Empty if the hook does not unmap.
///
/// Invariant kept by the queue: from `map` until `unmap` it owns the token that owns the memory,
/// and at `unmap` the device has used the buffer, never saw it, or was reset.
pub(crate) struct Mappings<M: DmaMap> {
    hook: M,
    records: Box<[Record<M::Mapping>]>,
}

/// One mapped segment.
struct Record<T> {
    /// `None` if the segment has a device address, or there is no segment.
    mapping: Option<T>,
    /// Number of bytes that the device may write.
    writable: u32,
}

impl<M: DmaMap> Mappings<M> {
    pub(crate) fn new(hook: M, segments: usize) -> Self {
        let records = if M::UNMAPS { segments } else { 0 };
        let empty = |_| Record {
            mapping: None,
            writable: 0,
        };
        Self {
            hook,
            records: (0..records).map(empty).collect(),
        }
    }

    pub(crate) fn into_hook(self) -> M {
        self.hook
    }

    #[inline]
    pub(crate) fn map(
        &mut self,
        record: usize,
        region: DmaRegion,
        len: u32,
        direction: Direction,
    ) -> Result<u64, MapError> {
        let (address, mapping) = match region.place {
            MemoryLocation::Bus(address) => (address, None),
            MemoryLocation::Memory(ptr) => {
                // SAFETY: the region is a `DmaBuf`'s, valid and inaccessible to others while the
                // queue holds it; `len` is the region's length.
                let (address, mapping) = unsafe { self.hook.map(ptr, len, direction)? };
                (address, Some(mapping))
            }
        };
        if M::UNMAPS
            && let Some(record) = self.records.get_mut(record)
        {
            *record = Record {
                mapping,
                writable: if direction == Direction::Writable {
                    len
                } else {
                    0
                },
            };
        }
        Ok(address)
    }

    /// Unmaps the mapping with this number, if there is one. `written` bytes were written to this
    /// segment and those behind it; returns how many are left for those.
    pub(crate) fn unmap(&mut self, record: usize, written: u32) -> u32 {
        let Some(record) = self.records.get_mut(record) else {
            return written;
        };
        let here = mem::take(&mut record.writable).min(written);
        if let Some(mapping) = record.mapping.take() {
            // SAFETY: the record was made by `map` and is taken out, so this happens once; the
            // queue's invariant above covers the rest.
            unsafe { self.hook.unmap(mapping, here) }
        }
        written.wrapping_sub(here)
    }

    /// Unmaps all mappings after a reset, without copying bytes that the device wrote.
    pub(crate) fn unmap_all(&mut self) {
        for record in 0..self.records.len() {
            self.unmap(record, 0);
        }
    }
}
