//! SCSI disks that come, go and change size under a running stock guest, and machines that share one: with Splitring
//! as a library in this process.
//!
//! Run by `cargo xtask test`, which knows where a stock kernel can run.

use std::path::Path;

use splitring::config::DiskConfig;
use splitring_devices::disk::config::Bus;
use splitring_tests::assets::Disk;
use splitring_tests::live::Live;

fn scsi(path: &Path) -> DiskConfig {
    DiskConfig {
        bus: Bus::Scsi,
        ..DiskConfig::new(path)
    }
}

#[test]
#[ignore = "needs a stock guest"]
fn scsi_disks_come_grow_and_go_under_load_without_a_rescan() {
    let (first, second) = (Disk::empty(64 << 20), Disk::empty(64 << 20));
    let mut live = Live::boot("live", vec![scsi(first.path())]);
    let controller = live.machine.scsi().remove(0);
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
        live.until("[ -b /dev/sdb ]");
        live.succeed(
            "(fio --name=load --filename=/dev/sdb --size=32M --rw=randrw --direct=1 --ioengine=libaio --iodepth=8 \
             --time_based --runtime=600 >/tmp/fio 2>&1 &) ; sleep 1",
        );
        std::fs::File::options()
            .write(true)
            .open(second.path())
            .and_then(|file| file.set_len(2 * size))
            .expect("grown");
        assert_eq!(controller.resize("second").expect("resized"), 2 * size);
        live.until(&format!(
            "[ $(cat /sys/block/sdb/size) = {} ]",
            2 * size / 512
        ));
        controller.remove("second").expect("removed");
        live.until("[ ! -e /sys/block/sdb ]");
        live.succeed("killall fio 2>/dev/null; sleep 1; true");
        // Its image is nobody's any more, and the other disk has not noticed.
        let alone = std::fs::File::options()
            .write(true)
            .open(second.path())
            .expect("opened");
        alone.set_len(size).expect("free");
        live.succeed("dd if=/dev/sda of=/dev/null bs=1M count=8 iflag=direct");
        println!("round {round} done");
    }
    live.machine.stop();
}

#[test]
#[ignore = "needs a stock guest"]
fn scsi_two_machines_share_an_image_under_reservations() {
    let disk = Disk::empty(64 << 20);
    let shared = DiskConfig {
        share: true,
        ..scsi(disk.path())
    };
    let mut first = Live::boot("first", vec![shared.clone()]);
    let mut second = Live::boot("second", vec![shared]);
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
