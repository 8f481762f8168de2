//! The two protocols on which the ends race, under a model checker: publish and notify against
//! enable notifications and check again, in both directions, by flags and by event index.
//!
//! Loom tries every interleaving and every reordering that the memory model allows. The model fails
//! if an end would sleep for ever although there is work. Run by
//! `RUSTFLAGS='--cfg loom' cargo test -p splitring-virtio --test loom --release --target-dir
//! target/loom`;
//! tier: plain. Empty without `--cfg loom`.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering, fence};
use loom::thread;
use splitring_virtio::ring::{self, Word, Words};

/// The words that one end writes.
#[derive(Default)]
struct Ring([AtomicU16; 3]);

impl Ring {
    fn word(&self, word: Word) -> &AtomicU16 {
        match word {
            Word::Flags => &self.0[0],
            Word::Idx => &self.0[1],
            Word::Event => &self.0[2],
        }
    }
}

/// One end: the words it writes and those it reads.
#[derive(Clone, Copy)]
struct End<'a> {
    own: &'a Ring,
    theirs: &'a Ring,
}

impl Words for End<'_> {
    fn load(&self, theirs: Word, order: Ordering) -> u16 {
        self.theirs.word(theirs).load(order)
    }
    fn store(&self, own: Word, value: u16, order: Ordering) {
        self.own.word(own).store(value, order);
    }
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// A queue whose entries are numbers, and the eventfd that wakes the reader.
struct Shared {
    avail: Ring,
    used: Ring,
    entries: [AtomicU32; 2],
    kicked: AtomicBool,
}

impl Shared {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            avail: Ring::default(),
            used: Ring::default(),
            entries: [AtomicU32::new(0), AtomicU32::new(0)],
            kicked: AtomicBool::new(false),
        })
    }

    fn driver(&self) -> End<'_> {
        let (own, theirs) = (&self.avail, &self.used);
        End { own, theirs }
    }

    fn device(&self) -> End<'_> {
        let (own, theirs) = (&self.used, &self.avail);
        End { own, theirs }
    }

    /// Writes the entries `from..to`.
    fn fill(&self, from: u16, to: u16) {
        for n in from..to {
            self.entries[usize::from(n)].store(u32::from(n) + 1, Ordering::Relaxed);
        }
    }

    /// Reads the entries `from..to` and checks them.
    fn check(&self, from: u16, to: u16) {
        for n in from..to {
            let entry = self.entries[usize::from(n)].load(Ordering::Relaxed);
            assert_eq!(
                entry,
                u32::from(n) + 1,
                "an index was visible before its entry"
            );
        }
    }
}

/// Which end writes, and which reads.
#[derive(Clone, Copy)]
enum Direction {
    ToDevice,
    ToDriver,
}

impl Direction {
    fn writer(self, shared: &Shared) -> End<'_> {
        match self {
            Self::ToDevice => shared.driver(),
            Self::ToDriver => shared.device(),
        }
    }

    fn reader(self, shared: &Shared) -> End<'_> {
        match self {
            Self::ToDevice => shared.device(),
            Self::ToDriver => shared.driver(),
        }
    }
}
use Direction::{ToDevice, ToDriver};

/// The protocol under test, or one from which something is omitted.
#[derive(Clone, Copy)]
struct Protocol {
    event_idx: bool,
    publish: fn(End<'_>, bool, u16, u16) -> bool,
    enable_notifications: fn(End<'_>, bool, u16) -> bool,
}

const OURS: Protocol = Protocol {
    event_idx: true,
    publish: |end, event_idx, old, new| ring::publish(&end, event_idx, old, new),
    enable_notifications: |end, event_idx, next| ring::enable_notifications(&end, event_idx, next),
};

/// The writer publishes two entries, in the given batches; the reader takes the entries that it
/// sees, enables notifications and goes to sleep. In the end either all entries have been taken or
/// a wake-up is pending.
fn race(direction: Direction, batches: &'static [(u16, u16)], protocol: Protocol) {
    let Protocol {
        event_idx,
        publish,
        enable_notifications,
    } = protocol;
    loom::model(move || {
        let shared = Shared::new();
        let reader = direction.reader(&shared);
        // The reader is asleep at the start, with a notification requested for the first entry.
        assert!(!ring::enable_notifications(&reader, event_idx, 0));
        let writer = {
            let shared = shared.clone();
            thread::spawn(move || {
                for &(from, to) in batches {
                    shared.fill(from, to);
                    if publish(direction.writer(&shared), event_idx, from, to) {
                        shared.kicked.store(true, Ordering::Release);
                    }
                }
            })
        };
        // A pass that was started by an early notification, or by none.
        let mut next = 0;
        shared.kicked.swap(false, Ordering::AcqRel);
        ring::disable_notifications(&reader, event_idx);
        loop {
            let idx = ring::peer_idx(&reader);
            shared.check(next, idx);
            next = idx;
            if !enable_notifications(reader, event_idx, next) {
                break;
            }
            ring::disable_notifications(&reader, event_idx);
        }
        writer.join().unwrap();
        let last = batches.last().unwrap().1;
        let awake = shared.kicked.load(Ordering::Acquire);
        assert!(next == last || awake, "asleep at {next} of {last}");
    });
}

/// Two entries together, and one after the other.
fn lossless(direction: Direction, event_idx: bool) {
    let protocol = Protocol { event_idx, ..OURS };
    race(direction, &[(0, 1)], protocol);
    race(direction, &[(0, 2)], protocol);
    race(direction, &[(0, 1), (1, 2)], protocol);
}

#[test]
fn no_notification_is_lost_by_flags() {
    lossless(ToDevice, false);
}

#[test]
fn no_notification_is_lost_by_event_index() {
    lossless(ToDevice, true);
}

#[test]
fn no_interrupt_is_lost_by_flags() {
    lossless(ToDriver, false);
}

#[test]
fn no_interrupt_is_lost_by_event_index() {
    lossless(ToDriver, true);
}

#[test]
fn no_interrupt_is_lost_when_a_part_of_the_batch_is_shown_early() {
    for event_idx in [false, true] {
        let protocol = Protocol {
            event_idx,
            publish: |end, event_idx, old, new| {
                ring::publish_idx(&end, old + 1);
                ring::publish(&end, event_idx, old, new)
            },
            ..OURS
        };
        race(ToDriver, &[(0, 2)], protocol);
    }
}

/// The model can fail: without the fence before the second check a wake-up is lost, in either
/// direction.
const LISTENS_WITHOUT_FENCE: Protocol = Protocol {
    enable_notifications: |end, _, next| {
        end.store(Word::Event, next, Ordering::Relaxed);
        ring::peer_idx(&end) != next
    },
    ..OURS
};

#[test]
#[should_panic(expected = "asleep")]
fn without_the_fence_a_notification_is_lost() {
    race(ToDevice, &[(0, 1)], LISTENS_WITHOUT_FENCE);
}

#[test]
#[should_panic(expected = "asleep")]
fn without_the_fence_an_interrupt_is_lost() {
    race(ToDriver, &[(0, 1)], LISTENS_WITHOUT_FENCE);
}

/// The publisher's fence is needed, too.
#[test]
#[should_panic(expected = "asleep")]
fn without_the_publisher_s_fence_an_interrupt_is_lost() {
    let protocol = Protocol {
        publish: |end, _, old, new| {
            ring::publish_idx(&end, new);
            ring::need_event(end.load(Word::Event, Ordering::Relaxed), new, old)
        },
        ..OURS
    };
    race(ToDriver, &[(0, 1)], protocol);
}

/// An index that is stored without release becomes visible before its entries.
#[test]
#[should_panic(expected = "before its entry")]
fn without_release_an_index_overtakes_its_entries() {
    loom::model(|| {
        let shared = Shared::new();
        let writer = shared.clone();
        thread::spawn(move || {
            writer.fill(0, 1);
            let driver = writer.driver();
            driver.store(Word::Idx, 1, Ordering::Relaxed);
        });
        shared.check(0, ring::peer_idx(&shared.device()));
    });
}
