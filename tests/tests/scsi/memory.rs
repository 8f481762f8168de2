//! Memory use of hundreds of disks on one controller.

use splitring_devices::disk::config::Aio;
use splitring_devices::scsi::{Scsi, ScsiConfig, UnitConfig};
use splitring_virtio::driver::scsi::Lun;

use splitring_tests::scsi::{ScsiGuest, ScsiImage};

/// Returns this process's resident memory in KiB, without files. Each test runs in its own process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .expect("a size")
}

/// Measures 256 disks that were opened, attached and read once, with the guest memory that this
/// needs.
fn disks_take_little_memory(aio: Aio) {
    const DISKS: u16 = 256;
    const LIMIT_KIB: u64 = 4 << 10;
    let image = ScsiImage {
        bytes: 1 << 20,
        aio,
        ..ScsiImage::default()
    };
    let files: Vec<_> = (0..DISKS).map(|_| image.file()).collect();
    let before = resident();
    let units = files
        .iter()
        .zip(0..)
        .map(|(file, number)| (UnitConfig::new(format!("disk{number}")), image.open(file)));
    let config = ScsiConfig::new("scsi0");
    let mut guest = ScsiGuest::settled(Scsi::new(&config, units.collect()).unwrap());
    let units = guest.handle.units();
    assert_eq!(units.len(), usize::from(DISKS));
    for unit in units {
        let lun = Lun {
            target: unit.target,
            unit: unit.lun,
        };
        guest
            .send(lun, &[0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0], &[], 512)
            .expect_good();
    }
    let taken = resident() - before;
    println!("{aio:?}: {DISKS} disks take {taken} KiB");
    assert!(taken < LIMIT_KIB, "{taken} KiB");
}

#[test]
fn hundreds_of_disks_with_a_queue_each_take_little_memory() {
    disks_take_little_memory(Aio::Threads);
}

#[test]
fn hundreds_of_disks_in_one_ring_take_little_memory() {
    disks_take_little_memory(Aio::IoUring);
}
