//! Memory a device may touch while the driver's end has lent it out.
//!
//! [`DmaBuf`] says what owns such memory, [`DmaMap`] (`dma/map.rs`) where the device finds it; their
//! few implementations are beside them. Who lends the memory, and for how long, is the
//! business of `driver::queue`; this file does not know descriptors.
//!
//! A borrowed slice is no [`DmaBuf`]: a queue that is forgotten (`mem::forget`) never ends its
//! borrow's use by the device. So whatever is lent is owned, and what is owned goes into the queue
//! with its token and comes back with it.

mod map;

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;

use zerocopy::{FromBytes, Immutable, IntoBytes};

pub(crate) use map::Mappings;
pub use map::{Direction, DmaMap, Identity, MapError, Window};

/// Where a piece of memory is, and how long it is.
#[derive(Clone, Copy, Debug)]
pub struct DmaRegion {
    pub(crate) place: MemoryLocation,
    pub(crate) len: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum MemoryLocation {
    /// Addressable by this program; a [`DmaMap`] finds the device's address.
    Memory(NonNull<u8>),
    /// The device's own address, known to the caller.
    Bus(u64),
}

impl DmaRegion {
    /// `len` bytes at `ptr`, in this program's address space.
    #[inline]
    pub const fn memory(ptr: NonNull<u8>, len: usize) -> Self {
        Self {
            place: MemoryLocation::Memory(ptr),
            len,
        }
    }

    /// `len` bytes at `address`, as the device sees them; no [`DmaMap`] is asked.
    #[inline]
    pub const fn bus(address: u64, len: usize) -> Self {
        Self {
            place: MemoryLocation::Bus(address),
            len,
        }
    }

    /// The bytes of `range` alone. `None` if they are not inside.
    #[inline]
    pub(crate) fn part(self, range: Range<usize>) -> Option<Self> {
        let len = range.end.checked_sub(range.start)?;
        if range.end > self.len {
            return None;
        }
        let place = match self.place {
            // SAFETY: the start is inside the region or at its end.
            MemoryLocation::Memory(ptr) => MemoryLocation::Memory(unsafe { ptr.add(range.start) }),
            MemoryLocation::Bus(address) => {
                MemoryLocation::Bus(address.checked_add(u64::try_from(range.start).ok()?)?)
            }
        };
        Some(Self { place, len })
    }

    /// Bytes of the region.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no byte.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// An owner of one contiguous piece of memory that a device may read and write.
///
/// # Safety
/// - The region stays the same, and valid for reads and writes, until the owner is dropped; moving
///   the owner does not move it.
/// - Safe code reaches the bytes only through `&mut Self` or by consuming the owner, never through
///   `&Self`: while a queue holds the owner, it holds it by shared reference at most, and the
///   device may be writing.
/// - Two live owners never overlap.
pub unsafe trait DmaBuf: 'static {
    /// The memory owned.
    fn region(&self) -> DmaRegion;
}

/// A [`DmaBuf`] whose bytes this program can look at.
pub trait DmaBufMut: DmaBuf {
    /// The bytes.
    fn bytes_mut(&mut self) -> &mut [u8];
}

impl DmaBufMut for DmaBytes {
    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        Self::bytes_mut(self)
    }
}

/// Owned bytes: from the heap, or from memory that is there for good.
///
/// The bytes are reached through `&mut` only, reading included (see [`DmaBuf`]).
pub struct DmaBytes {
    ptr: NonNull<u8>,
    len: usize,
    /// Alignment of the heap allocation, or 0 for memory that is never freed.
    heap: usize,
}

// SAFETY: the memory belongs to this value alone, like that of a `Box<[u8]>`.
unsafe impl Send for DmaBytes {}
// SAFETY: a shared reference gives no access to the bytes.
unsafe impl Sync for DmaBytes {}

// SAFETY: pointer and length never change, the allocation is freed by Drop only and does not move
// with the value; the accessors all take `&mut self`; constructors take memory over whole.
unsafe impl DmaBuf for DmaBytes {
    #[inline]
    fn region(&self) -> DmaRegion {
        DmaRegion::memory(self.ptr, self.len)
    }
}

impl DmaBytes {
    /// `len` zero bytes from the heap at a multiple of `align`, a power of two. `None` if there is
    /// no such memory.
    pub fn zeroed(len: usize, align: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len, align).ok()?;
        if len == 0 {
            return Some(Self::from(Vec::new()));
        }
        // SAFETY: the layout's size is not zero.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self {
            ptr,
            len,
            heap: align,
        })
    }

    /// Memory that is there for good, such as a `static` array of the guest.
    pub fn from_static(bytes: &'static mut [u8]) -> Self {
        Self {
            len: bytes.len(),
            ptr: NonNull::from(bytes).cast(),
            heap: 0,
        }
    }

    /// Memory found by other means: a page allocator, or a piece of a virtual machine's memory.
    ///
    /// # Safety
    /// `ptr` is valid for reads and writes of `len` bytes for as long as the result, or any device
    /// it was lent to, lives; nobody else but a device it is lent to touches these bytes; they are
    /// initialised.
    pub const unsafe fn from_raw(ptr: NonNull<u8>, len: usize) -> Self {
        Self { ptr, len, heap: 0 }
    }

    /// Bytes owned.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether no byte is owned.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes, to read; `&mut` because nobody may be lent them meanwhile.
    #[inline]
    pub fn bytes(&mut self) -> &[u8] {
        self.bytes_mut()
    }

    /// The bytes, to read and write.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: valid and initialised for `len` bytes by every constructor, and exclusively
        // ours: a queue that lends the bytes to a device owns `self` meanwhile.
        unsafe { core::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// Copies a wire structure to offset `at`. False, and nothing is written, if it does not fit.
    #[inline]
    pub fn put(&mut self, at: usize, value: &(impl IntoBytes + Immutable + ?Sized)) -> bool {
        let rest = self.bytes_mut().get_mut(at..);
        rest.is_some_and(|rest| value.write_to_prefix(rest).is_ok())
    }

    /// Copies a wire structure out of offset `at`.
    #[inline]
    pub fn get<V: FromBytes>(&mut self, at: usize) -> Option<V> {
        V::read_from_prefix(self.bytes().get(at..)?)
            .ok()
            .map(|(value, _)| value)
    }

    /// Divides the memory into pieces of `len` bytes; what is left over is lost. Memory from the
    /// heap is never freed afterwards.
    pub(crate) fn divide(self, len: usize) -> impl Iterator<Item = Self> {
        let mut rest = self.leak();
        core::iter::from_fn(move || rest.split_to(len).filter(|piece| !piece.is_empty()))
    }

    /// Takes the first `len` bytes off as an owner of their own. `None`, and nothing happens, if
    /// there are fewer, or if the memory came from the heap, where it can only be freed whole.
    pub fn split_to(&mut self, len: usize) -> Option<Self> {
        let rest = self.len.checked_sub(len)?;
        if self.heap != 0 {
            return None;
        }
        let front = Self {
            ptr: self.ptr,
            len,
            heap: 0,
        };
        // SAFETY: `len` is within the region, so the result is in it or one past its end.
        self.ptr = unsafe { self.ptr.add(len) };
        self.len = rest;
        Some(front)
    }

    /// Gives up ever freeing the memory, which lets [`split_to`](Self::split_to) divide it.
    pub const fn leak(mut self) -> Self {
        self.heap = 0;
        self
    }
}

impl Drop for DmaBytes {
    fn drop(&mut self) {
        if self.heap == 0 || self.len == 0 {
            return;
        }
        if let Ok(layout) = Layout::from_size_align(self.len, self.heap) {
            // SAFETY: `heap` is set by constructors that allocated exactly this layout.
            unsafe { dealloc(self.ptr.as_ptr(), layout) }
        }
    }
}

impl From<Box<[u8]>> for DmaBytes {
    fn from(bytes: Box<[u8]>) -> Self {
        let len = bytes.len();
        Self {
            ptr: NonNull::from(Box::leak(bytes)).cast(),
            len,
            heap: 1,
        }
    }
}

impl From<Vec<u8>> for DmaBytes {
    fn from(bytes: Vec<u8>) -> Self {
        bytes.into_boxed_slice().into()
    }
}

impl fmt::Debug for DmaBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBytes({} bytes at {:p})", self.len, self.ptr)
    }
}

/// An address and a length that were found elsewhere, such as in a page list.
#[derive(Debug)]
pub struct RawSegment {
    address: u64,
    len: u32,
}

impl RawSegment {
    /// `len` bytes at the device's address `address`.
    ///
    /// # Safety
    /// From the moment this goes into a queue until the queue gives it back, the memory stays
    /// valid and nobody but the device touches it. A queue that is dropped or forgotten while the
    /// device may still use it never gives it back.
    pub const unsafe fn new(address: u64, len: u32) -> Self {
        Self { address, len }
    }
}

// SAFETY: the constructor's caller vouches for the memory; nothing here reaches its bytes.
unsafe impl DmaBuf for RawSegment {
    #[inline]
    fn region(&self) -> DmaRegion {
        // A u32 fits into usize on every platform with memory worth sharing (32 and 64 bits).
        #[expect(clippy::as_conversions, reason = "u32 to usize, see above")]
        let len = self.len as usize;
        DmaRegion::bus(self.address, len)
    }
}
