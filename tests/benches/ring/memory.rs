//! The guest memory of both engines, without dirty tracking.

use std::sync::Arc;

use splitring_devices::ram::{Mapping, Ram};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap};

/// Bytes of guest memory, starting at address 0.
const MEMORY: usize = 64 << 20;

/// Returns fresh memory. The peers use the mapping in it.
pub(crate) fn new_memory() -> Ram {
    let region = MmapRegionBuilder::new_with_bitmap(
        MEMORY,
        splitring_devices::dirty::DirtyPages::new(MEMORY),
    )
    .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
    .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
    .build()
    .expect("64 MiB can be mapped");
    let region = GuestRegionMmap::new(region, GuestAddress(0)).expect("it ends somewhere");
    let mapping = Mapping::from_regions(vec![region]).expect("one region overlaps nothing");
    Ram::new(Arc::new(mapping))
}
