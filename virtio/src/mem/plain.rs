//! Guest memory that is an allocation of this process, for both ends in one program: tests,
//! benchmarks, and devices driven without a virtual machine.

use core::ptr::NonNull;

use crate::mem::dma::{DmaBuf, DmaBytes, MemoryLocation, Window};
use crate::mem::{Access, GuestRam, RamRegion};

/// One region of memory, never freed.
#[derive(Clone, Copy, Debug)]
pub struct PlainRam {
    start: NonNull<u8>,
    len: u64,
    base: u64,
}

// SAFETY: the memory is never freed and may be accessed from any thread; see `RamRegion`.
unsafe impl Send for PlainRam {}
// SAFETY: as above.
unsafe impl Sync for PlainRam {}

impl PlainRam {
    /// Allocates `len` zero bytes. The device's end accesses them at guest address `base`, the
    /// driver's end as the returned bytes, to be divided with [`DmaBytes::split_to`]. Returns
    /// `None` if there is no such memory.
    ///
    /// # Safety
    /// While a device's end uses the region, the driver's end must not hold references to bytes
    /// that the device's ring names.
    pub unsafe fn leak(len: usize, base: u64) -> Option<(Self, DmaBytes)> {
        let bytes = DmaBytes::zeroed(len, 4096)?.leak();
        let MemoryLocation::Memory(start) = bytes.region().place else {
            return None;
        };
        let len = u64::try_from(len).ok()?;
        base.checked_add(len)?;
        Some((Self { start, len, base }, bytes))
    }

    /// Returns the DMA hook by which a driver's queue maps this memory.
    pub fn window(&self) -> Option<Window> {
        Window::new(self.start, self.len, self.base)
    }
}

// SAFETY: one region, valid for reads and writes for ever; `region` returns it for its own
// addresses only.
unsafe impl GuestRam for PlainRam {
    fn region(&self, addr: u64, _access: Access) -> Option<RamRegion> {
        // SAFETY: `leak` allocated the memory, and its caller vouches for the references.
        let region = unsafe { RamRegion::new(self.base, self.len, self.start.as_ptr()) };
        (region.available(addr) > 0).then_some(region)
    }
}
