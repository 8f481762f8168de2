//! What a queue is to be.

use crate::mem::driver_ring::memory_len;
use crate::spec::feature;

/// When a buffer's segments go into an indirect table rather than into the ring (section 2.7.5.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndirectPolicy {
    /// Never.
    Never,
    /// Whenever there is more than one segment; what does not fit into a table is refused.
    Always,
    /// As the RFC kept it from `virtqueue_add_buf`: more than one segment and a free slot; what
    /// does not fit into a table goes into the ring.
    Rfc,
    /// Short chains into the ring while it has room to spare, everything else as `Rfc`.
    #[default]
    Auto,
}

/// What a queue is to be.
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
    /// A queue of `size` slots, a power of two, as far as `features`, the negotiated ones, allow.
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

    /// Cuts used lengths to what the buffer has room for, where otherwise one that is too long
    /// breaks the queue. QEMU's virtio-scsi needs it: it counts the data it has read as well.
    pub const fn clamp_lengths(mut self) -> Self {
        self.clamp_lengths = true;
        self
    }

    /// Sets `entries` indirect descriptors aside for every slot, at most as many as the queue has
    /// slots (a longer chain is never legal). Without `INDIRECT_DESC` there are none.
    pub const fn tables(mut self, entries: u16) -> Self {
        self.table_entries = entries;
        self
    }

    /// When to use them; [`IndirectPolicy::Auto`] if nothing is said.
    pub const fn policy(mut self, policy: IndirectPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Entries of each slot's table.
    pub(super) const fn entries(&self) -> u16 {
        match self.indirect {
            true if self.table_entries > self.size => self.size,
            true => self.table_entries,
            false => 0,
        }
    }

    /// Bytes of shared memory the queue needs, starting at a multiple of 64.
    pub fn memory_len(&self) -> usize {
        memory_len(self.size, self.entries())
    }
}
