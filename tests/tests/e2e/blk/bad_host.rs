//! Storage of the host that fails once, hangs, shrinks, becomes read-only or fills up below a disk
//! in use. Each is an error of the requests that it concerns; the disk goes on, and so does whoever
//! shares its thread.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use splitring::config::DiskConfig;
use splitring_devices::disk::config::Aio;
use splitring_devices::disk::{self};
use splitring_devices::scsi::{Scsi, ScsiConfig, UnitConfig};
use splitring_needs as needs;
use splitring_tests::assets::Disk;
use splitring_tests::library::LibraryGuest;
use splitring_virtio::driver::scsi::Lun;

use crate::blk::block::{Loop, SCSI_DEBUG};
use crate::blk::disks::MIB;
use crate::blk::mapped::Mapped;
use crate::blk::storage::places;
use splitring_tests::scsi::{Answer, LUN, ScsiGuest};

const BYTES: u64 = 16 * MIB;
const SECTORS: u64 = BYTES / 512;
/// The disk beside the bad one.
const OTHER: Lun = Lun { target: 1, unit: 0 };
/// A stop cancels, waits a bounded time for the host, and then gives up what hangs. Far longer than
/// that.
const PATIENCE: Duration = Duration::from_secs(60);

/// A controller with the device at `path`, around the page cache so that each request meets the
/// medium, and beside it a disk in memory.
fn controller(path: &Path, aio: Aio) -> (ScsiGuest, Disk) {
    let other = Disk::empty(BYTES);
    let bad = DiskConfig::new(path).direct(true).aio(aio);
    let good = DiskConfig::new(other.path()).aio(Aio::IoUring);
    let units = [("bad", 0, bad), ("good", 1, good)].map(|(id, target, config)| {
        let mut unit = UnitConfig::new(id);
        unit.target = Some(target);
        (unit, disk::open_shared(&config, 1).expect("opened"))
    });
    let scsi = Scsi::new(&ScsiConfig::new("scsi0"), units.into()).expect("a controller");
    (ScsiGuest::settled(scsi), other)
}

/// READ (10) of 4 KiB.
fn read(guest: &mut ScsiGuest, lun: Lun, mib: u8) -> Answer {
    guest.send(lun, &cdb(0x28, mib), &[], 4096)
}

/// WRITE (10) of 4 KiB.
fn write(guest: &mut ScsiGuest, lun: Lun, mib: u8) -> Answer {
    guest.send(lun, &cdb(0x2a, mib), &[7; 4096], 0)
}

/// Eight blocks at so many MiB.
fn cdb(op: u8, mib: u8) -> [u8; 10] {
    let lba = (u32::from(mib) << 11).to_be_bytes();
    [op, 0, lba[0], lba[1], lba[2], lba[3], 0, 0, 8, 0]
}

/// The unrecovered errors of reads and writes.
fn assert_failed(read: &Answer, write: &Answer) {
    read.expect_sense(0x03, 0x11, 0);
    write.expect_sense(0x03, 0x0c, 0);
}

fn linear(sectors: u64, below: &Loop) -> String {
    format!("0 {sectors} linear {} 0", below.device.display())
}

#[test]
#[ignore = "needs the lab's storage"]
fn a_host_that_fails_once_fails_those_requests_alone() {
    if !needs::device_mapper("dm_mod") {
        return;
    }
    for aio in [Aio::IoUring, Aio::Threads] {
        let below = Loop::new(BYTES, 512);
        let mapped = Mapped::new("once", &linear(SECTORS, &below));
        let (mut guest, _other) = controller(&mapped.device(), aio);
        write(&mut guest, LUN, 0).expect_good();
        mapped.become_as(&format!("0 {SECTORS} error"));
        let failed = (read(&mut guest, LUN, 0), write(&mut guest, LUN, 0));
        assert_failed(&failed.0, &failed.1);
        write(&mut guest, OTHER, 0).expect_good();
        mapped.become_as(&linear(SECTORS, &below));
        assert_eq!(read(&mut guest, LUN, 0).expect_good().data, [7; 4096]);
        write(&mut guest, LUN, 0).expect_good();
    }
}

#[test]
#[ignore = "needs the lab's storage"]
fn a_host_that_hangs_holds_up_nobody_else_and_no_reset_for_long() {
    if !needs::device_mapper("dm_mod") {
        return;
    }
    for aio in [Aio::IoUring, Aio::Threads] {
        let below = Loop::new(BYTES, 512);
        // What hangs at the reset stays open as long as this process.
        let name = format!("hangs-{aio:?}");
        let mapped = Mapped::new(&name, &linear(SECTORS, &below));
        let (mut guest, _other) = controller(&mapped.device(), aio);
        write(&mut guest, LUN, 0).expect_good();
        mapped.hang(true);
        let hung = guest.submit(0, LUN, &cdb(0x2a, 1), &[7; 4096], 0);
        for mib in 0..8 {
            let id = guest.submit(0, OTHER, &cdb(0x2a, mib), &[mib; 4096], 0);
            guest.wait(id).expect_good();
        }
        assert!(guest.answer(hung).is_none(), "{aio:?}: it does not hang");
        let start = Instant::now();
        assert_eq!(guest.machine.reset(), 0, "{aio:?}: requests are left");
        assert!(start.elapsed() < PATIENCE, "{aio:?}: {:?}", start.elapsed());
        mapped.hang(false);
    }
}

#[test]
#[ignore = "needs the lab's storage"]
fn a_host_disk_that_shrinks_fails_what_lies_behind_its_end() {
    if !needs::device_mapper("dm_mod") {
        return;
    }
    for aio in [Aio::IoUring, Aio::Threads] {
        let below = Loop::new(BYTES, 512);
        let mapped = Mapped::new("shrinks", &linear(SECTORS, &below));
        let (mut guest, _other) = controller(&mapped.device(), aio);
        write(&mut guest, LUN, 0).expect_good();
        mapped.become_as(&linear(SECTORS / 2, &below));
        let failed = (read(&mut guest, LUN, 12), write(&mut guest, LUN, 12));
        assert!(!failed.0.good() && failed.1.sense.is_some(), "{failed:x?}");
        assert_eq!(read(&mut guest, LUN, 0).expect_good().data, [7; 4096]);
        // Once the operator says so, the guest knows the new end.
        assert_eq!(guest.handle.resize("bad").expect("resized"), BYTES / 2);
        read(&mut guest, LUN, 0).expect_sense(0x06, 0x2a, 0x09);
        read(&mut guest, LUN, 12).expect_sense(0x05, 0x21, 0);
        read(&mut guest, LUN, 0).expect_good();
    }
}

#[test]
#[ignore = "needs the lab's storage"]
fn a_host_disk_that_becomes_read_only_fails_writes_and_is_read_on() {
    if !needs::module("scsi_debug", &[("lbpu", "1")]) {
        return;
    }
    struct Protected;
    impl Protected {
        fn set(on: &str) {
            let file = "/sys/module/scsi_debug/parameters/wp";
            fs::write(file, on).unwrap_or_else(|why| panic!("{SCSI_DEBUG}: {why}"));
        }
    }
    impl Drop for Protected {
        fn drop(&mut self) {
            Self::set("0");
        }
    }
    let place = places::scsi();
    for aio in [Aio::IoUring, Aio::Threads] {
        let (mut guest, _other) = controller(&place.path, aio);
        write(&mut guest, LUN, 0).expect_good();
        let protected = Protected;
        Protected::set("1");
        let refused = write(&mut guest, LUN, 1);
        assert!(!refused.good() && refused.sense.is_some(), "{refused:x?}");
        assert_eq!(read(&mut guest, LUN, 0).expect_good().data, [7; 4096]);
        drop(protected);
        write(&mut guest, LUN, 1).expect_good();
    }
}

#[test]
#[ignore = "needs the lab's storage"]
fn a_pool_that_is_full_refuses_writes_until_something_is_unmapped() {
    if !needs::device_mapper("dm_thin_pool") {
        return;
    }
    for aio in [Aio::IoUring, Aio::Threads] {
        // More than the pool has.
        let place = places::large_thin(256 * MIB);
        let (mut guest, _other) = controller(&place.path, aio);
        let full = (0..128).find_map(|mib| {
            let answer = write(&mut guest, LUN, mib);
            // A block of the pool's for each quarter.
            let rest = (1..4).map(|quarter| {
                let lba = ((u32::from(mib) << 11) + (quarter << 9)).to_be_bytes();
                let cdb = [0x2a, 0, lba[0], lba[1], lba[2], lba[3], 0, 0, 8, 0];
                guest.send(LUN, &cdb, &[7; 4096], 0)
            });
            [answer].into_iter().chain(rest).find(|one| !one.good())
        });
        let refused = full.expect("64 MiB are not enough for all");
        refused.expect_sense(0x07, 0x27, 0x07);
        assert_eq!(read(&mut guest, LUN, 0).expect_good().data, [7; 4096]);
        write(&mut guest, LUN, 0).expect_good();

        let mut list = vec![0; 24];
        (list[1], list[3]) = (22, 16);
        list[8..16].copy_from_slice(&(1_u64 << 11).to_be_bytes());
        list[16..20].copy_from_slice(&(32_u32 << 11).to_be_bytes());
        let unmapped = guest.to(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list, 0);
        unmapped.expect_good();
        // What was freed can be had once the pool has made that stable, which it does once a
        // second.
        let end = Instant::now() + PATIENCE;
        while !write(&mut guest, LUN, 200).good() {
            assert!(Instant::now() < end, "nothing was freed");
        }
    }
}

#[test]
#[ignore = "needs a stock guest"]
fn a_guest_lives_through_a_minute_without_its_disk_and_a_stop_does_not_wait_for_it() {
    if !needs::device_mapper("dm_mod") {
        return;
    }
    let below = Loop::new(BYTES, 512);
    let mapped = Mapped::new("minute", &linear(SECTORS, &below));
    let disk = DiskConfig::new(mapped.device()).direct(true).id("minute");
    let mut live = LibraryGuest::boot("minute", vec![disk]);
    let write = "dd if=/dev/zero of=/dev/vdb bs=64k count=16 oflag=direct 2>/dev/null";
    live.succeed(write);
    mapped.hang(true);
    live.succeed(&format!("({write}; echo $? >/tmp/late) &"));
    for _ in 0..6 {
        thread::sleep(Duration::from_secs(10));
        live.succeed(
            "[ ! -e /tmp/late ] && dd if=/dev/vda of=/dev/null bs=4k count=8 iflag=direct",
        );
    }
    mapped.hang(false);
    live.until("[ -e /tmp/late ]");
    live.succeed("[ $(cat /tmp/late) = 0 ]");

    mapped.hang(true);
    live.succeed(&format!("({write}) & sleep 1"));
    let start = Instant::now();
    live.machine.stop();
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    mapped.hang(false);
}
