//! A driver for tests, which writes any values into a ring, valid or not.

use zerocopy::little_endian::U16;

use crate::device::queue::{ActivateError, ActiveQueue, QueueConfig, RingFeatures};
use crate::mem::testing::TestRam;
use crate::ring;
use crate::spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, UsedElem};

pub(in crate::device) const RAM: u64 = 0x1_0000;
pub(in crate::device) const RAM_LEN: usize = 0x10_0000;
/// The address of the tests' buffers and tables.
pub(in crate::device) const DATA: u64 = RAM + 0x8_0000;

pub(in crate::device) const NEXT: u16 = DESC_F_NEXT;
pub(in crate::device) const WRITE: u16 = DESC_F_WRITE;
pub(in crate::device) const INDIRECT: u16 = DESC_F_INDIRECT;

pub(in crate::device) const PLAIN: RingFeatures = RingFeatures {
    event_idx: false,
    indirect: true,
    in_order: false,
};
pub(in crate::device) const EVENT: RingFeatures = RingFeatures {
    event_idx: true,
    ..PLAIN
};
pub(in crate::device) const IN_ORDER: RingFeatures = RingFeatures {
    in_order: true,
    ..PLAIN
};

/// The driver's end of one ring.
#[derive(Clone)]
pub(in crate::device) struct TestDriver {
    pub(in crate::device) ram: TestRam,
    pub(in crate::device) size: u16,
    pub(in crate::device) desc: u64,
    pub(in crate::device) avail: u64,
    pub(in crate::device) used: u64,
    /// The driver's copy of the available index.
    pub(in crate::device) idx: u16,
}

pub(in crate::device) fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        addr: addr.into(),
        len: len.into(),
        flags: flags.into(),
        next: next.into(),
    }
}

impl TestDriver {
    pub(in crate::device) fn new(size: u16) -> Self {
        Self::on(TestRam::new(RAM, RAM_LEN), size)
    }

    /// Returns a ring at the start of `ram`, which has at least half a megabyte at `RAM`.
    pub(in crate::device) fn on(ram: TestRam, size: u16) -> Self {
        let avail = RAM + ring::desc_bytes(size);
        let used = (avail + ring::avail_bytes(size, true)).next_multiple_of(4);
        Self {
            ram,
            size,
            desc: RAM,
            avail,
            used,
            idx: 0,
        }
    }

    pub(in crate::device) fn config(&self) -> QueueConfig {
        let mut config = QueueConfig::new(self.size);
        config.set_desc(self.desc);
        config.set_avail(self.avail);
        config.set_used(self.used);
        config.set_ready(true);
        config
    }

    pub(in crate::device) fn activate(&self, features: RingFeatures) -> ActiveQueue<TestRam> {
        self.try_activate(features).unwrap()
    }

    pub(in crate::device) fn try_activate(
        &self,
        features: RingFeatures,
    ) -> Result<ActiveQueue<TestRam>, ActivateError> {
        self.config().activate(self.ram.clone(), features)
    }

    /// Sets both ends to the state after `idx` buffers.
    pub(in crate::device) fn activate_at(
        &mut self,
        idx: u16,
        features: RingFeatures,
    ) -> ActiveQueue<TestRam> {
        let mut state = self.config().save();
        (state.next_avail, state.next_used, state.published) = (idx, idx, idx);
        self.set_idx(idx);
        self.put16(self.used + 2, idx);
        let config = QueueConfig::restore(self.size, state).unwrap();
        config.activate(self.ram.clone(), features).unwrap()
    }

    pub(in crate::device) fn set_desc(&self, index: u16, it: Descriptor) {
        self.ram.put(self.desc + 16 * u64::from(index), &it);
    }

    /// Writes a table for an indirect descriptor.
    pub(in crate::device) fn table(&self, addr: u64, table: &[Descriptor]) {
        for (at, it) in (addr..).step_by(16).zip(table) {
            self.ram.put(at, it);
        }
    }

    /// Writes direct descriptors from index `first` on, linked one to the next.
    pub(in crate::device) fn chain(&self, first: u16, buffers: &[(u64, u32, u16)]) {
        let last = buffers.len() - 1;
        for (n, &(addr, len, flags)) in buffers.iter().enumerate() {
            let index = first + u16::try_from(n).unwrap();
            let link = if n < last { NEXT } else { 0 };
            self.set_desc(index, desc(addr, len, flags | link, index + 1));
        }
    }

    /// Adds a head to the available ring without publishing it.
    pub(in crate::device) fn stage(&mut self, head: u16) {
        let slot = u64::from(self.idx & (self.size - 1));
        self.put16(self.avail + 4 + 2 * slot, head);
        self.idx = self.idx.wrapping_add(1);
    }

    /// Publishes the added heads.
    pub(in crate::device) fn show(&self) {
        self.put16(self.avail + 2, self.idx);
    }

    pub(in crate::device) fn offer(&mut self, head: u16) {
        self.stage(head);
        self.show();
    }

    pub(in crate::device) fn set_idx(&mut self, idx: u16) {
        self.idx = idx;
        self.show();
    }

    pub(in crate::device) fn used_idx(&self) -> u16 {
        self.get16(self.used + 2)
    }

    pub(in crate::device) fn used_flags(&self) -> u16 {
        self.get16(self.used)
    }

    pub(in crate::device) fn avail_event(&self) -> u16 {
        self.get16(self.used + 4 + 8 * u64::from(self.size))
    }

    pub(in crate::device) fn set_used_event(&self, value: u16) {
        self.put16(self.avail + 4 + 2 * u64::from(self.size), value);
    }

    pub(in crate::device) fn set_avail_flags(&self, value: u16) {
        self.put16(self.avail, value);
    }

    /// Returns id and length of the used entry at `position`.
    pub(in crate::device) fn used_entry(&self, position: u16) -> (u32, u32) {
        let slot = u64::from(position & (self.size - 1));
        let it: UsedElem = self.ram.get(self.used + 4 + 8 * slot);
        (it.id.get(), it.len.get())
    }

    pub(in crate::device) fn put16(&self, addr: u64, value: u16) {
        self.ram.put(addr, &U16::new(value));
    }

    pub(in crate::device) fn get16(&self, addr: u64) -> u16 {
        self.ram.get::<U16>(addr).get()
    }
}
