//! Memory that a device may access while a driver's queue holds it.
//!
//! [`DmaBuf`] is the owner of such memory, [`DmaMap`] (`dma/map.rs`) translates its address for the
//! device; their few implementations are beside them. `driver::queue` decides when a device may use
//! the memory; this module does not know descriptors.
//!
//! A borrowed slice is not a [`DmaBuf`]: a queue that is forgotten (`mem::forget`) never ends the
//! device's use of the memory. Therefore the memory is owned, and the owner is added to the queue
//! with its token and returned with it.

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

/// The location and the length of a memory buffer.
#[derive(Clone, Copy, Debug)]
pub struct DmaRegion {
    pub(crate) place: MemoryLocation,
    pub(crate) len: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum MemoryLocation {
    /// Addressable by this program; a [`DmaMap`] translates the address.
    Memory(NonNull<u8>),
    /// An address of the device, known to the caller.
    Bus(u64),
}

impl DmaRegion {
    /// Returns the region of `len` bytes at `ptr`, in this program's address space.
    #[inline]
    pub const fn memory(ptr: NonNull<u8>, len: usize) -> Self {
        Self {
            place: MemoryLocation::Memory(ptr),
            len,
        }
    }

    /// Returns the region of `len` bytes at the device's address `address`, which no [`DmaMap`]
    /// translates.
    #[inline]
    pub const fn bus(address: u64, len: usize) -> Self {
        Self {
            place: MemoryLocation::Bus(address),
            len,
        }
    }

    /// Returns the part `range` of the region, or `None` if it is not inside.
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

    /// Returns the number of bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the region has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// An owner of one contiguous memory buffer that a device may read and write.
///
/// # Safety
/// - The region stays the same, and valid for reads and writes, until the owner is dropped; moving
///   the owner does not move it.
/// - Safe code accesses the bytes only through `&mut Self` or by consuming the owner, never through
///   `&Self`: while a queue holds the owner, it holds it by shared reference at most, and the
///   device may be writing.
/// - Two live owners never overlap.
pub unsafe trait DmaBuf: 'static {
    /// Returns the owned memory.
    fn region(&self) -> DmaRegion;
}

/// A [`DmaBuf`] whose bytes this program can access.
pub trait DmaBufMut: DmaBuf {
    /// Returns the bytes.
    fn bytes_mut(&mut self) -> &mut [u8];
}

impl DmaBufMut for DmaBytes {
    #[inline]
    fn bytes_mut(&mut self) -> &mut [u8] {
        Self::bytes_mut(self)
    }
}

/// Owned bytes: from the heap, or from memory that is never freed.
///
/// The bytes are accessible through `&mut` only, even for reading (see [`DmaBuf`]).
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
    /// Allocates `len` zero bytes on the heap at a multiple of `align`, a power of two. Returns
    /// `None` if there is no such memory.
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

    /// Takes over memory that is never freed, such as a `static` array of the guest.
    pub fn from_static(bytes: &'static mut [u8]) -> Self {
        Self {
            len: bytes.len(),
            ptr: NonNull::from(bytes).cast(),
            heap: 0,
        }
    }

    /// Takes over memory from another source: a page allocator, or a part of a virtual machine's
    /// memory.
    ///
    /// # Safety
    /// `ptr` must be valid for reads and writes of `len` initialised bytes for as long as the
    /// result, or a device that may use it, lives. Only the result, and such a device, may access
    /// these bytes.
    pub const unsafe fn from_raw(ptr: NonNull<u8>, len: usize) -> Self {
        Self { ptr, len, heap: 0 }
    }

    /// Returns the number of owned bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the bytes for reading. Takes `&mut` because no device may use them meanwhile.
    #[inline]
    pub fn bytes(&mut self) -> &[u8] {
        self.bytes_mut()
    }

    /// Returns the bytes for reading and writing.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: valid and initialised for `len` bytes by every constructor, and exclusively ours:
        // a queue that lets a device use the bytes owns `self` meanwhile.
        unsafe { core::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }

    /// Copies a wire structure to offset `at`. Returns false, and writes nothing, if it does not
    /// fit.
    #[inline]
    pub fn put(&mut self, at: usize, value: &(impl IntoBytes + Immutable + ?Sized)) -> bool {
        let rest = self.bytes_mut().get_mut(at..);
        rest.is_some_and(|rest| value.write_to_prefix(rest).is_ok())
    }

    /// Reads a wire structure at offset `at`. Returns `None` if it does not fit.
    #[inline]
    pub fn get<V: FromBytes>(&mut self, at: usize) -> Option<V> {
        V::read_from_prefix(self.bytes().get(at..)?)
            .ok()
            .map(|(value, _)| value)
    }

    /// Divides the memory into parts of `len` bytes; a remainder is lost. Memory from the heap is
    /// not freed afterwards.
    pub(crate) fn divide(self, len: usize) -> impl Iterator<Item = Self> {
        let mut rest = self.leak();
        core::iter::from_fn(move || rest.split_to(len).filter(|piece| !piece.is_empty()))
    }

    /// Splits off the first `len` bytes as a separate owner. Returns `None`, and changes nothing,
    /// if there are fewer, or if the memory is from the heap, where it can only be freed whole.
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

    /// Leaks the memory, so that [`split_to`](Self::split_to) can divide it.
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

/// An address and a length from another source, such as a page list.
#[derive(Debug)]
pub struct RawSegment {
    address: u64,
    len: u32,
}

impl RawSegment {
    /// Returns a segment of `len` bytes at the device's address `address`.
    ///
    /// # Safety
    /// From the time at which this is added to a queue until the queue returns it, the memory must
    /// stay valid and only the device may access it. A queue that is dropped or forgotten while the
    /// device may still use the memory never returns it.
    pub const unsafe fn new(address: u64, len: u32) -> Self {
        Self { address, len }
    }
}

// SAFETY: the constructor's caller vouches for the memory; nothing here accesses its bytes.
unsafe impl DmaBuf for RawSegment {
    #[inline]
    fn region(&self) -> DmaRegion {
        // A u32 fits into usize on every platform with memory worth sharing (32 and 64 bits).
        #[expect(clippy::as_conversions, reason = "u32 to usize, see above")]
        let len = self.len as usize;
        DmaRegion::bus(self.address, len)
    }
}
