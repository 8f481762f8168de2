//! SCSI disks in stock guests: an independent conformance suite, sg3-utils, file systems, a CD-ROM,
//! reservations, many disks, hot-plug and hot-unplug.

mod cdrom;
mod conformance;
mod files;
mod hotplug;
mod many;
mod sharing;
mod suite;
mod tools;

use splitring_tests::assets::{Disk, Image, Kernel};
use splitring_tests::guest::{Guest, Launch};

/// Returns what every guest here boots: a kernel, and tools on its root disk.
fn launch() -> (Disk, Launch) {
    let root = Disk::copy_of("tools");
    let kernel = Kernel::named("6.12-cloud");
    let launch = Launch::new(&kernel, Image::Vmlinux).root_disk(root.path());
    (root, launch)
}

/// Boots a guest with tools and these SCSI disks, each with its keys.
fn guest(disks: &[(&Disk, &str)]) -> (Disk, Guest) {
    let (root, launch) = launch();
    (root, boot(launch, disks))
}

/// Boots with these SCSI disks and waits until the guest has found them.
fn boot(mut launch: Launch, disks: &[(&Disk, &str)]) -> Guest {
    for (disk, keys) in disks {
        launch = launch.disk(disk.path(), &format!(",bus=scsi{keys}"));
    }
    let mut guest = launch.boot();
    // Linux scans for disks asynchronously, which may take longer than the start of process 1.
    let count = disks.len();
    guest.succeed(&format!(
        "for n in $(seq 150); do [ $(ls -d /sys/block/s[dr]* 2>/dev/null | wc -l) = {count} ] && break; sleep 1; done"
    ));
    guest
}
