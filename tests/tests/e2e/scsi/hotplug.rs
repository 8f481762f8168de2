//! SCSI disks that are added, removed and resized while a stock guest runs, and machines that share
//! one disk: with Splitring as a library in this process.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use splitring::config::DiskConfig;
use splitring_devices::disk::config::Bus;
use splitring_devices::disk::doubles::{Fate, FaultyDisk, MemoryDisk, Seen};
use splitring_devices::scsi::{ScsiHandle, UnitConfig};
use splitring_tests::assets::Disk;
use splitring_tests::library::LibraryGuest;

fn scsi(path: &Path) -> DiskConfig {
    DiskConfig::new(path).bus(Bus::Scsi)
}

#[test]
#[ignore = "needs a stock guest"]
fn disks_come_grow_and_go_under_load_without_a_rescan() {
    let (first, second) = (Disk::empty(64 << 20), Disk::empty(64 << 20));
    let mut guest = LibraryGuest::boot("guest", vec![scsi(first.path())]);
    let controller = guest.machine.scsi().remove(0);
    for round in 0..2 {
        let size = 64 << 20;
        std::fs::File::options()
            .write(true)
            .open(second.path())
            .and_then(|file| file.set_len(size))
            .expect("resized");
        controller
            .add_disk("second", &scsi(second.path()))
            .expect("added");
        guest.until("[ -b /dev/sdb ]");
        guest.succeed(
            "(fio --name=load --filename=/dev/sdb --size=32M --rw=randrw --direct=1 --ioengine=libaio --iodepth=8 \
             --time_based --runtime=600 >/tmp/fio 2>&1 &) ; sleep 1",
        );
        std::fs::File::options()
            .write(true)
            .open(second.path())
            .and_then(|file| file.set_len(2 * size))
            .expect("grown");
        assert_eq!(controller.resize("second").expect("resized"), 2 * size);
        guest.until(&format!(
            "[ $(cat /sys/block/sdb/size) = {} ]",
            2 * size / 512
        ));
        controller.remove("second").expect("removed");
        guest.until("[ ! -e /sys/block/sdb ]");
        guest.succeed("killall fio 2>/dev/null; sleep 1; true");
        // Its image is unlocked, and the other disk is not affected.
        let alone = std::fs::File::options()
            .write(true)
            .open(second.path())
            .expect("opened");
        alone.set_len(size).expect("free");
        guest.succeed("dd if=/dev/sda of=/dev/null bs=1M count=8 iflag=direct");
        println!("round {round} done");
    }
    guest.machine.stop();
}

/// Adds a disk whose next requests have these `fates`, after the guest has probed it.
fn add_faulty(guest: &mut LibraryGuest, controller: &ScsiHandle, device: &str) -> Arc<FaultyDisk> {
    let disk = Arc::new(FaultyDisk::new(Arc::new(MemoryDisk::new(16 << 20))));
    let shared: Arc<FaultyDisk> = Arc::clone(&disk);
    controller
        .add(UnitConfig::new("faulty"), shared)
        .expect("added");
    guest.until(&format!("[ -b {device} ]"));
    // The kernel reads the partition table asynchronously.
    guest.succeed("udevadm settle 2>/dev/null; sleep 2; dmesg | grep -q 'sdb.*Attached SCSI disk'");
    drop(disk.seen());
    disk
}

/// Waits until the disk has `count` reads in flight.
fn reads(disk: &FaultyDisk, count: usize) {
    let start = Instant::now();
    let mut seen = 0;
    while seen < count {
        let is_read = |seen: &Seen| matches!(seen, Seen::Read(_));
        seen += disk.seen().iter().filter(|seen| is_read(seen)).count();
        assert!(start.elapsed() < Duration::from_secs(60), "{seen} reads");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs a stock guest"]
fn a_guest_reset_and_a_removal_end_commands_that_hang_in_the_host() {
    const HANGING: usize = 4;
    let first = Disk::empty(16 << 20);
    let mut guest = LibraryGuest::boot("reset", vec![scsi(first.path())]);
    let controller = guest.machine.scsi().remove(0);
    let disk = add_faulty(&mut guest, &controller, "/dev/sdb");
    let read = "dd if=/dev/sdb of=/dev/null bs=4k count=1 iflag=direct";
    let hang = |guest: &mut LibraryGuest| {
        disk.plan([Fate::Hang; HANGING]);
        guest.succeed(&format!(
            "rm -f /tmp/ended; for n in 1 2 3 4; do ({read} skip=$n 2>/dev/null; echo $? >>/tmp/ended) & done"
        ));
        reads(&disk, HANGING);
        guest.succeed("sleep 1; [ ! -e /tmp/ended ]");
    };
    hang(&mut guest);
    // Linux waits for the response to the reset, which arrives when the commands have ended; then
    // it retries them.
    guest.succeed("sg_reset --device /dev/sdb");
    guest.until("[ $(wc -l </tmp/ended) = 4 ]");
    assert_eq!(guest.succeed("cat /tmp/ended").trim(), "0\n0\n0\n0");
    guest.succeed(&format!("sg_turs /dev/sdb; {read}"));
    hang(&mut guest);
    controller.remove("faulty").expect("let go");
    guest.until("[ ! -e /sys/block/sdb ]");
    guest.until("[ $(wc -l </tmp/ended) = 4 ]");
    assert_eq!(guest.succeed("cat /tmp/ended").trim(), "1\n1\n1\n1");
    guest.succeed("dd if=/dev/sda of=/dev/null bs=1M count=8 iflag=direct");
    guest.machine.stop();
}

mod soak {
    use super::*;

    #[test]
    #[ignore = "needs a stock guest"]
    fn two_machines_share_an_image_under_reservations() {
        let disk = Disk::empty(64 << 20);
        let shared = scsi(disk.path()).share(true);
        let mut first = LibraryGuest::boot("first", vec![shared.clone()]);
        let mut second = LibraryGuest::boot("second", vec![shared]);
        let write = "dd if=/dev/zero of=/dev/sda bs=4k count=1 oflag=direct";
        let read = "dd if=/dev/sda of=/dev/null bs=4k count=1 iflag=direct";
        first.succeed("sg_persist --out --register --param-sark=a1 /dev/sda");
        second.succeed("sg_persist --out --register --param-sark=b2 /dev/sda");
        assert!(
            second
                .succeed("sg_persist --in --read-keys /dev/sda")
                .contains("0xa1")
        );
        first.succeed("sg_persist --out --reserve --param-rk=a1 --prout-type=5 /dev/sda");
        for machine in [&mut first, &mut second] {
            machine.succeed(write);
        }
        second.succeed("sg_persist --out --register --param-rk=b2 --param-sark=0 /dev/sda");
        second.succeed(read);
        assert_ne!(second.run(write).1, 0, "no registrant any more");
        second.succeed("sg_persist --out --register --param-sark=b3 /dev/sda");
        second.succeed(
            "sg_persist --out --preempt-abort --param-rk=b3 --param-sark=a1 --prout-type=3 /dev/sda",
        );
        first.succeed("sg_turs /dev/sda; true");
        assert_ne!(first.run(read).1, 0, "fenced");
        second.succeed(write);
        first.machine.stop();
        second.machine.stop();
    }
}
