//! A split ring written by hand: no checks, so that it can hold what no driver would write.

use std::sync::atomic::{Ordering, fence};

use splitring_virtio::device::queue::QueueConfig;
use splitring_virtio::spec::ring::DESC_F_INDIRECT;
use vm_memory::{Bytes, GuestAddress};

use super::RINGS;
use crate::ram::Ram;

/// Bytes set aside for one ring: enough for 2048 descriptors.
const RING_SPAN: u64 = 0x2_0000;

/// A descriptor: address, length, device-writable.
pub(crate) type Buffer = (u64, u32, bool);

fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

/// The guest's side of one ring.
pub(crate) struct GuestRing {
    ram: Ram,
    /// The largest size the device offers, and what the driver made of it.
    largest: u16,
    size: u16,
    base: u64,
    /// Next free descriptor; never reused while a chain may be in flight, for tests are short.
    next: u16,
    available: u16,
    seen: u16,
}

impl GuestRing {
    /// An empty ring for queue `index`, as large as the device offers.
    pub(crate) fn new(ram: &Ram, index: u16, size: u16) -> Self {
        Self::smaller(ram, index, size, size)
    }

    /// An empty ring for queue `index` of `size`, where the device offers `largest`.
    pub(crate) fn smaller(ram: &Ram, index: u16, size: u16, largest: u16) -> Self {
        let base = RINGS + u64::from(index) * RING_SPAN;
        let ring = Self {
            ram: ram.clone(),
            largest,
            size,
            base,
            next: 0,
            available: 0,
            seen: 0,
        };
        ring.write(base, &[0; RING_SPAN as usize]);
        ring
    }

    /// The same ring in a copy of the memory.
    pub(crate) fn in_copy(self, ram: &Ram) -> Self {
        Self {
            ram: ram.clone(),
            ..self
        }
    }

    pub(crate) fn available_ring(&self) -> u64 {
        self.base + u64::from(self.size) * 16
    }

    pub(crate) fn used_ring(&self) -> u64 {
        self.base + RING_SPAN / 2
    }

    /// Where its descriptors are.
    pub(crate) fn descriptors(&self) -> u64 {
        self.base
    }

    /// Makes a chain of these buffers available and returns its head.
    pub(crate) fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next % self.size;
        for (place, (address, len, writable)) in buffers.iter().enumerate() {
            let index = self.next % self.size;
            self.next = self.next.wrapping_add(1);
            let last = place + 1 == buffers.len();
            let flags = u16::from(!last) | u16::from(*writable) << 1;
            let bytes = descriptor(*address, *len, flags, self.next % self.size);
            self.write(self.base + u64::from(index) * 16, &bytes);
        }
        self.offer_head(head);
        head
    }

    /// Makes one descriptor available, of a table with these buffers at `table`.
    pub(crate) fn offer_table(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        let mut bytes = Vec::new();
        for ((address, len, writable), next) in buffers.iter().zip(1..) {
            let last = usize::from(next) == buffers.len();
            let flags = u16::from(!last) | u16::from(*writable) << 1;
            bytes.extend(descriptor(*address, *len, flags, next));
        }
        self.write(table, &bytes);
        let head = self.next % self.size;
        self.next = self.next.wrapping_add(1);
        let pointer = descriptor(table, bytes.len() as u32, DESC_F_INDIRECT, 0);
        self.write(self.base + u64::from(head) * 16, &pointer);
        self.offer_head(head);
        head
    }

    /// Makes a head available, whatever it is.
    pub(crate) fn offer_head(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size);
        self.write(self.available_ring() + 4 + slot * 2, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.write(self.available_ring() + 2, &self.available.to_le_bytes());
        fence(Ordering::SeqCst);
    }

    /// What the device has used since the last call: head and length.
    pub(crate) fn used(&mut self) -> Vec<(u16, u32)> {
        let index: u16 = self
            .ram
            .mapping()
            .read_obj(GuestAddress(self.used_ring() + 2))
            .unwrap();
        fence(Ordering::SeqCst);
        let mut all = Vec::new();
        while self.seen != index {
            let at = self.used_ring() + 4 + u64::from(self.seen % self.size) * 8;
            let [id, len]: [u32; 2] = self.ram.mapping().read_obj(GuestAddress(at)).unwrap();
            all.push((id.try_into().unwrap(), len));
            self.seen = self.seen.wrapping_add(1);
        }
        // With event indices: interrupt at the next one.
        let event = self.available_ring() + 4 + 2 * u64::from(self.size);
        self.write(event, &self.seen.to_le_bytes());
        fence(Ordering::SeqCst);
        all
    }

    /// As [`used`](Self::used), by a driver that looks by itself: it asks for no interrupt at the
    /// next one.
    pub(crate) fn take_without_asking(&mut self) -> usize {
        let index: u16 = self
            .ram
            .mapping()
            .read_obj(GuestAddress(self.used_ring() + 2))
            .unwrap();
        fence(Ordering::SeqCst);
        usize::from(index.wrapping_sub(std::mem::replace(&mut self.seen, index)))
    }

    /// The available flags: 1 asks for no interrupts.
    pub(crate) fn set_available_flags(&self, flags: u16) {
        self.write(self.available_ring(), &flags.to_le_bytes());
    }

    /// Chains made available so far.
    pub(crate) fn available_index(&self) -> u16 {
        self.available
    }

    /// Used entries seen so far.
    pub(crate) fn used_index(&self) -> u16 {
        self.seen
    }

    /// Whether the device asks for a kick after the chains since `before` (VIRTIO 1.2 §2.7.13.4.1).
    pub(crate) fn wants_kick(&self, event_idx: bool, before: u16) -> bool {
        let get = |at| -> u16 { self.ram.mapping().read_obj(GuestAddress(at)).unwrap() };
        if !event_idx {
            return get(self.used_ring()) & 1 == 0;
        }
        let event = get(self.used_ring() + 4 + 8 * u64::from(self.size));
        let since = self.available.wrapping_sub(before);
        self.available.wrapping_sub(event).wrapping_sub(1) < since
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.ram
            .mapping()
            .write_slice(bytes, GuestAddress(at))
            .unwrap();
    }

    /// What a transport would have been told about it.
    pub(crate) fn config(&self) -> QueueConfig {
        let mut config = QueueConfig::new(self.largest);
        assert!(config.set_size(self.size));
        config.set_desc(self.base);
        config.set_avail(self.available_ring());
        config.set_used(self.used_ring());
        config.set_ready(true);
        config
    }
}
