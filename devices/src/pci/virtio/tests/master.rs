//! Bus mastering: a function that may not reach memory neither runs queues nor sends messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use splitring_virtio::spec::blk::{RequestHeader, request};
use splitring_virtio::spec::pci::common as reg;
use splitring_virtio::spec::status;
use zerocopy::IntoBytes;

use super::guest;
use crate::blk::Blk;
use crate::disk::doubles::{Fate, FaultyDisk, GatedDisk, MemoryDisk};
use crate::testing::pci::{Guest, PENDING, wait_until};
use crate::testing::probe::Manner;

const BUFFER: u64 = 0x1000;
const HEADER: u64 = 0x2000;
const STATUS: u64 = 0x3000;
/// Command register: memory decoding alone, and with bus mastering.
const DECODE: u16 = 2;
const MASTER: u16 = 6;

fn command(guest: &Guest, value: u16) {
    guest.config_write(4, &value.to_le_bytes());
}

/// Has the worker do all it has to do.
fn settle(guest: &Guest) {
    guest.worker.pause(Duration::from_secs(10)).unwrap();
    guest.worker.resume().unwrap();
    // Once more: resuming made every task look at everything.
    guest.worker.pause(Duration::from_secs(10)).unwrap();
    guest.worker.resume().unwrap();
}

fn use_vectors(guest: &Guest) {
    guest.set16(reg::QUEUE_SELECT, 0);
    guest.set16(reg::QUEUE_MSIX_VECTOR, 0);
    guest.set16(reg::CONFIG_MSIX_VECTOR, 3);
}

#[test]
fn a_device_that_is_started_without_bus_mastering_starts_when_that_is_on() {
    let (mut guest, probe) = guest(Manner::Answer);
    command(&guest, DECODE);
    guest.enable_msix();
    guest.restart();
    use_vectors(&guest);
    guest.offer(0, &[(BUFFER, 7, true)]);
    guest.kick(0);
    settle(&guest);
    assert_eq!(probe.record.starts.load(Ordering::SeqCst), 0);
    assert_eq!(guest.rings[0].used(), []);
    command(&guest, MASTER);
    assert_eq!(guest.wait_used(0, 1), [(0, 7)]);
    settle(&guest);
    assert_eq!(guest.wiring.messages().len(), 1);
    assert_eq!(probe.record.starts.load(Ordering::SeqCst), 1);
    // A reset that comes first leaves nothing to start.
    command(&guest, DECODE);
    guest.restart();
    guest.set_status(0);
    command(&guest, MASTER);
    assert_eq!(probe.record.starts.load(Ordering::SeqCst), 1);
}

#[test]
fn a_running_device_stands_still_without_bus_mastering_and_goes_on_with_it() {
    let (mut guest, probe) = guest(Manner::Answer);
    guest.enable_msix();
    guest.restart();
    use_vectors(&guest);
    command(&guest, DECODE);
    let runs = probe.record.runs.load(Ordering::SeqCst);
    guest.offer(0, &[(BUFFER, 7, true)]);
    guest.kick(0);
    probe.change_config(9);
    settle(&guest);
    assert_eq!(probe.record.runs.load(Ordering::SeqCst), runs);
    assert_eq!(guest.rings[0].used(), []);
    assert_eq!(guest.wiring.messages(), []);
    assert_eq!(guest.bar_read(PENDING), [0b1000]);
    command(&guest, MASTER);
    assert_eq!(guest.wait_used(0, 1), [(0, 7)]);
    settle(&guest);
    let mut sent: Vec<_> = guest.wiring.messages().iter().map(|m| m.data).collect();
    sent.sort_unstable();
    assert_eq!(sent, [0, 3]);
    assert_eq!(probe.record.starts.load(Ordering::SeqCst), 1, "no restart");
    assert_eq!(probe.record.stops.load(Ordering::SeqCst), 0);
}

/// A guest with a disk that has a read of its first sector in flight.
fn reading(disk: FaultyDisk) -> Guest {
    let disk = Arc::new(disk);
    let device = Blk::new("disk0", disk.clone(), 1, 16, "");
    let mut guest = Guest::started(Arc::new(device));
    let header = RequestHeader {
        kind: request::IN.into(),
        ..RequestHeader::default()
    };
    guest.poke(HEADER, header.as_bytes());
    guest.poke(BUFFER, &[0xee; 512]);
    let chain = [(HEADER, 16, false), (BUFFER, 512, true), (STATUS, 1, true)];
    guest.offer(0, &chain);
    guest.kick(0);
    wait_until("the disk has it", || !disk.seen().is_empty());
    guest
}

#[test]
fn turning_bus_mastering_off_waits_for_what_is_in_flight() {
    let disk = Arc::new(GatedDisk::new(MemoryDisk::new(1 << 20)));
    let mut guest = reading(FaultyDisk::new(disk.clone()));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            disk.pass(1);
        });
        command(&guest, DECODE);
    });
    // It was answered before the register write returned, and nothing comes afterwards.
    assert_eq!(guest.rings[0].used(), [(0, 513)]);
    assert_eq!(guest.peek(BUFFER, 512), [0; 512]);
    assert_eq!(guest.status() & status::NEEDS_RESET, 0);
}

#[test]
fn what_the_host_does_not_answer_is_cancelled_and_the_device_needs_a_reset() {
    let disk = FaultyDisk::new(Arc::new(MemoryDisk::new(1 << 20)));
    disk.plan([Fate::Hang]);
    let mut guest = reading(disk);
    command(&guest, DECODE);
    guest.wait_for_status(status::NEEDS_RESET);
    assert_eq!(guest.peek(BUFFER, 512), [0xee; 512]);
    command(&guest, MASTER);
    guest.restart();
    let chain = [(HEADER, 16, false), (BUFFER, 512, true), (STATUS, 1, true)];
    guest.offer(0, &chain);
    guest.kick(0);
    assert_eq!(guest.wait_used(0, 1), [(0, 513)]);
}
