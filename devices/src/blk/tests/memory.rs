//! Guest memory that changes under a running disk: its dirty log, memory that is added, and a translation in front.

use std::sync::atomic::AtomicBool;

use splitring_virtio::device::queue::RingFeatures;
use splitring_virtio::mem::Access;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::dirty::Dirty;
use crate::disk::RawDisk;
use crate::disk::config::{Aio, DiskConfig};
use crate::ram::tests::region;
use crate::ram::{Ram, Translation};
use crate::testing::pci::{Guest as Machine, wait_until};
use crate::testing::{GuestRing, memory};

const PAGE: u64 = 4096;
/// The same as lengths in memory and in descriptors.
const BYTES: usize = 4096;
const LEN: u32 = 4096;
/// Of the header, the status and the data, each in a page of its own.
const HEADER: u64 = 0x1_0000;
const STATUS: u64 = 0x2_0000;
const DATA: u64 = 0x3_0000;
/// Where memory is added.
const ADDED: u64 = 0x1_0000_0000;

/// A machine with a file of two different pages for a disk.
fn machine(aio: Aio, direct: bool) -> (Machine, tempfile::NamedTempFile) {
    // Not in memory, where O_DIRECT and io_uring do nothing else.
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    let contents = [[0x11; BYTES], [0x22; BYTES]].concat();
    std::fs::write(file.path(), contents).unwrap();
    let config = DiskConfig {
        aio,
        direct,
        ..DiskConfig::new(file.path())
    };
    let disk = Arc::new(RawDisk::open(&config, 1, 16).unwrap());
    let device = Blk::new("disk0", disk, 1, 16, "");
    (Machine::started(Arc::new(device)), file)
}

/// Offers a request for one page of the disk and kicks.
fn request(machine: &mut Machine, kind: u32, page: u64, data: u64) {
    let header = RequestHeader {
        kind: kind.into(),
        reserved: 0.into(),
        sector: (page * 8).into(),
    };
    machine.poke(HEADER, header.as_bytes());
    machine.poke(STATUS, &[UNTOUCHED]);
    let writable = kind == request::IN;
    let chain = [
        (HEADER, 16, false),
        (data, LEN, writable),
        (STATUS, 1, true),
    ];
    machine.offer(0, &chain);
}

fn dirty(ram: &Ram) -> Vec<u64> {
    let all = ram.take_dirty();
    all.iter().flat_map(Dirty::addresses).collect()
}

#[test]
fn what_a_read_of_a_disk_writes_is_in_the_dirty_log_and_nothing_else() {
    for aio in [Aio::Auto, Aio::Threads] {
        let (mut machine, _file) = machine(aio, false);
        for round in 0..3_u64 {
            request(&mut machine, request::IN, 1, DATA);
            // What the test wrote is not of interest.
            machine.ram.log_dirty(true).unwrap();
            machine.worker.sync().unwrap();
            machine.kick(0);
            let used = machine.rings[0].used_ring();
            wait_until("it is answered", || {
                machine.peek(used + 2, 2) == (round + 1).to_le_bytes()[..2]
            });
            machine.worker.sync().unwrap();
            assert_eq!(dirty(&machine.ram), [STATUS, DATA, used], "round {round}");
            assert_eq!(machine.peek(DATA, 1), [0x22]);
            machine.ram.log_dirty(false).unwrap();
            assert_eq!(machine.wait_used(0, 1).len(), 1);
        }
    }
}

#[test]
fn a_disk_reads_into_and_writes_from_memory_that_was_added_while_it_ran() {
    for (aio, direct) in [
        (Aio::Auto, false),
        (Aio::IoUring, true),
        (Aio::Threads, true),
        (Aio::Threads, false),
    ] {
        let (mut machine, _file) = machine(aio, direct);
        request(&mut machine, request::IN, 0, ADDED);
        machine.kick(0);
        machine.wait_for_status(splitring_virtio::spec::status::NEEDS_RESET);
        machine.restart();
        machine.ram.grow(region(ADDED, 0x20_0000)).unwrap();
        for (kind, page, expected) in [
            (request::IN, 1, 0x22),
            (request::OUT, 0, 0x22),
            (request::IN, 0, 0x22),
        ] {
            request(&mut machine, kind, page, ADDED + 0x10_0000);
            machine.kick(0);
            machine.wait_used(0, 1);
            assert_eq!(machine.peek(STATUS, 1), [status::OK], "{aio:?} {direct}");
            let data = machine.peek(ADDED + 0x10_0000, BYTES);
            assert!(data.iter().all(|byte| *byte == expected), "{aio:?}");
        }
    }
}

/// Everything is where it is, but for one page that moves.
#[derive(Default)]
struct Moving(AtomicBool);

impl Translation for Moving {
    fn translate(&self, address: u64, _: Access) -> Option<(u64, u64)> {
        let offset = address % PAGE;
        let moved = address - offset == DATA && self.0.load(Ordering::SeqCst);
        let at = if moved { address + PAGE } else { address };
        Some((at, PAGE - offset))
    }
}

#[test]
fn an_address_is_looked_up_anew_for_each_request_where_a_translation_may_change() {
    let ram = memory();
    let moving = Arc::new(Moving::default());
    let translated = ram.translated(Arc::<Moving>::clone(&moving));
    let mut ring = GuestRing::new(&ram, 0, 16);
    let queue = ring.config().activate(translated, RingFeatures::default());
    let mut queue = queue.unwrap();
    let mut fill = |byte: u8| {
        // It crosses a page, so the pieces need not lie side by side.
        ring.offer(&[(DATA + 0x800, LEN, true)]);
        let mut chain = queue.pop().unwrap().unwrap();
        assert_eq!(chain.writable().len(), 2);
        let bytes = vec![byte; BYTES];
        chain.writer().write_all(&bytes).unwrap();
        queue.complete(chain, LEN);
        let _ = queue.publish();
    };
    fill(1);
    moving.0.store(true, Ordering::SeqCst);
    fill(2);
    let byte = |at| -> u8 { ram.mapping().read_obj(GuestAddress(at)).unwrap() };
    assert_eq!(
        byte(DATA + 0x800),
        1,
        "the page that moved keeps what it had"
    );
    assert_eq!(
        byte(DATA + PAGE + 0x7ff),
        2,
        "the second half of the second request"
    );
    assert_eq!(byte(DATA + PAGE + 0x800), 2, "and its first half");
    moving.0.store(false, Ordering::SeqCst);
    fill(3);
    assert_eq!(byte(DATA + 0x800), 3);
}
