//! Configuration space as memory: 256 pages of 4 KiB, one a function of bus 0 (PCI Express Base §7.2.2, ECAM).
//!
//! Reading configuration space has no side effects, so the machine may show this mapping to the guest as
//! read-only memory, and reads then never leave the guest. Absent functions are all ones: every slot that is
//! empty maps the same few pages, so the megabyte costs next to nothing. It doesn't know what the bytes mean.
//!
//! A function writes its page through a mapping of its own; `ConfigPages::show` puts the page onto the bus, and
//! `ConfigPages::hide` takes it away again, while a guest runs. So a function that has left the bus, and whoever still
//! holds it, can change nothing that a guest sees.
//!
//! The one exception is the virtio window capability (VIRTIO 1.2 §4.1.4.9), whose data field reads a BAR. Its
//! first use calls a hook with which the machine takes the memory away again, so that reads arrive here.
#![expect(
    unsafe_code,
    reason = "maps configuration space so that the guest may read it directly"
)]

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::pwrite;
use rustix::mm::{
    MapFlags, MprotectFlags, MremapFlags, ProtFlags, mmap, mmap_anonymous, mprotect, mremap_fixed,
    munmap,
};

use crate::debug::opaque_debug;

/// Bytes of one function's configuration space.
pub const FUNCTION_SIZE: usize = 4096;
/// Functions a slot can have.
const FUNCTIONS_PER_SLOT: usize = 8;
/// Slots of the bus.
pub const SLOTS: usize = 32;
/// Bytes of one slot.
const SLOT_SIZE: usize = FUNCTION_SIZE * FUNCTIONS_PER_SLOT;
/// Bytes of the bus.
pub const BUS_SIZE: usize = SLOT_SIZE * SLOTS;
/// Absent slots mapped at a time: fewer mappings to make at every start, for a little more memory to fill.
const ABSENT_SLOTS: usize = 4;
/// 32-bit words of a function's configuration space.
const WORDS: usize = FUNCTION_SIZE / 4;

/// Called when direct reads must end, once.
pub type ExitOnRead = Box<dyn FnOnce() + Send>;

/// Configuration space of the bus, mapped once.
pub struct ConfigPages {
    base: NonNull<u8>,
    /// Gone once it was called.
    exit_on_read: Mutex<Option<ExitOnRead>>,
    /// It was to be called.
    ended: AtomicBool,
}

opaque_debug! { ConfigPages |it| { base: it.base } }

// SAFETY: the mapping is reached through atomics only, and lives until the value is dropped.
unsafe impl Send for ConfigPages {}
// SAFETY: as above.
unsafe impl Sync for ConfigPages {}

impl ConfigPages {
    /// A bus on which every function is absent.
    pub fn new() -> io::Result<Arc<Self>> {
        let ones = memfd_create("pci-absent", MemfdFlags::CLOEXEC)?;
        for offset in (0..).step_by(SLOT_SIZE).take(ABSENT_SLOTS) {
            if pwrite(&ones, &[0xff; SLOT_SIZE], offset)? != SLOT_SIZE {
                return Err(io::Error::from(io::ErrorKind::WriteZero));
            }
        }
        // SAFETY: the kernel picks a free range.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                BUS_SIZE,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let pages = Self {
            base: NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            exit_on_read: Mutex::default(),
            ended: AtomicBool::new(false),
        };
        for slot in (0..SLOTS).step_by(ABSENT_SLOTS) {
            // SAFETY: the slots lie within the range mapped above, which nothing refers to yet.
            unsafe {
                mmap(
                    pages.place(slot),
                    SLOT_SIZE * ABSENT_SLOTS,
                    ProtFlags::READ,
                    MapFlags::SHARED | MapFlags::FIXED,
                    &ones,
                    0,
                )?;
            }
        }
        Ok(Arc::new(pages))
    }

    /// Where the bus is mapped: [`BUS_SIZE`] bytes, valid as long as `self`. Written by devices at any time.
    pub fn host_address(&self) -> *const u8 {
        self.base.as_ptr()
    }

    /// Sets what to do when reads have to arrive at the functions themselves; to be set before the guest runs
    /// by whoever shows it the mapping. It is called at most once, by a vCPU thread that writes configuration space.
    pub fn set_exit_on_read(&self, hook: ExitOnRead) {
        *self.exit_on_read() = Some(hook);
    }

    fn exit_on_read(&self) -> MutexGuard<'_, Option<ExitOnRead>> {
        self.exit_on_read
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, slot: usize) -> *mut core::ffi::c_void {
        self.base
            .as_ptr()
            .wrapping_add(slot.wrapping_mul(SLOT_SIZE))
            .cast()
    }

    /// A page of zeros for one function, which is not on the bus yet.
    pub(super) fn page(self: &Arc<Self>) -> io::Result<NewPage> {
        let file = memfd_create("pci-function", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, FUNCTION_SIZE as u64)?;
        // SAFETY: the kernel picks a free range.
        let words = unsafe {
            mmap(
                std::ptr::null_mut(),
                FUNCTION_SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )?
        };
        let words = NonNull::new(words.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let own = Own {
            words,
            bus: Arc::clone(self),
        };
        Ok(NewPage {
            page: ConfigPage(Arc::new(own)),
            file,
        })
    }

    /// Where function 0 of `slot` is, if the bus has such a slot.
    fn function(&self, slot: u8) -> io::Result<*mut core::ffi::c_void> {
        let slot = usize::from(slot);
        let exists = (slot < SLOTS).then(|| self.place(slot));
        exists.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Makes `page` function 0 of `slot`, at once as far as the guest can tell.
    pub(super) fn show(&self, slot: u8, page: &NewPage) -> io::Result<()> {
        let place = self.function(slot)?;
        // SAFETY: the place is a page of the bus; what was mapped there only the guest reads, by the address.
        unsafe {
            mmap(
                place,
                FUNCTION_SIZE,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::FIXED,
                &page.file,
                0,
            )?;
        }
        Ok(())
    }

    /// Makes function 0 of `slot` absent, at once as far as the guest can tell. Changes nothing if it fails.
    pub(super) fn hide(&self, slot: u8) -> io::Result<()> {
        let place = self.function(slot)?;
        // SAFETY: the kernel picks a free range.
        let ones = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                FUNCTION_SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )?
        };
        // SAFETY: the page was just mapped, and nobody else knows of it. It is moved over a page of the bus, which only
        // the guest reads, by the address; where that fails it is unmapped.
        let moved = unsafe {
            ones.cast::<[u8; FUNCTION_SIZE]>()
                .write([0xff; FUNCTION_SIZE]);
            mprotect(ones, FUNCTION_SIZE, MprotectFlags::READ)
                .and_then(|()| {
                    mremap_fixed(
                        ones,
                        FUNCTION_SIZE,
                        FUNCTION_SIZE,
                        MremapFlags::MAYMOVE,
                        place,
                    )
                })
                .inspect_err(|_| {
                    let _ = munmap(ones, FUNCTION_SIZE);
                })
        };
        Ok(moved.map(|_| ())?)
    }
}

impl Drop for ConfigPages {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`. A guest that was shown it has no vCPU running any more: only then does a machine
        // take its devices apart.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), BUS_SIZE) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A function's page that is not on the bus yet.
pub(super) struct NewPage {
    pub(super) page: ConfigPage,
    file: OwnedFd,
}

/// Configuration space of one function. Accesses are per 32-bit word and atomic; offsets past the end read as
/// ones and drop writes. Clones are the same page.
#[derive(Clone)]
pub struct ConfigPage(Arc<Own>);

opaque_debug! { ConfigPage |it| { words: it.0.words } }

/// The function's own mapping of its page.
struct Own {
    words: NonNull<[AtomicU32; WORDS]>,
    bus: Arc<ConfigPages>,
}

// SAFETY: the mapping is reached through atomics only, and lives until the value is dropped.
unsafe impl Send for Own {}
// SAFETY: as above.
unsafe impl Sync for Own {}

impl Drop for Own {
    fn drop(&mut self) {
        // SAFETY: mapped by `ConfigPages::page` for this value alone; the bus has a mapping of its own.
        let unmapped = unsafe { munmap(self.words.as_ptr().cast(), FUNCTION_SIZE) };
        debug_assert!(unmapped.is_ok());
    }
}

impl ConfigPage {
    fn word(&self, offset: u16) -> Option<&AtomicU32> {
        // SAFETY: the page is mapped, aligned and writable while the value lives, and only atomics touch it.
        let words = unsafe { self.0.words.as_ref() };
        words.get(usize::from(offset >> 2))
    }

    /// The 32-bit word that holds `offset`.
    pub fn load(&self, offset: u16) -> u32 {
        self.word(offset)
            .map_or(u32::MAX, |word| u32::from_le(word.load(Ordering::Acquire)))
    }

    /// Changes the bits of `mask` in the word that holds `offset` to those of `value`.
    pub fn update(&self, offset: u16, mask: u32, value: u32) {
        if let Some(word) = self.word(offset) {
            let change = |old: u32| Some(((u32::from_le(old) & !mask) | (value & mask)).to_le());
            // The closure never declines.
            let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        }
    }

    /// Reads bytes; an access may cross words.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (offset..=u16::MAX).zip(data) {
            let [b0, b1, b2, b3] = self.load(at).to_le_bytes();
            *byte = match at & 3 {
                0 => b0,
                1 => b1,
                2 => b2,
                _ => b3,
            };
        }
    }

    /// Whether reads by the guest need not arrive at the function, if the machine shows it the
    /// mapping.
    pub fn has_direct_reads(&self) -> bool {
        !self.0.bus.ended.load(Ordering::Acquire)
    }

    /// From now on reads by the guest must arrive at the function: one of its fields is not memory.
    pub fn end_direct_reads(&self) {
        self.0.bus.ended.store(true, Ordering::Release);
        // Called under the lock: whoever comes second finds that reads arrive already.
        if let Some(hook) = self.0.bus.exit_on_read().take() {
            hook();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl ConfigPages {
        /// What a guest loads at once without an exit.
        pub(in crate::pci) fn load(&self, offset: usize) -> u32 {
            assert!(offset + 4 <= BUS_SIZE && offset.is_multiple_of(4));
            let at = self.host_address().wrapping_add(offset);
            // SAFETY: within the mapping and aligned; the test's stand-in for the guest's own load.
            u32::from_le(unsafe { at.cast::<u32>().read_volatile() })
        }

        /// What a guest reads without an exit.
        pub(in crate::pci) fn copy(&self, offset: usize, len: usize) -> Vec<u8> {
            assert!(offset + len <= BUS_SIZE);
            let at = self.host_address().wrapping_add(offset);
            (0..len)
                // SAFETY: within the mapping; the test's stand-in for the guest's own loads.
                .map(|byte| unsafe { at.wrapping_add(byte).read_volatile() })
                .collect()
        }
    }

    fn guest_read(pages: &ConfigPages, offset: usize) -> u32 {
        u32::from_le_bytes(pages.copy(offset, 4).try_into().unwrap())
    }

    #[test]
    fn absent_functions_are_all_ones_and_present_ones_show_their_bytes() {
        let pages = ConfigPages::new().unwrap();
        let new = pages.page().unwrap();
        new.page.update(0, u32::MAX, 0x1041_1af4);
        assert_eq!(guest_read(&pages, 3 * SLOT_SIZE), u32::MAX, "not there yet");
        pages.show(3, &new).unwrap();
        for slot in 0..SLOTS {
            for function in 0..FUNCTIONS_PER_SLOT {
                let wanted = match (slot, function) {
                    (3, 0) => 0x1041_1af4,
                    _ => u32::MAX,
                };
                let offset = slot * SLOT_SIZE + function * FUNCTION_SIZE;
                assert_eq!(guest_read(&pages, offset), wanted, "{slot}.{function}");
            }
        }
        assert_eq!(guest_read(&pages, BUS_SIZE - 4), u32::MAX);
        assert!(pages.show(32, &new).is_err() && pages.hide(32).is_err());
    }

    #[test]
    fn a_hidden_function_is_all_ones_whatever_it_writes_and_its_slot_takes_another() {
        let pages = ConfigPages::new().unwrap();
        for turn in 0..3 {
            let new = pages.page().unwrap();
            pages.show(31, &new).unwrap();
            new.page.update(0, u32::MAX, turn);
            assert_eq!(guest_read(&pages, 31 * SLOT_SIZE), turn);
            pages.hide(31).unwrap();
            new.page.update(0, u32::MAX, 7);
            assert_eq!(new.page.load(0), 7, "its own mapping stays");
            assert_eq!(pages.copy(31 * SLOT_SIZE, SLOT_SIZE), [0xff; SLOT_SIZE]);
        }
    }

    #[test]
    fn bytes_are_read_across_words_and_past_the_end_as_ones() {
        let pages = ConfigPages::new().unwrap();
        let page = pages.page().unwrap().page;
        page.update(4, u32::MAX, 0x0403_0201);
        page.update(8, 0xff, 0x05);
        let mut data = [0; 4];
        page.read(5, &mut data);
        assert_eq!(data, [2, 3, 4, 5]);
        page.read(4094, &mut data);
        assert_eq!(data, [0, 0, 0xff, 0xff]);
    }

    #[test]
    fn an_update_leaves_the_other_bits_alone() {
        let pages = ConfigPages::new().unwrap();
        let page = pages.page().unwrap().page;
        page.update(4, u32::MAX, 0x0010_0406);
        page.update(4, 1 << 19, 1 << 19);
        page.update(4, 0x406, 0);
        assert_eq!(page.load(4), 0x0018_0000);
    }
}
