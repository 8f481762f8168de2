//! Task management that has an effect: on commands in flight, on several queues, in the right
//! order.

use std::sync::Arc;

use splitring_devices::disk::doubles::{Fate, FaultyDisk, MemoryDisk};
use splitring_devices::disk::{Disk, IoFault};
use splitring_devices::scsi::{Scsi, ScsiConfig, UnitConfig};
use splitring_virtio::driver::scsi::{Lun, TaskFunction};
use splitring_virtio::spec::scsi::response;

use splitring_tests::scsi::{LUN, ScsiGuest};

const OTHER: Lun = Lun { target: 0, unit: 1 };
const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// A delay long enough to keep a command in flight.
const LONG: Fate = Fate::Delay(200);

/// Returns a guest with two units on one target and `queues` request queues, and the first unit's
/// disk.
fn guest(queues: u16) -> (ScsiGuest, Arc<FaultyDisk>) {
    let disk = || Arc::new(FaultyDisk::new(Arc::new(MemoryDisk::new(1 << 20))));
    let (first, second) = (disk(), disk());
    let unit = |lun| UnitConfig::new(format!("disk{lun}")).target(0).lun(lun);
    let config = ScsiConfig::new("scsi0").queues(queues);
    let shared: Arc<dyn Disk> = Arc::<FaultyDisk>::clone(&first);
    let device = Scsi::new(&config, vec![(unit(0), shared), (unit(1), second)]).unwrap();
    (ScsiGuest::settled(device), first)
}

#[test]
fn an_aborted_command_is_answered_before_the_abort() {
    let (mut guest, disk) = guest(1);
    disk.plan([LONG]);
    let id = guest.submit(0, LUN, &READ, &[], 512);
    guest.turn();
    guest.control.task(1, LUN, TaskFunction::Abort(id)).unwrap();
    let _ = guest.control.publish();
    let mut answer = None;
    loop {
        guest.turn();
        answer = answer.or(guest.answer(id));
        if let Some(done) = guest.control.poll().unwrap() {
            assert_eq!(done.response, response::OK);
            break;
        }
    }
    assert_eq!(
        answer.expect("before the abort").response,
        response::ABORTED
    );
    // The unit still works, and the abort of an unknown command succeeds, too.
    guest.to(&READ, &[], 512).expect_good();
    assert_eq!(guest.manage(LUN, TaskFunction::Abort(id)), response::OK);
}

/// Reads, writes, flushes and commands of several steps, with their data-out.
const AT_THE_DISK: [(&[u8], usize, usize); 4] = [
    (&READ, 0, 512),
    (&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], 512, 0),
    (&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, 0),
    (
        &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        1024,
        0,
    ),
];

#[test]
fn every_ending_function_cancels_commands_that_hang_in_the_host() {
    type Choose = fn(u64) -> TaskFunction;
    let functions: [(Choose, u8); 5] = [
        (TaskFunction::Abort, response::ABORTED),
        (|_| TaskFunction::AbortSet, response::ABORTED),
        (|_| TaskFunction::ClearSet, response::ABORTED),
        (|_| TaskFunction::UnitReset, response::RESET),
        (|_| TaskFunction::NexusReset, response::RESET),
    ];
    for (function, code) in functions {
        for (cdb, out, room) in AT_THE_DISK {
            let (mut guest, disk) = guest(1);
            disk.plan([Fate::Hang]);
            let id = guest.submit(0, LUN, cdb, &vec![1; out], room);
            for _ in 0..20 {
                guest.turn();
            }
            assert!(guest.answer(id).is_none(), "it hangs");
            assert_eq!(guest.manage(LUN, function(id)), response::OK);
            assert_eq!(guest.answer(id).expect("before").response, code);
            // The unit still works, and nothing of the command is left.
            guest.settle();
            assert_eq!(guest.to(&READ, &[], 512).expect_good().data, [0; 512]);
        }
    }
}

#[test]
fn a_command_still_in_the_ring_is_aborted_without_a_trace() {
    let (mut guest, disk) = guest(1);
    disk.plan([LONG, LONG]);
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let id = guest.submit(0, LUN, &write, &[1; 512], 0);
    assert_eq!(guest.manage(LUN, TaskFunction::Abort(id)), response::OK);
    assert_eq!(guest.answer(id).unwrap().response, response::ABORTED);
}

#[test]
fn task_sets_are_per_unit_and_span_all_queues() {
    for (task, code) in [
        (TaskFunction::AbortSet, response::ABORTED),
        (TaskFunction::ClearSet, response::ABORTED),
        (TaskFunction::UnitReset, response::RESET),
    ] {
        let (mut guest, disk) = guest(2);
        disk.plan([LONG; 4]);
        let mine: Vec<u64> = [0, 1, 0, 1]
            .map(|queue| guest.submit(queue, LUN, &READ, &[], 512))
            .to_vec();
        guest.turn();
        let other = guest.submit(1, OTHER, &READ, &[], 512);
        assert_eq!(guest.manage(LUN, task), response::OK);
        for id in mine {
            assert_eq!(guest.answer(id).expect("before").response, code);
        }
        assert!(guest.wait(other).good());
    }
}

#[test]
fn a_unit_reset_ends_reservations_and_is_reported() {
    let (mut guest, _) = guest(1);
    guest.to(&[0x16, 0, 0, 0, 0, 0], &[], 0).expect_good();
    assert_eq!(guest.manage(LUN, TaskFunction::UnitReset), response::OK);
    guest.to(&[0; 6], &[], 0).expect_sense(6, 0x29, 3);
    guest.to(&[0; 6], &[], 0).expect_good();
    guest.send(OTHER, &[0; 6], &[], 0).expect_good();
}

#[test]
fn a_nexus_reset_affects_the_whole_target() {
    let (mut guest, disk) = guest(1);
    disk.plan([LONG]);
    let id = guest.submit(0, LUN, &READ, &[], 512);
    guest.turn();
    assert_eq!(guest.manage(OTHER, TaskFunction::NexusReset), response::OK);
    assert_eq!(guest.answer(id).expect("before").response, response::RESET);
    for lun in [LUN, OTHER] {
        guest.send(lun, &[0; 6], &[], 0).expect_sense(6, 0x29, 7);
    }
}

#[test]
fn queries_report_commands_in_flight() {
    let (mut guest, disk) = guest(2);
    disk.plan([LONG]);
    let id = guest.submit(1, LUN, &READ, &[], 512);
    guest.turn();
    assert_eq!(
        guest.manage(LUN, TaskFunction::Query(id)),
        response::FUNCTION_SUCCEEDED
    );
    assert_eq!(
        guest.manage(LUN, TaskFunction::QuerySet),
        response::FUNCTION_SUCCEEDED
    );
    assert_eq!(guest.manage(LUN, TaskFunction::Query(id + 1)), response::OK);
    assert_eq!(guest.manage(OTHER, TaskFunction::Query(id)), response::OK);
    assert_eq!(guest.manage(OTHER, TaskFunction::QuerySet), response::OK);
    assert!(guest.wait(id).good(), "a query does not touch it");
    assert_eq!(guest.manage(LUN, TaskFunction::QuerySet), response::OK);
}

#[test]
fn unsupported_management_is_reported() {
    let (mut guest, _) = guest(1);
    let absent = Lun { target: 0, unit: 9 };
    let nowhere = Lun { target: 9, unit: 0 };
    assert_eq!(
        guest.manage(absent, TaskFunction::AbortSet),
        response::INCORRECT_LUN
    );
    assert_eq!(
        guest.manage(nowhere, TaskFunction::AbortSet),
        response::BAD_TARGET
    );
    assert_eq!(
        guest.manage(LUN, TaskFunction::ClearAca),
        response::FUNCTION_REJECTED
    );
    for subscribe in [false, true] {
        guest.control.events(2, LUN, 0xffff, subscribe).unwrap();
        let _ = guest.control.publish();
        guest.turn();
        let done = guest.control.poll().unwrap().unwrap();
        assert_eq!((done.response, done.events), (response::OK, 0));
    }
}

#[test]
fn a_device_reset_completes_everything_and_the_device_starts_again() {
    let (mut guest, disk) = guest(2);
    disk.plan([LONG, Fate::Pass, LONG]);
    for queue in [0, 1, 1] {
        guest.submit(queue, LUN, &READ, &[], 512);
    }
    guest.turn();
    assert_eq!(guest.machine.reset(), 0);
}

#[test]
fn faults_of_the_host_become_sense_data() {
    let (mut guest, disk) = guest(1);
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    for (fault, key, code, qualifier) in [
        (IoFault::Host(5), 3, 0x0c, 0),
        (IoFault::NoSpace, 7, 0x27, 7),
        (IoFault::OutOfRange, 5, 0x21, 0),
        (IoFault::Short, 3, 0x0c, 0),
    ] {
        disk.plan([Fate::Fail(fault)]);
        guest
            .to(&write, &[1; 512], 0)
            .expect_sense(key, code, qualifier);
    }
    disk.plan([Fate::Fail(IoFault::Host(5))]);
    guest.to(&READ, &[], 512).expect_sense(3, 0x11, 0);
    disk.plan([Fate::Fail(IoFault::FlushLost)]);
    guest
        .to(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0)
        .expect_sense(3, 0x0c, 0);
    // The second half of a command of several steps fails.
    disk.plan([Fate::Pass, Fate::Fail(IoFault::NoSpace)]);
    let mut swap = [0; 16];
    (swap[0], swap[13]) = (0x89, 1);
    guest.to(&swap, &[0; 1024], 0).expect_sense(7, 0x27, 7);
    guest.to(&swap, &[0; 1024], 0).expect_good();
}

#[test]
fn exclusive_commands_to_one_range_are_serialised() {
    let (mut guest, disk) = guest(2);
    // The first is delayed between comparing and writing; the second has to see what the first
    // wrote.
    disk.plan([Fate::Delay(20), Fate::Delay(20)]);
    let swap = |blocks: u8| {
        let mut cdb = [0; 16];
        (cdb[0], cdb[13]) = (0x89, blocks);
        cdb
    };
    let data = |old: u8, new: u8| [vec![old; 512], vec![new; 512]].concat();
    let first = guest.submit(0, LUN, &swap(1), &data(0, 1), 0);
    guest.turn();
    let second = guest.submit(1, LUN, &swap(1), &data(1, 2), 0);
    let third = guest.submit(1, LUN, &swap(1), &data(0, 3), 0);
    assert!(guest.wait(first).good());
    let (second, third) = (guest.wait(second), guest.wait(third));
    assert!(second.good(), "{second:x?}");
    assert_eq!(third.sense, Some([0xe, 0x1d, 0]));
    assert_eq!(guest.to(&READ, &[], 512).data, vec![2; 512]);
}

#[test]
fn a_command_that_waits_its_turn_can_be_aborted() {
    let (mut guest, disk) = guest(1);
    disk.plan([LONG]);
    let mut cdb = [0; 16];
    (cdb[0], cdb[13]) = (0x89, 1);
    let first = guest.submit(0, LUN, &cdb, &[0; 1024], 0);
    let second = guest.submit(0, LUN, &cdb, &[0; 1024], 0);
    guest.turn();
    assert_eq!(guest.manage(LUN, TaskFunction::Abort(second)), response::OK);
    assert_eq!(guest.answer(second).unwrap().response, response::ABORTED);
    assert!(guest.wait(first).good());
}
