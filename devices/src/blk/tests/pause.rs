//! Pauses with requests in flight, in a machine with a worker.

use std::io::Write;
use std::time::Duration;

use super::*;
use crate::disk::config::{Aio, DiskConfig};
use crate::disk::doubles::GatedDisk;
use crate::disk::piped::piped;
use crate::disk::{LimitedDisk, RawDisk};
use crate::testing::pci::{Guest as Machine, PATIENCE, wait_until};
use crate::worker::PauseError;

const SOON: Duration = Duration::from_millis(50);
/// Bytes of memory that requests use, and the rings behind them.
const MEMORY: usize = 8 << 20;
/// Bytes between one request's memory and the next one's, and where it begins.
const SPAN: u64 = 0x2000;
const FIRST: u64 = 0x1_0000;

fn machine(disk: Arc<dyn Disk>, queues: u16) -> Machine {
    let device = Blk::new("disk0", disk, queues, 256, "");
    Machine::started(Arc::new(device))
}

fn at(place: u64) -> u64 {
    FIRST + place * SPAN
}

/// Offers a request of 4 KiB, whose memory is in this place; a write of its data, filled with `fill`, or a read.
pub(super) fn offer(
    machine: &mut Machine,
    ring: usize,
    queue: u16,
    place: u64,
    sector: u64,
    fill: Option<u8>,
) {
    let header = RequestHeader {
        kind: fill.map_or(request::IN, |_| request::OUT).into(),
        reserved: 0.into(),
        sector: sector.into(),
    };
    let (header_at, data_at, status_at) = (at(place), at(place) + 0x100, at(place) + 0x1100);
    machine.poke(header_at, header.as_bytes());
    machine.poke(data_at, &[fill.unwrap_or(0); 4096]);
    machine.poke(status_at, &[UNTOUCHED]);
    machine.offer(
        ring,
        &[
            (header_at, 16, false),
            (data_at, 4096, fill.is_none()),
            (status_at, 1, true),
        ],
    );
    machine.kick(queue);
}

pub(super) fn data(machine: &Machine, place: u64) -> Vec<u8> {
    machine.peek(at(place) + 0x100, 4096)
}

pub(super) fn status_of(machine: &Machine, place: u64) -> u8 {
    machine.peek(at(place) + 0x1100, 1)[0]
}

/// A pause with a read in flight that `answer` completes, and another one offered meanwhile, which `again` does.
fn waits_for_a_read(disk: Arc<dyn Disk>, answer: impl FnOnce(), again: impl FnOnce()) {
    let mut machine = machine(disk, 1);
    offer(&mut machine, 0, 0, 0, 8, None);
    let worker = Arc::clone(&machine.worker);
    // So far at least that it is with the backend.
    assert!(matches!(
        worker.pause(SOON),
        Err(PauseError::Timeout { .. })
    ));
    std::thread::scope(|scope| {
        let pausing = scope.spawn(|| worker.pause(PATIENCE));
        std::thread::sleep(SOON);
        assert!(!pausing.is_finished());
        assert_eq!(status_of(&machine, 0), UNTOUCHED);
        answer();
        pausing.join().unwrap().unwrap();
    });
    assert_eq!(data(&machine, 0), [7; 4096]);
    assert_eq!(status_of(&machine, 0), status::OK);
    assert_eq!(machine.rings[0].used().len(), 1);
    offer(&mut machine, 0, 0, 1, 8, None);
    let before = machine.peek(0, MEMORY);
    again();
    std::thread::sleep(SOON);
    assert!(
        machine.peek(0, MEMORY) == before,
        "nobody writes in a pause"
    );
    worker.resume().unwrap();
    machine.wait_used(0, 1);
    assert_eq!(data(&machine, 1), [7; 4096]);
}

#[test]
fn a_pause_waits_for_a_read_that_is_in_the_kernel() {
    let (disk, mut pipe) = piped(DISK_LEN, 1);
    let mut other = pipe.try_clone().unwrap();
    waits_for_a_read(
        Arc::new(disk),
        || pipe.write_all(&[7; 4096]).unwrap(),
        || other.write_all(&[7; 4096]).unwrap(),
    );
}

#[test]
fn a_pause_waits_for_a_blocking_call_on_another_thread() {
    let memory = MemoryDisk::new(DISK_LEN);
    let disk = Arc::new(GatedDisk::new(Arc::clone(&memory)));
    let mut machine = machine(Arc::<GatedDisk>::clone(&disk), 1);
    disk.pass(1);
    offer(&mut machine, 0, 0, 0, 8, Some(7));
    machine.wait_used(0, 1);
    drop(machine);
    let gated = Arc::<GatedDisk>::clone(&disk);
    waits_for_a_read(gated, || disk.pass(1), || disk.pass(1));
}

#[test]
fn a_request_that_hangs_in_the_host_fails_the_pause_and_the_machine_goes_on() {
    let memory: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_LEN));
    let disk = Arc::new(FaultyDisk::new(memory));
    disk.plan([Fate::Hang]);
    let mut machine = machine(Arc::<FaultyDisk>::clone(&disk), 1);
    offer(&mut machine, 0, 0, 0, 0, None);
    wait_until("the request hangs", || !disk.seen().is_empty());
    let error = machine.worker.pause(SOON).unwrap_err();
    assert!(
        error.to_string().contains("disk0 has 1 in flight"),
        "{error}"
    );
    offer(&mut machine, 0, 0, 1, 0, Some(3));
    machine.wait_used(0, 1);
    assert_eq!(status_of(&machine, 1), status::OK);
    // A reset gives the request up; nothing keeps a pause from being reached any more.
    machine.restart();
    machine.worker.pause(PATIENCE).unwrap();
}

/// Two requests a second: after the first, each has to wait for longer than this pause may take.
#[test]
fn a_pause_does_not_wait_for_a_rate_limit() {
    let memory: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_LEN));
    let disk = LimitedDisk::new(memory, Some(2), None);
    let mut machine = machine(Arc::new(disk), 1);
    for place in 0..3 {
        offer(&mut machine, 0, 0, place, place, Some(1));
    }
    machine.wait_used(0, 1);
    machine.worker.pause(SOON).unwrap();
    let before = machine.peek(0, MEMORY);
    std::thread::sleep(Duration::from_millis(600));
    assert!(machine.peek(0, MEMORY) == before, "its timer is not heard");
    machine.worker.resume().unwrap();
    machine.wait_used(0, 2);
}

/// Writes that the page cache alone does not answer, in an io_uring.
#[test]
fn a_thousand_pauses_under_load_lose_no_request() {
    const QUEUES: u16 = 2;
    const MOST: usize = 16;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(DISK_LEN).unwrap();
    let config = DiskConfig {
        aio: Aio::IoUring,
        ..DiskConfig::new(file.path())
    };
    let disk: Arc<dyn Disk> = Arc::new(RawDisk::open(&config, QUEUES, 256).unwrap());
    let device = Arc::new(Blk::new("disk0", disk, QUEUES, 256, ""));
    // Without flushes every write is to be stable when it is answered.
    let mask = !(feature::FLUSH | feature::CONFIG_WCE);
    let mut machine = Machine::with_mask(Arc::<Blk>::clone(&device), mask);
    machine.decode_memory();
    machine.restart();
    let mut pending = [0; QUEUES as usize];
    let mut offered = 0;
    for round in 0..1000_u16 {
        for (queue, pending) in (0..QUEUES).zip(&mut pending) {
            *pending -= machine.rings[usize::from(queue)].used().len();
            for _ in 0..4.min(MOST - *pending) {
                let place = u64::from(queue) * 64 + offered % 64;
                offer(
                    &mut machine,
                    queue.into(),
                    queue,
                    place,
                    place * 8,
                    Some(round.to_le_bytes()[0]),
                );
                *pending += 1;
                offered += 1;
            }
        }
        machine.worker.pause(PATIENCE).unwrap();
        if round % 50 == 0 {
            let before = machine.peek(0, MEMORY);
            std::thread::sleep(Duration::from_millis(1));
            assert!(machine.peek(0, MEMORY) == before, "in round {round}");
        }
        machine.worker.resume().unwrap();
    }
    for (ring, pending) in pending.into_iter().enumerate() {
        machine.wait_used(ring, pending);
    }
    let written = device.metrics().totals().write;
    assert_eq!((written.requests, written.errors), (offered, 0));
}
