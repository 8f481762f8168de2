//! Whose ring it is, and what becomes of requests that it can't take.

use std::thread;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use super::setup::Ring;
use super::*;
use crate::disk::config::DiskConfig;
use crate::disk::image::Image;
use crate::disk::testing::{FSYNC, FuseFile, WRITE};
use crate::disk::{Completion, Data};
use crate::pool::Pool;
use crate::testing::memory;

const LEN: u64 = 1 << 20;
const DEPTH: u16 = 4;

/// An image and its rings, as a disk has them.
struct Host {
    image: Arc<Handle>,
    rings: Arc<Pool<Ring>>,
}

impl Host {
    /// Around the page cache where that can be had, so that nothing is served without the ring.
    fn new() -> Self {
        Self::direct(true)
    }

    fn direct(wanted: bool) -> Self {
        let file = NamedTempFile::new().expect("file");
        file.as_file().set_len(LEN).expect("size");
        let direct = |direct| DiskConfig {
            direct,
            ..DiskConfig::new(file.path())
        };
        let image = Image::open(&direct(wanted)).or_else(|_| Image::open(&direct(false)));
        Self::of(image.expect("image"))
    }

    fn of(image: Image) -> Self {
        let image = Handle::first(Arc::new(image));
        let rings = Pool::new([Ring::new(&image, DEPTH).expect("io_uring")]);
        Self { image, rings }
    }

    fn queue(&self) -> RingQueue {
        let ring = Unbound::new(self.rings.take(0).expect("free"));
        let images = vec![Some(Arc::clone(&self.image))];
        RingQueue::new(ring, images, memory(), DEPTH).expect("a ring")
    }
}

fn finish(queue: &mut RingQueue, count: usize) -> Vec<Completion> {
    let end = Instant::now() + Duration::from_secs(20);
    let mut done = Vec::new();
    queue.commit();
    queue.completions(&mut done);
    while done.len() < count {
        assert!(Instant::now() < end, "no completion");
        thread::sleep(Duration::from_millis(1));
        queue.completions(&mut done);
    }
    done
}

/// Writes, reads and flushes, all of which has to be carried out.
fn work(queue: &mut RingQueue, seed: u8) {
    let (offset, fua) = (4096, true);
    let write = DiskOp::Write {
        offset,
        data: Data::Host(vec![seed; 8192]),
        fua,
    };
    queue.submit(1, write).expect("room");
    assert_eq!(finish(queue, 1)[0].result, Ok(8192));
    let zero = DiskOp::WriteZeroes {
        offset,
        len: 4096,
        may_unmap: false,
        fua,
    };
    queue.submit(2, zero).expect("room");
    assert_eq!(finish(queue, 1)[0].result, Ok(0));
    let data = Data::Host(vec![0xee; 8192]);
    queue
        .submit(3, DiskOp::Read { offset, data })
        .expect("room");
    let read = finish(queue, 1).remove(0);
    assert_eq!(read.buffer, Some([[0; 4096], [seed; 4096]].concat()));
    queue.submit(4, DiskOp::Flush).expect("room");
    assert_eq!(finish(queue, 1)[0].result, Ok(0));
}

fn bound(queue: &RingQueue) -> bool {
    matches!(queue.ring, Hold::Bound(_))
}

#[test]
fn a_queue_dropped_unused_on_another_thread_leaves_its_ring_to_the_one_that_uses_it() {
    let host = Host::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            drop(host.queue());
            // A reset right after the start.
            host.queue().drain(&mut Vec::new());
        });
    });
    for seed in 1..3 {
        let mut queue = host.queue();
        work(&mut queue, seed);
        assert!(bound(&queue));
    }
}

#[test]
fn a_ring_given_back_works_again_on_its_thread_wherever_its_queue_was_dropped() {
    let host = Host::new();
    for seed in 1..4 {
        let mut queue = host.queue();
        work(&mut queue, seed);
        assert!(bound(&queue), "generation {seed}");
        // As a worker gives its tasks back: stopped here, dropped elsewhere.
        queue.drain(&mut Vec::new());
        thread::scope(|scope| {
            scope.spawn(move || drop(queue));
        });
    }
}

#[test]
fn a_ring_of_another_thread_is_left_alone_and_its_requests_are_carried_out_without_it() {
    let host = Host::new();
    work(&mut host.queue(), 1);
    let single_issuer = {
        let ring = host.rings.take(0).expect("free");
        ring.get().expect("a ring").single_issuer
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut queue = host.queue();
            work(&mut queue, 2);
            assert_eq!(bound(&queue), !single_issuer);
        });
    });
    let mut queue = host.queue();
    work(&mut queue, 3);
    assert!(bound(&queue), "nobody spoilt it");
}

#[test]
fn a_ring_that_fails_hands_its_requests_to_a_thread_and_is_not_given_back() {
    let host = Host::new();
    let mut queue = host.queue();
    for tag in 1..=2 {
        queue.submit(tag, DiskOp::Flush).expect("room");
    }
    queue.give_up(libc::EBADFD);
    let done = finish(&mut queue, 2);
    assert!(done.iter().all(|done| done.result == Ok(0)), "{done:?}");
    work(&mut queue, 1);
    drop(queue);
    let mut queue = host.queue();
    work(&mut queue, 2);
    assert!(!bound(&queue));
}

#[test]
fn without_its_ring_a_queue_makes_cached_data_stable_all_the_same() {
    let host = Host::direct(false);
    let mut queue = host.queue();
    let write = DiskOp::Write {
        offset: 0,
        data: Data::Host(vec![1; 512]),
        fua: true,
    };
    queue.submit(1, DiskOp::Flush).expect("room");
    queue.submit(2, write).expect("room");
    queue.give_up(libc::EBADFD);
    let done = finish(&mut queue, 2);
    assert!(done.iter().all(|done| done.result.is_ok()), "{done:?}");
    work(&mut queue, 1);
}

#[test]
fn a_sync_that_ends_well_before_one_that_was_told_of_a_loss_is_not_believed() {
    let host = Host::direct(false);
    let mut queue = host.queue();
    let write = DiskOp::Write {
        offset: 0,
        data: Data::Host(vec![1; 512]),
        fua: true,
    };
    queue.submit(1, DiskOp::Flush).expect("room");
    queue.submit(2, write).expect("room");
    queue.submit(3, DiskOp::Flush).expect("room");
    let slot = |queue: &RingQueue, tag| {
        let slot = queue.slots.iter().position(|slot| slot.tag == tag);
        u16::try_from(slot.expect("in flight")).expect("small")
    };
    // As the kernel answers them: the third was told, and comes last.
    for (tag, result) in [(1, 0), (2, 512), (3, -libc::EIO)] {
        assert!(queue.done.is_empty(), "{tag} is still awaited");
        let slot = slot(&queue, tag);
        queue.completed(slot, result);
    }
    let mut done = Vec::new();
    DiskQueue::completed(&mut queue, &mut done);
    done.sort_by_key(|completion| completion.tag);
    let results: Vec<_> = done.iter().map(|done| done.result).collect();
    let lost = Err(IoFault::FlushLost);
    assert_eq!(results, [lost, lost, Err(IoFault::Host(libc::EIO))]);
}

#[test]
fn a_drain_does_not_ask_again_for_what_the_host_gave_up() {
    let Some(mut file) = FuseFile::new() else {
        return;
    };
    let host = Host::of(Image::open(&DiskConfig::new(file.path())).expect("image"));
    let mut queue = host.queue();
    file.hang(FSYNC);
    queue.submit(1, DiskOp::Flush).expect("room");
    queue.commit();
    while file.hung() == 0 {
        thread::yield_now();
    }
    let mut done = Vec::new();
    queue.drain(&mut done);
    assert_eq!(done[0].result, Err(IoFault::Cancelled));
    assert_eq!(file.hung(), 1);
    drop(queue);
    file.recover();
    let mut queue = host.queue();
    queue.submit(2, DiskOp::Flush).expect("room");
    assert_eq!(finish(&mut queue, 1)[0].result, Ok(0));
    assert!(bound(&queue), "the ring came back");
}

#[test]
fn a_panic_on_the_blocking_thread_fails_what_it_had_and_leaves_the_ring_alone() {
    let host = Host::new();
    let mut queue = host.queue();
    let started = BlockingThread::start(Arc::clone(&queue.event), |_: Job, _| -> Finished {
        panic!("a bug")
    });
    queue.blocking = Some(started.expect("a thread"));
    // Part of a sector, which O_DIRECT would refuse.
    let write = DiskOp::Write {
        offset: 0,
        data: Data::Host(vec![1; 100]),
        fua: false,
    };
    if !queue.images[0].as_ref().expect("seated").direct {
        splitring_needs::lack("no O_DIRECT for temporary files");
        return;
    }
    queue.submit(1, write).expect("room");
    queue.commit();
    let mut done = Vec::new();
    let end = Instant::now() + Duration::from_secs(20);
    let panicked = loop {
        assert!(Instant::now() < end, "nobody hears of it");
        let look = || queue.completions(&mut done);
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(look));
        if looked.is_err() {
            break looked;
        }
    };
    assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"a bug"));
    assert_eq!(done[0].result, Err(IoFault::Stuck));
    assert_eq!(queue.in_flight(), 0);
    drop(queue);
    work(&mut host.queue(), 1);
}

#[test]
fn a_buffered_write_that_the_host_holds_up_holds_up_no_event_loop() {
    // Like ext4, it takes no writes that must not wait.
    let Some(mut file) = FuseFile::new() else {
        return;
    };
    let host = Host::of(Image::open(&DiskConfig::new(file.path())).expect("image"));
    file.hang(WRITE);
    let (told, submitted) = std::sync::mpsc::channel();
    let worker = thread::spawn(move || {
        let mut queue = host.queue();
        let write = DiskOp::Write {
            offset: 0,
            data: Data::Host(vec![1; 4096]),
            fua: false,
        };
        queue.submit(1, write).expect("room");
        queue.commit();
        let mut done = Vec::new();
        queue.completions(&mut done);
        told.send(done.len()).expect("the test listens");
        finish(&mut queue, 1).remove(0).result
    });
    let done = submitted.recv_timeout(Duration::from_secs(20));
    assert_eq!(done, Ok(0), "the event loop waits for the host");
    while file.hung() == 0 {
        thread::yield_now();
    }
    file.recover();
    assert_eq!(worker.join().expect("no panic"), Ok(4096));
}
