//! Options of a queue.

use crate::mem::driver_ring::memory_len;
use crate::spec::feature;

/// When a buffer's segments use an indirect table instead of the ring (section 2.7.5.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndirectPolicy {
    /// Never.
    Never,
    /// If there is more than one segment; a buffer that does not fit into a table is refused.
    Always,
    /// As `virtqueue_add_buf`, and so the RFC: if there is more than one segment and a free slot. A
    /// buffer that does not fit into a table uses the ring.
    Rfc,
    /// Short chains use the ring while it has room to spare; otherwise as `Rfc`.
    #[default]
    Auto,
}

/// Options of a queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueOptions {
    pub(super) size: u16,
    table_entries: u16,
    pub(super) policy: IndirectPolicy,
    pub(super) event_idx: bool,
    indirect: bool,
    pub(super) clamp_lengths: bool,
}

impl QueueOptions {
    /// Creates the options of a queue of `size` slots, a power of two, with the negotiated
    /// `features`.
    pub const fn new(size: u16, features: u64) -> Self {
        Self {
            size,
            table_entries: 0,
            policy: IndirectPolicy::Auto,
            event_idx: features & feature::EVENT_IDX != 0,
            indirect: features & feature::INDIRECT_DESC != 0,
            clamp_lengths: false,
        }
    }

    /// Clamps used lengths to the size of the buffer, where otherwise a length that is too long
    /// breaks the queue. QEMU's virtio-scsi needs it: it counts the data that it has read as well.
    pub const fn clamp_lengths(mut self) -> Self {
        self.clamp_lengths = true;
        self
    }

    /// Reserves `entries` indirect descriptors per slot, at most as many as the queue has slots (a
    /// longer chain is never legal). Without `INDIRECT_DESC` there are none.
    pub const fn tables(mut self, entries: u16) -> Self {
        self.table_entries = entries;
        self
    }

    /// Sets when to use the tables; default [`IndirectPolicy::Auto`].
    pub const fn policy(mut self, policy: IndirectPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Returns the number of entries of each slot's table.
    pub(super) const fn entries(&self) -> u16 {
        match self.indirect {
            true if self.table_entries > self.size => self.size,
            true => self.table_entries,
            false => 0,
        }
    }

    /// Returns the bytes of shared memory that the queue needs, starting at a multiple of 64.
    pub fn memory_len(&self) -> usize {
        memory_len(self.size, self.entries())
    }
}
