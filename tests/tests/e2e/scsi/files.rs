//! File systems on SCSI disks, and data on the disks themselves.

use splitring_tests::assets::{Disk, Image, Kernel};
use splitring_tests::guest::{Guest, Launch};

use crate::scsi::{boot, guest, launch};

/// Boots a guest whose root is on a SCSI disk.
fn rooted(root: &Disk, kind: &str) -> Guest {
    let kernel = Kernel::named("6.12-cloud");
    let launch = Launch::new(&kernel, Image::Vmlinux);
    launch.scsi_root_disk(root.path(), kind).boot()
}

/// Checks that the content of a root disk survives a restart.
fn keeps(root: &Disk, kind: &str) {
    let mut guest = rooted(root, kind);
    let mounts = guest.succeed("grep ' / ' /proc/mounts");
    assert!(mounts.contains(&format!("/ {kind} rw")), "{mounts}");
    guest.succeed(
        "head -c 4000000 /dev/urandom >/root/kept && sha256sum /root/kept >/root/sum && sync",
    );
    guest.power_off();
    let mut guest = rooted(root, kind);
    guest.succeed("sha256sum -c /root/sum && dmesg | grep -c 'sda.*Attached SCSI disk'");
    guest.power_off();
}

#[test]
#[ignore = "needs a stock guest"]
fn a_guest_boots_from_an_ext4_root() {
    keeps(&Disk::copy_of("root"), "ext4");
}

/// Configurations, each on a separate controller, and the fio job for each.
const SAMPLE: [(&str, &str); 6] = [
    ("", "--rw=randwrite --bs=4k --iodepth=32 --direct=1"),
    (
        ",controller=1,queue-size=16,aio=io_uring",
        "--rw=randwrite --bsrange=512-16k --iodepth=8 --direct=1",
    ),
    (
        ",controller=2,queue-size=64,queues=4,block-size=4096",
        "--rw=randwrite --bsrange=4k-128k --iodepth=128 --direct=1",
    ),
    (
        ",controller=3,queue-size=1024,queues=2,block-size=4096,aio=io_uring,direct=on",
        "--rw=randwrite --bs=64k --iodepth=16 --direct=1",
    ),
    (
        ",controller=4,aio=threads,cache=writethrough",
        "--rw=write --bs=4k --iodepth=1 --direct=0 --fsync=64",
    ),
    (
        ",controller=5,aio=io_uring,iops=100000",
        "--rw=randtrimwrite --bs=4k --iodepth=16 --direct=1",
    ),
];

mod soak {
    use super::*;

    #[test]
    #[ignore = "needs a stock guest"]
    fn file_systems_keep_their_data_and_trim_frees_space() {
        use std::os::unix::fs::MetadataExt;
        let disk = Disk::empty(1 << 30);
        let (_root, mut guest) = guest(&[(&disk, ",queues=1")]);
        for (make, name) in [("mkfs.ext4 -q -F", "ext4"), ("mkfs.xfs -q -f", "xfs")] {
            guest.succeed(&format!(
                "{make} /dev/sda && mkdir -p /mnt && mount -t {name} /dev/sda /mnt"
            ));
            guest.succeed(
                "fio --name=v --directory=/mnt --size=64M --rw=randrw --bsrange=512-128k --direct=1 --ioengine=libaio \
                 --iodepth=16 --verify=crc32c --do_verify=1 --randrepeat=0 --minimal >/tmp/fio",
            );
            guest.succeed("rm -rf /mnt/* && sync");
            let before = std::fs::metadata(disk.path()).expect("there").blocks();
            guest.succeed("fstrim -v /mnt && umount /mnt");
            let after = std::fs::metadata(disk.path()).expect("there").blocks();
            assert!(
                after + (32 << 20) / 512 < before,
                "{name}: {before} to {after} blocks"
            );
            let check = if name == "ext4" {
                "fsck.ext4 -f -n"
            } else {
                "xfs_repair -n"
            };
            guest.succeed(&format!("{check} /dev/sda"));
        }
        guest.power_off();
    }

    #[test]
    #[ignore = "needs a stock guest"]
    fn a_guest_boots_from_an_xfs_root() {
        let (ext4, xfs) = (Disk::copy_of("root"), Disk::empty(640 << 20));
        let (_root, launch) = launch();
        let mut guest = boot(launch.disk(ext4.path(), ",readonly=on"), &[(&xfs, "")]);
        guest.succeed("mkfs.xfs -q -f /dev/sda && mkdir -p /mnt /old");
        guest.succeed("mount -t xfs /dev/sda /mnt && mount -o ro,noload /dev/vdb /old");
        guest.succeed("cp -a /old/. /mnt && umount /mnt");
        guest.power_off();
        keeps(&xfs, "xfs");
    }

    #[test]
    #[ignore = "needs a stock guest"]
    fn data_is_read_as_written_in_a_sample_of_all_configurations() {
        let images: Vec<Disk> = SAMPLE.iter().map(|_| Disk::empty(32 << 20)).collect();
        let disks: Vec<_> = images.iter().zip(SAMPLE.map(|(keys, _)| keys)).collect();
        let (_root, launch) = launch();
        let mut guest = boot(launch.memory("768M").cpus(2), &disks);
        for (host, (keys, options)) in SAMPLE.iter().enumerate() {
            // Linux scans controllers at the same time: the names sdX are not known in advance.
            let file = guest.succeed(&format!(
                "ls /sys/class/scsi_device/{host}:0:0:0/device/block"
            ));
            println!("{keys}: {}", file.trim());
            guest.succeed(&format!(
                "fio --name=verify --filename=/dev/{} --verify=crc32c --verify_fatal=1 --ioengine=libaio --size=24M \
                 --randrepeat=1 --eta=never --output=/tmp/fio {options} || {{ cat /tmp/fio; false; }}",
                file.trim()
            ));
        }
        let exit = guest.power_off();
        assert_eq!(exit.errors, "", "nothing to report");
    }
}
