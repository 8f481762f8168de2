//! Guests for device tests, on plain memory with rings written by hand.
//!
//! They write what they are told to, right or wrong, so hostile chains are as easy as good ones. [`Bench`] runs a
//! device without a worker; [`pci::Guest`] drives a whole function on a bus, with a worker behind it.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the tests' own numbers are small"
)]

pub(crate) mod faults;
pub(crate) mod pci;
pub(crate) mod probe;
pub(crate) mod restore;
mod ring;
mod sink;
mod wiring;

use std::io;
use std::sync::{Arc, Mutex};

use splitring_virtio::device::queue::{Interrupt, RingFeatures};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap};

use crate::device::{
    Broken, Cause, Outcome, QueueHandler, QueueSet, ReadyQueue, Registry, Start, TaskQueue,
    VirtioDevice,
};
use crate::events::{DeviceEvent, EventSink};
use crate::interrupt::{ConfigGate, ConfigNotifier};
use crate::ram::{Mapping, Ram};

pub(crate) use ring::{Buffer, GuestRing};
pub(crate) use sink::Sink;

/// Bytes of guest memory; rings are in the upper half, the lower one is the test's.
const MEMORY: u64 = 8 << 20;
const RINGS: u64 = MEMORY / 2;

/// The lines that `act` logs on this thread, at the level `info` and above.
pub(crate) fn logged(act: impl FnOnce()) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, act);
    let bytes = std::mem::take(&mut *lines.0.lock().unwrap());
    let text = String::from_utf8(bytes).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Zeroed guest memory.
pub(crate) fn memory() -> Ram {
    let region = MmapRegionBuilder::new_with_bitmap(
        MEMORY as usize,
        crate::dirty::DirtyPages::new(MEMORY as usize),
    )
    .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
    .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE)
    .build()
    .unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
    Ram::new(Arc::new(Mapping::from_regions(vec![region]).unwrap()))
}

/// A sink for events, and what has come to it.
pub(crate) fn observed() -> (EventSink, Arc<Mutex<Vec<DeviceEvent>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let sink = EventSink::new(move |event| log.lock().unwrap().push(event));
    (sink, seen)
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
        let largest = device.queue_sizes();
        let numbers = 0..u16::try_from(largest.len()).unwrap();
        let rings: Vec<_> = numbers
            .clone()
            .zip(largest)
            .map(|(index, largest)| GuestRing::smaller(&ram, index, size, size.max(*largest)))
            .collect();
        let start = Start {
            features,
            ram: ram.clone(),
            queues: numbers.map(|index| ReadyQueue { index, size }).collect(),
            config: ConfigNotifier::new(Arc::new(NoGate)),
            rings: Default::default(),
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

    /// The next run of queue `queue` takes up to `chains` chains, as a worker limits it.
    pub(crate) fn grant(&mut self, queue: u16, chains: u16) {
        let slots = self.tasks.iter_mut().flat_map(|task| &mut task.queues);
        for slot in slots.filter(|slot| slot.index == queue) {
            slot.queue.grant(chains);
        }
    }

    /// Runs the task of queue `queue` once and publishes what it completed.
    pub(crate) fn run(&mut self, queue: u16, cause: Cause) -> Result<Outcome, Broken> {
        let has = |task: &&mut Running| task.queues.iter().any(|slot| slot.index == queue);
        let task = self.tasks.iter_mut().find(has).unwrap();
        let result = task.handler.run(
            &mut QueueSet::new(&mut task.queues, &mut Registry::default()),
            cause,
        );
        for slot in &mut task.queues {
            let _: Interrupt = slot.queue.publish();
        }
        result
    }

    /// Stops everything, as at reset; returns how many chains are left in flight.
    pub(crate) fn stop(&mut self) -> u32 {
        let mut left = 0;
        for mut task in self.tasks.drain(..) {
            let mut registry = Registry::default();
            let mut set = QueueSet::new(&mut task.queues, &mut registry);
            task.handler.stop(&mut set);
            left += task
                .queues
                .iter()
                .map(|slot| u32::from(slot.queue.in_flight()))
                .sum::<u32>();
        }
        self.device.reset();
        left
    }

    /// Drops all handlers without stopping them, as where a start fails half-way.
    pub(crate) fn forget_tasks(&mut self) {
        self.tasks.clear();
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
