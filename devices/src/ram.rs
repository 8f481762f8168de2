//! The machine's memory as the queues see it.
//!
//! It wraps the machine's own mapping (rust-vmm's `vm-memory`); every queue holds a clone, so a pointer that a
//! queue keeps can't outlive the mapping. It doesn't know what lies where in memory.
#![expect(
    unsafe_code,
    reason = "vouches for the machine's mapping to the ring code, which works on its bytes"
)]

mod discard;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use splitring_virtio::mem::{Access, GuestRam, RamRegion, Segment};
use thiserror::Error;
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Address, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend,
    GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::dirty::{Dirty, DirtyPages, OutsideLog};

pub(crate) use discard::DiscardError;

/// The mapping: regions of guest memory, each with the pages of it that this process wrote.
pub type Mapping = GuestMemoryMmap<DirtyPages>;

/// One region of it.
pub type Region = GuestRegionMmap<DirtyPages>;

/// Guest memory, shared by all queues of a machine. It can grow while they run, its dirty log can be switched on, and a
/// device may see it through a translation.
#[derive(Clone)]
pub struct Ram {
    shared: Arc<Shared>,
    translation: Option<Arc<dyn Translation>>,
}

struct Shared {
    /// Regions are only ever added: what was in a mapping is in every later one, so a pointer into a region holds for as
    /// long as this.
    mapping: GuestMemoryAtomic<Mapping>,
    /// Whether writes are noted.
    logging: AtomicBool,
    changing: Mutex<Changing>,
}

/// What changes of the memory need, one at a time.
#[derive(Default)]
struct Changing {
    log: Option<Arc<OutsideLog>>,
    mirrors: Vec<Weak<dyn Mirror>>,
}

/// An IOMMU in front of a device: what an address of the device's means.
pub trait Translation: Send + Sync {
    /// The guest-physical address that `address` stands for with this access, and how many bytes from there on are
    /// contiguous, at least one. `None`: the device has no such access.
    fn translate(&self, address: u64, access: Access) -> Option<(u64, u64)>;
}

/// Somebody outside this process who has a copy of the memory map, and writes memory: the kernel, another process.
pub trait Mirror: Send + Sync {
    /// The memory becomes `mapping`. Nobody uses what is new before this has returned.
    ///
    /// # Errors
    /// The other side does not take it.
    fn remap(&self, mapping: &Arc<Mapping>) -> io::Result<()>;

    /// The writes are to be noted in `log` from now on, or not any more.
    ///
    /// # Errors
    /// The other side does not do that.
    fn log(&self, log: Option<&Arc<OutsideLog>>) -> io::Result<()>;
}

/// Why guest memory can't be changed.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// The new region overlaps one that is there.
    #[error("the new memory overlaps what the guest has")]
    Overlap,
    /// It would grow while its dirty log is on.
    #[error("memory can't grow while its dirty log is on; switch that off first")]
    Logging,
    /// Somebody who serves a device from outside this process.
    #[error("a device that is served outside this process can't follow: {0}")]
    Mirror(#[source] io::Error),
}

impl Ram {
    // `vm-memory`'s type is no part of what an embedder's disks build on.
    /// The machine's memory.
    #[doc(hidden)]
    pub fn new(mapping: Arc<Mapping>) -> Self {
        Self {
            shared: Arc::new(Shared {
                mapping: mapping.into(),
                logging: AtomicBool::new(false),
                changing: Mutex::default(),
            }),
            translation: None,
        }
    }

    /// The mapping as it is now. It holds the regions for as long as it is kept, but lacks those that are added later.
    #[doc(hidden)]
    pub fn mapping(&self) -> Arc<Mapping> {
        self.shared.mapping.memory().into_inner()
    }

    /// The same memory for a device whose addresses go through `translation`.
    #[doc(hidden)]
    #[must_use]
    pub fn translated(&self, translation: Arc<dyn Translation>) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            translation: Some(translation),
        }
    }

    /// Adds `region`. Devices that run find it when they next meet an address of it.
    ///
    /// # Errors
    /// It overlaps what is there, the dirty log is on, or a mirror refuses; then nothing has changed.
    #[doc(hidden)]
    pub fn grow(&self, region: Arc<Region>) -> Result<(), ChangeError> {
        let changing = self.changing();
        if changing.log.is_some() {
            return Err(ChangeError::Logging);
        }
        let old = self.mapping();
        let new = old
            .insert_region(region)
            .map_err(|_| ChangeError::Overlap)?;
        let new = Arc::new(new);
        let mirrors = changing.mirrors.iter().filter_map(Weak::upgrade);
        for mirror in mirrors {
            mirror.remap(&new).map_err(ChangeError::Mirror)?;
        }
        let guard = self.shared.mapping.lock();
        let guard = guard.unwrap_or_else(PoisonError::into_inner);
        guard.replace(Mapping::clone(&new));
        Ok(())
    }

    /// Notes which pages devices write from now on, with none noted yet; or stops that. A thread that completes a
    /// request meanwhile may not have seen it: those that run queues are to be asked something before the first pages
    /// are copied.
    ///
    /// # Errors
    /// A mirror can't; then it is off.
    #[doc(hidden)]
    pub fn log_dirty(&self, on: bool) -> Result<(), ChangeError> {
        let mut changing = self.changing();
        let mapping = self.mapping();
        let top = mapping.last_addr().raw_value().saturating_add(1);
        let log = on.then(|| Arc::new(OutsideLog::new(top)));
        for region in mapping.iter() {
            (**region).bitmap().switch(on);
        }
        self.shared.logging.store(on, Ordering::SeqCst);
        changing.mirrors.retain(|mirror| mirror.strong_count() > 0);
        let mirrors = changing.mirrors.iter().filter_map(Weak::upgrade);
        let mirrors: Vec<_> = mirrors.collect();
        let mut result = Ok(());
        for mirror in &mirrors {
            result = result.and(mirror.log(log.as_ref()));
        }
        if let Err(error) = result {
            self.shared.logging.store(false, Ordering::SeqCst);
            for mirror in &mirrors {
                // What could not begin need not end.
                let _ = mirror.log(None);
            }
            changing.log = None;
            return Err(ChangeError::Mirror(error));
        }
        changing.log = log;
        Ok(())
    }

    /// The pages of each region that devices wrote since the last call. Each write shows in this or a later one.
    #[doc(hidden)]
    pub fn take_dirty(&self) -> Vec<Dirty> {
        let log = self.changing().log.clone();
        let mapping = self.mapping();
        let regions = mapping.iter().map(|region| {
            let guest = region.start_addr().raw_value();
            let pages = (**region).bitmap().take();
            let words = pages.len();
            let mut dirty = Dirty { guest, pages };
            if let Some(log) = &log {
                dirty.add(log.take(guest, words));
            }
            dirty
        });
        regions.collect()
    }

    /// Tells `mirror` of changes from now on, until it is dropped. `begin` gets the memory as it is now, and where writes
    /// are to be noted, if they are; nothing changes before it has returned.
    pub(crate) fn mirror<T>(
        &self,
        mirror: Weak<dyn Mirror>,
        begin: impl FnOnce(&Arc<Mapping>, Option<&Arc<OutsideLog>>) -> T,
    ) -> T {
        let mut changing = self.changing();
        let other = |known: &Weak<dyn Mirror>| !known.ptr_eq(&mirror);
        let known = &mut changing.mirrors;
        known.retain(|known| known.strong_count() > 0 && other(known));
        known.push(mirror);
        begin(&self.mapping(), changing.log.as_ref())
    }

    fn changing(&self) -> MutexGuard<'_, Changing> {
        let changing = self.shared.changing.lock();
        changing.unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `len` bytes at the host address `host` are guest memory.
    pub(crate) fn holds(&self, host: *mut u8, len: usize) -> bool {
        let mapping = self.shared.mapping.memory();
        let found = region_of_host(&mapping, host);
        found.is_some_and(|(region, offset)| region.size().saturating_sub(offset) >= len)
    }
}

impl std::fmt::Debug for Ram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ram")
            .field("mapping", &self.mapping())
            .field("translated", &self.translation.is_some())
            .finish_non_exhaustive()
    }
}

/// The region mapped at the host address `host`, and the offset in it.
fn region_of_host(mapping: &Mapping, host: *mut u8) -> Option<(&Region, usize)> {
    mapping.iter().find_map(|region| {
        let offset = host.addr().checked_sub(region.as_ptr().addr())?;
        (offset < region.size()).then_some((region, offset))
    })
}

// SAFETY: the regions are live, private or shared, readable and writable mappings of the size they say, and
// `shared` keeps them mapped for as long as a clone of this lives: it holds a mapping with all regions that there
// ever were, and `Mapping` never unmaps or remaps a region it holds. `vm-memory` hands out no Rust references to the
// bytes. What a translation answers is cut to the region that it lies in.
unsafe impl GuestRam for Ram {
    fn region(&self, addr: u64, access: Access) -> Option<RamRegion> {
        let mapping = self.shared.mapping.memory();
        if let Some(translation) = &self.translation {
            let (guest, len) = translation.translate(addr, access)?;
            let region = mapping.find_region(GuestAddress(guest))?;
            let offset = guest.checked_sub(region.start_addr().raw_value())?;
            let len = len.min(region.len().checked_sub(offset)?);
            let host = region.as_ptr().wrapping_add(usize::try_from(offset).ok()?);
            // SAFETY: see the impl's comment; `len` bytes from the offset on are in the region.
            return Some(unsafe { RamRegion::new(addr, len, host) });
        }
        let region = mapping.find_region(GuestAddress(addr))?;
        // SAFETY: see the impl's comment; the three values describe one region of it.
        let region = unsafe {
            RamRegion::new(
                region.start_addr().raw_value(),
                region.len(),
                region.as_ptr(),
            )
        };
        Some(region)
    }

    fn translates(&self) -> bool {
        self.translation.is_some()
    }

    #[inline]
    fn tracks_dirty(&self) -> bool {
        self.shared.logging.load(Ordering::Relaxed)
    }

    fn mark_dirty(&self, segment: &Segment, len: usize) {
        let mapping = self.shared.mapping.memory();
        if let Some((region, offset)) = region_of_host(&mapping, segment.as_ptr()) {
            (**region)
                .bitmap()
                .mark_dirty(offset, len.min(segment.len()));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use vm_memory::Bytes;
    use vm_memory::mmap::MmapRegionBuilder;

    const PAGE: usize = 4096;

    /// A region of `len` bytes at `guest`.
    pub(crate) fn region(guest: u64, len: usize) -> Arc<Region> {
        let region = MmapRegionBuilder::new_with_bitmap(len, DirtyPages::new(len))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
            .build()
            .unwrap();
        Arc::new(Region::new(region, GuestAddress(guest)).unwrap())
    }

    pub(crate) fn ram() -> Ram {
        let regions = vec![region(0, 2 * PAGE), region(0x10_0000, PAGE)];
        Ram::new(Arc::new(Mapping::from_arc_regions(regions).unwrap()))
    }

    fn write(ram: &Ram, addr: u64) {
        let region = ram.region(addr, Access::Write).unwrap();
        ram.mark_dirty(&region.segment(addr, 0x10).unwrap(), 0x10);
    }

    fn dirty(ram: &Ram) -> Vec<u64> {
        let all = ram.take_dirty();
        all.iter().flat_map(Dirty::addresses).collect()
    }

    #[test]
    fn a_range_is_found_up_to_its_regions_last_byte_and_not_past_it() {
        let ram = ram();
        let last = ram.region(0x1fff, Access::Write).unwrap();
        assert_eq!(last.segment(0x1fff, 1).unwrap().len(), 1);
        assert!(last.segment(0x1fff, 2).is_none());
        assert!(ram.region(0x2000, Access::Read).is_none());
        assert!(ram.region(0xf_ffff, Access::Read).is_none());
        assert!(ram.region(u64::MAX, Access::Read).is_none());
        let high = ram.region(0x10_0000, Access::Read).unwrap();
        assert_eq!(high.available(0x10_0800), 0x800);
    }

    #[test]
    fn a_written_segment_marks_its_pages_and_no_others_while_the_log_is_on() {
        let ram = ram();
        assert!(!ram.tracks_dirty());
        write(&ram, 0);
        ram.log_dirty(true).unwrap();
        assert!(ram.tracks_dirty());
        assert_eq!(dirty(&ram), [0_u64; 0]);
        write(&ram, 0x1800);
        write(&ram, 0x10_0000);
        // What this process writes for another reason counts, too.
        ram.mapping().write_obj(1_u8, GuestAddress(0xfff)).unwrap();
        assert_eq!(dirty(&ram), [0, 0x1000, 0x10_0000]);
        assert_eq!(dirty(&ram), [0_u64; 0], "each is told of once");
        ram.log_dirty(false).unwrap();
        assert!(!ram.tracks_dirty());
        write(&ram, 0);
        ram.log_dirty(true).unwrap();
        assert_eq!(dirty(&ram), [0_u64; 0], "a log begins clean");
    }

    #[test]
    fn memory_that_is_added_is_seen_by_every_clone_and_leaves_old_pointers_valid() {
        let ram = ram();
        let clone = ram.clone();
        let before = clone.region(0x10_0000, Access::Read).unwrap();
        let held = clone.mapping();
        ram.grow(region(0x20_0000, PAGE)).unwrap();
        assert!(clone.region(0x20_0fff, Access::Write).is_some());
        assert_eq!(held.num_regions(), 2);
        let after = clone.region(0x10_0000, Access::Read).unwrap();
        let host = |region: RamRegion| region.segment(0x10_0000, 1).unwrap().as_ptr();
        assert_eq!(host(before), host(after));
        assert!(
            clone.holds(
                clone
                    .region(0x20_0000, Access::Read)
                    .unwrap()
                    .segment(0x20_0000, 1)
                    .unwrap()
                    .as_ptr(),
                PAGE
            )
        );
        let overlap = ram.grow(region(0x20_0000, PAGE)).unwrap_err();
        assert!(matches!(overlap, ChangeError::Overlap), "{overlap}");
        ram.log_dirty(true).unwrap();
        let logging = ram.grow(region(0x30_0000, PAGE)).unwrap_err();
        assert!(matches!(logging, ChangeError::Logging), "{logging}");
        write(&clone, 0x20_0000);
        assert_eq!(dirty(&ram), [0x20_0000]);
    }

    /// Pages in reverse order, the first one read-only.
    struct Swapped;

    impl Translation for Swapped {
        fn translate(&self, address: u64, access: Access) -> Option<(u64, u64)> {
            let page = address / PAGE as u64;
            let allowed = page < 2 && (page > 0 || access == Access::Read);
            let offset = address % PAGE as u64;
            allowed.then(|| ((1 - page) * PAGE as u64 + offset, PAGE as u64 - offset))
        }
    }

    #[test]
    fn a_translation_decides_where_an_address_is_and_what_may_be_done_there() {
        let plain = ram();
        let ram = plain.translated(Arc::new(Swapped));
        assert!(ram.translates() && !plain.translates());
        let host = |ram: &Ram, addr| {
            let region = ram.region(addr, Access::Read).unwrap();
            region.segment(addr, 1).unwrap().as_ptr()
        };
        assert_eq!(host(&ram, 0x10), host(&plain, 0x1010));
        assert_eq!(host(&ram, 0x1010), host(&plain, 0x10));
        assert!(ram.region(0x10, Access::Write).is_none());
        assert!(ram.region(0x2000, Access::Read).is_none());
        let end = ram.region(0xff0, Access::Read).unwrap();
        assert_eq!(end.available(0xff0), 0x10);
    }

    struct Outside {
        refuses: bool,
        log: Mutex<Option<Arc<OutsideLog>>>,
        regions: Mutex<usize>,
    }

    impl Mirror for Outside {
        fn remap(&self, mapping: &Arc<Mapping>) -> io::Result<()> {
            if self.refuses {
                return Err(io::ErrorKind::Unsupported.into());
            }
            *self.regions.lock().unwrap() = mapping.num_regions();
            Ok(())
        }
        fn log(&self, log: Option<&Arc<OutsideLog>>) -> io::Result<()> {
            if self.refuses && log.is_some() {
                return Err(io::ErrorKind::Unsupported.into());
            }
            *self.log.lock().unwrap() = log.cloned();
            Ok(())
        }
    }

    fn outside(refuses: bool) -> Arc<Outside> {
        Arc::new(Outside {
            refuses,
            log: Mutex::default(),
            regions: Mutex::default(),
        })
    }

    #[test]
    fn who_serves_rings_from_outside_is_told_of_changes_first_and_its_writes_are_noted() {
        let ram = ram();
        let mirror = outside(false);
        let weak: Weak<dyn Mirror> = Arc::downgrade(&mirror) as _;
        let regions = ram.mirror(weak, |mapping, _| mapping.num_regions());
        assert_eq!(regions, 2);
        ram.grow(region(0x20_0000, PAGE)).unwrap();
        assert_eq!(*mirror.regions.lock().unwrap(), 3);
        ram.log_dirty(true).unwrap();
        let log = mirror.log.lock().unwrap().clone().unwrap();
        log.mark(0x1000);
        log.mark(0x20_0000);
        assert_eq!(dirty(&ram), [0x1000, 0x20_0000]);
        assert_eq!(dirty(&ram), [0_u64; 0]);
        ram.log_dirty(false).unwrap();
        assert!(mirror.log.lock().unwrap().is_none());
        let refuses = outside(true);
        let weak: Weak<dyn Mirror> = Arc::downgrade(&refuses) as _;
        ram.mirror(weak, |_, _| ());
        assert!(matches!(ram.log_dirty(true), Err(ChangeError::Mirror(_))));
        assert!(!ram.tracks_dirty());
        assert!(mirror.log.lock().unwrap().is_none(), "it is off for all");
        let refused = ram.grow(region(0x30_0000, PAGE));
        assert!(matches!(refused, Err(ChangeError::Mirror(_))));
        assert_eq!(ram.mapping().num_regions(), 3);
        drop(refuses);
        ram.grow(region(0x30_0000, PAGE)).unwrap();
    }
}
