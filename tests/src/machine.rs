//! A machine of memory and one virtio device, run on the test's own thread.
//!
//! Guest addresses are host addresses, so that drivers that are unaware of the machine can use it.
//! Only the test, its driver and the device access the memory.
#![expect(
    unsafe_code,
    reason = "hands pieces of the machine's memory to drivers as theirs"
)]

use std::ptr::NonNull;
use std::sync::Arc;

use splitring_devices::device::{
    Cause, QueueHandler, QueueSet, ReadyQueue, Registry, Start, TaskQueue, VirtioDevice,
};
use splitring_devices::interrupt::{ConfigGate, ConfigNotifier};
use splitring_devices::ram::{Mapping, Ram};
use splitring_virtio::device::queue::{QueueConfig, RingFeatures};
use splitring_virtio::driver::{DmaBytes, QueueAreas};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestRegionMmap};
use zerocopy::{FromBytes, IntoBytes};

const MEMORY: usize = 128 << 20;
/// The upper half is for buffers that are allocated again and again.
const LENT: usize = MEMORY / 2;
/// Space between two buffers, so that adjacent ones don't form one segment and a write past the end
/// is detected.
const GAP: usize = 64;

/// The machine.
pub struct TestMachine {
    /// Its memory.
    pub ram: Ram,
    /// Its device.
    pub device: Arc<dyn VirtioDevice>,
    tasks: Vec<(Box<dyn QueueHandler>, Vec<TaskQueue>)>,
    taken: usize,
    lent: usize,
}

struct NoGate;

impl ConfigGate for NoGate {
    fn change(&self, apply: &mut dyn FnMut()) {
        apply();
    }
}

impl TestMachine {
    /// Returns a machine with nothing but `device`, not started.
    pub fn new(device: impl VirtioDevice + 'static) -> Self {
        Self::of(Arc::new(device))
    }

    /// Like [`TestMachine::new`], for a device that the test also holds.
    pub fn of(device: Arc<dyn VirtioDevice>) -> Self {
        let region = MmapRegionBuilder::new_with_bitmap(
            MEMORY,
            splitring_devices::dirty::DirtyPages::new(MEMORY),
        )
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        .build()
        .expect("memory");
        let start = u64::try_from(region.as_ptr().addr()).expect("64 bits");
        let region = GuestRegionMmap::new(region, GuestAddress(start)).expect("in range");
        let mapping = Mapping::from_regions(vec![region]).expect("one region");
        Self {
            ram: Ram::new(Arc::new(mapping)),
            device,
            tasks: Vec::new(),
            taken: 0,
            lent: LENT,
        }
    }

    fn at(&self, offset: usize) -> NonNull<u8> {
        let mapping = self.ram.mapping();
        let region = mapping.iter().next().expect("one region");
        // SAFETY: callers stay within the mapping.
        let pointer = unsafe { region.as_ptr().add(offset) };
        NonNull::new(pointer).expect("mapped")
    }

    /// Allocates zeroed memory for the machine's lifetime.
    pub fn take(&mut self, len: usize, align: usize) -> NonNull<u8> {
        let start = self.taken.next_multiple_of(align);
        self.taken = start + len;
        assert!(self.taken <= LENT, "the test's machine is too small");
        self.at(start)
    }

    /// Like [`TestMachine::take`], for the drivers of `splitring-virtio`.
    pub fn bytes(&mut self, len: usize, align: usize) -> DmaBytes {
        let pointer = self.take(len, align);
        // SAFETY: within the mapping, and allocated once. Tests drop the driver before the machine.
        // Only they and the device, to which a driver lends the memory, access it.
        unsafe { DmaBytes::from_raw(pointer, len) }
    }

    /// Allocates memory for the buffers of one request, at any alignment; drop it before
    /// [`TestMachine::collect`].
    pub fn lend(&mut self, len: usize) -> DmaBytes {
        let start = self.lent;
        self.lent = start + len + GAP;
        assert!(
            self.lent <= MEMORY,
            "more buffers than the machine has memory for"
        );
        // SAFETY: as above; it is allocated again only after `collect`, when all earlier buffers
        // have been dropped.
        unsafe { DmaBytes::from_raw(self.at(start), len) }
    }

    /// Frees the memory of all buffers.
    pub fn collect(&mut self) {
        self.lent = LENT;
    }

    /// Returns the device's configuration.
    pub fn config<C: FromBytes + IntoBytes>(&self) -> C {
        let mut config = C::new_zeroed();
        self.device.read_config(0, config.as_mut_bytes());
        config
    }

    /// Sets DRIVER_OK: `areas` are the driver's queues. The device accepts chains up to its own
    /// largest size.
    pub fn start(&mut self, features: u64, areas: &[QueueAreas]) {
        let numbers = 0..u16::try_from(areas.len()).expect("few");
        let ready = |(index, area): (u16, &QueueAreas)| ReadyQueue {
            index,
            size: area.size,
        };
        let start = Start {
            features,
            ram: self.ram.clone(),
            queues: numbers.zip(areas).map(ready).collect(),
            config: ConfigNotifier::new(Arc::new(NoGate)),
            rings: Default::default(),
        };
        let largest = self.device.queue_sizes().to_vec();
        for task in self.device.start(start).expect("started") {
            let activate = |index: &u16| {
                let area = areas[usize::from(*index)];
                let mut config = QueueConfig::new(largest[usize::from(*index)]);
                config.set_size(area.size);
                config.set_desc(area.descriptors);
                config.set_avail(area.driver);
                config.set_used(area.device);
                config.set_ready(true);
                let features = RingFeatures::from_bits(features);
                let queue = config.activate(self.ram.clone(), features).expect("valid");
                TaskQueue {
                    index: *index,
                    queue,
                }
            };
            let queues = task.queues.iter().map(activate).collect();
            self.tasks.push((task.handler, queues));
        }
    }

    /// Runs one pass of every handler, as if all of their sources had fired.
    pub fn run(&mut self) {
        for (handler, queues) in &mut self.tasks {
            pass(handler.as_mut(), queues);
        }
    }

    /// Runs one pass of queue `index`'s handler. A function of its own for benchmarks that count
    /// its instructions.
    #[inline(never)]
    pub fn run_queue(&mut self, index: u16) {
        for (handler, queues) in &mut self.tasks {
            if queues.iter().any(|slot| slot.index == index) {
                pass(handler.as_mut(), queues);
            }
        }
    }

    /// Resets the device. Returns the number of chains in flight.
    pub fn reset(&mut self) -> u32 {
        let mut left = 0;
        for (mut handler, mut queues) in self.tasks.drain(..) {
            handler.stop(&mut QueueSet::new(&mut queues, &mut Registry::default()));
            for slot in &mut queues {
                let _ = slot.queue.publish();
                left += u32::from(slot.queue.in_flight());
            }
        }
        self.device.reset();
        left
    }
}

fn pass(handler: &mut dyn QueueHandler, queues: &mut [TaskQueue]) {
    handler
        .run(
            &mut QueueSet::new(queues, &mut Registry::default()),
            Cause::Resume,
        )
        .expect("no broken queue");
    for slot in queues {
        let _ = slot.queue.publish();
    }
}
