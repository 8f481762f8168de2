//! Guest memory from the allocator, for tests, fuzzing and benchmarks: any number of regions,
//! accessible by guest address, with a dirty log.

use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Access, GuestRam, RamRegion, Segment, copy};

/// Number of bytes per bit of the dirty log.
pub const DIRTY_PAGE: usize = 4096;

/// Guest memory of a test. Clones share it.
#[derive(Clone, Debug)]
pub struct TestRam(Arc<Regions>);

#[derive(Debug)]
struct Regions {
    regions: Vec<Region>,
    tracking: AtomicBool,
    lookups: AtomicUsize,
}

#[derive(Debug)]
struct Region {
    guest: u64,
    layout: Layout,
    host: *mut u8,
    writable: bool,
    dirty: Vec<AtomicBool>,
}

// SAFETY: the memory is only accessed by volatile and atomic accesses.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `with_regions` with this layout, and no clone is left.
        unsafe { dealloc(self.host, self.layout) };
    }
}

impl TestRam {
    /// Creates memory of `len` zeroed bytes at guest address `guest`.
    #[must_use]
    pub fn new(guest: u64, len: usize) -> Self {
        Self::with_regions(&[(guest, len, true)])
    }

    /// Creates memory of zeroed regions, given by guest address, length and whether a device may
    /// write. Each is an allocation of its own, so that a sanitizer detects an access beyond its
    /// end.
    ///
    /// # Panics
    /// A length is 0 or too large.
    #[must_use]
    #[expect(clippy::expect_used, reason = "memory of a test's making")]
    pub fn with_regions(regions: &[(u64, usize, bool)]) -> Self {
        let make = |&(guest, len, writable): &(u64, usize, bool)| {
            assert!(len > 0, "a region holds something");
            let layout = Layout::from_size_align(len, DIRTY_PAGE).expect("a sane length");
            // SAFETY: the length is not 0.
            let host = unsafe { alloc_zeroed(layout) };
            if host.is_null() {
                handle_alloc_error(layout);
            }
            let dirty = core::iter::repeat_with(AtomicBool::default);
            Region {
                guest,
                layout,
                host,
                writable,
                dirty: dirty.take(len.div_ceil(DIRTY_PAGE)).collect(),
            }
        };
        Self(Arc::new(Regions {
            regions: regions.iter().map(make).collect(),
            tracking: AtomicBool::new(false),
            lookups: AtomicUsize::new(0),
        }))
    }

    /// Starts the dirty log with all pages clean.
    pub fn track_dirty(&self) {
        for page in self.0.regions.iter().flat_map(|region| &region.dirty) {
            page.store(false, Ordering::Relaxed);
        }
        self.0.tracking.store(true, Ordering::Relaxed);
    }

    /// Returns whether the page of `addr` was marked since [`track_dirty`](Self::track_dirty).
    #[must_use]
    pub fn is_dirty(&self, addr: u64) -> bool {
        self.0.regions.iter().any(|region| {
            let page = usize::try_from(addr.wrapping_sub(region.guest)).map(|at| at / DIRTY_PAGE);
            page.ok()
                .and_then(|page| region.dirty.get(page))
                .is_some_and(|page| page.load(Ordering::Relaxed))
        })
    }

    /// Returns the number of region lookups.
    #[must_use]
    pub fn lookups(&self) -> usize {
        self.0.lookups.load(Ordering::Relaxed)
    }

    /// Reads bytes.
    ///
    /// # Panics
    /// They are not in one region.
    pub fn read(&self, addr: u64, out: &mut [u8]) {
        let segment = self.segment(addr, out.len());
        // SAFETY: the segment has as many bytes, and `self` keeps them.
        unsafe { copy::from_guest(out, segment.as_ptr()) };
    }

    /// Writes bytes.
    ///
    /// # Panics
    /// They are not in one region.
    pub fn write(&self, addr: u64, data: &[u8]) {
        let segment = self.segment(addr, data.len());
        // SAFETY: the segment has as many bytes, and `self` keeps them.
        unsafe { copy::to_guest(segment.as_ptr(), data) };
    }

    /// Reads a structure.
    ///
    /// # Panics
    /// It is not in one region.
    #[must_use]
    pub fn get<T: FromBytes + IntoBytes>(&self, addr: u64) -> T {
        let mut value = T::new_zeroed();
        self.read(addr, value.as_mut_bytes());
        value
    }

    /// Writes a structure.
    ///
    /// # Panics
    /// It is not in one region.
    pub fn put<T: IntoBytes + Immutable>(&self, addr: u64, value: &T) {
        self.write(addr, value.as_bytes());
    }

    #[expect(
        clippy::expect_used,
        reason = "a test that steps outside is wrong itself"
    )]
    fn segment(&self, addr: u64, len: usize) -> Segment {
        self.find(addr)
            .and_then(|region| region.shown().segment(addr, len))
            .expect("the test's address lies in one region")
    }

    fn find(&self, addr: u64) -> Option<&Region> {
        let regions = self.0.regions.iter();
        regions.into_iter().find(|r| r.shown().available(addr) > 0)
    }
}

impl Region {
    fn shown(&self) -> RamRegion {
        let len = u64::try_from(self.layout.size()).unwrap_or(0);
        // SAFETY: allocated with this length, until every clone of the memory is gone.
        unsafe { RamRegion::new(self.guest, len, self.host) }
    }
}

// SAFETY: `shown` gives an allocation that lives as long as `self` or a clone.
unsafe impl GuestRam for TestRam {
    fn region(&self, addr: u64, access: Access) -> Option<RamRegion> {
        self.0.lookups.fetch_add(1, Ordering::Relaxed);
        self.find(addr)
            .filter(|region| region.writable || access == Access::Read)
            .map(Region::shown)
    }

    fn tracks_dirty(&self) -> bool {
        self.0.tracking.load(Ordering::Relaxed)
    }

    fn mark_dirty(&self, segment: &Segment, len: usize) {
        for region in &self.0.regions {
            let at = segment.as_ptr().addr().wrapping_sub(region.host.addr());
            if at < region.layout.size() && len > 0 {
                let last = at.saturating_add(len.saturating_sub(1)) / DIRTY_PAGE;
                let pages = region.dirty.get(at / DIRTY_PAGE..=last).unwrap_or_default();
                for page in pages {
                    page.store(true, Ordering::Relaxed);
                }
            }
        }
    }
}
