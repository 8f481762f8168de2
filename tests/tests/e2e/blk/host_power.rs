//! Power cuts of the host: dm-log-writes records what the host's kernel writes to its block
//! devices, the VMM is killed, and the disks are restored to the last flush or FUA write before the
//! cut. The host's page cache is lost as well, so this tests the real backends and their fdatasync.
//! Needs root and the modules, which the lab has.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use splitring_needs as needs;
use splitring_tests::assets::Disk;
use splitring_tests::guest::Guest;

use crate::blk::block::Loop;
use crate::blk::disks::{MIB, device, guest};
use crate::blk::mapped::Mapped;
use crate::blk::power::{check, wait_for_all, writer};

const BYTES: u64 = 24 * MIB;
/// Enough for everything that a round writes.
const LOG_BYTES: u64 = 256 * MIB;
const TIMEOUT: Duration = Duration::from_secs(60);

/// Block size of the log, which is that of the disks.
const BLOCK: u64 = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// How writes become stable on one of the disks.
struct DiskSetup {
    id: &'static str,
    keys: &'static str,
    /// The guest does not send flushes. If such a disk passed, the test would prove nothing.
    drops_flushes: bool,
}

const DISK_SETUPS: [DiskSetup; 5] = [
    DiskSetup {
        id: "flush",
        keys: ",aio=io_uring",
        drops_flushes: false,
    },
    DiskSetup {
        id: "direct",
        keys: ",aio=io_uring,direct=on",
        drops_flushes: false,
    },
    DiskSetup {
        id: "through",
        keys: ",aio=threads,cache=writethrough",
        drops_flushes: false,
    },
    DiskSetup {
        id: "fua",
        keys: ",aio=io_uring,direct=on,cache=writethrough",
        drops_flushes: false,
    },
    DiskSetup {
        id: "drops_flushes",
        keys: "",
        drops_flushes: true,
    },
];

/// One write in the log.
struct LoggedWrite {
    /// First block and number of blocks on the disk.
    start: u64,
    count: u64,
    flags: u64,
    /// Offset of its data in the log.
    data: u64,
}

/// Returns the writes in a log so far. The kernel updates their number only at a FUA write or a
/// mark.
fn logged_writes(log: &File) -> Vec<LoggedWrite> {
    let number = |at: u64| {
        let mut bytes = [0; 8];
        log.read_exact_at(&mut bytes, at).expect("a log");
        u64::from_le_bytes(bytes)
    };
    let count = if number(0) == MAGIC { number(16) } else { 0 };
    let mut at = BLOCK;
    let mut next = || {
        let (start, count, flags) = (number(at), number(at + 8), number(at + 16));
        let data = at + BLOCK;
        let stored = if flags & DISCARD == 0 { count } else { 0 };
        at = data + stored * BLOCK;
        LoggedWrite {
            start,
            count,
            flags,
            data,
        }
    };
    (0..count).map(|_| next()).collect()
}

/// Applies the log to `image`, up to the last flush or FUA write before the mark.
fn replay(log: &File, image: &mut [u8]) {
    let mut entries = logged_writes(log);
    let cut = entries.iter().position(|entry| entry.flags & MARK != 0);
    entries.truncate(cut.expect("a mark"));
    let stable = |entry: &LoggedWrite| entry.flags & (FLUSH | FUA) != 0;
    let end = entries.iter().rposition(stable).map_or(0, |last| last + 1);
    for entry in &entries[..end] {
        let offset = |block: u64| usize::try_from(block * BLOCK).expect("64 bits");
        let place = &mut image[offset(entry.start)..offset(entry.start + entry.count)];
        match entry.flags & DISCARD {
            0 => log.read_exact_at(place, entry.data).expect("its data"),
            _ => place.fill(0),
        }
    }
}

/// A block device whose writes are logged.
struct LoggedDisk {
    mapped: Mapped,
    _below: Loop,
    log: Loop,
}

impl LoggedDisk {
    /// Creates a device that contains `image`.
    fn new(id: &str, image: &[u8]) -> Self {
        let below = Loop::new(BYTES, 512);
        open(&below.file).write_all_at(image, 0).expect("room");
        let log = Loop::new(LOG_BYTES, 512);
        let table = format!(
            "0 {} log-writes {} {}",
            BYTES / BLOCK,
            below.device.display(),
            log.device.display()
        );
        Self {
            mapped: Mapped::new(id, &table),
            _below: below,
            log,
        }
    }

    /// Marks the power cut in the log. Everything that has been acknowledged is before the mark.
    fn mark(&self) {
        self.mapped.message(&["mark", "cut"]);
        let log = open(&self.log.file);
        let started = Instant::now();
        while !logged_writes(&log)
            .iter()
            .any(|entry| entry.flags & MARK != 0)
        {
            assert!(
                started.elapsed() < TIMEOUT,
                "{}: no mark",
                self.mapped.name()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Removes the device, and applies the log to `image`.
    fn cut(self, image: &mut [u8]) {
        // The log is complete once the device is removed; a killed VMM may hold the device a little
        // longer.
        self.mapped.remove();
        replay(&open(&self.log.file), image);
    }
}

fn open(disk: &Disk) -> File {
    let file = File::options().read(true).write(true).open(disk.path());
    file.expect("a file in memory")
}

/// A machine, its logged disks and its root disk.
struct LoggedMachine {
    guest: Guest,
    disks: Vec<LoggedDisk>,
    _root: Disk,
}

impl LoggedMachine {
    fn boot(images: &[Vec<u8>]) -> Self {
        let setups = DISK_SETUPS.iter().zip(images);
        let disks: Vec<LoggedDisk> = setups
            .map(|(setup, image)| LoggedDisk::new(setup.id, image))
            .collect();
        let (mut launch, root) = guest();
        for (setup, disk) in DISK_SETUPS.iter().zip(&disks) {
            launch = launch.disk(&disk.mapped.device(), setup.keys);
        }
        Self {
            guest: launch.boot(),
            disks,
            _root: root,
        }
    }

    /// Makes a file system on a disk and mounts it.
    fn format(&mut self, device: &str, dir: &str) {
        self.guest.succeed(&format!(
            "mkfs.ext4 -F -q -b 1024 {device} && mkdir -p {dir} && mount {device} {dir} && sync -f {dir}"
        ));
    }

    /// Stops the guest from sending flushes to a disk.
    fn drop_flushes(&mut self, device: &str) {
        let name = device.trim_start_matches("/dev/");
        self.guest.succeed(&format!(
            "echo write through >/sys/block/{name}/queue/write_cache"
        ));
    }

    /// Lets the guest write to all disks, and cuts the power in the middle.
    fn write_and_cut(mut self, images: &mut [Vec<u8>], round: u32) {
        let loops: Vec<String> = disks()
            .map(|(setup, _, dir)| writer(setup.id, &dir, round))
            .collect();
        self.guest
            .type_line(&format!("{} sleep 600", loops.join(" ")));
        let ids = DISK_SETUPS.map(|setup| setup.id);
        wait_for_all(&ids, || self.guest.wait_for_line("stable "));
        for disk in &self.disks {
            disk.mark();
        }
        self.guest.signal("KILL");
        self.guest.finish();
        for (disk, image) in self.disks.drain(..).zip(images) {
            disk.cut(image);
        }
    }
}

/// Returns the device file and the mount point of each disk.
fn disks() -> impl Iterator<Item = (&'static DiskSetup, String, String)> {
    let place = |(index, setup): (usize, &'static DiskSetup)| {
        (setup, device(index), format!("/mnt/{}", setup.id))
    };
    (1..).zip(&DISK_SETUPS).map(place)
}

fn rounds(range: std::ops::Range<u32>) {
    if !needs::device_mapper("dm_log_writes") {
        return;
    }
    let blank = vec![0; usize::try_from(BYTES).expect("64 bits")];
    let mut images = DISK_SETUPS.map(|_| blank.clone());
    let mut machine = LoggedMachine::boot(&images);
    for (setup, device, dir) in disks() {
        machine.format(&device, &dir);
        if setup.drops_flushes {
            machine.drop_flushes(&device);
        }
    }
    for round in range {
        machine.write_and_cut(&mut images, round);
        machine = LoggedMachine::boot(&images);
        for (setup, device, dir) in disks() {
            let line = |line: &str| {
                let reply = machine.guest.run(line);
                (reply.output, reply.status)
            };
            let checked = check(line, &device, &dir, round);
            if setup.drops_flushes {
                assert!(checked.is_err(), "the test would not notice a lost flush");
                machine.guest.run(&format!("umount {dir}"));
                machine.format(&device, &dir);
                machine.drop_flushes(&device);
            } else {
                assert_eq!(checked, Ok(()), "{}, round {round}", setup.id);
            }
        }
    }
    machine.guest.power_off();
}

#[test]
#[ignore = "needs a stock guest"]
fn flushed_data_survives_the_loss_of_the_hosts_page_cache() {
    rounds(1..4);
}

mod soak {
    use super::*;

    tens!(
        host_power_cuts_100 100, host_power_cuts_110 110, host_power_cuts_120 120,
        host_power_cuts_130 130, host_power_cuts_140 140, host_power_cuts_150 150,
        host_power_cuts_160 160, host_power_cuts_170 170, host_power_cuts_180 180,
        host_power_cuts_190 190
    );
}
