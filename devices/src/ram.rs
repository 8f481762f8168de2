//! The machine's memory as the queues see it.
//!
//! It wraps the machine's own mapping (rust-vmm's `vm-memory`); every queue holds a clone, so a pointer that a
//! queue keeps can't outlive the mapping. It doesn't know what lies where in memory.
#![expect(
    unsafe_code,
    reason = "vouches for the machine's mapping to the ring code, which works on its bytes"
)]

use std::sync::Arc;

use splitring_virtio::mem::{Access, GuestRam, RamRegion, Segment};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

/// The mapping: regions of guest memory, each with a bitmap of dirtied pages if they are tracked.
pub type Mapping = GuestMemoryMmap<Option<AtomicBitmap>>;

type Region = GuestRegionMmap<Option<AtomicBitmap>>;

/// Guest memory, shared by all queues of a machine.
#[derive(Clone, Debug)]
pub struct Ram {
    mapping: Arc<Mapping>,
    tracks_dirty: bool,
}

impl Ram {
    // `vm-memory`'s type is no part of what an embedder's disks build on.
    /// The machine's memory. Whether dirtied pages are tracked is asked of the mapping once, here.
    #[doc(hidden)]
    pub fn new(mapping: Arc<Mapping>) -> Self {
        let tracks_dirty = mapping.iter().any(|region| (**region).bitmap().is_some());
        Self {
            mapping,
            tracks_dirty,
        }
    }

    /// The mapping itself.
    #[doc(hidden)]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// The region mapped at the host address `host`, and the offset in it.
    fn region_of_host(&self, host: *mut u8) -> Option<(&Region, usize)> {
        self.mapping.iter().find_map(|region| {
            let offset = host.addr().checked_sub(region.as_ptr().addr())?;
            (offset < region.size()).then_some((region, offset))
        })
    }
}

// SAFETY: the regions are live, private or shared, readable and writable mappings of the size they say, and
// `mapping` keeps them mapped for as long as a clone of this lives: `Mapping` never unmaps or remaps a region
// it holds, and nothing can be taken out of it while it is behind an `Arc`. `vm-memory` hands out no Rust
// references to the bytes.
unsafe impl GuestRam for Ram {
    fn region(&self, addr: u64, _access: Access) -> Option<RamRegion> {
        let region = self.mapping.find_region(GuestAddress(addr))?;
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

    fn tracks_dirty(&self) -> bool {
        self.tracks_dirty
    }

    fn mark_dirty(&self, segment: &Segment, len: usize) {
        if let Some((region, offset)) = self.region_of_host(segment.as_ptr()) {
            (**region)
                .bitmap()
                .mark_dirty(offset, len.min(segment.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroUsize;
    use vm_memory::mmap::MmapRegionBuilder;

    const PAGE: usize = 4096;

    fn ram(tracked: bool) -> Ram {
        let regions = [(0, 2 * PAGE), (0x10_0000, PAGE)].map(|(start, len)| {
            let bitmap = tracked.then(|| AtomicBitmap::new(len, NonZeroUsize::new(PAGE).unwrap()));
            let region = MmapRegionBuilder::new_with_bitmap(len, bitmap)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
                .build()
                .unwrap();
            Region::new(region, GuestAddress(start)).unwrap()
        });
        Ram::new(Arc::new(Mapping::from_regions(regions.into()).unwrap()))
    }

    #[test]
    fn a_range_is_found_up_to_its_regions_last_byte_and_not_past_it() {
        let ram = ram(false);
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
    fn a_written_segment_marks_its_pages_and_no_others() {
        let ram = ram(true);
        assert!(ram.tracks_dirty());
        let region = ram.region(0x1000, Access::Write).unwrap();
        let segment = region.segment(0x1800, 0x10).unwrap();
        ram.mark_dirty(&segment, 0x10);
        let dirty: Vec<bool> = ram
            .mapping()
            .iter()
            .flat_map(|region| {
                let bitmap = (**region).bitmap().as_ref().unwrap();
                (0..region.size() / PAGE).map(|page| bitmap.is_bit_set(page))
            })
            .collect();
        assert_eq!(dirty, [false, true, false]);
    }

    #[test]
    fn without_bitmaps_nothing_is_tracked() {
        assert!(!ram(false).tracks_dirty());
    }
}
