//! The two protocols the ends race on, under a model checker: publish and notify against re-arm and
//! look again, in both directions, by flags and by event index.
//!
//! Every interleaving and every reordering the memory model allows is tried; an end that would sleep
//! for ever over work that is there fails the model. Run by
//! `RUSTFLAGS='--cfg loom' cargo test -p splitring-virtio --test loom --release --target-dir target/loom`;
//! tier: plain. Without `--cfg loom` there is nothing in it.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering, fence};
use loom::thread;
use splitring_virtio::ring::{self, DeviceCells, DriverCells};

/// The words of a ring, and one word for all that lies behind an entry.
#[derive(Default)]
struct Words {
    avail_idx: AtomicU16,
    avail_flags: AtomicU16,
    used_event: AtomicU16,
    used_idx: AtomicU16,
    used_flags: AtomicU16,
    avail_event: AtomicU16,
}

struct Device<'a>(&'a Words);
struct Driver<'a>(&'a Words);

impl DeviceCells for Device<'_> {
    fn avail_idx(&self) -> u16 {
        self.0.avail_idx.load(Ordering::Acquire)
    }
    fn avail_flags(&self) -> u16 {
        self.0.avail_flags.load(Ordering::Relaxed)
    }
    fn used_event(&self) -> u16 {
        self.0.used_event.load(Ordering::Relaxed)
    }
    fn set_used_idx(&self, value: u16) {
        self.0.used_idx.store(value, Ordering::Release);
    }
    fn set_used_flags(&self, value: u16) {
        self.0.used_flags.store(value, Ordering::Relaxed);
    }
    fn set_avail_event(&self, value: u16) {
        self.0.avail_event.store(value, Ordering::Relaxed);
    }
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

impl DriverCells for Driver<'_> {
    fn used_idx(&self) -> u16 {
        self.0.used_idx.load(Ordering::Acquire)
    }
    fn used_flags(&self) -> u16 {
        self.0.used_flags.load(Ordering::Relaxed)
    }
    fn avail_event(&self) -> u16 {
        self.0.avail_event.load(Ordering::Relaxed)
    }
    fn set_avail_idx(&self, value: u16) {
        self.0.avail_idx.store(value, Ordering::Release);
    }
    fn set_avail_flags(&self, value: u16) {
        self.0.avail_flags.store(value, Ordering::Relaxed);
    }
    fn set_used_event(&self, value: u16) {
        self.0.used_event.store(value, Ordering::Relaxed);
    }
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// A ring whose entries carry a number, and the eventfd that wakes the reader.
struct Shared {
    words: Words,
    entries: [AtomicU32; 2],
    kicked: AtomicBool,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            words: Words::default(),
            entries: [AtomicU32::new(0), AtomicU32::new(0)],
            kicked: AtomicBool::new(false),
        })
    }

    /// Writes the entries `from..to`.
    fn fill(&self, from: u16, to: u16) {
        for n in from..to {
            self.entries[usize::from(n)].store(u32::from(n) + 1, Ordering::Relaxed);
        }
    }

    /// Reads the entries `from..to` and finds what belongs there.
    fn check(&self, from: u16, to: u16) {
        for n in from..to {
            let entry = self.entries[usize::from(n)].load(Ordering::Relaxed);
            assert_eq!(
                entry,
                u32::from(n) + 1,
                "an index was seen before its entry"
            );
        }
    }
}

/// The writer publishes two entries, in batches as told; the reader takes what it sees, re-arms and
/// goes to sleep. When both are done, either all has been taken or a wake-up is under way.
fn race(
    batches: &'static [(u16, u16)],
    publish: fn(&Words, u16, u16) -> bool,
    seen: fn(&Words) -> u16,
    disable: fn(&Words),
    enable: fn(&Words, u16) -> bool,
) {
    loom::model(move || {
        let shared = Shared::new();
        // The reader went to sleep before, armed for the first entry.
        assert!(!enable(&shared.words, 0));
        let writer = {
            let shared = shared.clone();
            thread::spawn(move || {
                for &(from, to) in batches {
                    shared.fill(from, to);
                    if publish(&shared.words, from, to) {
                        shared.kicked.store(true, Ordering::Release);
                    }
                }
            })
        };
        // A pass that was begun by a kick that came early, or by none.
        let mut next = 0;
        shared.kicked.swap(false, Ordering::AcqRel);
        disable(&shared.words);
        loop {
            let idx = seen(&shared.words);
            shared.check(next, idx);
            next = idx;
            if !enable(&shared.words, next) {
                break;
            }
            disable(&shared.words);
        }
        writer.join().unwrap();
        let last = batches.last().unwrap().1;
        let awake = shared.kicked.load(Ordering::Acquire);
        assert!(next == last || awake, "asleep at {next} of {last}");
    });
}

const BATCHES: [&[(u16, u16)]; 3] = [&[(0, 1)], &[(0, 2)], &[(0, 1), (1, 2)]];

fn driver_to_device<const EVENT_IDX: bool>() {
    for batches in BATCHES {
        race(
            batches,
            |words, old, new| ring::publish_avail(&Driver(words), EVENT_IDX, old, new),
            |words| Device(words).avail_idx(),
            |words| ring::disable_notification(&Device(words), EVENT_IDX),
            |words, next| ring::enable_notification(&Device(words), EVENT_IDX, next),
        );
    }
}

fn device_to_driver<const EVENT_IDX: bool>() {
    for batches in BATCHES {
        race(
            batches,
            |words, old, new| ring::publish_used(&Device(words), EVENT_IDX, old, new),
            |words| Driver(words).used_idx(),
            |words| ring::disable_interrupt(&Driver(words), EVENT_IDX),
            |words, next| ring::enable_interrupt(&Driver(words), EVENT_IDX, next),
        );
    }
}

/// A batch whose first entry the device shows before it decides about the interrupt.
fn shown_early<const EVENT_IDX: bool>() {
    race(
        &[(0, 2)],
        |words, old, new| {
            Device(words).set_used_idx(old + 1);
            ring::publish_used(&Device(words), EVENT_IDX, old, new)
        },
        |words| Driver(words).used_idx(),
        |words| ring::disable_interrupt(&Driver(words), EVENT_IDX),
        |words, next| ring::enable_interrupt(&Driver(words), EVENT_IDX, next),
    );
}

#[test]
fn no_interrupt_is_lost_when_a_part_of_the_batch_is_shown_early() {
    shown_early::<false>();
    shown_early::<true>();
}

#[test]
fn no_notification_is_lost_by_flags() {
    driver_to_device::<false>();
}

#[test]
fn no_notification_is_lost_by_event_index() {
    driver_to_device::<true>();
}

#[test]
fn no_interrupt_is_lost_by_flags() {
    device_to_driver::<false>();
}

#[test]
fn no_interrupt_is_lost_by_event_index() {
    device_to_driver::<true>();
}

/// The model can fail. Without the fence before the second look a wake-up is lost, in either direction.
#[test]
#[should_panic(expected = "asleep")]
fn without_the_fence_a_notification_is_lost() {
    race(
        &[(0, 1)],
        |words, old, new| ring::publish_avail(&Driver(words), true, old, new),
        |words| Device(words).avail_idx(),
        |words| ring::disable_notification(&Device(words), true),
        |words, next| {
            Device(words).set_avail_event(next);
            Device(words).avail_idx() != next
        },
    );
}

#[test]
#[should_panic(expected = "asleep")]
fn without_the_fence_an_interrupt_is_lost() {
    race(
        &[(0, 1)],
        |words, old, new| ring::publish_used(&Device(words), true, old, new),
        |words| Driver(words).used_idx(),
        |words| ring::disable_interrupt(&Driver(words), true),
        |words, next| {
            Driver(words).set_used_event(next);
            Driver(words).used_idx() != next
        },
    );
}

/// Nor can whoever publishes do without its own.
#[test]
#[should_panic(expected = "asleep")]
fn without_the_publisher_s_fence_an_interrupt_is_lost() {
    race(
        &[(0, 1)],
        |words, old, new| {
            Device(words).set_used_idx(new);
            ring::need_event(Device(words).used_event(), new, old)
        },
        |words| Driver(words).used_idx(),
        |words| ring::disable_interrupt(&Driver(words), true),
        |words, next| ring::enable_interrupt(&Driver(words), true, next),
    );
}

/// An index that is stored without release overtakes what it stands for.
#[test]
#[should_panic(expected = "before its entry")]
fn without_release_an_index_overtakes_its_entries() {
    loom::model(|| {
        let shared = Shared::new();
        let writer = shared.clone();
        thread::spawn(move || {
            writer.fill(0, 1);
            writer.words.avail_idx.store(1, Ordering::Relaxed);
        });
        shared.check(0, Device(&shared.words).avail_idx());
    });
}
