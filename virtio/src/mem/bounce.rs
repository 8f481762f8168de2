//! A DMA hook that copies: the device accesses only a window reserved for it (bounce buffers,
//! Linux's swiotlb).
//!
//! For devices that can't access all memory (confidential guests, narrow buses) and for drivers
//! that don't trust them with it. The window is divided into slots; a segment uses as many adjacent
//! slots as it needs. This module knows neither queues nor descriptors.

use alloc::boxed::Box;
use core::ptr::{self, NonNull};

use crate::mem::dma::{Direction, DmaBuf, DmaBytes, DmaMap, MapError, MemoryLocation, Window};

/// Bytes of a slot.
const SLOT: usize = 512;

/// Copies segments through a window; see the module.
///
/// The rings themselves must be in memory that the device can access: the second window.
pub struct Bounce {
    memory: DmaBytes,
    window: Window,
    rings: Window,
    taken: Box<[bool]>,
    /// The slot at which the search starts.
    hint: usize,
}

/// A segment that is bounced through the window.
#[derive(Debug)]
pub struct Bounced {
    original: NonNull<u8>,
    len: u32,
    writable: bool,
    first: usize,
    slots: usize,
}

// SAFETY: the pointer is only used by `Bounce`, whose contract covers the thread as well.
unsafe impl Send for Bounced {}

impl Bounce {
    /// Creates a hook that bounces through `memory`, which the device accesses at `bus`; `rings`
    /// translates the addresses of rings. Returns `None` if the end of the memory overflows.
    pub fn new(memory: DmaBytes, bus: u64, rings: Window) -> Option<Self> {
        let MemoryLocation::Memory(start) = memory.region().place else {
            return None;
        };
        let window = Window::new(start, u64::try_from(memory.len()).ok()?, bus)?;
        let slots = memory.len().div_euclid(SLOT);
        Some(Self {
            memory,
            window,
            rings,
            taken: (0..slots).map(|_| false).collect(),
            hint: 0,
        })
    }

    /// Returns the number of free slots of 512 bytes.
    pub fn free_slots(&self) -> usize {
        self.taken.iter().filter(|taken| !**taken).count()
    }

    /// Allocates `slots` adjacent slots: first fit from the hint on, then from the start.
    fn take(&mut self, slots: usize) -> Option<usize> {
        let first = self
            .find(self.hint, slots)
            .or_else(|| self.find(0, slots))?;
        let end = first.checked_add(slots)?;
        self.taken.get_mut(first..end)?.fill(true);
        self.hint = end;
        Some(first)
    }

    fn find(&self, from: usize, slots: usize) -> Option<usize> {
        let mut run = 0usize;
        for (index, taken) in self.taken.iter().enumerate().skip(from) {
            run = if *taken { 0 } else { run.wrapping_add(1) };
            if run == slots {
                return index.wrapping_add(1).checked_sub(slots);
            }
        }
        None
    }

    fn slot(&self, first: usize) -> Option<NonNull<u8>> {
        let MemoryLocation::Memory(start) = self.memory.region().place else {
            return None;
        };
        let offset = first
            .checked_mul(SLOT)
            .filter(|offset| *offset < self.memory.len())?;
        // SAFETY: the offset was checked to be inside the memory.
        Some(unsafe { start.add(offset) })
    }
}

// SAFETY: the device only gets addresses inside `memory`, which has no other user, and slots are
// allocated once until they are freed.
unsafe impl DmaMap for Bounce {
    type Mapping = Bounced;
    const UNMAPS: bool = true;

    unsafe fn map(
        &mut self,
        ptr: NonNull<u8>,
        len: u32,
        direction: Direction,
    ) -> Result<(u64, Bounced), MapError> {
        let bytes = usize::try_from(len).map_err(|_| MapError::Unreachable)?;
        let slots = bytes.div_ceil(SLOT);
        if slots > self.taken.len() {
            return Err(MapError::Unreachable);
        }
        let first = self.take(slots.max(1)).ok_or(MapError::Exhausted)?;
        let copy = self.slot(first).ok_or(MapError::Unreachable)?;
        let writable = direction == Direction::Writable;
        // SAFETY: the slots have `bytes` bytes and are ours; the caller vouches for `ptr`.
        // Device-writable memory is zeroed: the driver must not see an earlier buffer's bytes.
        unsafe {
            if writable {
                ptr::write_bytes(copy.as_ptr(), 0, bytes);
            } else {
                ptr::copy_nonoverlapping(ptr.as_ptr(), copy.as_ptr(), bytes);
            }
        }
        let bus = self
            .window
            .shared(copy, bytes)
            .ok_or(MapError::Unreachable)?;
        let mapping = Bounced {
            original: ptr,
            len,
            writable,
            first,
            slots: slots.max(1),
        };
        Ok((bus, mapping))
    }

    unsafe fn unmap(&mut self, mapping: Bounced, written: u32) {
        let bytes = usize::try_from(mapping.len.min(written)).unwrap_or(0);
        if mapping.writable
            && let Some(copy) = self.slot(mapping.first)
        {
            // SAFETY: at most the mapped length; the caller vouches that the original is still
            // valid and that this mapping's slots were not freed yet.
            unsafe { ptr::copy_nonoverlapping(copy.as_ptr(), mapping.original.as_ptr(), bytes) }
        }
        let end = mapping.first.wrapping_add(mapping.slots);
        if let Some(slots) = self.taken.get_mut(mapping.first..end) {
            slots.fill(false);
        }
    }

    fn shared(&self, ptr: NonNull<u8>, len: usize) -> Option<u64> {
        self.rings.shared(ptr, len)
    }
}
