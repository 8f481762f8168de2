//! Controllers whose start fails half-way, and handlers that are dropped without having been stopped.

use super::*;
use crate::device::{ReadyQueue, Start};
use crate::disk::RawDisk;
use crate::disk::config::{Aio, DiskConfig};
use crate::disk::doubles::{Fate, FaultyDisk};
use crate::interrupt::{ConfigGate, ConfigNotifier};
use crate::testing::faults::every_start_that_fails_leaves_nothing_behind;
use crate::testing::memory;
use crate::testing::pci::Guest;

struct NoGate;

impl ConfigGate for NoGate {
    fn change(&self, apply: &mut dyn FnMut()) {
        apply();
    }
}

fn start(queues: u16) -> Start {
    let ready = |index| ReadyQueue { index, size: 64 };
    Start {
        features: VERSION_1 | feature::HOTPLUG,
        ram: memory(),
        queues: (0..queues + REQUEST_QUEUE).map(ready).collect(),
        config: ConfigNotifier::new(Arc::new(NoGate)),
        rings: Default::default(),
    }
}

#[test]
fn a_removal_does_not_wait_for_handlers_that_never_ran() {
    let device = device();
    let handle = device.handle();
    drop(device.start(start(1)).unwrap());
    assert!(handle.remove("disk").is_ok());
}

#[test]
fn a_handler_that_is_dropped_without_a_stop_answers_who_waits_for_it() {
    let device = Arc::new(device());
    let handle = device.handle();
    let mut bench = Bench::start(device, VERSION_1, 64);
    send(&mut bench, LUN, &[0; 6], &[], &[]).unwrap();
    let remover = std::thread::spawn(move || handle.remove("disk"));
    while !bench.device.handle().units().is_empty() {
        std::thread::yield_now();
    }
    bench.forget_tasks();
    assert!(remover.join().unwrap().is_ok());
    assert_eq!(bench.stop(), 0);
}

#[test]
fn a_range_is_free_again_when_the_command_that_locked_it_is_dropped() {
    let hangs = Arc::new(FaultyDisk::new(disk()));
    hangs.plan([Fate::Hang]);
    let units: Vec<(_, Arc<dyn Disk>)> = vec![(UnitConfig::new("disk"), hangs)];
    let device = Arc::new(Scsi::new(&ScsiConfig::new("scsi0"), units).unwrap());
    let mut bench = Bench::start(Arc::clone(&device), VERSION_1, 64);
    send(&mut bench, LUN, &[0; 6], &[], &[]).unwrap();
    let mut swap = [0; 16];
    (swap[0], swap[13]) = (0x89, 1);
    bench.poke(REQUEST_AT, &header(LUN, &swap, 32));
    let chain = [
        (REQUEST_AT, HEADER, false),
        (OUT_AT, 1024, false),
        (RESPONSE_AT, RESPONSE, true),
    ];
    bench.rings[usize::from(REQUESTS)].offer(&chain);
    bench.kick(REQUESTS).unwrap();
    bench.forget_tasks();
    let mut bench = Bench::start(device, VERSION_1, 64);
    let seen = send(&mut bench, LUN, &swap, &[(OUT_AT, 1024, false)], &[]).unwrap();
    assert_eq!((seen.response, seen.status), (0, 0));
    assert_eq!(bench.stop(), 0);
}

/// A read of one block on the first request queue of a running function, then a reset of the unit, which every queue
/// has to answer.
fn io(guest: &mut Guest) {
    for cdb in [
        &[0x12, 0, 0, 0, 36, 0][..],
        &[0; 6],
        &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0],
    ] {
        guest.poke(REQUEST_AT, &header(LUN, cdb, 32));
        guest.poke(RESPONSE_AT, &[0xee; RESPONSE as usize]);
        let chain = [
            (REQUEST_AT, HEADER, false),
            (RESPONSE_AT, RESPONSE, true),
            (IN_AT, 512, true),
        ];
        guest.offer(usize::from(REQUESTS), &chain);
        guest.kick(REQUESTS);
        guest.wait_used(usize::from(REQUESTS), 1);
    }
    let status = guest.peek(RESPONSE_AT + 10, 2);
    assert_eq!(status, [0, 0], "status and response of the read");
    let mut order = vec![0; 24];
    order[4] = 5;
    order[8..16].copy_from_slice(&LUN);
    guest.poke(OUT_AT, &order);
    guest.offer(0, &[(OUT_AT, 24, false), (IN_AT, 1, true)]);
    guest.kick(0);
    guest.wait_used(0, 1);
    assert_eq!(guest.peek(IN_AT, 1), [0]);
}

fn two_queues(disk: Arc<dyn Disk>) -> Arc<Scsi> {
    let config = ScsiConfig {
        queues: 2,
        ..ScsiConfig::new("scsi0")
    };
    Arc::new(Scsi::new(&config, vec![(UnitConfig::new("disk"), disk)]).unwrap())
}

#[test]
fn a_controller_survives_every_start_that_fails() {
    every_start_that_fails_leaves_nothing_behind(
        "scsi::tests::start::a_controller_survives_every_start_that_fails",
        || two_queues(disk()),
        io,
    );
}

#[test]
fn the_rings_of_a_controller_survive_every_start_that_fails() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let config = DiskConfig {
        aio: Aio::IoUring,
        ..DiskConfig::new(file.path())
    };
    every_start_that_fails_leaves_nothing_behind(
        "scsi::tests::start::the_rings_of_a_controller_survive_every_start_that_fails",
        || two_queues(Arc::new(RawDisk::open(&config, 0, 64).unwrap())),
        io,
    );
}
