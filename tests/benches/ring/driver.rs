//! The driver end against `virtio-drivers`: add, publish, pop; and both ends in one thread against
//! `virtio-drivers` with `virtio-queue`.
//!
//! Equal work: both sides add buffers of the same shapes over the same memory, decide once per
//! batch whether to notify, and take every buffer back from the used ring. For the driver end alone
//! the device is a loop that copies heads from the available to the used ring, the same for both.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};

use splitring_virtio::device::queue::{ActiveQueue, QueueConfig, RingFeatures};
use splitring_virtio::driver::{DeviceId, Identity, IndirectPolicy, Queue, QueueOptions};
use splitring_virtio::scatterlist::ScatterList;
use splitring_virtio::spec::feature::{EVENT_IDX, INDIRECT_DESC};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::DeviceType;
use virtio_queue::{Queue as PeerDevice, QueueT};
use vm_memory::GuestMemoryBackend;

use crate::{Case, Row, Table};
use splitring_tests::arena::{
    ArenaRam, PeerHal, PeerTransport, QueueAddresses, SharedDevice, arena, load16, peer_add,
    peer_pop, store_used, store16,
};

const SIZE: u16 = 256;
const LEN: usize = 512;

/// A batch of equal buffers.
#[derive(Clone, Copy)]
struct BufferShape {
    buffers: u16,
    /// Segments that the device reads and writes.
    readable: usize,
    writable: usize,
    indirect: bool,
}

impl BufferShape {
    fn all() -> Vec<(String, Self)> {
        let mut all = Vec::new();
        for (name, buffers, readable, writable) in [
            ("128x1", 128, 0, 1),
            ("16x8", 16, 0, 8),
            ("1x128", 1, 0, 128),
            ("64xblk-4k", 64, 1, 2),
        ] {
            for indirect in [false, true] {
                let kind = if indirect { "indirect" } else { "direct" };
                let shape = Self {
                    buffers,
                    readable,
                    writable,
                    indirect,
                };
                all.push((format!("{name}-{kind}"), shape));
            }
        }
        all
    }

    const fn features(&self) -> u64 {
        if self.indirect {
            EVENT_IDX | INDIRECT_DESC
        } else {
            EVENT_IDX
        }
    }

    /// A request of 4 KiB between header and status.
    const fn blk(buffers: u16, indirect: bool) -> Self {
        Self {
            buffers,
            readable: 1,
            writable: 2,
            indirect,
        }
    }
}

/// What Splitring's queue keeps for a buffer: the lists of its segments.
struct Token {
    readable: ScatterList,
    writable: ScatterList,
}

fn list(segments: usize) -> ScatterList {
    ScatterList::from_buffers((0..segments).map(|_| arena().bytes(LEN)))
}

type OurQueue = Queue<Box<Token>, Identity>;

fn our_queue(shape: &BufferShape) -> OurQueue {
    let options = QueueOptions::new(SIZE, shape.features());
    let options = options.tables(128).policy(IndirectPolicy::Rfc);
    let memory = arena().bytes(options.memory_len());
    Queue::new(options, memory, Identity, &DeviceId::new()).expect("sound memory")
}

fn our_areas(queue: &OurQueue) -> QueueAddresses {
    let areas = queue.areas();
    QueueAddresses {
        size: areas.size,
        descriptors: areas.descriptors,
        driver: areas.driver,
        device: areas.device,
    }
}

/// The driver's half of a batch, with Splitring.
struct Ours {
    queue: OurQueue,
    #[expect(clippy::vec_box, reason = "the queue holds tokens by pointer")]
    spare: Vec<Box<Token>>,
    shape: BufferShape,
}

impl Ours {
    fn new(shape: BufferShape) -> Self {
        let token = || {
            Box::new(Token {
                readable: list(shape.readable),
                writable: list(shape.writable),
            })
        };
        Self {
            queue: our_queue(&shape),
            spare: (0..shape.buffers).map(|_| token()).collect(),
            shape,
        }
    }

    #[inline]
    fn add(&mut self) {
        let BufferShape {
            readable, writable, ..
        } = self.shape;
        while let Some(token) = self.spare.pop() {
            let opened = self.queue.start_buf(token, readable + writable, 2);
            let mut buffer = opened.unwrap_or_else(|_| panic!("room"));
            if readable > 0 {
                buffer
                    .add_sg(|token| &token.readable, readable)
                    .expect("room");
            }
            let mut buffer = buffer.writable();
            buffer
                .add_sg(|token| &token.writable, writable)
                .expect("room");
            buffer.end_buf().unwrap_or_else(|_| panic!("segments"));
        }
        let _ = black_box(self.queue.publish());
    }

    #[inline]
    fn reap(&mut self) {
        while let Some(done) = self.queue.pop().expect("an honest device") {
            self.spare.push(done.token);
        }
    }
}

/// A device that uses every buffer at once.
struct Copier {
    areas: QueueAddresses,
    idx: u16,
}

impl Copier {
    #[inline]
    fn run(&mut self) {
        let QueueAddresses {
            size,
            driver,
            device,
            ..
        } = self.areas;
        let avail = load16(driver + 2);
        while self.idx != avail {
            let slot = u64::from(self.idx & (size - 1));
            let head = load16(driver + 4 + slot * 2);
            store_used(device + 4 + slot * 8, head, 0);
            self.idx = self.idx.wrapping_add(1);
        }
        store16(device + 2, avail);
    }
}

fn ours(label: String, shape: BufferShape) -> Case {
    Case::new(label, shape.buffers, move || {
        let mut ours = Ours::new(shape);
        let mut device = Copier {
            areas: our_areas(&ours.queue),
            idx: 0,
        };
        move || {
            ours.add();
            device.run();
            ours.reap();
        }
    })
}

/// The driver's half of a batch, with the peer.
struct Peer {
    queue: VirtQueue<PeerHal, { SIZE as usize }>,
    areas: QueueAddresses,
    readable: Vec<Vec<&'static [u8]>>,
    writable: Vec<Vec<&'static mut [u8]>>,
    /// The buffers in flight, by their token.
    holds: Vec<usize>,
}

impl Peer {
    fn new(shape: BufferShape) -> Self {
        let peer = SharedDevice::new(DeviceType::Block, 0, Vec::new()).shared();
        let mut transport = PeerTransport::new(&peer);
        let queue = VirtQueue::new(&mut transport, 0, shape.indirect, true).expect("a queue");
        let areas = peer.borrow().queues[0].1;
        let slice = || arena().slice(LEN);
        Self {
            queue,
            areas,
            readable: (0..shape.buffers)
                .map(|_| (0..shape.readable).map(|_| &*slice()).collect())
                .collect(),
            writable: (0..shape.buffers)
                .map(|_| (0..shape.writable).map(|_| slice()).collect())
                .collect(),
            holds: vec![0; usize::from(SIZE)],
        }
    }

    #[inline]
    fn add(&mut self) {
        for at in 0..self.readable.len() {
            let token = peer_add(&mut self.queue, &self.readable[at], &mut self.writable[at]);
            let token = token.expect("room");
            self.holds[usize::from(token)] = at;
        }
        black_box(self.queue.should_notify());
    }

    /// Returns the number of buffers.
    #[inline]
    fn reap(&mut self) -> u16 {
        let mut reaped = 0;
        while let Some(token) = self.queue.peek_used() {
            reaped += 1;
            let at = self.holds[usize::from(token)];
            let (readable, writable) = (&self.readable[at], &mut self.writable[at]);
            peer_pop(&mut self.queue, token, readable, writable).expect("an honest device");
        }
        reaped
    }
}

fn peer(label: String, shape: BufferShape) -> Case {
    Case::new(label, shape.buffers, move || {
        let mut peer = Peer::new(shape);
        let mut device = Copier {
            areas: peer.areas,
            idx: 0,
        };
        move || {
            peer.add();
            device.run();
            peer.reap();
        }
    })
}

/// Adds a batch, lets a trivial device use it, and takes it back.
pub(crate) fn alone() -> Table {
    let rows = BufferShape::all().into_iter().map(|(name, shape)| Row {
        ours: ours(format!("driver/{name}"), shape),
        peer: peer(format!("driver/{name}/peer"), shape),
        shape: name,
        target: 2.0,
    });
    Table {
        title: "Driver's end, add, publish once a batch and reap, against virtio-drivers",
        unit: "buffer",
        rows: rows.collect(),
    }
}

fn our_device(areas: QueueAddresses, features: u64) -> ActiveQueue<ArenaRam> {
    let mut config = QueueConfig::new(areas.size);
    config.set_desc(areas.descriptors);
    config.set_avail(areas.driver);
    config.set_used(areas.device);
    config.set_ready(true);
    let features = RingFeatures::from_bits(features);
    config.activate(ArenaRam, features).expect("a sound ring")
}

fn our_round_trip(label: String, shape: BufferShape) -> Case {
    Case::new(label, shape.buffers, move || {
        let mut ours = Ours::new(shape);
        let mut device = our_device(our_areas(&ours.queue), shape.features());
        move || {
            ours.add();
            while let Some(chain) = device.pop().expect("sound chains") {
                let mut seen = 0usize;
                for segment in chain.readable().iter().chain(chain.writable()) {
                    seen ^= segment.as_ptr().addr() ^ segment.len();
                }
                black_box(seen);
                device.complete(chain, 1);
            }
            let _ = black_box(device.publish());
            ours.reap();
        }
    })
}

fn peer_device(areas: QueueAddresses) -> PeerDevice {
    let mut device = PeerDevice::new(SIZE).expect("a sound size");
    let halves = |addr: u64| {
        let low = u32::try_from(addr & 0xffff_ffff).expect("masked");
        (Some(low), u32::try_from(addr >> 32).ok())
    };
    let (low, high) = halves(areas.descriptors);
    device.set_desc_table_address(low, high);
    let (low, high) = halves(areas.driver);
    device.set_avail_ring_address(low, high);
    let (low, high) = halves(areas.device);
    device.set_used_ring_address(low, high);
    device.set_event_idx(true);
    device.set_ready(true);
    device
}

fn peer_round_trip(label: String, shape: BufferShape) -> Case {
    Case::new(label, shape.buffers, move || {
        let mut peer = Peer::new(shape);
        let mapping = arena().mapping.clone();
        let mut device = peer_device(peer.areas);
        let segments = (shape.readable + shape.writable) * usize::from(shape.buffers);
        let mut first = true;
        move || {
            peer.add();
            let mapping = &*mapping;
            let mut count = 0;
            while let Some(chain) = device.pop_descriptor_chain(mapping) {
                let head = chain.head_index();
                let mut seen = 0usize;
                for desc in chain {
                    count += 1;
                    let len = usize::try_from(desc.len()).expect("64 bits");
                    let slice = GuestMemoryBackend::get_slice(mapping, desc.addr(), len);
                    let slice = slice.expect("in memory");
                    seen ^= slice.ptr_guard().as_ptr().addr() ^ slice.len();
                }
                black_box(seen);
                device.add_used(mapping, head, 1).expect("in memory");
            }
            black_box(device.needs_notification(mapping).expect("in memory"));
            peer.reap();
            assert!(
                !std::mem::take(&mut first) || count == segments,
                "it saw them all"
            );
        }
    })
}

/// Driver, device, driver, for the shape of a block request, in one thread.
pub(crate) fn round_trip() -> Table {
    let mut rows = Vec::new();
    for (name, buffers) in [("qd1", 1), ("qd32", 32), ("qd64", 64)] {
        for (kind, indirect) in [("direct", false), ("indirect", true)] {
            let shape = BufferShape::blk(buffers, indirect);
            let name = format!("blk-{name}-{kind}");
            rows.push(Row {
                ours: our_round_trip(format!("trip/{name}"), shape),
                peer: peer_round_trip(format!("trip/{name}/peer"), shape),
                shape: name,
                target: 4.0,
            });
        }
    }
    Table {
        title: "Driver to device to driver, one thread, against virtio-drivers with virtio-queue",
        unit: "request",
        rows,
    }
}

/// Requests in flight when the two ends have a thread each.
const TOGETHER: u16 = 32;
/// How long each pair of ends is measured.
const WATCH: Duration = Duration::from_millis(400);

/// Measures nanoseconds per request when the device polls on its own thread, for Splitring and the
/// peer: the additional cost of cache lines that move between two cores. Nothing else may run on
/// those cores.
pub(crate) fn cross_thread() {
    println!("Driver and device on a thread each, {TOGETHER} requests in flight, both polling");
    for (kind, indirect) in [("direct", false), ("indirect", true)] {
        let shape = BufferShape::blk(TOGETHER, indirect);
        let (ours, peer) = (our_threads(shape), peer_threads(shape));
        let ratio = peer / ours;
        println!("blk-qd32-{kind:<12} {ours:>9.1} {peer:>9.1} {ratio:>7.1}");
    }
    println!("(ns per request: ours, peer, ratio)\n");
}

/// Runs `device` on a separate thread and `round` on this one, and times the rounds.
fn threads(mut device: impl FnMut() + Send, mut round: impl FnMut()) -> f64 {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                device();
            }
        });
        let start = Instant::now();
        let mut rounds = 0u32;
        while start.elapsed() < WATCH {
            (0..16).for_each(|_| round());
            rounds += 16;
        }
        let spent = start.elapsed().as_secs_f64() * 1e9;
        done.store(true, Ordering::Relaxed);
        spent / f64::from(rounds * u32::from(TOGETHER))
    })
}

fn our_threads(shape: BufferShape) -> f64 {
    let mut ours = Ours::new(shape);
    let mut device = our_device(our_areas(&ours.queue), shape.features());
    let serve = move || {
        while let Some(chain) = device.pop().expect("sound chains") {
            black_box(chain.writable().len());
            device.complete(chain, 1);
        }
        let _ = black_box(device.publish());
    };
    threads(serve, || {
        ours.add();
        while ours.spare.len() < usize::from(TOGETHER) {
            ours.reap();
        }
    })
}

fn peer_threads(shape: BufferShape) -> f64 {
    let mut peer = Peer::new(shape);
    let mut device = peer_device(peer.areas);
    let mapping = arena().mapping.clone();
    let serve = move || {
        let mapping = &*mapping;
        while let Some(chain) = device.pop_descriptor_chain(mapping) {
            let head = chain.head_index();
            black_box(chain.count());
            device.add_used(mapping, head, 1).expect("in memory");
        }
        black_box(device.needs_notification(mapping).expect("in memory"));
    };
    threads(serve, || {
        peer.add();
        let mut left = TOGETHER;
        while left > 0 {
            left -= peer.reap();
        }
    })
}

/// Measures the minimum of a round trip of one request: an index store and a full fence at each
/// end.
pub(crate) fn fences() {
    const ROUNDS: u32 = 1000;
    let index = AtomicU16::new(0);
    let mut times: Vec<f64> = (0..101)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..2 * ROUNDS {
                index.store(black_box(1), Ordering::Release);
                fence(Ordering::SeqCst);
                black_box(index.load(Ordering::Relaxed));
            }
            start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS)
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!(
        "Floor of a round trip of one request: {:.1} ns for the two full fences, which both sides make\n",
        times[times.len() / 2]
    );
}

/// Counts the cache lines of the queue's memory that each end writes for a block request, one at a
/// time and in batches, to compare the layout with the minimum, which is the bytes themselves.
pub(crate) fn lines() {
    println!("Cache lines of 64 bytes written per block request, counted on a fresh queue");
    for (kind, indirect) in [("direct", false), ("indirect", true)] {
        for batch in [1u16, 32] {
            let (driver, device) = written_lines(BufferShape::blk(batch, indirect));
            let per = |lines: usize| lines as f64 / f64::from(batch);
            // Descriptors (of 16 bytes: three, and one that points to them), an entry and, per
            // batch, an index of two bytes; then a used entry and its index.
            let descriptors = if indirect { 4.0 } else { 3.0 };
            let index = 2.0 / f64::from(batch);
            println!(
                "{kind:<9} batch {batch:<3} driver {:>5.2} (floor {:.2})   device {:>5.2} (floor {:.2})",
                per(driver),
                (descriptors * 16.0 + 2.0 + index) / 64.0,
                per(device),
                (8.0 + index) / 64.0,
            );
        }
    }
    println!();
}

/// Returns the number of cache lines that the driver changes when it adds a batch, and the device
/// when it uses it.
fn written_lines(shape: BufferShape) -> (usize, usize) {
    let mut ours = Ours::new(shape);
    let areas = our_areas(&ours.queue);
    let len = QueueOptions::new(SIZE, shape.features())
        .tables(128)
        .memory_len();
    let snapshot = || (0..len as u64 / 2).map(|word| load16(areas.descriptors + word * 2));
    let changed = |before: &[u16], after: &[u16]| {
        let pairs = before.chunks(32).zip(after.chunks(32));
        pairs.filter(|(before, after)| before != after).count()
    };
    let mut device = our_device(areas, shape.features());
    let before: Vec<_> = snapshot().collect();
    ours.add();
    let added: Vec<_> = snapshot().collect();
    while let Some(chain) = device.pop().expect("sound chains") {
        device.complete(chain, 1);
    }
    let _ = device.publish();
    let used: Vec<_> = snapshot().collect();
    ours.reap();
    (changed(&before, &added), changed(&added, &used))
}
