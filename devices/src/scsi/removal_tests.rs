//! Disks that are removed while their commands, or those of other disks, are at work.

use super::*;
use crate::disk::doubles::{Fate, FaultyDisk};
use crate::testing::pci::Guest;

const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// Frames of commands that are not waited for, one each.
const FRAMES: u64 = 0x40_000;
const FRAME: u64 = 0x1000;

/// Offers a read of one block to the first unit, under its own frame, and runs the queue.
fn begin_read(bench: &mut Bench<Scsi>, frame: u64) {
    let at = FRAMES + frame * FRAME;
    bench.poke(at, &header(LUN, &READ, 32));
    let chain = [
        (at, HEADER, false),
        (at + 0x100, RESPONSE, true),
        (at + 0x200, 512, true),
    ];
    bench.rings[usize::from(REQUESTS)].offer(&chain);
    bench.kick(REQUESTS).unwrap();
}

/// Whether the queue has answered anything since the last look.
fn answered(bench: &mut Bench<Scsi>) -> usize {
    bench.rings[usize::from(REQUESTS)].used().len()
}

fn started(disk: Arc<dyn Disk>) -> (Bench<Scsi>, ScsiHandle) {
    let units = vec![(UnitConfig::new("a"), disk)];
    let device = Arc::new(Scsi::new(&ScsiConfig::new("scsi0"), units).unwrap());
    let handle = device.handle();
    let features = VERSION_1 | INDIRECT_DESC | feature::HOTPLUG;
    let mut bench = Bench::start(device, features, 64);
    settle(&mut bench);
    (bench, handle)
}

/// Takes the power-on condition of the first unit.
fn settle(bench: &mut Bench<Scsi>) {
    assert_eq!(send(bench, LUN, &[0; 6], &[], &[]).unwrap().status, 2);
}

#[test]
fn writes_to_a_disk_in_the_place_of_one_removed_late_do_not_reach_the_removed_one() {
    let (a, b) = (MemoryDisk::new(1 << 20), MemoryDisk::new(1 << 20));
    let (mut bench, handle) = started(Arc::new(Arc::clone(&a)));
    let seen = send(&mut bench, LUN, &READ, &[], &[(IN_AT, 512, true)]).unwrap();
    assert_eq!((seen.response, seen.status), (0, 0), "the disk is in use");
    // The queue's thread does not get to it in time.
    let removed = handle.remove("a");
    assert!(
        matches!(removed, Err(ScsiError::Busy { .. })),
        "{removed:?}"
    );
    handle
        .add(UnitConfig::new("b"), Arc::new(Arc::clone(&b)))
        .unwrap();
    settle(&mut bench);
    bench.poke(OUT_AT, &[0x5a; 512]);
    let seen = send(&mut bench, LUN, &WRITE, &[(OUT_AT, 512, false)], &[]).unwrap();
    assert_eq!((seen.response, seen.status), (0, 0));
    assert_eq!((a.contents()[0], b.contents()[0]), (0, 0x5a));
    assert_eq!(bench.stop(), 0);
}

#[test]
fn a_removed_disk_is_closed_when_its_last_command_ends_however_busy_its_successor_is() {
    let faulty = || Arc::new(FaultyDisk::new(Arc::new(MemoryDisk::new(1 << 20))));
    let (a, b) = (faulty(), faulty());
    a.plan([Fate::Delay(6)]);
    b.rule(|_| Fate::Hang);
    let open = Arc::downgrade(&a);
    let (mut bench, handle) = started(a);
    begin_read(&mut bench, 0);
    assert!(matches!(handle.remove("a"), Err(ScsiError::Busy { .. })));
    handle.add(UnitConfig::new("b"), b).unwrap();
    settle(&mut bench);
    // From now on a command of the new disk is at work all the time.
    begin_read(&mut bench, 1);
    assert!(open.upgrade().is_some(), "a command of it is at work");
    for _ in 0..20 {
        bench.run(REQUESTS, Cause::Resume).unwrap();
    }
    assert_eq!(answered(&mut bench), 1);
    assert!(open.upgrade().is_none(), "nobody has it open");
    assert_eq!(bench.stop(), 0);
}

#[test]
fn a_guest_that_breaks_a_ring_does_not_keep_its_disks() {
    let hanging = Arc::new(FaultyDisk::new(disk()));
    hanging.rule(|_| Fate::Hang);
    let open = Arc::downgrade(&hanging);
    let config = ScsiConfig {
        queues: 2,
        ..ScsiConfig::new("scsi0")
    };
    let units: Vec<(_, Arc<dyn Disk>)> = vec![(UnitConfig::new("a"), hanging)];
    let device = Arc::new(Scsi::new(&config, units).unwrap());
    let handle = device.handle();
    let mut guest = Guest::started(device);
    // The power-on condition, then a read that stays with the disk, on the first queue.
    guest.poke(REQUEST_AT, &header(LUN, &[0; 6], 32));
    let mut chain = vec![(REQUEST_AT, HEADER, false), (RESPONSE_AT, RESPONSE, true)];
    guest.offer(usize::from(REQUESTS), &chain);
    guest.kick(REQUESTS);
    guest.wait_used(usize::from(REQUESTS), 1);
    guest.poke(REQUEST_AT, &header(LUN, &READ, 32));
    chain.push((IN_AT, 512, true));
    guest.offer(usize::from(REQUESTS), &chain);
    guest.kick(REQUESTS);
    // A head that is not there, on the second.
    guest.rings[usize::from(REQUESTS) + 1].offer_head(u16::MAX);
    guest.kick(REQUESTS + 1);
    guest.wait_for_status(0x40);
    let removed = handle.remove("a");
    assert!(removed.is_ok(), "{removed:?}");
    assert!(open.upgrade().is_none());
    guest.restart();
}

/// Makes a whole ring of TEST UNIT READY to the first unit available.
fn fill(bench: &mut Bench<Scsi>, size: u16) {
    for _ in 0..size {
        let buffers = [(REQUEST_AT, HEADER, false), (RESPONSE_AT, RESPONSE, true)];
        bench.rings[usize::from(REQUESTS)].offer_table(FRAMES, &buffers);
    }
}

#[test]
fn a_ring_that_is_always_full_delays_a_removal_by_its_own_length_at_most() {
    const SIZE: u16 = 64;
    // As many chains as there are, or the ring in four parts, with a ring full at all times.
    for grant in [SIZE, SIZE / 4] {
        let (mut bench, handle) = started(disk());
        bench.poke(REQUEST_AT, &header(LUN, &[0; 6], 32));
        let remover = std::thread::spawn(move || handle.remove("a"));
        let handle = bench.device.handle();
        while !handle.units().is_empty() {
            std::thread::yield_now();
        }
        let mut offered = 0;
        let mut pass = |bench: &mut Bench<Scsi>, cause| {
            fill(bench, SIZE - offered);
            bench.grant(REQUESTS, grant);
            bench.run(REQUESTS, cause).unwrap();
            offered = SIZE - u16::try_from(answered(bench)).unwrap();
        };
        // The order may come a little after the unit has gone from the list.
        let mut passes = 0;
        while !remover.is_finished() && passes < 100_000 {
            pass(&mut bench, Cause::Resume);
            passes += 1;
        }
        let removed = remover.join().unwrap();
        assert!(removed.is_ok(), "{removed:?} after {passes} passes");
    }
}

#[test]
fn rings_that_are_all_full_all_the_time_keep_no_disk_from_being_removed() {
    const SIZE: u16 = 64;
    const IDS: [&str; 3] = ["a", "b", "c"];
    let units = IDS.map(|id| (UnitConfig::new(id), disk()));
    let config = ScsiConfig {
        queues: 3,
        ..ScsiConfig::new("scsi0")
    };
    let device = Arc::new(Scsi::new(&config, units.into()).unwrap());
    let handle = device.handle();
    let mut bench = Bench::start(device, VERSION_1 | INDIRECT_DESC | feature::HOTPLUG, SIZE);
    bench.poke(REQUEST_AT, &header(LUN, &[0; 6], 32));
    let mut free = [SIZE; 3];
    for id in IDS {
        let (remote, own) = (handle.clone(), id.to_owned());
        let remover = std::thread::spawn(move || remote.remove(&own));
        let mut passes = 0;
        while !remover.is_finished() && passes < 100_000 {
            for (queue, free) in (REQUESTS..).zip(&mut free) {
                let ring = usize::from(queue);
                for _ in 0..*free {
                    let buffers = [(REQUEST_AT, HEADER, false), (RESPONSE_AT, RESPONSE, true)];
                    bench.rings[ring].offer_table(FRAMES, &buffers);
                }
                bench.grant(queue, SIZE / 4);
                bench.run(queue, Cause::Resume).unwrap();
                *free = u16::try_from(bench.rings[ring].used().len()).unwrap();
            }
            passes += 1;
        }
        let removed = remover.join().unwrap();
        assert!(removed.is_ok(), "{id}: {removed:?} after {passes} passes");
    }
    assert_eq!(handle.units().len(), 0);
}

#[test]
fn an_order_is_about_the_commands_that_were_in_the_ring_before_it() {
    const SIZE: u16 = 64;
    let hung = Arc::new(FaultyDisk::new(Arc::new(MemoryDisk::new(1 << 20))));
    hung.rule(|_| Fate::Hang);
    let (mut bench, handle) = started(hung);
    bench.poke(REQUEST_AT, &header(LUN, &READ, 32));
    for _ in 0..SIZE {
        let buffers = [
            (REQUEST_AT, HEADER, false),
            (RESPONSE_AT, RESPONSE, true),
            (IN_AT, 512, true),
        ];
        bench.rings[usize::from(REQUESTS)].offer_table(FRAMES, &buffers);
    }
    // LOGICAL UNIT RESET, while most of the ring has not been taken.
    bench.grant(REQUESTS, SIZE / 4);
    bench.run(REQUESTS, Cause::Kick(REQUESTS)).unwrap();
    let mut order = vec![0; 24];
    order[4] = 5;
    order[8..16].copy_from_slice(&LUN);
    bench.poke(OUT_AT, &order);
    bench.rings[0].offer(&[(OUT_AT, 24, false), (IN_AT + 0x1000, 1, true)]);
    bench.kick(0).unwrap();
    for _ in 0..4 {
        bench.grant(REQUESTS, SIZE / 4);
        bench.run(REQUESTS, Cause::Source(0)).unwrap();
    }
    bench.run(0, Cause::Resume).unwrap();
    assert_eq!(bench.rings[0].used().len(), 1, "the reset is answered");
    assert_eq!(
        answered(&mut bench),
        usize::from(SIZE),
        "no command is left"
    );
    drop(handle);
    assert_eq!(bench.stop(), 0);
}
