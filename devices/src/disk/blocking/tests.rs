//! What becomes of a blocking thread that panics, and of those who wait for it.

use rustix::event::{PollFd, PollFlags, poll};
use splitring_virtio::spec::blk::request;

use super::*;
use crate::blk::Blk;
use crate::disk::doubles::MemoryDisk;
use crate::disk::immediate::Perform;
use crate::disk::{
    Completion, Data, Disk, DiskError, DiskOp, DiskQueue, Geometry, IoFault, NullDisk,
};
use crate::ram::Ram;
use crate::testing::pci::{Guest, wait_until};
use crate::worker::Failure;

/// Panics at a flush, as an image driver with a bug would at some request.
struct Buggy;

impl Perform for Buggy {
    fn perform(&mut self, op: DiskOp<'_>) -> Result<u64, IoFault> {
        assert!(!matches!(op, DiskOp::Flush), "a bug in the image driver");
        Ok(0)
    }

    fn release(&mut self) -> Option<Vec<u8>> {
        None
    }
}

impl Disk for Buggy {
    fn geometry(&self) -> Geometry {
        NullDisk::new(MemoryDisk::new(1 << 20).geometry()).geometry()
    }

    fn open_queue(&self, _: Ram, _: u16, depth: u16) -> Result<Box<dyn DiskQueue>, DiskError> {
        Ok(Box::new(
            BlockingQueue::start(Buggy, depth).expect("a thread"),
        ))
    }
}

#[test]
fn a_panic_ends_the_machine_with_its_message() {
    const HEADER: u64 = 0x1000;
    const STATUS: u64 = 0x1800;
    let blk = Blk::new("disk0", Arc::new(Buggy), 1, 16, "");
    let mut guest = Guest::started(Arc::new(blk));
    guest.poke(HEADER, &u64::from(request::FLUSH).to_le_bytes());
    guest.offer(0, &[(HEADER, 16, false), (STATUS, 1, true)]);
    guest.kick(0);
    wait_until("the worker fails", || {
        !guest.failures.lock().unwrap().is_empty()
    });
    let failures = guest.failures.lock().unwrap().clone();
    assert!(
        matches!(&failures[..], [Failure::Panic { message, .. }] if message.contains("a bug in the image driver")),
        "{failures:?}"
    );
}

#[test]
fn what_a_thread_that_panicked_had_fails_and_the_panic_goes_on_once() {
    let mut queue = BlockingQueue::start(Buggy, 4).expect("a thread");
    queue.submit(1, DiskOp::Flush).expect("room");
    let data = Data::Host(vec![7]);
    let read = DiskOp::Read { offset: 0, data };
    queue.submit(2, read).expect("room");
    let mut done = Vec::new();
    // The panic, rather than an end before it began.
    let events = queue.events();
    poll(
        &mut [PollFd::from_borrowed_fd(events[0], PollFlags::IN)],
        None,
    )
    .expect("poll");
    let drained = catch_unwind(AssertUnwindSafe(|| queue.drain(&mut done)));
    assert!(drained.is_err(), "it goes on with the panic");
    let fate = |done: &Completion| (done.tag, done.result);
    let stuck = Err(IoFault::Stuck);
    assert_eq!(
        done.iter().map(fate).collect::<Vec<_>>(),
        [(1, stuck), (2, stuck)]
    );
    // Whoever caught it and goes on gets an answer to whatever he asks.
    let data = Data::Host(vec![8]);
    let read = DiskOp::Read { offset: 0, data };
    queue.submit(3, read).expect("room");
    let mut done = Vec::new();
    queue.completions(&mut done);
    assert_eq!(
        (fate(&done[0]), &done[0].buffer),
        ((3, stuck), &Some(vec![8]))
    );
    assert_eq!(queue.in_flight(), 0);
}
