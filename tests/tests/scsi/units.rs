//! Units: addressing, listing, the first report, hot-plug, hot-unplug and resizing.

use std::sync::Arc;

use splitring_devices::disk::Disk;
use splitring_devices::disk::config::{Aio, Media};
use splitring_devices::disk::doubles::MemoryDisk;
use splitring_devices::scsi::{Scsi, ScsiConfig, ScsiError, UnitConfig};
use splitring_virtio::driver::scsi::{Lun, ReceivedEvent};
use splitring_virtio::spec::scsi::{event, response};

use splitring_tests::scsi::{LUN, ScsiGuest, ScsiImage, one};

fn disk() -> Arc<dyn Disk> {
    Arc::new(MemoryDisk::new(1 << 20))
}

fn at(target: u8, lun: u16) -> UnitConfig {
    UnitConfig::new(format!("disk{target}-{lun}"))
        .target(target)
        .lun(lun)
}

fn controller(units: Vec<UnitConfig>) -> Scsi {
    let units = units.into_iter().map(|unit| (unit, disk())).collect();
    Scsi::new(&ScsiConfig::new("scsi0"), units).unwrap()
}

const TEST_UNIT_READY: [u8; 6] = [0; 6];
const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 96, 0];

fn report_luns(guest: &mut ScsiGuest, lun: Lun, select: u8) -> Vec<[u8; 8]> {
    let data = guest
        .send(
            lun,
            &[0xa0, 0, select, 0, 0, 0, 0, 0, 4, 0, 0, 0],
            &[],
            1024,
        )
        .expect_good()
        .data;
    assert_eq!(
        u32::from_be_bytes(data[..4].try_into().unwrap()) as usize,
        data.len() - 8
    );
    data[8..]
        .chunks(8)
        .map(|lun| lun.try_into().unwrap())
        .collect()
}

#[test]
fn the_first_command_reports_power_on_except_for_those_that_never_do() {
    let mut guest = ScsiGuest::new(controller(vec![at(0, 0)]));
    guest.to(&INQUIRY, &[], 96).expect_good();
    report_luns(&mut guest, LUN, 0);
    guest.to(&TEST_UNIT_READY, &[], 0).expect_sense(6, 0x29, 0);
    guest.to(&TEST_UNIT_READY, &[], 0).expect_good();
    // REQUEST SENSE returns it as data, and clears it.
    let mut other = ScsiGuest::new(controller(vec![at(0, 0)]));
    let sense = other.to(&[3, 0, 0, 0, 18, 0], &[], 18).expect_good().data;
    assert_eq!((sense[2], sense[12], sense[13]), (6, 0x29, 0));
    other.to(&TEST_UNIT_READY, &[], 0).expect_good();
}

#[test]
fn absent_targets_and_absent_units_are_told_apart() {
    let mut guest = ScsiGuest::settled(controller(vec![at(3, 5)]));
    assert_eq!(
        guest.to(&TEST_UNIT_READY, &[], 0).response,
        response::BAD_TARGET
    );
    let zero = Lun { target: 3, unit: 0 };
    assert_eq!(
        guest.send(zero, &INQUIRY, &[], 96).expect_good().data[0],
        0x7f
    );
    guest
        .send(zero, &TEST_UNIT_READY, &[], 0)
        .expect_sense(5, 0x25, 0);
    let sense = guest
        .send(zero, &[3, 0, 0, 0, 18, 0], &[], 18)
        .expect_good()
        .data;
    assert_eq!((sense[2], sense[12]), (5, 0x25));
    // The list can be read from the unit that is absent, which is how guests find the one that is
    // present.
    assert_eq!(report_luns(&mut guest, zero, 0), [[0, 5, 0, 0, 0, 0, 0, 0]]);
}

#[test]
fn units_are_listed_in_the_addressing_method_of_their_number() {
    let luns = [0, 1, 255, 256, 16383];
    let mut guest = ScsiGuest::settled(controller(luns.map(|lun| at(7, lun)).into()));
    let expected = [[0, 0], [0, 1], [0, 255], [0x41, 0], [0x7f, 0xff]];
    let expected = expected.map(|[high, low]| [high, low, 0, 0, 0, 0, 0, 0]);
    for lun in luns {
        let lun = Lun {
            target: 7,
            unit: lun,
        };
        assert_eq!(report_luns(&mut guest, lun, 0), expected);
        guest.send(lun, &TEST_UNIT_READY, &[], 0).expect_good();
    }
    let zero = Lun { target: 7, unit: 0 };
    assert_eq!(
        report_luns(&mut guest, zero, 1),
        [[0xc1, 1, 0, 0, 0, 0, 0, 0]]
    );
    assert_eq!(report_luns(&mut guest, zero, 2).len(), luns.len() + 1);
    guest
        .send(zero, &[0xa0, 0, 9, 0, 0, 0, 0, 0, 0, 16, 0, 0], &[], 16)
        .expect_sense(5, 0x24, 0);
}

#[test]
fn addresses_and_names_are_checked() {
    let new = |units: Vec<UnitConfig>| {
        Scsi::new(
            &ScsiConfig::new("scsi0"),
            units.into_iter().map(|unit| (unit, disk())).collect(),
        )
        .err()
    };
    assert!(matches!(
        new(vec![at(0, 16384)]),
        Some(ScsiError::Lun { lun: 16384, .. })
    ));
    let twice = vec![at(1, 2), at(1, 2).id("other")];
    assert!(matches!(
        new(twice),
        Some(ScsiError::PlaceTaken {
            target: 1,
            lun: 2,
            ..
        })
    ));
    assert!(matches!(
        new(vec![at(0, 0), UnitConfig::new("disk0-0")]),
        Some(ScsiError::NameTaken { .. })
    ));
    let bad = |config: ScsiConfig| Scsi::new(&config, Vec::new()).err();
    assert!(matches!(
        bad(ScsiConfig::new("s").queues(0)),
        Some(ScsiError::Queues { .. })
    ));
    assert!(matches!(
        bad(ScsiConfig::new("s").queue_size(100)),
        Some(ScsiError::QueueSize { .. })
    ));
}

#[test]
fn a_unit_added_while_the_guest_runs_is_announced_and_usable() {
    let mut guest = ScsiGuest::settled(controller(vec![at(0, 0)]));
    let added = guest
        .handle
        .add(UnitConfig::new("new").lun(300).target(0), disk())
        .unwrap();
    assert_eq!((added.target, added.lun, added.capacity), (0, 300, 1 << 20));
    let place = Lun {
        target: 0,
        unit: 300,
    };
    let expected = ReceivedEvent {
        event: event::TRANSPORT_RESET,
        lun: Some(place),
        reason: event::RESET_RESCAN,
        missed: false,
    };
    assert_eq!(guest.event(), Some(expected));
    // The other units of the target report that the list has changed, until it is read.
    guest
        .to(&TEST_UNIT_READY, &[], 0)
        .expect_sense(6, 0x3f, 0x0e);
    guest
        .send(place, &TEST_UNIT_READY, &[], 0)
        .expect_sense(6, 0x29, 0);
    guest
        .send(place, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 512)
        .expect_good();
    guest.remove("new").unwrap();
    let expected = ReceivedEvent {
        reason: event::RESET_REMOVED,
        ..expected
    };
    assert_eq!(guest.event(), Some(expected));
    guest
        .send(place, &TEST_UNIT_READY, &[], 0)
        .expect_sense(5, 0x25, 0);
    assert_eq!(report_luns(&mut guest, LUN, 0).len(), 1);
    guest.to(&TEST_UNIT_READY, &[], 0).expect_good();
    assert!(matches!(guest.remove("new"), Err(ScsiError::NoUnit { .. })));
}

#[test]
fn a_removed_unit_releases_its_image() {
    let image = ScsiImage::default();
    let mut guest = ScsiGuest::settled(controller(Vec::new()));
    for _ in 0..3 {
        let file = image.file();
        let disk = image.open(&file);
        let weak = Arc::downgrade(&disk);
        let unit = guest.handle.add(UnitConfig::new("new"), disk).unwrap();
        let lun = Lun {
            target: unit.target,
            unit: unit.lun,
        };
        guest
            .send(lun, &TEST_UNIT_READY, &[], 0)
            .expect_sense(6, 0x29, 0);
        guest
            .send(lun, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 512)
            .expect_good();
        guest.remove("new").unwrap();
        assert!(weak.upgrade().is_none());
        // The lock is released as well.
        drop(
            ScsiImage {
                share: false,
                ..image
            }
            .open(&file),
        );
    }
}

#[test]
fn too_many_events_become_one_that_reports_the_loss() {
    let mut guest = ScsiGuest::settled(controller(vec![at(0, 0)]));
    // More than there are buffers and queue entries for.
    for target in 1..=80 {
        guest.handle.add(at(target, 0), disk()).unwrap();
    }
    let events: Vec<_> = std::iter::from_fn(|| guest.event()).collect();
    assert!(events.iter().any(|happened| happened.missed));
    assert!(events.len() < 80);
    assert_eq!(
        events.last().unwrap().lun,
        Some(Lun {
            target: 80,
            unit: 0
        })
    );
}

#[test]
fn a_resized_image_is_announced_on_its_path() {
    let (file, device) = one(ScsiImage::default(), UnitConfig::new("disk"));
    let mut guest = ScsiGuest::settled(device);
    file.as_file().set_len(8 << 20).unwrap();
    assert_eq!(guest.handle.resize("disk").unwrap(), 8 << 20);
    let happened = guest.event().unwrap();
    assert_eq!(
        (happened.event, happened.lun, happened.reason),
        (event::PARAM_CHANGE, Some(LUN), 0x092a)
    );
    guest.to(&TEST_UNIT_READY, &[], 0).expect_sense(6, 0x2a, 9);
    let data = guest
        .to(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 8)
        .expect_good()
        .data;
    assert_eq!(
        u32::from_be_bytes(data[..4].try_into().unwrap()),
        (8 << 20) / 512 - 1
    );
    assert_eq!(guest.handle.resize("disk").unwrap(), 8 << 20);
    assert_eq!(guest.event(), None, "no change, no event");
    file.as_file().set_len(1 << 20).unwrap();
    guest.handle.resize("disk").unwrap();
    guest.to(&TEST_UNIT_READY, &[], 0).expect_sense(6, 0x2a, 9);
    guest
        .to(&[0x28, 0, 0, 0, 0x10, 0, 0, 0, 1, 0], &[], 512)
        .expect_sense(5, 0x21, 0);
}

#[test]
fn hundreds_of_disks_share_the_queues_and_the_ring() {
    const DISKS: usize = 300;
    let image = ScsiImage {
        bytes: 1 << 20,
        aio: Aio::IoUring,
        ..ScsiImage::default()
    };
    let files: Vec<_> = (0..DISKS).map(|_| image.file()).collect();
    let units = files.iter().enumerate().map(|(number, file)| {
        let unit = if number < 256 {
            UnitConfig::new(format!("disk{number}"))
        } else {
            at(0, u16::try_from(number).unwrap())
        };
        (unit, image.open(file))
    });
    let config = ScsiConfig::new("scsi0").queues(2);
    let mut guest = ScsiGuest::settled(Scsi::new(&config, units.collect()).unwrap());
    let units = guest.handle.units();
    assert_eq!(units.len(), DISKS);
    let lun = |number: usize| Lun {
        target: units[number].target,
        unit: units[number].lun,
    };
    // Each disk has its own content, written on one queue and read on the other.
    for number in 0..DISKS {
        let fill = u8::try_from(number % 251).unwrap();
        guest
            .send(
                lun(number),
                &[0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0],
                &[fill; 512],
                0,
            )
            .expect_good();
    }
    for number in 0..DISKS {
        let id = guest.submit(1, lun(number), &[0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0], &[], 512);
        let fill = u8::try_from(number % 251).unwrap();
        assert_eq!(guest.wait(id).expect_good().data, vec![fill; 512]);
        guest.machine.collect();
    }
    let config: splitring_virtio::spec::scsi::Config = guest.machine.config();
    assert_eq!(
        (config.max_target.get(), config.max_lun.get()),
        (255, 16383)
    );
    assert!(matches!(
        guest.handle.add(UnitConfig::new("one more"), disk()),
        Err(ScsiError::NoTarget { .. })
    ));
}

#[test]
fn a_cdrom_is_read_only_removable_and_has_blocks_of_2048() {
    let image = ScsiImage {
        bytes: 2 << 20,
        readonly: true,
        discard: false,
        ..ScsiImage::default()
    };
    let config = UnitConfig::new("cd").media(Media::Cdrom);
    let (_file, device) = one(image, config);
    let mut guest = ScsiGuest::settled(device);
    let inquiry = guest.to(&INQUIRY, &[], 96).expect_good().data;
    assert_eq!(inquiry[..2], [5, 0x80]);
    let capacity = guest
        .to(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 8)
        .expect_good()
        .data;
    assert_eq!(
        capacity,
        [1023u32.to_be_bytes(), 2048u32.to_be_bytes()].concat()
    );
    guest
        .to(&[0x28, 0, 0, 0, 3, 0xff, 0, 0, 1, 0], &[], 2048)
        .expect_good();
    guest
        .to(&[0x28, 0, 0, 0, 4, 0, 0, 0, 1, 0], &[], 2048)
        .expect_sense(5, 0x21, 0);
    guest
        .to(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0; 2048], 0)
        .expect_sense(5, 0x20, 0);
    let toc = guest
        .to(&[0x43, 0, 0, 0, 0, 0, 0, 0, 20, 0], &[], 20)
        .expect_good()
        .data;
    assert_eq!(
        u32::from_be_bytes(toc[16..].try_into().unwrap()),
        1024,
        "lead-out"
    );
    guest
        .to(&[0x46, 0, 0, 0, 0, 0, 0, 0, 64, 0], &[], 64)
        .expect_good();
    guest
        .to(&[0x51, 0, 0, 0, 0, 0, 0, 0, 34, 0], &[], 34)
        .expect_good();
    guest
        .to(&[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 64, 0], &[], 64)
        .expect_good();
    // Ejected by hand: reported once as a changed medium, polled as a media event, and then
    // missing.
    guest.to(&[0x1b, 0, 0, 0, 2, 0], &[], 0).expect_good();
    guest.to(&TEST_UNIT_READY, &[], 0).expect_sense(2, 0x3a, 0);
    let status = guest
        .to(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0], &[], 8)
        .expect_good()
        .data;
    assert_eq!(status[4..6], [3, 0]);
    guest.handle.load("cd", true).unwrap();
    guest.to(&TEST_UNIT_READY, &[], 0).expect_sense(6, 0x28, 0);
    guest.to(&TEST_UNIT_READY, &[], 0).expect_good();
}

#[test]
fn serial_and_world_wide_name_are_the_operators() {
    let config = UnitConfig::new("disk")
        .serial("a serial number longer than twenty bytes")
        .wwn(0x5000_c500_15ea_71ac);
    let (_file, device) = one(ScsiImage::default(), config);
    let mut guest = ScsiGuest::settled(device);
    let serial = guest
        .to(&[0x12, 1, 0x80, 0, 255, 0], &[], 255)
        .expect_good()
        .data;
    assert_eq!(&serial[4..], b"a serial number longer than twenty bytes");
    let ids = guest
        .to(&[0x12, 1, 0x83, 0, 255, 0], &[], 255)
        .expect_good()
        .data;
    assert!(
        ids.windows(8)
            .any(|bytes| bytes == 0x5000_c500_15ea_71ac_u64.to_be_bytes())
    );
}

#[test]
fn requests_of_a_unit_are_counted_by_kind() {
    let mut guest = ScsiGuest::settled(controller(vec![at(0, 0)]));
    guest
        .to(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 2, 0], &[1; 1024], 0)
        .expect_good();
    guest
        .to(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[], 512)
        .expect_good();
    guest
        .to(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 0)
        .expect_good();
    guest
        .to(&[0x28, 0, 0xff, 0, 0, 0, 0, 0, 1, 0], &[], 512)
        .expect_sense(5, 0x21, 0);
    let [(id, totals)] = &guest.handle.totals()[..] else {
        panic!("one unit");
    };
    assert_eq!(id, "disk0-0");
    assert_eq!((totals.write.requests, totals.write.bytes), (1, 1024));
    assert_eq!(
        (totals.read.requests, totals.read.bytes, totals.read.errors),
        (1, 512, 0)
    );
    assert_eq!(totals.flush.requests, 1);
}
