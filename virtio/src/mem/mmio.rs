//! Access to device registers: a PCI function's configuration space and its BARs.
//!
//! The traits are unsafe because buffers are returned according to a status register: an
//! implementation vouches that the value is the device's.

use core::ptr::NonNull;

/// A mapped range of a BAR. Offsets count from its start; accesses reach the device in program
/// order, each as one access of its width.
///
/// # Safety
/// Reads and writes must access the mapped registers of the one device from which they were mapped.
/// Out-of-range offsets access nothing and read as all ones.
pub unsafe trait Registers {
    /// Reads 8 bits.
    fn read8(&self, offset: u64) -> u8;
    /// Reads 16 bits.
    fn read16(&self, offset: u64) -> u16;
    /// Reads 32 bits.
    fn read32(&self, offset: u64) -> u32;
    /// Writes 8 bits.
    fn write8(&self, offset: u64, value: u8);
    /// Writes 16 bits.
    fn write16(&self, offset: u64, value: u16);
    /// Writes 32 bits.
    fn write32(&self, offset: u64, value: u32);
}

/// A PCI function, accessed through the environment (firmware, a unikernel, a test).
///
/// # Safety
/// `map_bar` must map the registers of this function and of no other.
pub unsafe trait PciFunction {
    /// A mapped range of a BAR.
    type Registers: Registers;

    /// Reads 32 bits of configuration space at a multiple of 4.
    fn read_config(&self, offset: u16) -> u32;

    /// Writes 32 bits of configuration space at a multiple of 4.
    fn write_config(&mut self, offset: u16, value: u32);

    /// Maps `len` bytes at `offset` of memory BAR `bar`. Returns `None` if there is no such range.
    fn map_bar(&mut self, bar: u8, offset: u64, len: u64) -> Option<Self::Registers>;
}

/// [`Registers`] at a pointer, with volatile accesses.
#[derive(Debug)]
pub struct Mmio {
    start: NonNull<u8>,
    len: u64,
}

// SAFETY: device registers may be accessed from any thread; each access is one instruction.
unsafe impl Send for Mmio {}

impl Mmio {
    /// Returns the registers mapped at `start`.
    ///
    /// # Safety
    /// `len` bytes of one device's registers must be mapped there for as long as this lives,
    /// aligned at least as its widest register.
    pub const unsafe fn new(start: NonNull<u8>, len: u64) -> Self {
        Self { start, len }
    }

    /// Returns the pointer to `T` at `offset`, if it is inside the range and aligned.
    #[inline]
    fn at<T>(&self, offset: u64) -> Option<*mut T> {
        let size = u64::try_from(size_of::<T>()).ok()?;
        let inside = offset.checked_add(size)? <= self.len;
        let offset = usize::try_from(offset).ok().filter(|_| inside)?;
        // SAFETY: the offset is inside the mapped range.
        let ptr = unsafe { self.start.add(offset) }.cast::<T>();
        ptr.is_aligned().then_some(ptr.as_ptr())
    }
}

macro_rules! access {
    ($read:ident, $write:ident, $t:ty) => {
        #[inline]
        fn $read(&self, offset: u64) -> $t {
            match self.at::<$t>(offset) {
                // SAFETY: mapped, in range and aligned, by `new` and `at`.
                Some(at) => <$t>::from_le(unsafe { at.read_volatile() }),
                None => <$t>::MAX,
            }
        }

        #[inline]
        fn $write(&self, offset: u64, value: $t) {
            if let Some(at) = self.at::<$t>(offset) {
                // SAFETY: mapped, in range and aligned, by `new` and `at`.
                unsafe { at.write_volatile(value.to_le()) }
            }
        }
    };
}

// SAFETY: `new`'s caller vouches for the mapping; `at` keeps accesses inside it.
unsafe impl Registers for Mmio {
    access!(read8, write8, u8);
    access!(read16, write16, u16);
    access!(read32, write32, u32);
}
