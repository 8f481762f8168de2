//! Memory that the guest does without goes back to the host.
#![expect(
    unsafe_code,
    reason = "releases pages of the machine's mapping, which Rust has no reference to"
)]

use std::io;

use splitring_virtio::mem::Segment;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use super::{Ram, region_of_host};

/// Bytes that memory is released in: pages of x86-64 that are not reserved huge pages.
const PAGE: usize = 4096;

impl Ram {
    /// The guest-physical address of a segment.
    pub(crate) fn address_of(&self, segment: &Segment) -> Option<u64> {
        let mapping = self.shared.mapping.memory();
        let (region, offset) = region_of_host(&mapping, segment.as_ptr())?;
        let offset = u64::try_from(offset).ok()?;
        region.start_addr().raw_value().checked_add(offset)
    }

    /// Releases to the host the memory of the whole pages among the `len` bytes from `addr` on.
    /// They read as zeroes afterwards and take memory of the host again when they are touched. In
    /// memory that other processes share, that is so for them, too. A range may be in use by
    /// requests in flight: they read and write the old memory or the new.
    ///
    /// Looks no further than the end of the region that `addr` is in. Reserved huge pages are not
    /// released: if the host had none left when the guest touches them, the process would end.
    ///
    /// # Errors
    /// There is no memory at `addr`, or the host refuses.
    pub(crate) fn discard(&self, addr: u64, len: u64) -> Result<Discarded, DiscardError> {
        let mapping = self.shared.mapping.memory();
        let region = mapping.find_region(GuestAddress(addr));
        let region = region.ok_or(DiscardError::NoMemory)?;
        let offset = addr.saturating_sub(region.start_addr().raw_value());
        let passed = len.min(region.len().saturating_sub(offset));
        let in_host = |bytes: u64| usize::try_from(bytes).map_err(|_| DiscardError::NoMemory);
        let (start, end) = (in_host(offset)?, in_host(offset.saturating_add(passed))?);
        let end = end.checked_div(PAGE).unwrap_or(0).saturating_mul(PAGE);
        let start = start.next_multiple_of(PAGE);
        let whole = end.saturating_sub(start);
        if whole == 0 || region.is_hugetlbfs() == Some(true) {
            let released = 0;
            return Ok(Discarded { passed, released });
        }
        // The file behind shared memory has the pages, and a mapping only refers to them.
        let advice = if region.flags() & libc::MAP_SHARED != 0 {
            libc::MADV_REMOVE
        } else {
            libc::MADV_DONTNEED
        };
        // SAFETY: the range lies within the region, whose mapping `self` keeps. It stays mapped,
        // readable and writable; only what the bytes are changes, as when a guest writes them, and
        // nobody has a Rust reference to them.
        let refused = unsafe {
            let pages = region.as_ptr().wrapping_add(start);
            libc::madvise(pages.cast(), whole, advice) != 0
        };
        if refused {
            return Err(DiscardError::Host(io::Error::last_os_error()));
        }
        (**region).bitmap().mark_dirty(start, whole);
        let released = u64::try_from(whole).unwrap_or(0);
        Ok(Discarded { passed, released })
    }
}

/// What [`Ram::discard`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Discarded {
    /// Bytes from the beginning of the range that it looked at.
    pub(crate) passed: u64,
    /// Bytes of them that were released.
    pub(crate) released: u64,
}

/// Why [`Ram::discard`] released nothing.
#[derive(Debug)]
pub(crate) enum DiscardError {
    /// There is no memory at the address.
    NoMemory,
    /// The host refused.
    Host(io::Error),
}

#[cfg(test)]
mod tests;
