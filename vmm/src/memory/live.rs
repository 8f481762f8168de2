#![expect(unsafe_code, reason = "KVM is given guest memory")]
//! The memory of a built machine: what KVM and the devices have of it, growing, and the log of what is written.
//!
//! A page is written by a vCPU, which KVM notes, or by a device, which `Ram` notes; what is taken is both. It knows
//! neither how the guest learns of new memory nor what becomes of the pages.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use splitring_devices::dirty::Dirty;
use splitring_devices::ram::{ChangeError, Ram};
use splitring_devices::worker::{Worker, WorkerError};
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::{GuestMemory, HUGE_PAGE, MemoryError, region, shared_file};
use crate::config::MemoryConfig;
use crate::kvm::{KvmError, Vm};

/// Regions that a machine can have: KVM and vhost take many more.
const MOST_REGIONS: usize = 32;
/// What memory grows by: whole huge pages, and so whole words of a dirty log.
const UNIT: u64 = HUGE_PAGE;

/// Why the memory of a running machine can't be changed or watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LiveError {
    /// Not a number of whole units.
    #[error("memory: cannot grow by {0} bytes; give a multiple of 2 MiB")]
    Unit(u64),
    /// No addresses, or too many pieces.
    #[error(
        "memory: cannot grow by {mib} MiB: {left} MiB of guest addresses and {regions} pieces are left; \
         give the machine more memory when it starts"
    )]
    Room {
        /// Asked for.
        mib: u64,
        /// What fits.
        left: u64,
        /// How often it can still grow.
        regions: usize,
    },
    /// No host memory.
    #[error(transparent)]
    Host(#[from] MemoryError),
    /// KVM.
    #[error("memory: {0}")]
    Kvm(#[from] KvmError),
    /// A device.
    #[error("memory: {0}")]
    Change(#[from] ChangeError),
    /// A device thread that can't be asked.
    #[error("memory: {0}")]
    Worker(#[from] WorkerError),
}

/// The memory of one build of a machine.
pub(crate) struct LiveMemory {
    // First: KVM uses the memory until the last of these is gone.
    vm: Vm,
    ram: Ram,
    config: MemoryConfig,
    /// Regions that there were at the start; they have KVM's first slots.
    initial: usize,
    /// The first slot of those that are added.
    next_slots: u32,
    /// Guest addresses for those.
    spare: Range<u64>,
    /// Held while something changes.
    changing: Mutex<()>,
}

impl LiveMemory {
    /// Gives `memory` to KVM. Later regions are placed in `spare` and get the slots from `next_slots` on.
    pub(crate) fn new(
        vm: Vm,
        memory: GuestMemory,
        config: MemoryConfig,
        spare: Range<u64>,
        next_slots: u32,
    ) -> Result<Self, KvmError> {
        let live = Self {
            vm,
            initial: memory.num_regions(),
            ram: Ram::new(Arc::new(memory)),
            config,
            next_slots,
            spare,
            changing: Mutex::default(),
        };
        let memory = live.mapping();
        for (index, region) in memory.iter().enumerate() {
            live.map(index, region, false)?;
        }
        Ok(live)
    }

    /// The memory as devices see it.
    pub(crate) fn ram(&self) -> &Ram {
        &self.ram
    }

    /// The memory as it is now.
    pub(crate) fn mapping(&self) -> Arc<GuestMemory> {
        self.ram.mapping()
    }

    /// The slot of the region that is number `index` by address. Those that were added lie behind the others, in the
    /// order in which they were added.
    fn slot(&self, index: usize) -> u32 {
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        match index.checked_sub(self.initial) {
            None => small(index),
            Some(added) => self.next_slots.saturating_add(small(added)),
        }
    }

    /// Shows the guest `region`, or changes whether KVM notes writes to it.
    fn map(
        &self,
        index: usize,
        region: &GuestRegionMmap<impl vm_memory::bitmap::Bitmap>,
        log: bool,
    ) -> Result<(), KvmError> {
        let guest = region.start_addr().0;
        let (host, len) = (region.as_ptr(), region.len());
        // SAFETY: `ram` and every device's clone of it keep the mapping until after the machine's descriptors are
        // closed; a region that it does not take is unmapped before it goes.
        unsafe { self.vm.map(self.slot(index), guest, host, len, true, log) }
    }

    /// Adds `len` bytes; returns their guest-physical address. The guest is not told.
    ///
    /// # Errors
    /// No multiple of 2 MiB, no room, no host memory, or the dirty log is on. Nothing has changed then.
    pub(crate) fn grow(&self, len: u64) -> Result<u64, LiveError> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = self.mapping();
        if len == 0 || !len.is_multiple_of(UNIT) {
            return Err(LiveError::Unit(len));
        }
        let index = memory.num_regions();
        let guest = memory.last_addr().0.saturating_add(1).max(self.spare.start);
        let left = self.spare.end.saturating_sub(guest);
        let regions = MOST_REGIONS.saturating_sub(index);
        if len > left || regions == 0 {
            let (mib, left) = (len >> 20, left >> 20);
            return Err(LiveError::Room { mib, left, regions });
        }
        let file = if self.config.shared {
            let file = shared_file(len, self.config.hugepages)?;
            Some(FileOffset::new(file, 0))
        } else {
            None
        };
        let region = Arc::new(region(guest, len, file, self.config.hugepages)?);
        self.map(index, &region, false)?;
        if let Err(error) = self.ram.grow(Arc::clone(&region)) {
            if let Err(error) = self.vm.unmap(self.slot(index)) {
                tracing::error!(%error, "memory that was to be added stays with KVM");
                // KVM may go on using it.
                std::mem::forget(region);
            }
            return Err(error.into());
        }
        tracing::info!("the guest's memory grew by {} MiB at {guest:#x}", len >> 20);
        Ok(guest)
    }

    /// Notes from now on which pages are written, by vCPUs and devices, with none noted yet; or stops that. What the
    /// devices of `workers` have written before this returns is in memory for whoever reads it then.
    ///
    /// # Errors
    /// KVM or a device refuses, or a worker has failed; then nothing is noted.
    pub(crate) fn log_dirty(&self, on: bool, workers: &[Arc<Worker>]) -> Result<(), LiveError> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.switch_log(on, workers);
        if on && result.is_err() {
            // The first error says more.
            let _ = self.switch_log(false, &[]);
        }
        result
    }

    fn switch_log(&self, on: bool, workers: &[Arc<Worker>]) -> Result<(), LiveError> {
        for (index, region) in self.mapping().iter().enumerate() {
            self.map(index, region, on)?;
        }
        self.ram.log_dirty(on)?;
        // A worker that looked at the switch before it was turned has finished that pass when it answers.
        for worker in workers {
            worker.sync()?;
        }
        Ok(())
    }

    /// The pages that were written since the last call or since the log was switched on, by region. Each write shows in
    /// this or in a later one.
    ///
    /// # Errors
    /// KVM refuses: the log is off.
    pub(crate) fn take_dirty(&self) -> Result<Vec<Dirty>, LiveError> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = self.ram.take_dirty();
        let memory = self.mapping();
        for (index, (dirty, region)) in all.iter_mut().zip(memory.iter()).enumerate() {
            dirty.add(self.vm.take_dirty(self.slot(index), region.len())?);
        }
        Ok(all)
    }
}
