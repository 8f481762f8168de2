use std::sync::Arc;

use splitring_virtio::mem::{Access, GuestRam};
use vm_memory::Bytes;
use vm_memory::mmap::MmapRegionBuilder;

use super::*;
use crate::dirty::{Dirty, DirtyPages};
use crate::ram::tests::ram;
use crate::ram::{Mapping, Region};

/// Memory of two regions, 16 pages and 8, one behind the other, and the file behind it if it is
/// shared.
fn filled(shared: bool) -> (Ram, std::fs::File) {
    let file = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = std::fs::File::from(file);
    file.set_len(24 * PAGE as u64).unwrap();
    let regions = [(0, 16), (16, 8)].map(|(first, pages)| {
        let start = first * PAGE as u64;
        let mut builder =
            MmapRegionBuilder::new_with_bitmap(pages * PAGE, DirtyPages::new(pages * PAGE))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        builder = if shared {
            let file = vm_memory::FileOffset::new(file.try_clone().unwrap(), start);
            builder
                .with_mmap_flags(libc::MAP_SHARED)
                .with_file_offset(file)
        } else {
            builder.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
        };
        Arc::new(Region::new(builder.build().unwrap(), GuestAddress(start)).unwrap())
    });
    let ram = Ram::new(Arc::new(Mapping::from_arc_regions(regions.into()).unwrap()));
    let bytes = vec![0xa5; 24 * PAGE];
    ram.mapping().write_slice(&bytes, GuestAddress(0)).unwrap();
    (ram, file)
}

/// Which pages are zeroes; the others are as they were filled.
fn zeroed(ram: &Ram) -> Vec<usize> {
    let of_page = |page: usize| {
        let mut bytes = [0; PAGE];
        let at = GuestAddress((page * PAGE) as u64);
        ram.mapping().read_slice(&mut bytes, at).unwrap();
        assert!(bytes == [0; PAGE] || bytes == [0xa5; PAGE], "{page}");
        bytes == [0; PAGE]
    };
    (0..24).filter(|page| of_page(*page)).collect()
}

#[test]
fn whole_pages_are_released_and_parts_of_pages_kept() {
    const LEN: u64 = PAGE as u64;
    for shared in [false, true] {
        let (ram, file) = filled(shared);
        let discard = |addr, len| {
            let Discarded { passed, released } = ram.discard(addr, len).unwrap();
            (passed, released / LEN)
        };
        assert_eq!(discard(LEN, LEN), (LEN, 1));
        assert_eq!(discard(3 * LEN + 1, 3 * LEN), (3 * LEN, 2));
        assert_eq!(discard(8 * LEN, LEN - 1), (LEN - 1, 0));
        assert_eq!(discard(8 * LEN, 0), (0, 0));
        // As far as the region goes.
        assert_eq!(discard(15 * LEN, 4 * LEN), (LEN, 1));
        assert_eq!(discard(23 * LEN, u64::MAX), (LEN, 1));
        assert_eq!(zeroed(&ram), [1, 4, 5, 15, 23], "shared: {shared}");
        for nowhere in [24 * LEN, u64::MAX] {
            let refused = ram.discard(nowhere, LEN);
            assert!(matches!(refused, Err(DiscardError::NoMemory)));
        }
        if shared {
            use std::os::unix::fs::MetadataExt;
            assert_ne!(file.metadata().unwrap().blocks(), 0);
            // The kernel may keep the file's blocks in larger pieces, which go as a whole.
            ram.discard(0, 16 * LEN).unwrap();
            ram.discard(16 * LEN, 8 * LEN).unwrap();
            assert_eq!(file.metadata().unwrap().blocks(), 0, "the file has none");
        }
    }
}

#[test]
fn released_pages_are_dirty() {
    let ram = ram();
    ram.log_dirty(true).unwrap();
    ram.discard(0x1000, 0x1000).unwrap();
    let dirty = ram.take_dirty();
    let dirty: Vec<u64> = dirty.iter().flat_map(Dirty::addresses).collect();
    assert_eq!(dirty, [0x1000]);
}

#[test]
fn a_segment_is_found_at_its_address_in_the_guest() {
    let ram = ram();
    for addr in [0x1800, 0x10_0010] {
        let segment = ram.region(addr, Access::Read).unwrap();
        let segment = segment.segment(addr, 8).unwrap();
        assert_eq!(ram.address_of(&segment), Some(addr));
    }
}
