//! A disk that fails, delays and reorders requests of a stock guest: a failure is an error in the
//! guest and nothing more, and late or reordered requests have the right data.

use std::sync::Arc;

use splitring::Resources;
use splitring::config::DiskConfig;
use splitring_devices::disk::doubles::{Fate, FaultyDisk, MemoryDisk, Seen};
use splitring_devices::disk::{Disk, IoFault};
use splitring_tests::library::LibraryGuest;

const BYTES: u64 = 24 << 20;
/// Offset of the requests that are to fail: beyond what the kernel reads by itself.
const BAD: u64 = 8 << 20;

/// Boots a machine with this disk as /dev/vdb.
fn boot() -> (LibraryGuest, Arc<FaultyDisk>) {
    let disk = Arc::new(FaultyDisk::new(Arc::new(MemoryDisk::new(BYTES))));
    let shared: Arc<dyn Disk> = Arc::<FaultyDisk>::clone(&disk);
    let config = DiskConfig::new("faulty").id("faulty");
    let own = Resources::options().disk("faulty", shared);
    (LibraryGuest::boot_with("faults", vec![config], own), disk)
}

fn touches(seen: Seen, place: u64) -> bool {
    matches!(seen, Seen::Read(at) | Seen::Write(at, _) if at == place)
}

#[test]
#[ignore = "needs a stock guest"]
fn a_host_error_fails_only_its_request() {
    let (mut guest, disk) = boot();
    let block = BAD / 4096;
    let write = format!("dd if=/dev/zero of=/dev/vdb bs=4k count=1 seek={block} oflag=direct 2>&1");
    let read = format!("dd if=/dev/vdb of=/dev/null bs=4k count=1 skip={block} iflag=direct 2>&1");
    let faults = [
        IoFault::Host(libc::EIO),
        IoFault::NoSpace,
        IoFault::Short,
        IoFault::Host(libc::EAGAIN),
    ];
    for fault in faults {
        disk.rule(move |seen| match touches(seen, BAD) {
            true => Fate::Fail(fault),
            false => Fate::Pass,
        });
        for line in [&write, &read] {
            let (output, status) = guest.run(line);
            assert_ne!(status, 0, "{fault}: {output}");
            assert!(output.contains("Input/output error"), "{fault}: {output}");
        }
        // Requests for other blocks succeed.
        guest.succeed("dd if=/dev/zero of=/dev/vdb bs=4k count=8 oflag=direct 2>&1");
    }
    disk.rule(|seen| match seen {
        Seen::Flush => Fate::Fail(IoFault::FlushLost),
        _ => Fate::Pass,
    });
    let (output, status) =
        guest.run("dd if=/dev/zero of=/dev/vdb bs=4k count=1 oflag=direct conv=fsync 2>&1");
    assert_ne!(
        status, 0,
        "a failed flush must not be reported as complete: {output}"
    );
    disk.rule(|_| Fate::Pass);
    guest.succeed(&write);
    guest.succeed(&read);
    guest.machine.stop();
}

#[test]
#[ignore = "needs a stock guest"]
fn a_file_system_recovers_when_its_failing_disk_does() {
    let (mut guest, disk) = boot();
    guest.succeed("mkfs.ext4 -q /dev/vdb && mkdir -p /mnt && mount /dev/vdb /mnt");
    guest.succeed("echo kept >/mnt/kept && sync");
    disk.rule(|seen| match seen {
        Seen::Write(..) => Fate::Fail(IoFault::NoSpace),
        _ => Fate::Pass,
    });
    let (output, status) =
        guest.run("dd if=/dev/zero of=/mnt/lost bs=64k count=16 conv=fsync 2>&1");
    assert_ne!(status, 0, "{output}");
    disk.rule(|_| Fate::Pass);
    guest.run("umount /mnt");
    // Replays the journal, or repairs what the kernel has marked.
    let (output, status) = guest.run("fsck.ext4 -f -y /dev/vdb 2>&1");
    assert!(status <= 1, "{status}: {output}");
    guest.succeed("mount /dev/vdb /mnt && [ $(cat /mnt/kept) = kept ]");
    guest.succeed("dd if=/dev/zero of=/mnt/new bs=64k count=16 conv=fsync 2>&1 && umount /mnt");
    guest.succeed("fsck.ext4 -f -n /dev/vdb 2>&1");
    guest.machine.stop();
}

#[test]
#[ignore = "needs a stock guest"]
fn late_and_reordered_requests_have_their_own_data() {
    let (mut guest, disk) = boot();
    let mut number = 0_u32;
    disk.rule(move |_| {
        number = number.wrapping_add(1);
        match number % 7 {
            0 | 3 => Fate::Pass,
            turns => Fate::Delay(turns * 3),
        }
    });
    guest.succeed(
        "fio --eta=never --name=late --filename=/dev/vdb --rw=randrw --bsrange=512-16k --size=4M --direct=1 --ioengine=libaio \
         --iodepth=32 --verify=crc32c --verify_fatal=1 --output=/tmp/fio || { cat /tmp/fio; false; }",
    );
    guest.succeed("mkfs.ext4 -q /dev/vdb && fsck.ext4 -f -n /dev/vdb 2>&1");
    guest.machine.stop();
}
