//! Reservations between controllers and machines that share an image, and after a power loss.

use std::sync::Arc;

use splitring_devices::disk::doubles::{Fate, FaultyDisk, MemoryDisk};
use splitring_devices::disk::{Disk, DiskError, DiskQueue, Geometry, ImageId};
use splitring_devices::ram::Ram;
use splitring_devices::scsi::{Scsi, ScsiConfig, UnitConfig, open_reservations};
use splitring_virtio::driver::scsi::TaskFunction;
use splitring_virtio::spec::scsi::response;
use tempfile::NamedTempFile;

use splitring_tests::scsi::{Answer, LUN, ScsiGuest, ScsiImage};

const SHARED: ScsiImage = ScsiImage {
    bytes: 1 << 20,
    block: 512,
    readonly: false,
    discard: true,
    aio: splitring_devices::disk::config::Aio::Threads,
    share: true,
};

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTER_AND_IGNORE: u8 = 6;
const REGISTER_AND_MOVE: u8 = 7;
const UNREGISTER: u8 = 0x02;
const EXCLUSIVE_ACCESS: u8 = 3;

/// Returns a machine called `name` with the image on its one controller.
fn machine(name: &str, file: &NamedTempFile, keep: bool) -> ScsiGuest {
    let reservations = if keep {
        open_reservations(file.path(), true).unwrap()
    } else {
        None
    };
    let mut unit = shared_unit();
    unit.reservations = reservations;
    with_disk(name, SHARED.open(file), unit)
}

/// A disk that machines share.
fn shared_unit() -> UnitConfig {
    UnitConfig::new("disk").share(true)
}

fn with_disk(name: &str, disk: Arc<dyn Disk>, unit: UnitConfig) -> ScsiGuest {
    let config = ScsiConfig::new("scsi0").machine(name);
    ScsiGuest::settled(Scsi::new(&config, vec![(unit, disk)]).unwrap())
}

fn pair() -> (NamedTempFile, ScsiGuest, ScsiGuest) {
    let file = SHARED.file();
    let (a, b) = (machine("a", &file, false), machine("b", &file, false));
    (file, a, b)
}

fn list(key: u64, service_key: u64, persist: bool) -> Vec<u8> {
    let mut list = [key.to_be_bytes(), service_key.to_be_bytes(), [0; 8]].concat();
    list[20] = u8::from(persist);
    list
}

fn out(guest: &mut ScsiGuest, action: u8, kind: u8, key: u64, service_key: u64) -> Answer {
    guest.to(
        &[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0],
        &list(key, service_key, false),
        0,
    )
}

fn read(guest: &mut ScsiGuest, action: u8) -> Vec<u8> {
    guest
        .to(&[0x5e, action, 0, 0, 0, 0, 0, 0x40, 0, 0], &[], 0x4000)
        .expect_good()
        .data
}

fn keys(guest: &mut ScsiGuest) -> Vec<u64> {
    let data = read(guest, 0);
    data[8..]
        .chunks(8)
        .map(|key| u64::from_be_bytes(key.try_into().unwrap()))
        .collect()
}

/// Returns key and type of the reservation.
fn reservation(guest: &mut ScsiGuest) -> Option<(u64, u8)> {
    let data = read(guest, 1);
    (data.len() > 8).then(|| {
        (
            u64::from_be_bytes(data[8..16].try_into().unwrap()),
            data[21],
        )
    })
}

fn may(guest: &mut ScsiGuest) -> (bool, bool) {
    let read = guest.to(&[0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0], &[], 512);
    let write = guest.to(&[0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0], &[1; 512], 0);
    for answer in [&read, &write] {
        assert!(answer.good() || answer.status == 0x18, "{answer:x?}");
    }
    (read.good(), write.good())
}

#[test]
fn reservation_types_grant_access_between_machines() {
    let all = (true, true);
    let rows = [
        (1, (true, false), (true, false)),
        (3, (false, false), (false, false)),
        (5, all, (true, false)),
        (6, all, (false, false)),
        (7, all, (true, false)),
        (8, all, (false, false)),
    ];
    for (kind, registrant, stranger) in rows {
        let (_file, mut a, mut b) = pair();
        out(&mut a, REGISTER_AND_IGNORE, 0, 0, 0xa).expect_good();
        out(&mut b, REGISTER_AND_IGNORE, 0, 0, 0xb).expect_good();
        assert_eq!(keys(&mut b), [0xa, 0xb]);
        out(&mut a, RESERVE, kind, 0xa, 0).expect_good();
        let key = if kind > 6 { 0 } else { 0xa };
        assert_eq!(reservation(&mut b), Some((key, kind)));
        assert_eq!((may(&mut a), may(&mut b)), (all, registrant), "type {kind}");
        out(&mut b, REGISTER, 0, 0xb, 0).expect_good();
        assert_eq!(may(&mut b), stranger, "type {kind}");
        // Commands that report the reservation, and the unit, succeed.
        read(&mut b, 0);
        b.to(&[0x12, 0, 0, 0, 36, 0], &[], 36).expect_good();
        b.to(&[0; 6], &[], 0).expect_good();
        out(&mut a, RELEASE, kind, 0xa, 0).expect_good();
        assert_eq!((reservation(&mut a), may(&mut b)), (None, all));
        out(&mut a, REGISTER, 0, 0xa, 0).expect_good();
        assert!(keys(&mut a).is_empty());
    }
}

#[test]
fn every_action_responds_as_the_suite_expects() {
    let (_file, mut a, mut b) = pair();
    out(&mut a, REGISTER_AND_IGNORE, 0, 0, 1).expect_good();
    out(&mut a, REGISTER, 0, 0, 2).expect_conflict();
    let generation = read(&mut a, 0)[..4].to_vec();
    for kind in [1, 3, 5, 6, 7, 8] {
        out(&mut a, RESERVE, kind, 1, 0).expect_good();
        out(&mut a, RELEASE, kind, 1, 0).expect_good();
    }
    assert_eq!(
        read(&mut a, 0)[..4],
        generation,
        "reserving is no new generation"
    );
    out(&mut a, RESERVE, 3, 1, 0).expect_good();
    out(&mut b, RESERVE, 3, 0, 0).expect_conflict();
    out(&mut a, CLEAR, 0, 1, 0).expect_good();
    assert_eq!((reservation(&mut a), keys(&mut a)), (None, vec![]));
    for action in 0..4 {
        read(&mut a, action);
    }
    for action in 4..0x20 {
        a.to(&[0x5e, action, 0, 0, 0, 0, 0, 0x40, 0, 0], &[], 0x4000)
            .expect_sense(5, 0x24, 0);
        if action > REGISTER_AND_MOVE {
            out(&mut a, action, 0, 0, 0).expect_sense(5, 0x24, 0);
        }
    }
    // A list that is truncated to eight bytes still has its full length in the header.
    out(&mut a, REGISTER_AND_IGNORE, 0, 0, 1).expect_good();
    let short = a
        .to(&[0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0], &[], 8)
        .expect_good()
        .data;
    assert_eq!((short.len(), short[7]), (8, 8));
    let capabilities = read(&mut a, 2);
    assert_eq!(
        (capabilities.len(), capabilities[4], capabilities[5]),
        (8, 0xea, 1)
    );
    // A list of another length is invalid.
    a.to(&[0x5f, 0, 0, 0, 0, 0, 0, 0, 23, 0], &[0; 23], 0)
        .expect_sense(5, 0x1a, 0);
    a.to(&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list(1, 2, true), 0)
        .expect_sense(5, 0x26, 0);
}

#[test]
fn preemption_takes_over_and_is_reported_to_the_preempted() {
    let (_file, mut a, mut b) = pair();
    out(&mut a, REGISTER, 0, 0, 1).expect_good();
    out(&mut b, REGISTER, 0, 0, 2).expect_good();
    out(&mut a, RESERVE, 1, 1, 0).expect_good();
    out(&mut b, PREEMPT, 3, 2, 1).expect_good();
    assert_eq!((keys(&mut b), reservation(&mut b)), (vec![2], Some((2, 3))));
    a.to(&[0; 6], &[], 0).expect_sense(6, 0x2a, 5);
    assert_eq!(may(&mut a), (false, false));
}

#[test]
fn a_reservation_is_handed_over_to_another_machine() {
    let (_file, mut a, mut b) = pair();
    out(&mut a, REGISTER, 0, 0, 1).expect_good();
    out(&mut a, RESERVE, EXCLUSIVE_ACCESS, 1, 0).expect_good();
    // READ FULL STATUS shows the name of each machine in its own registration; b's is removed
    // again.
    out(&mut b, REGISTER, 0, 0, 2).expect_good();
    let status = read(&mut b, 3);
    out(&mut b, REGISTER, 0, 2, 0).expect_good();
    let id = &status[status.len() - 24..];
    let mut list = list(1, 3, false);
    (list[17], list[19], list[20], list[23]) = (UNREGISTER, 1, 0, 24);
    list.extend(id);
    let cdb = [0x5f, REGISTER_AND_MOVE, 0, 0, 0, 0, 0, 0, 48, 0];
    a.to(&cdb, &list, 0).expect_good();
    assert_eq!(keys(&mut a), [3]);
    assert_eq!(reservation(&mut b), Some((3, EXCLUSIVE_ACCESS)));
    assert_eq!((may(&mut a), may(&mut b)), ((false, false), (true, true)));
}

#[test]
fn controllers_of_one_machine_are_different_initiators() {
    let file = SHARED.file();
    let guest = |id: &str| {
        let config = ScsiConfig::new(id).machine("m");
        ScsiGuest::settled(Scsi::new(&config, vec![(shared_unit(), SHARED.open(&file))]).unwrap())
    };
    let (mut a, mut b) = (guest("scsi0"), guest("scsi1"));
    // Both paths lead to one unit, and report that.
    let page = |guest: &mut ScsiGuest| {
        guest
            .to(&[0x12, 1, 0x83, 0, 255, 0], &[], 255)
            .expect_good()
            .data
    };
    assert_eq!(page(&mut a), page(&mut b));
    out(&mut a, REGISTER, 0, 0, 1).expect_good();
    out(&mut a, RESERVE, 3, 1, 0).expect_good();
    assert_eq!((may(&mut a), may(&mut b)), ((true, true), (false, false)));
}

#[test]
fn spc2_reservations_exclude_the_other_and_end_with_their_owner() {
    let (_file, mut a, mut b) = pair();
    let reserve = |guest: &mut ScsiGuest| guest.to(&[0x16, 0, 0, 0, 0, 0], &[], 0);
    let release = |guest: &mut ScsiGuest| guest.to(&[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0);
    reserve(&mut a).expect_good();
    reserve(&mut b).expect_conflict();
    release(&mut b).expect_good();
    assert_eq!(may(&mut b), (false, false));
    b.to(&[0; 6], &[], 0).expect_conflict();
    b.to(&[0x12, 0, 0, 0, 36, 0], &[], 36).expect_good();
    release(&mut a).expect_good();
    reserve(&mut b).expect_good();
    // The owner's machine resets its controller.
    assert_eq!(b.machine.reset(), 0);
    reserve(&mut a).expect_good();
    // A reset of the unit ends it, whichever initiator asks for it.
    assert_eq!(a.manage(LUN, TaskFunction::UnitReset), response::OK);
    a.to(&[0; 6], &[], 0).expect_sense(6, 0x29, 3);
    assert_eq!(may(&mut a), (true, true));
}

#[test]
fn registrations_outlive_a_power_loss_if_asked_to() {
    let file = SHARED.file();
    let register = |guest: &mut ScsiGuest, key, service_key, persist| {
        guest
            .to(
                &[0x5f, REGISTER, 0, 0, 0, 0, 0, 0, 24, 0],
                &list(key, service_key, persist),
                0,
            )
            .expect_good()
    };
    {
        let (mut a, mut b) = (machine("a", &file, true), machine("b", &file, true));
        assert_eq!(read(&mut a, 2)[2], 1, "it can persist them");
        register(&mut a, 0, 1, true);
        register(&mut b, 0, 2, true);
        out(&mut a, RESERVE, 1, 1, 0).expect_good();
    }
    {
        let (mut a, mut b) = (machine("a", &file, true), machine("b", &file, true));
        assert_eq!(
            (keys(&mut a), reservation(&mut b)),
            (vec![1, 2], Some((1, 1)))
        );
        assert_eq!((may(&mut a), may(&mut b)), ((true, true), (true, false)));
        // A machine that finds the file honours it.
        register(&mut a, 1, 1, false);
    }
    let mut a = machine("a", &file, true);
    assert_eq!((keys(&mut a), reservation(&mut a)), (vec![], None));
    let mut name = file.path().as_os_str().to_owned();
    name.push(".reservations");
    std::fs::remove_file(&name).unwrap();
    std::fs::write(&name, b"somebody's notes").unwrap();
    let error = open_reservations(file.path(), true)
        .unwrap_err()
        .to_string();
    assert!(error.contains("move it out of the way"), "{error}");
    std::fs::remove_file(&name).unwrap();
    assert!(open_reservations(file.path(), false).unwrap().is_none());
}

/// A disk with an identity, so that several controllers recognise it as one image.
struct Named(Arc<FaultyDisk>);

impl Disk for Named {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn open_queue(
        &self,
        ram: Ram,
        index: u16,
        depth: u16,
    ) -> Result<Box<dyn DiskQueue>, DiskError> {
        self.0.open_queue(ram, index, depth)
    }

    fn identity(&self) -> Option<ImageId> {
        Some(ImageId {
            device: u64::MAX,
            inode: 0x5eed,
        })
    }
}

#[test]
fn preempt_and_abort_waits_for_the_other_machines_commands() {
    let disk = Arc::new(FaultyDisk::new(Arc::new(MemoryDisk::new(1 << 20))));
    let guest = |name| with_disk(name, Arc::new(Named(Arc::clone(&disk))), shared_unit());
    let (mut a, mut b) = (guest("a"), guest("b"));
    out(&mut a, REGISTER, 0, 0, 1).expect_good();
    out(&mut b, REGISTER, 0, 0, 2).expect_good();
    disk.plan([Fate::Delay(5)]);
    let read = a.submit(0, LUN, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 512);
    a.turn();
    let cdb = [0x5f, PREEMPT_AND_ABORT, 3, 0, 0, 0, 0, 0, 24, 0];
    let preempt = b.submit(0, LUN, &cdb, &list(2, 1, false), 0);
    for _ in 0..10 {
        b.turn();
    }
    assert!(
        b.answer(preempt).is_none(),
        "the other's command is still at the disk"
    );
    assert_eq!(a.wait(read).response, response::ABORTED);
    b.wait(preempt).expect_good();
    a.to(&[0; 6], &[], 0).expect_sense(6, 0x2a, 5);
}

#[test]
fn a_unit_reset_on_one_path_ends_commands_on_the_other() {
    let disk = Arc::new(FaultyDisk::new(Arc::new(MemoryDisk::new(1 << 20))));
    let guest = |name| with_disk(name, Arc::new(Named(Arc::clone(&disk))), shared_unit());
    let (mut a, mut b) = (guest("c"), guest("d"));
    disk.plan([Fate::Delay(3)]);
    let read = a.submit(0, LUN, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 512);
    a.turn();
    b.control.task(1, LUN, TaskFunction::UnitReset).unwrap();
    let _ = b.control.publish();
    b.turn();
    assert!(b.control.poll().unwrap().is_none());
    assert_eq!(a.wait(read).response, response::RESET);
    assert_eq!(b.concluded(), Some(response::OK));
    for guest in [&mut a, &mut b] {
        guest.to(&[0; 6], &[], 0).expect_sense(6, 0x29, 3);
    }
}
