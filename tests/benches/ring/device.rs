//! The device end against `virtio-queue`: pop and complete.
//!
//! Equal work: both end with a bounds-checked host address and a length for every descriptor, write
//! a used entry per chain and publish once per batch. Splitring also checks for heads that are
//! offered twice.

use std::hint::black_box;
use std::num::Wrapping;
use std::sync::Arc;

use splitring_virtio::device::chain::DescriptorChain;
use splitring_virtio::device::queue::{ActiveQueue, QueueConfig, RingFeatures};
use splitring_virtio::ring;
use splitring_virtio::spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use zerocopy::IntoBytes;

use crate::memory::new_memory;
use crate::{Case, Row, Table};
use splitring_devices::ram::{Mapping, Ram as Memory};

const SIZE: u16 = 256;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x1_0000;
const USED: u64 = 0x2_0000;
const TABLES: u64 = 0x10_0000;
const BUFFERS: u64 = 0x100_0000;

/// A batch of equal chains.
#[derive(Clone, Copy)]
struct ChainShape {
    chains: u16,
    /// Bytes of each descriptor, and whether the device writes it.
    buffers: &'static [(u32, bool)],
    indirect: bool,
}

const ONE: &[(u32, bool)] = &[(512, true)];
const EIGHT: &[(u32, bool)] = &[(512, true); 8];
const MANY: &[(u32, bool)] = &[(512, true); 128];
/// Header, 4 KiB, status.
const BLK: &[(u32, bool)] = &[(16, false), (4096, true), (1, true)];

impl ChainShape {
    fn all() -> Vec<(String, f64, Self)> {
        let mut all = Vec::new();
        for (name, chains, buffers, target) in [
            ("128x1", 128, ONE, 6.0),
            ("16x8", 16, EIGHT, 4.0),
            ("1x128", 1, MANY, 4.0),
            ("64xblk-4k", 64, BLK, 4.0),
        ] {
            for indirect in [false, true] {
                let kind = if indirect { "indirect" } else { "direct" };
                let shape = Self {
                    chains,
                    buffers,
                    indirect,
                };
                all.push((format!("{name}-{kind}"), target, shape));
            }
        }
        all
    }

    /// Writes descriptors and available entries. Offering a batch then only changes the index.
    fn lay_out(&self, memory: &Memory) {
        let per_chain = u16::try_from(self.buffers.len()).expect("a short chain");
        for chain in 0..self.chains {
            let first = if self.indirect {
                chain
            } else {
                chain * per_chain
            };
            let table = TABLES + 16 * 128 * u64::from(chain);
            for (n, &(len, write)) in (0u16..).zip(self.buffers) {
                let next = if n + 1 < per_chain { DESC_F_NEXT } else { 0 };
                let flags = next | if write { DESC_F_WRITE } else { 0 };
                let addr = BUFFERS + 8192 * u64::from(chain * per_chain + n);
                if self.indirect {
                    put(memory, table + 16 * u64::from(n), (addr, len, flags, n + 1));
                } else {
                    let index = first + n;
                    put(
                        memory,
                        DESC + 16 * u64::from(index),
                        (addr, len, flags, index + 1),
                    );
                }
            }
            if self.indirect {
                let head = (table, 16 * u32::from(per_chain), DESC_F_INDIRECT, 0);
                put(memory, DESC + 16 * u64::from(first), head);
            }
        }
        // The ring's entries repeat with every batch: sizes are powers of two.
        for slot in 0..SIZE {
            let chain = slot % self.chains;
            let head = if self.indirect {
                chain
            } else {
                chain * per_chain
            };
            store16(memory, AVAIL + 4 + 2 * u64::from(slot), head);
        }
    }
}

fn put(memory: &Memory, at: u64, (addr, len, flags, next): (u64, u32, u16, u16)) {
    let desc = Descriptor {
        addr: addr.into(),
        len: len.into(),
        flags: flags.into(),
        next: next.into(),
    };
    memory
        .mapping()
        .write_slice(desc.as_bytes(), GuestAddress(at))
        .expect("in memory");
}

fn store16(memory: &Memory, at: u64, value: u16) {
    memory
        .mapping()
        .write_obj(value, GuestAddress(at))
        .expect("in memory");
}

/// The driver's part of a batch: it advances the available index.
struct Offers {
    memory: Arc<Mapping>,
    idx: Wrapping<u16>,
    chains: u16,
}

impl Offers {
    fn next(&mut self) {
        self.idx += self.chains;
        let slice = self
            .memory
            .get_slice(GuestAddress(AVAIL + 2), 2)
            .expect("in memory");
        slice
            .store(self.idx.0, 0, std::sync::atomic::Ordering::Release)
            .expect("aligned");
    }
}

fn set_up(shape: ChainShape) -> (Memory, Offers) {
    let memory = new_memory();
    shape.lay_out(&memory);
    let offers = Offers {
        memory: memory.mapping(),
        idx: Wrapping(0),
        chains: shape.chains,
    };
    (memory, offers)
}

fn our_queue(memory: &Memory) -> ActiveQueue<Memory> {
    assert!(ring::used_bytes(SIZE, true) < 0x1_0000);
    let mut config = QueueConfig::new(SIZE);
    config.set_desc(DESC);
    config.set_avail(AVAIL);
    config.set_used(USED);
    config.set_ready(true);
    let features = RingFeatures {
        event_idx: true,
        indirect: true,
        in_order: false,
    };
    config
        .activate(memory.clone(), features)
        .expect("a sound ring")
}

/// Reads the address and the length of each buffer, as a device does, one by one.
fn look(chain: &DescriptorChain<Memory>) {
    for part in [chain.readable(), chain.writable()] {
        for segment in part {
            black_box(segment.as_ptr());
            black_box(segment.len());
        }
    }
}

fn ours_one_by_one(label: String, shape: ChainShape) -> Case {
    Case::new(label, shape.chains, move || {
        let (memory, mut offers) = set_up(shape);
        let mut queue = our_queue(&memory);
        move || {
            offers.next();
            while let Some(chain) = queue.pop().expect("sound chains") {
                look(&chain);
                queue.complete(chain, 1);
            }
            let _ = black_box(queue.publish());
        }
    })
}

fn ours_batched(label: String, shape: ChainShape) -> Case {
    Case::new(label, shape.chains, move || {
        let (memory, mut offers) = set_up(shape);
        let mut queue = our_queue(&memory);
        let mut held = Vec::with_capacity(usize::from(SIZE));
        move || {
            offers.next();
            while let Some(chain) = queue.pop().expect("sound chains") {
                look(&chain);
                held.push(chain);
            }
            for chain in held.drain(..) {
                queue.complete(chain, 1);
            }
            let _ = black_box(queue.publish());
        }
    })
}

fn peer_queue() -> Queue {
    let mut queue = Queue::new(SIZE).expect("a sound size");
    queue.set_desc_table_address(Some(low(DESC)), Some(0));
    queue.set_avail_ring_address(Some(low(AVAIL)), Some(0));
    queue.set_used_ring_address(Some(low(USED)), Some(0));
    queue.set_event_idx(true);
    queue.set_ready(true);
    queue
}

/// One batch with the peer. Its chains are completed at once, or (batched) after the last.
fn peer(label: String, shape: ChainShape, batched: bool) -> Case {
    Case::new(label, shape.chains, move || {
        let (memory, mut offers) = set_up(shape);
        let memory = memory.mapping();
        let mut queue = peer_queue();
        let mut heads: Vec<u16> = Vec::with_capacity(usize::from(SIZE));
        move || {
            offers.next();
            let mapping = &*memory;
            if batched {
                for chain in queue.iter(mapping).expect("a sound ring") {
                    heads.push(chain.head_index());
                    peer_look(mapping, chain);
                }
                for head in heads.drain(..) {
                    queue.add_used(mapping, head, 1).expect("in memory");
                }
            } else {
                while let Some(chain) = queue.pop_descriptor_chain(mapping) {
                    let head = chain.head_index();
                    peer_look(mapping, chain);
                    queue.add_used(mapping, head, 1).expect("in memory");
                }
            }
            black_box(queue.needs_notification(mapping).expect("in memory"));
        }
    })
}

type PeerChain<'a> = virtio_queue::DescriptorChain<&'a Mapping>;

fn peer_look<'a>(mapping: &'a Mapping, chain: PeerChain<'a>) {
    for desc in chain {
        let len = usize::try_from(desc.len()).expect("64 bits");
        let slice = GuestMemoryBackend::get_slice(mapping, desc.addr(), len).expect("in memory");
        black_box(slice.ptr_guard_mut().as_ptr());
        black_box(slice.len());
    }
}

/// Pop, read, complete, then the next chain. Published once per batch.
pub(crate) fn one_by_one() -> Table {
    let rows = ChainShape::all()
        .into_iter()
        .map(|(name, target, shape)| Row {
            ours: ours_one_by_one(format!("device-one/{name}"), shape),
            peer: peer(format!("device-one/{name}/peer"), shape, false),
            shape: name,
            target,
        });
    Table {
        title: "Device end, each chain completed before the next is popped, against virtio-queue",
        unit: "chain",
        rows: rows.collect(),
    }
}

/// Pop and read all chains, then complete all of them. Published once.
pub(crate) fn batched() -> Table {
    let rows = ChainShape::all()
        .into_iter()
        .map(|(name, target, shape)| Row {
            ours: ours_batched(format!("device-batch/{name}"), shape),
            peer: peer(format!("device-batch/{name}/peer"), shape, true),
            shape: name,
            target,
        });
    Table {
        title: "Device end, all chains of a batch in flight together, against virtio-queue",
        unit: "chain",
        rows: rows.collect(),
    }
}

fn low(addr: u64) -> u32 {
    u32::try_from(addr).expect("a low address")
}
