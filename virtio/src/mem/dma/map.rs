//! Where the device finds the driver's memory: the hook of a queue, and its account of what is mapped.

use alloc::boxed::Box;
use core::mem;
use core::ptr::NonNull;

use super::{DmaRegion, MemoryLocation};

/// What the device does with a piece of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It reads.
    Readable,
    /// It writes.
    Writable,
}

/// Why memory could not be made visible to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The memory is not where the device can reach it.
    #[error("the memory is outside what the device can reach")]
    Unreachable,
    /// There is no room left to make it reachable; some comes back with completed buffers.
    #[error("no bounce memory is left")]
    Exhausted,
}

/// How the device finds the driver's memory: the DMA hook of a queue.
///
/// # Safety
/// What `map` answers, and nothing else, is what the device is given: an implementation vouches
/// that a device that reads or writes `len` bytes there touches the mapped memory, or a stand-in of
/// its own that no safe code reaches, until `unmap`.
pub unsafe trait DmaMap: 'static {
    /// What `unmap` needs to know.
    type Mapping;

    /// Whether `unmap` does anything. If not, queues keep no record of mappings.
    const UNMAPS: bool;

    /// Makes `len` bytes at `ptr` visible and answers their address for the device.
    ///
    /// # Errors
    /// The memory can't be reached, or there is no room to make it reachable.
    ///
    /// # Safety
    /// The memory is valid for reads and writes and nobody writes it, until the mapping is undone.
    unsafe fn map(
        &mut self,
        ptr: NonNull<u8>,
        len: u32,
        direction: Direction,
    ) -> Result<(u64, Self::Mapping), MapError>;

    /// Undoes `map`; the device wrote at most the first `written` bytes.
    ///
    /// # Safety
    /// `mapping` came from `map`, is undone once, the device is done with it, and the memory is
    /// still valid.
    unsafe fn unmap(&mut self, mapping: Self::Mapping, written: u32);

    /// The device's address of memory that both ends use at the same time (the rings), if it is
    /// reachable as it is.
    fn shared(&self, ptr: NonNull<u8>, len: usize) -> Option<u64>;
}

/// The device's address is the pointer itself: a guest whose memory is mapped one to one.
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

/// One window of memory that the device sees at another address: direct maps of kernels, and both
/// ends in one process.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    start: u64,
    len: u64,
    bus: u64,
}

impl Window {
    /// The device sees the `len` bytes at `start` at its own address `bus`. `None` if either range
    /// runs over the end of the address space.
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

// SAFETY: only memory inside the window is answered, at the place the constructor's caller named.
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

/// The mappings of a queue's segments, by a number the queue gives each (its slot, or its place in
/// a slot's table). Empty where the hook needs no undoing.
///
/// Invariant the queue keeps: from `map` until `unmap` it owns the token that owns the memory, and
/// by then the device has completed the buffer, never saw it, or was reset.
pub(crate) struct Mappings<M: DmaMap> {
    hook: M,
    records: Box<[Record<M::Mapping>]>,
}

/// One mapped segment.
struct Record<T> {
    /// `None` if the segment was the device's own address, or there is no segment.
    mapping: Option<T>,
    /// Bytes the device may write.
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
                // SAFETY: the region is a `DmaBuf`'s, valid and unreachable to others while the
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

    /// Undoes the mapping under this number, if there is one. `written` bytes were written to this
    /// segment and those behind it; answers how many are left for those.
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

    /// Undoes all of them after a reset; nothing the device wrote counts.
    pub(crate) fn unmap_all(&mut self) {
        for record in 0..self.records.len() {
            self.unmap(record, 0);
        }
    }
}
