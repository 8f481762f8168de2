//! A machine of memory and one block device, run on the test's own thread.
//!
//! Guest addresses are the host's, so that drivers which know no machine can use it.
#![expect(
    unsafe_code,
    reason = "hands pieces of the machine's memory to drivers as theirs"
)]

use std::ptr::NonNull;
use std::sync::Arc;

use splitring_devices::blk::Blk;
use splitring_devices::device::{
    Cause, QueueHandler, QueueSet, ReadyQueue, Start, TaskQueue, VirtioDevice,
};
use splitring_devices::interrupt::{ConfigGate, ConfigNotifier};
use splitring_devices::ram::{Mapping, Ram};
use splitring_virtio::device::queue::{QueueConfig, RingFeatures};
use splitring_virtio::driver::{DmaBytes, QueueAreas};
use splitring_virtio::spec::blk::Config;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestRegionMmap};
use zerocopy::IntoBytes;

const MEMORY: usize = 64 << 20;

/// The machine.
pub(crate) struct Machine {
    pub(crate) ram: Ram,
    pub(crate) device: Arc<Blk>,
    tasks: Vec<(Box<dyn QueueHandler>, Vec<TaskQueue>)>,
    taken: usize,
}

struct NoGate;

impl ConfigGate for NoGate {
    fn change(&self, apply: &mut dyn FnMut()) {
        apply();
    }
}

impl Machine {
    pub(crate) fn new(device: Blk) -> Self {
        let region = MmapRegionBuilder::new_with_bitmap(MEMORY, None)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .build()
            .expect("memory");
        let start = u64::try_from(region.as_ptr().addr()).expect("64 bits");
        let region = GuestRegionMmap::new(region, GuestAddress(start)).expect("in range");
        let mapping = Mapping::from_regions(vec![region]).expect("one region");
        Self {
            ram: Ram::new(Arc::new(mapping)),
            device: Arc::new(device),
            tasks: Vec::new(),
            taken: 0,
        }
    }

    /// Memory that was never given out before, zeroed.
    pub(crate) fn take(&mut self, len: usize, align: usize) -> NonNull<u8> {
        let region = self.ram.mapping().iter().next().expect("one region");
        let start = self.taken.next_multiple_of(align);
        self.taken = start + len;
        assert!(self.taken <= MEMORY, "the test's machine is too small");
        // SAFETY: within the mapping, as asserted.
        let pointer = unsafe { region.as_ptr().add(start) };
        NonNull::new(pointer).expect("mapped")
    }

    /// The same for our drivers.
    pub(crate) fn bytes(&mut self, len: usize, align: usize) -> DmaBytes {
        let pointer = self.take(len, align);
        // SAFETY: the piece is given out once. Tests drop the driver before the machine, and only they and the
        // device, which a driver lends it to, touch it.
        unsafe { DmaBytes::from_raw(pointer, len) }
    }

    pub(crate) fn config(&self) -> Config {
        let mut config = Config::default();
        self.device.read_config(0, config.as_mut_bytes());
        config
    }

    /// The driver is ready: `areas` are its queues. The device may take chains as long as its own largest size.
    pub(crate) fn start(&mut self, features: u64, areas: &[QueueAreas]) {
        let numbers = 0..u16::try_from(areas.len()).expect("few");
        let start = Start {
            features,
            ram: self.ram.clone(),
            queues: numbers
                .zip(areas)
                .map(|(index, area)| ReadyQueue {
                    index,
                    size: area.size,
                })
                .collect(),
            config: ConfigNotifier::new(Arc::new(NoGate)),
        };
        let largest = self.device.queue_sizes()[0];
        for task in self.device.start(start).expect("started") {
            let queues = task.queues.iter().map(|index| {
                let area = areas[usize::from(*index)];
                let mut config = QueueConfig::new(largest);
                config.set_size(area.size);
                config.set_desc(area.descriptors);
                config.set_avail(area.driver);
                config.set_used(area.device);
                config.set_ready(true);
                let queue = config
                    .activate(self.ram.clone(), RingFeatures::from_bits(features))
                    .expect("valid");
                TaskQueue {
                    index: *index,
                    queue,
                }
            });
            let queues = queues.collect();
            self.tasks.push((task.handler, queues));
        }
    }

    /// One pass of queue `index`'s handler.
    pub(crate) fn run(&mut self, index: u16) {
        for (handler, queues) in &mut self.tasks {
            if queues.iter().any(|slot| slot.index == index) {
                handler
                    .run(&mut QueueSet::new(queues), Cause::Resume)
                    .expect("no broken queue");
                for slot in queues {
                    let _ = slot.queue.publish();
                }
            }
        }
    }

    /// The device is reset. The chains left in flight.
    pub(crate) fn reset(&mut self) -> u32 {
        let mut left = 0;
        for (mut handler, mut queues) in self.tasks.drain(..) {
            handler.stop(&mut QueueSet::new(&mut queues));
            for slot in &mut queues {
                let _ = slot.queue.publish();
                left += u32::from(slot.queue.in_flight());
            }
        }
        self.device.reset();
        left
    }
}

/// Numbers that look random and are the same each time.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_shr(16) % end
    }
}
