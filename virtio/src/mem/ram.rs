//! The interface to the owner of guest memory, and the checked range that it returns.

use core::fmt;

/// The device's access to a range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Write, and possibly read.
    Write,
}

/// A range of guest memory that is also contiguous in the host's address space.
#[derive(Clone, Copy, Debug)]
pub struct RamRegion {
    guest: u64,
    len: u64,
    host: *mut u8,
}

// SAFETY: a region is a number and a pointer, which is dereferenced only together with the
// `GuestRam` that returned it, and that is Send and Sync.
unsafe impl Send for RamRegion {}
// SAFETY: as above; a shared region only returns copies of the pointer.
unsafe impl Sync for RamRegion {}

impl RamRegion {
    /// Returns a region of `len` bytes at guest-physical address `guest`, mapped at `host`.
    ///
    /// # Safety
    /// `host` must be valid for reads of `len` bytes, and for writes if the region is returned for
    /// [`Access::Write`], for as long as the [`GuestRam`] that returns it, or a clone of it, lives;
    /// and no Rust reference may point into it meanwhile.
    #[must_use]
    pub unsafe fn new(guest: u64, len: u64, host: *mut u8) -> Self {
        Self { guest, len, host }
    }

    /// An empty region.
    pub(crate) const EMPTY: Self = Self {
        guest: 0,
        len: 0,
        host: core::ptr::null_mut(),
    };

    /// Returns the range `addr..addr + len`, if it is completely in this region and not empty.
    #[inline(always)]
    pub(super) fn buffer(&self, addr: u64, len: u32) -> Option<Segment> {
        let offset = addr.wrapping_sub(self.guest);
        // Outside the region both differences wrap to large values; and so does the last byte of an
        // empty range.
        let available = self.len.wrapping_sub(offset);
        let last = u64::from(len).wrapping_sub(1);
        (offset < self.len && last < available).then(|| Segment {
            // Within the mapping, so within the address space.
            ptr: self.host.wrapping_add(low_usize(offset)),
            len: widen(len),
        })
    }

    /// Returns the number of bytes from `addr` to the end of the region, or 0 if `addr` is outside.
    #[inline]
    #[must_use]
    pub fn available(&self, addr: u64) -> u64 {
        // Below the region the difference wraps to a value larger than any length.
        self.len.saturating_sub(addr.wrapping_sub(self.guest))
    }

    /// Returns the range `addr..addr + len`, if it is completely in this region.
    #[inline]
    #[must_use]
    pub fn segment(&self, addr: u64, len: usize) -> Option<Segment> {
        let offset = addr.wrapping_sub(self.guest);
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        if end > self.len {
            return None;
        }
        Some(Segment {
            // Within the mapping, so within the address space.
            ptr: self.host.wrapping_add(usize::try_from(offset).ok()?),
            len,
        })
    }
}

/// Guest memory, provided by the owner of the mapping.
///
/// Translations may be kept for as long as the value or a clone of it lives, so a mapping may grow
/// meanwhile but not shrink. Where an IOMMU translates, and may change the meaning of an address,
/// [`translates`](Self::translates) is true: then every buffer is looked up anew.
///
/// # Safety
/// Every returned region must satisfy the contract of [`RamRegion::new`], contain the requested
/// address and permit the requested access.
pub unsafe trait GuestRam: Clone + Send + Sync + 'static {
    /// Returns the region that contains `addr` and permits `access`.
    fn region(&self, addr: u64, access: Access) -> Option<RamRegion>;

    /// Returns whether addresses are translated on their way to memory, so that the meaning of an
    /// address may change. Checked once per lookup; constant for a value and its clones.
    #[inline]
    fn translates(&self) -> bool {
        false
    }

    /// Returns whether [`mark_dirty`](Self::mark_dirty) has an effect now. Checked before every
    /// batch of marks.
    #[inline]
    fn tracks_dirty(&self) -> bool {
        false
    }

    /// Records that the first `len` bytes of `segment` may have been written.
    fn mark_dirty(&self, segment: &Segment, len: usize) {
        let _ = (segment, len);
    }
}

/// A range of guest memory in the host's address space, bounds-checked on creation.
///
/// It has the layout of an `iovec`: pointer, then length. It does not keep the memory mapped; its
/// origin (for example a chain) does.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: a segment is an address and a length. Accesses through it are the responsibility of the
// holder of the mapping, and guest memory may be accessed from any thread.
unsafe impl Send for Segment {}
// SAFETY: as above; a shared segment only returns the address.
unsafe impl Sync for Segment {}

impl Segment {
    /// Returns the address of the first byte in the host's address space.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// Returns the number of bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether it has no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Splits the segment into its first `mid` bytes and the rest. Returns `None` if it has fewer
    /// bytes.
    #[must_use]
    pub fn split_at(self, mid: usize) -> Option<(Self, Self)> {
        let rest = self.len.checked_sub(mid)?;
        Some((
            Self { len: mid, ..self },
            Self {
                ptr: self.ptr.wrapping_add(mid),
                len: rest,
            },
        ))
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:p}+{:#x}", self.ptr, self.len)
    }
}

const _: () = assert!(usize::BITS >= 32, "a length of 32 bits is a usize");

/// Converts a 32-bit number, which is a valid pointer offset on every supported platform.
#[inline]
pub(super) const fn widen(number: u32) -> usize {
    number as usize
}

/// Converts an offset into a mapping, which is not larger than the address space.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "a mapping fits the address space"
)]
const fn low_usize(offset: u64) -> usize {
    offset as usize
}
