//! A guest for device tests: plain memory, rings written by hand, and a device run without a worker.
//!
//! It writes what it is told to, right or wrong, so hostile chains are as easy as good ones.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the tests' own numbers are small"
)]

use std::sync::Arc;

use splitring_virtio::device::queue::{Interrupt, QueueConfig, RingFeatures};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap};

use crate::device::{
    Broken, Cause, Outcome, QueueHandler, QueueSet, ReadyQueue, Start, TaskQueue, VirtioDevice,
};
use crate::interrupt::{ConfigGate, ConfigNotifier};
use crate::ram::{Mapping, Ram};

/// Bytes of guest memory; rings are in the upper half, the lower one is the test's.
const MEMORY: u64 = 8 << 20;
const RINGS: u64 = MEMORY / 2;
/// Bytes set aside for one ring: enough for 1024 descriptors.
const RING_SPAN: u64 = 0x8000;

/// A descriptor: address, length, device-writable.
pub(crate) type Buffer = (u64, u32, bool);

fn memory() -> Ram {
    let region = MmapRegionBuilder::new_with_bitmap(MEMORY as usize, None)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE)
        .build()
        .unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
    Ram::new(Arc::new(Mapping::from_regions(vec![region]).unwrap()))
}

/// The guest's side of one ring.
pub(crate) struct GuestRing {
    ram: Ram,
    size: u16,
    base: u64,
    /// Next free descriptor; never reused while a chain may be in flight, for tests are short.
    next: u16,
    available: u16,
    seen: u16,
}

impl GuestRing {
    fn new(ram: &Ram, index: u16, size: u16) -> Self {
        let base = RINGS + u64::from(index) * RING_SPAN;
        Self {
            ram: ram.clone(),
            size,
            base,
            next: 0,
            available: 0,
            seen: 0,
        }
    }

    fn available_ring(&self) -> u64 {
        self.base + u64::from(self.size) * 16
    }

    fn used_ring(&self) -> u64 {
        self.base + RING_SPAN / 2
    }

    /// Makes a chain of these buffers available and returns its head.
    pub(crate) fn offer(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next % self.size;
        for (place, (address, len, writable)) in buffers.iter().enumerate() {
            let index = self.next % self.size;
            self.next = self.next.wrapping_add(1);
            let last = place + 1 == buffers.len();
            let flags = u16::from(!last) | u16::from(*writable) << 1;
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend((self.next % self.size).to_le_bytes());
            self.write(self.base + u64::from(index) * 16, &bytes);
        }
        let slot = u64::from(self.available % self.size);
        self.write(self.available_ring() + 4 + slot * 2, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.write(self.available_ring() + 2, &self.available.to_le_bytes());
        head
    }

    /// What the device has used since the last call: head and length.
    pub(crate) fn used(&mut self) -> Vec<(u16, u32)> {
        let index: u16 = self
            .ram
            .mapping()
            .read_obj(GuestAddress(self.used_ring() + 2))
            .unwrap();
        let mut all = Vec::new();
        while self.seen != index {
            let at = self.used_ring() + 4 + u64::from(self.seen % self.size) * 8;
            let [id, len]: [u32; 2] = self.ram.mapping().read_obj(GuestAddress(at)).unwrap();
            all.push((id.try_into().unwrap(), len));
            self.seen = self.seen.wrapping_add(1);
        }
        all
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.ram
            .mapping()
            .write_slice(bytes, GuestAddress(at))
            .unwrap();
    }

    fn config(&self) -> QueueConfig {
        let mut config = QueueConfig::new(self.size);
        config.set_desc(self.base);
        config.set_avail(self.available_ring());
        config.set_used(self.used_ring());
        config.set_ready(true);
        config
    }
}

struct NoGate;

impl ConfigGate for NoGate {
    fn change(&self, apply: &mut dyn FnMut()) {
        apply();
    }
}

struct Running {
    queues: Vec<TaskQueue>,
    handler: Box<dyn QueueHandler>,
}

/// A machine of memory, one device and its rings.
pub(crate) struct Bench<D> {
    pub(crate) ram: Ram,
    pub(crate) device: Arc<D>,
    pub(crate) rings: Vec<GuestRing>,
    tasks: Vec<Running>,
}

impl<D: VirtioDevice> Bench<D> {
    /// Starts the device with `features` and all its queues of `size`.
    pub(crate) fn start(device: Arc<D>, features: u64, size: u16) -> Self {
        let ram = memory();
        let count = device.queue_sizes().len();
        let numbers = 0..u16::try_from(count).unwrap();
        let rings: Vec<_> = numbers
            .clone()
            .map(|index| GuestRing::new(&ram, index, size))
            .collect();
        let start = Start {
            features,
            ram: ram.clone(),
            queues: numbers.map(|index| ReadyQueue { index, size }).collect(),
            config: ConfigNotifier::new(Arc::new(NoGate)),
        };
        let running = |task: crate::device::Task| Running {
            queues: task
                .queues
                .iter()
                .map(|index| {
                    let config = rings[usize::from(*index)].config();
                    let queue = config
                        .activate(ram.clone(), RingFeatures::from_bits(features))
                        .unwrap();
                    TaskQueue {
                        index: *index,
                        queue,
                    }
                })
                .collect(),
            handler: task.handler,
        };
        let tasks = device
            .start(start)
            .unwrap()
            .into_iter()
            .map(running)
            .collect();
        Self {
            ram,
            device,
            rings,
            tasks,
        }
    }

    /// Runs the task of queue `queue` once, as after its kick, and publishes.
    pub(crate) fn kick(&mut self, queue: u16) -> Result<Outcome, Broken> {
        self.run(queue, Cause::Kick(queue))
    }

    /// Runs the task of queue `queue` once and publishes what it completed.
    pub(crate) fn run(&mut self, queue: u16, cause: Cause) -> Result<Outcome, Broken> {
        let has = |task: &&mut Running| task.queues.iter().any(|slot| slot.index == queue);
        let task = self.tasks.iter_mut().find(has).unwrap();
        let result = task
            .handler
            .run(&mut QueueSet::new(&mut task.queues), cause);
        for slot in &mut task.queues {
            let _: Interrupt = slot.queue.publish();
        }
        result
    }

    /// Stops everything, as at reset; returns how many chains are left in flight.
    pub(crate) fn stop(&mut self) -> u32 {
        let mut left = 0;
        for mut task in self.tasks.drain(..) {
            task.handler.stop(&mut QueueSet::new(&mut task.queues));
            left += task
                .queues
                .iter()
                .map(|slot| u32::from(slot.queue.in_flight()))
                .sum::<u32>();
        }
        self.device.reset();
        left
    }

    /// Puts bytes into guest memory.
    pub(crate) fn poke(&self, at: u64, bytes: &[u8]) {
        self.ram
            .mapping()
            .write_slice(bytes, GuestAddress(at))
            .unwrap();
    }

    /// Reads bytes of guest memory.
    pub(crate) fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram
            .mapping()
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }
}
