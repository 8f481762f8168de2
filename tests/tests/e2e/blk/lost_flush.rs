//! A medium below the host's page cache that fails for a while. The kernel reports that once and
//! then considers the lost pages clean, so no flush may succeed after one that failed, whatever the
//! backend.

use std::fs::File;
use std::path::Path;

use splitring::config::DiskConfig;
use splitring_devices::disk;
use splitring_devices::disk::config::{Aio, Format};
use splitring_devices::scsi::{Scsi, ScsiConfig, UnitConfig};
use splitring_needs as needs;
use splitring_tests::library::LibraryGuest;

use crate::blk::block::{Loop, run};
use crate::blk::disks::{MIB, device};
use crate::blk::mapped::Mapped;
use splitring_tests::scsi::{Answer, LUN, ScsiGuest};

const BYTES: u64 = 16 * MIB;
const SECTORS: u64 = BYTES / 512;

/// A disk on such a medium.
struct DiskSetup {
    id: &'static str,
    keys: fn(&mut DiskConfig),
    /// Writes go to the host's page cache. With O_DIRECT the writes themselves fail, and nothing is
    /// lost later.
    cached: bool,
}

const DISK_SETUPS: [DiskSetup; 6] = [
    DiskSetup {
        id: "ring",
        keys: |disk| disk.aio = Aio::IoUring,
        cached: true,
    },
    DiskSetup {
        id: "plain",
        keys: |disk| disk.aio = Aio::Threads,
        cached: true,
    },
    DiskSetup {
        id: "ring4",
        keys: |disk| (disk.aio, disk.queues) = (Aio::IoUring, Some(4)),
        cached: true,
    },
    DiskSetup {
        id: "plain4",
        keys: |disk| (disk.aio, disk.queues) = (Aio::Threads, Some(4)),
        cached: true,
    },
    DiskSetup {
        id: "direct",
        keys: |disk| disk.direct = true,
        cached: false,
    },
    DiskSetup {
        id: "qcow2",
        keys: |disk| disk.format = Format::Qcow2,
        cached: true,
    },
];

impl DiskSetup {
    fn is_qcow2(&self) -> bool {
        self.id == "qcow2"
    }

    /// Makes an image on the medium.
    fn format(&self, medium: &FailingMedium) {
        if self.is_qcow2() {
            let path = medium.mapped.device().display().to_string();
            run("qemu-img", &["create", "-q", "-f", "qcow2", &path, "8M"]);
        }
    }
}

/// A medium that can fail.
struct FailingMedium {
    mapped: Mapped,
    below: Loop,
}

impl FailingMedium {
    fn new(id: &str) -> Self {
        let below = Loop::new(BYTES, 512);
        let mapped = Mapped::new(id, &sound(&below.device));
        Self { mapped, below }
    }

    /// Has what is cached written back, by somebody with a description of his own. Whether that
    /// went well.
    fn write_back(&self) -> bool {
        let mut options = File::options();
        let file = options.write(true).open(self.mapped.device());
        file.expect("the device").sync_data().is_ok()
    }

    fn fail(&self, fails: bool) {
        let table = match fails {
            true => format!("0 {SECTORS} error"),
            false => sound(&self.below.device),
        };
        self.mapped.become_as(&table);
    }
}

fn sound(below: &Path) -> String {
    format!("0 {SECTORS} linear {} 0", below.display())
}

fn boot(media: &[FailingMedium]) -> LibraryGuest {
    let config = |(setup, medium): (&DiskSetup, &FailingMedium)| {
        let mut disk = DiskConfig::new(medium.mapped.device()).id(setup.id);
        (setup.keys)(&mut disk);
        disk
    };
    LibraryGuest::boot("lost", DISK_SETUPS.iter().zip(media).map(config).collect())
}

/// Returns the disks and their device files in the guest.
fn disks() -> impl Iterator<Item = (&'static DiskSetup, String)> {
    (1..)
        .zip(&DISK_SETUPS)
        .map(|(index, setup): (usize, &'static DiskSetup)| (setup, device(index)))
}

#[test]
#[ignore = "needs a stock guest"]
fn no_flush_succeeds_after_one_that_lost_cached_data() {
    if !needs::device_mapper("dm_mod") {
        return;
    }
    let media = DISK_SETUPS.map(|setup| FailingMedium::new(setup.id));
    for (setup, medium) in DISK_SETUPS.iter().zip(&media) {
        setup.format(medium);
    }
    let mut guest = boot(&media);
    let write = |path: &str| {
        format!("dd if=/dev/urandom of={path} bs=64k count=4 oflag=direct 2>/dev/null")
    };
    for (_, path) in disks() {
        guest.succeed(&format!("{} && sync {path}", write(&path)));
    }
    for medium in &media {
        medium.fail(true);
    }
    let flushed = |guest: &mut LibraryGuest, path: &str| {
        guest.run(&format!("sync {path} 2>/dev/null")).1 == 0
    };
    for (setup, path) in disks() {
        let (_, status) = guest.run(&write(&path));
        assert_eq!(status == 0, setup.cached, "{}: written", setup.id);
        if setup.cached {
            assert!(
                !flushed(&mut guest, &path),
                "{}: it is not stable",
                setup.id
            );
        }
    }
    for medium in &media {
        medium.fail(false);
    }
    for (setup, path) in disks() {
        guest.succeed(&write(&path));
        for _ in 0..2 {
            let succeeded = flushed(&mut guest, &path);
            assert_eq!(
                succeeded, !setup.cached,
                "{}: lost data stays lost",
                setup.id
            );
        }
    }
    guest.machine.stop();
    drop(guest);

    // After a new start the disks have what is on the medium.
    let mut guest = boot(&media);
    for (_, path) in disks() {
        guest.succeed(&format!("{} && sync {path}", write(&path)));
    }
    guest.machine.stop();
}

/// Each backend once, for a controller has the number of queues.
fn backends() -> impl Iterator<Item = &'static DiskSetup> {
    DISK_SETUPS.iter().filter(|setup| !setup.id.ends_with('4'))
}

/// A controller with such a disk, and a driver of as many queues.
fn controller(setup: &DiskSetup, medium: &FailingMedium, queues: u16) -> ScsiGuest {
    let mut config = DiskConfig::new(medium.mapped.device()).id(setup.id);
    (setup.keys)(&mut config);
    let disk = disk::open_shared(&config, queues).expect("opened");
    let mut controller = ScsiConfig::new("scsi0");
    controller.queues = queues;
    let units = vec![(UnitConfig::new("disk"), disk)];
    ScsiGuest::settled(Scsi::new(&controller, units).expect("a controller"))
}

/// WRITE (10) of 4 KiB.
fn write(guest: &mut ScsiGuest, queue: usize, fua: bool) -> Answer {
    let lba = u8::try_from(queue).expect("few") * 8;
    let cdb = [0x2a, u8::from(fua) << 3, 0, 0, 0, lba, 0, 0, 8, 0];
    let id = guest.submit(queue, LUN, &cdb, &[7; 4096], 0);
    guest.wait(id)
}

/// SYNCHRONIZE CACHE (10).
fn flush(guest: &mut ScsiGuest, queue: usize) -> Answer {
    let id = guest.submit(queue, LUN, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0);
    guest.wait(id)
}

#[test]
#[ignore = "needs the lab's storage"]
fn what_a_write_with_fua_is_told_was_lost_fails_every_later_flush_of_all_queues() {
    if !needs::device_mapper("dm_mod") {
        return;
    }
    for (setup, queues) in backends().flat_map(|setup| [(setup, 1), (setup, 4)]) {
        let name = format!("{} with {queues} queues", setup.id);
        let medium = FailingMedium::new("fua");
        setup.format(&medium);
        let mut guest = controller(setup, &medium, queues);
        let all = 0..usize::from(queues);
        for queue in all.clone() {
            write(&mut guest, queue, true).expect_good();
            flush(&mut guest, queue).expect_good();
        }

        // The first write is lost once the host writes it back, and nobody has asked yet.
        if setup.cached {
            write(&mut guest, 0, false).expect_good();
        }
        medium.fail(true);
        if setup.cached {
            assert!(!medium.write_back(), "{name}: it is written back");
        } else {
            let failed = write(&mut guest, 0, true);
            failed.expect_sense(0x03, 0x0c, 0);
        }
        medium.fail(false);

        for queue in all.clone() {
            let told = write(&mut guest, queue, true);
            assert_eq!(told.good(), !setup.cached, "{name}: {queue}: {told:x?}");
        }
        // What is written from here on by itself is stable; the tables of a qcow2 image are not.
        for queue in all.clone() {
            let again = write(&mut guest, queue, true);
            assert_eq!(
                again.good(),
                !setup.is_qcow2(),
                "{name}: {queue}: {again:x?}"
            );
        }
        for queue in all.clone().chain(all) {
            let flushed = flush(&mut guest, queue);
            assert_eq!(
                flushed.good(),
                !setup.cached,
                "{name}: {queue}: {flushed:x?}"
            );
        }
    }
}

#[test]
#[ignore = "needs the lab's storage"]
fn what_a_flush_is_told_was_lost_fails_every_later_flush_of_all_queues() {
    if !needs::device_mapper("dm_mod") {
        return;
    }
    let cached = backends().filter(|setup| setup.cached);
    for (setup, queues) in cached.flat_map(|setup| [(setup, 1), (setup, 4)]) {
        let name = format!("{} with {queues} queues", setup.id);
        let medium = FailingMedium::new("flush");
        setup.format(&medium);
        let mut guest = controller(setup, &medium, queues);
        let last = usize::from(queues) - 1;
        write(&mut guest, 0, false).expect_good();
        medium.fail(true);
        flush(&mut guest, last).expect_sense(0x03, 0x0c, 0);
        medium.fail(false);
        for queue in (0..=last).chain(0..=last) {
            write(&mut guest, queue, false).expect_good();
            let flushed = flush(&mut guest, queue);
            assert!(!flushed.good(), "{name}: queue {queue} believes it");
        }
    }
}
