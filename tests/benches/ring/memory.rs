//! One mapping that both engines use: the peer as `vm-memory` shows it, ours through `GuestRam`.
#![expect(
    unsafe_code,
    reason = "vouches for the mapping to the engine under test"
)]

use std::sync::Arc;

use splitring_virtio::mem::{Access, GuestRam, RamRegion};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Bytes of guest memory, from address 0 on.
pub(crate) const MEMORY: usize = 64 << 20;

/// Guest memory, shared by both engines.
#[derive(Clone)]
pub(crate) struct Memory(pub(crate) Arc<GuestMemoryMmap<()>>);

impl Memory {
    pub(crate) fn new() -> Self {
        let mapping = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]);
        Self(Arc::new(mapping.expect("64 MiB can be mapped")))
    }
}

// SAFETY: a region is a live mapping of the size it says, which the Arc keeps.
unsafe impl GuestRam for Memory {
    fn region(&self, addr: u64, _access: Access) -> Option<RamRegion> {
        let region = self.0.find_region(GuestAddress(addr))?;
        // SAFETY: as above.
        Some(unsafe {
            RamRegion::new(
                region.start_addr().raw_value(),
                region.len(),
                region.as_ptr(),
            )
        })
    }
}
