//! A device whose first queue is served on a thread that has nothing but what a queue's owner is handed: addresses, a
//! base and two eventfds.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use splitring_virtio::device::queue::{Interrupt, QueueConfig, QueueState, RingFeatures};
use splitring_virtio::spec::pci::common as reg;
use splitring_virtio::spec::status;

use super::*;
use crate::device::{DeviceKind, Queue, Start, StartError, Task, VirtioDevice};
use crate::ram::Ram;
use crate::testing::pci::{Guest, ISR, PATIENCE, PENDING, wait_until};
use crate::testing::probe::{Handler, Manner};

const BUFFER: u64 = 0x1000;
const SIZES: [u16; 2] = [16, 16];
const DECODE: u16 = 2;
const MASTER: u16 = 6;

#[derive(Default)]
struct Record {
    starts: AtomicUsize,
    stops: AtomicUsize,
    /// The bases that the ring was handed over with.
    bases: Mutex<Vec<u16>>,
    refuses: AtomicBool,
    unwanted: AtomicBool,
}

/// A queue on a thread of its own.
struct Elsewhere {
    ram: Ram,
    features: u64,
    record: Arc<Record>,
    thread: Option<(Arc<AtomicBool>, JoinHandle<u16>)>,
}

/// Answers every chain until it is to stop; returns how far it got.
fn serve(
    mut queue: Queue,
    kick: &vmm_sys_util::eventfd::EventFd,
    call: &vmm_sys_util::eventfd::EventFd,
    quit: &AtomicBool,
) -> u16 {
    while !quit.load(Ordering::SeqCst) {
        if kick.read().is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        while let Some(chain) = queue.pop().unwrap() {
            let len = u32::try_from(chain.writable_len()).unwrap();
            queue.complete(chain, len);
        }
        if queue.publish() == Interrupt::Needed {
            call.write(1).unwrap();
        }
    }
    queue.save().next_avail
}

impl RingServer for Elsewhere {
    fn wanted(&self) -> bool {
        !self.record.unwanted.load(Ordering::SeqCst)
    }

    fn start(&mut self, queues: &[HandedQueue]) -> Result<(), Broken> {
        let [queue] = queues else { panic!("one queue") };
        if self.record.refuses.load(Ordering::SeqCst) {
            return Err(Broken::new(0, "the other side refuses"));
        }
        self.record.starts.fetch_add(1, Ordering::SeqCst);
        let ring = queue.ring();
        self.record.bases.lock().unwrap().push(ring.base);
        let state = QueueState {
            size: ring.size,
            ready: true,
            desc: ring.desc,
            avail: ring.avail,
            used: ring.used,
            next_avail: ring.base,
            next_used: ring.base,
            published: ring.base,
            ..QueueState::default()
        };
        let config = QueueConfig::restore(ring.size, state).unwrap();
        let active = config.activate(self.ram.clone(), RingFeatures::from_bits(self.features));
        let (active, quit) = (active.unwrap(), Arc::new(AtomicBool::new(false)));
        let kick = queue.kick().try_clone().unwrap();
        let call = queue.call().try_clone().unwrap();
        let asked = Arc::clone(&quit);
        let thread = std::thread::spawn(move || serve(active, &kick, &call, &asked));
        self.thread = Some((quit, thread));
        Ok(())
    }

    fn stop(&mut self, queues: &mut [HandedQueue]) -> Result<(), Broken> {
        self.record.stops.fetch_add(1, Ordering::SeqCst);
        let (quit, thread) = self.thread.take().expect("it was started");
        quit.store(true, Ordering::SeqCst);
        queues[0].take_back(thread.join().unwrap());
        Ok(())
    }
}

/// Queue 0 is served elsewhere, queue 1 by a worker.
struct Device(Arc<Record>);

impl VirtioDevice for Device {
    fn id(&self) -> &str {
        "handed0"
    }
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            type_id: splitring_virtio::spec::id::ENTROPY,
            pci_class: 0xff_0000,
        }
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }
    fn hands_over(&self) -> bool {
        true
    }
    fn read_config(&self, _: usize, _: &mut [u8]) {}
    fn start(&self, mut start: Start) -> Result<Vec<Task>, StartError> {
        let queue = start.rings.take(0).expect("it is enabled");
        assert!(start.rings.take(0).is_none(), "it is taken");
        assert!(start.rings.take(2).is_none(), "there is none");
        let server = Elsewhere {
            ram: start.ram,
            features: start.features,
            record: Arc::clone(&self.0),
            thread: None,
        };
        let here = Handler::new(Manner::Answer, Arc::default());
        Ok(vec![
            Task {
                queues: vec![0],
                handler: Box::new(HandedOver::new(server, vec![queue])),
            },
            Task {
                queues: vec![1],
                handler: Box::new(here),
            },
        ])
    }
}

fn guest() -> (Guest, Arc<Record>) {
    let record = Arc::new(Record::default());
    let guest = Guest::started(Arc::new(Device(Arc::clone(&record))));
    (guest, record)
}

fn with_msix() -> (Guest, Arc<Record>) {
    let (mut guest, record) = guest();
    guest.enable_msix();
    guest.restart();
    use_vectors(&guest, 0);
    (guest, record)
}

fn use_vectors(guest: &Guest, first: u16) {
    for queue in 0..2 {
        guest.set16(reg::QUEUE_SELECT, queue);
        guest.set16(reg::QUEUE_MSIX_VECTOR, first ^ queue);
    }
}

fn answered(guest: &mut Guest) {
    for queue in 0..2 {
        guest.offer(queue, &[(BUFFER, 7, true)]);
        guest.kick(u16::try_from(queue).unwrap());
        assert_eq!(guest.wait_used(queue, 1)[0].1, 7, "queue {queue}");
    }
}

/// Waits for messages with exactly these data, in any order.
fn sent(guest: &Guest, mut data: Vec<u32>) {
    let mut seen = Vec::new();
    wait_until("the interrupts are sent", || {
        seen.extend(guest.wiring.messages().iter().map(|message| message.data));
        seen.len() >= data.len()
    });
    settle(guest);
    seen.extend(guest.wiring.messages().iter().map(|message| message.data));
    seen.sort_unstable();
    data.sort_unstable();
    assert_eq!(seen, data);
}

/// Has the worker do all it has to do.
fn settle(guest: &Guest) {
    guest.worker.pause(PATIENCE).unwrap();
    guest.worker.resume().unwrap();
}

#[test]
fn a_queue_that_is_served_elsewhere_is_kicked_and_interrupts_without_its_worker() {
    let (mut guest, _) = with_msix();
    for _ in 0..3 {
        answered(&mut guest);
        sent(&guest, vec![0, 1]);
    }
    // A driver may change its mind about a vector at any time.
    use_vectors(&guest, 1);
    guest.offer(0, &[(BUFFER, 7, true)]);
    guest.kick(0);
    sent(&guest, vec![1]);
}

#[test]
fn a_masked_vector_of_a_queue_served_elsewhere_is_pending_and_fires_once_at_unmask() {
    let (mut guest, _) = with_msix();
    guest.set_vector(0, true);
    for _ in 0..2 {
        guest.offer(0, &[(BUFFER, 7, true)]);
        guest.kick(0);
        guest.wait_used(0, 1);
    }
    wait_until("it is pending", || guest.bar_read(PENDING) == [1]);
    settle(&guest);
    assert_eq!(guest.wiring.messages(), []);
    guest.set_vector(0, false);
    assert_eq!(guest.wiring.messages().len(), 1);
    assert_eq!(guest.bar_read(PENDING), [0]);
    answered(&mut guest);
    sent(&guest, vec![0, 1]);
}

#[test]
fn a_queue_served_elsewhere_interrupts_by_the_line_where_there_is_no_message() {
    let (mut guest, _) = guest();
    guest.offer(0, &[(BUFFER, 7, true)]);
    guest.kick(0);
    wait_until("the line is asserted", || guest.wiring.line_asserted());
    assert_eq!(guest.bar_read(ISR), [1]);
}

#[test]
fn a_pause_takes_the_ring_back_and_a_resume_goes_on_with_the_next_entry() {
    let (mut guest, record) = with_msix();
    answered(&mut guest);
    for pauses in 1..=3_u16 {
        guest.worker.pause(PATIENCE).unwrap();
        guest.offer(0, &[(BUFFER, 7, true)]);
        guest.kick(0);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(guest.rings[0].used(), [], "pause {pauses}");
        guest.worker.resume().unwrap();
        assert_eq!(guest.wait_used(0, 1)[0].1, 7);
    }
    assert_eq!(*record.bases.lock().unwrap(), [0, 0, 1, 2, 3]);
}

#[test]
fn without_bus_mastering_nobody_serves_the_ring() {
    let (mut guest, record) = with_msix();
    guest.config_write(4, &DECODE.to_le_bytes());
    guest.offer(0, &[(BUFFER, 7, true)]);
    guest.kick(0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.rings[0].used(), []);
    let counts = || {
        let count = |of: &AtomicUsize| of.load(Ordering::SeqCst);
        (count(&record.starts), count(&record.stops))
    };
    let (starts, stops) = counts();
    assert_eq!(starts, stops);
    guest.config_write(4, &MASTER.to_le_bytes());
    assert_eq!(guest.wait_used(0, 1)[0].1, 7);
    sent(&guest, vec![0]);
    guest.set_status(0);
    let (starts, stops) = counts();
    assert_eq!(starts, stops, "a reset takes it back");
    guest.restart();
    use_vectors(&guest, 0);
    answered(&mut guest);
    sent(&guest, vec![0, 1]);
}

#[test]
fn what_the_other_side_refuses_makes_the_device_need_a_reset_after_which_it_works() {
    let (mut guest, record) = with_msix();
    record.refuses.store(true, Ordering::SeqCst);
    guest.restart();
    guest.wait_for_status(status::NEEDS_RESET);
    record.refuses.store(false, Ordering::SeqCst);
    guest.restart();
    use_vectors(&guest, 0);
    answered(&mut guest);
    sent(&guest, vec![0, 1]);
}

#[test]
fn a_server_that_is_not_wanted_starts_when_it_is() {
    let (mut guest, record) = with_msix();
    record.unwanted.store(true, Ordering::SeqCst);
    settle(&guest);
    guest.offer(0, &[(BUFFER, 7, true)]);
    guest.kick(0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.rings[0].used(), []);
    record.unwanted.store(false, Ordering::SeqCst);
    settle(&guest);
    assert_eq!(guest.wait_used(0, 1)[0].1, 7);
}
