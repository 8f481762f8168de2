//! The seam to the owner of guest memory, and the checked range that comes out of it.

use core::fmt;

/// What the device does to a range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It reads.
    Read,
    /// It writes, and may read.
    Write,
}

/// A run of guest memory that is contiguous in the host's address space too.
#[derive(Clone, Copy, Debug)]
pub struct RamRegion {
    guest: u64,
    len: u64,
    host: *mut u8,
}

// SAFETY: a region is a number and a pointer that nothing dereferences without the `GuestRam` that
// gave it, and that one is Send and Sync.
unsafe impl Send for RamRegion {}
// SAFETY: as above; a shared region gives out nothing but copies of the pointer.
unsafe impl Sync for RamRegion {}

impl RamRegion {
    /// A region of `len` bytes at guest-physical address `guest`, mapped at `host`.
    ///
    /// # Safety
    /// `host` must be valid for reads, and for writes if the region answers [`Access::Write`], of
    /// `len` bytes for as long as the [`GuestRam`] that returns it, or a clone of it, lives; and no
    /// Rust reference may point into it meanwhile.
    #[must_use]
    pub unsafe fn new(guest: u64, len: u64, host: *mut u8) -> Self {
        Self { guest, len, host }
    }

    /// A region that holds nothing.
    pub(crate) const EMPTY: Self = Self {
        guest: 0,
        len: 0,
        host: core::ptr::null_mut(),
    };

    /// The range `addr..addr + len`, if it lies wholly in this region and is not empty.
    #[inline(always)]
    pub(super) fn buffer(&self, addr: u64, len: u32) -> Option<Segment> {
        let offset = addr.wrapping_sub(self.guest);
        // Outside the region both differences are huge; and so is the last byte of an empty range.
        let available = self.len.wrapping_sub(offset);
        let last = u64::from(len).wrapping_sub(1);
        (offset < self.len && last < available).then(|| Segment {
            // Within the mapping, so within the address space.
            ptr: self.host.wrapping_add(low_usize(offset)),
            len: widen(len),
        })
    }

    /// Bytes from `addr` to the end of the region; 0 when `addr` lies outside.
    #[inline]
    #[must_use]
    pub fn available(&self, addr: u64) -> u64 {
        // Below the region the difference wraps to something larger than any length.
        self.len.saturating_sub(addr.wrapping_sub(self.guest))
    }

    /// The range `addr..addr + len`, if it lies wholly in this region.
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

/// Guest memory as the owner of the mapping shows it.
///
/// Translations may be kept for as long as the value or a clone of it lives, so a mapping may grow
/// under it but not shrink.
///
/// # Safety
/// Every region returned must be what [`RamRegion::new`] asks for, and must hold the address asked
/// for with the access asked for.
pub unsafe trait GuestRam: Clone + Send + Sync + 'static {
    /// The region that holds `addr` and allows `access`.
    fn region(&self, addr: u64, access: Access) -> Option<RamRegion>;

    /// Whether [`mark_dirty`](Self::mark_dirty) does anything now; asked before every batch of marks.
    #[inline]
    fn tracks_dirty(&self) -> bool {
        false
    }

    /// Takes note that the first `len` bytes of `segment` may have been written.
    fn mark_dirty(&self, segment: &Segment, len: usize) {
        let _ = (segment, len);
    }
}

/// A range of guest memory in the host's address space, bounds-checked when it was made.
///
/// It has the layout of an `iovec`: pointer, then length. It does not keep the memory mapped: what it
/// came from (a chain, say) does.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: a segment is an address and a length; reading or writing through it is up to whoever holds
// what keeps it mapped, and guest memory may be touched from any thread.
unsafe impl Send for Segment {}
// SAFETY: as above; sharing a segment gives out nothing but the address.
unsafe impl Sync for Segment {}

impl Segment {
    /// First byte, in the host's address space.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// Number of bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte in it.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `mid` bytes and the rest; `None` when there are fewer.
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

/// A 32-bit number, which every pointer can be moved by.
#[inline]
pub(super) const fn widen(number: u32) -> usize {
    number as usize
}

/// An offset into a mapping, which is no larger than the address space.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "a mapping fits the address space"
)]
const fn low_usize(offset: u64) -> usize {
    offset as usize
}
