//! A machine that restarts with the same disks, and machines that share nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use splitring_devices::disk::config::{Aio, Bus, DiskConfig, Media};
use splitring_devices::disk::doubles::MemoryDisk;
use splitring_devices::disk::{self, Disk};
use splitring_devices::scsi::{self, OpenController, ScsiConfig, ScsiError, UnitConfig};
use splitring_virtio::driver::scsi::Lun;
use tempfile::NamedTempFile;

use splitring_tests::scsi::{ScsiGuest, ScsiImage};

const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const SECOND: Lun = Lun { target: 1, unit: 0 };
const MODE_SENSE_CONTROL: [u8; 6] = [0x1a, 8, 0x0a, 0, 64, 0];
const EJECT: [u8; 6] = [0x1b, 0, 0, 0, 2, 0];

fn scsi_disk(file: &NamedTempFile) -> DiskConfig {
    DiskConfig::new(file.path())
        .bus(Bus::Scsi)
        .aio(Aio::IoUring)
}

/// Opens these disks for a machine without a name, which then has one controller.
fn open(disks: &[(&str, &DiskConfig)]) -> OpenController {
    let disks = disks.iter().map(|(id, disk)| ((*id).to_owned(), *disk));
    let opened = scsi::open_controllers("", disks, &mut BTreeMap::new());
    opened.expect("opened").remove(0)
}

#[test]
fn a_restarted_machine_has_its_disks_without_opening_anything() {
    let (first, second) = (ScsiImage::default().file(), ScsiImage::default().file());
    let config = scsi_disk(&first);
    let opened = open(&[("disk", &config)]);
    // No path can be opened any more.
    first.close().expect("removed");
    for start in 0..3_u8 {
        let mut guest = ScsiGuest::settled(opened.build());
        assert_eq!(guest.to(&READ, &[], 512).data, [start; 512]);
        guest.to(&WRITE, &[start + 1; 512], 0).expect_good();
        if start == 0 {
            guest
                .handle
                .add_disk("second", &scsi_disk(&second))
                .expect("added");
            guest.settle();
        } else {
            guest.send(SECOND, &READ, &[], 512).expect_good();
        }
    }
    // Images stay locked between two starts.
    assert!(disk::open(&scsi_disk(&second)).is_err());
    let mut guest = ScsiGuest::settled(opened.build());
    guest.remove("second").expect("removed");
    let ids = |opened: &OpenController| -> Vec<_> {
        opened.units().into_iter().map(|unit| unit.id).collect()
    };
    assert_eq!(ids(&opened), ["disk"]);
    drop(disk::open(&scsi_disk(&second)).expect("unlocked"));
    drop(guest);
    let guest = ScsiGuest::settled(opened.build());
    assert_eq!(guest.handle.units(), opened.units());
}

#[test]
fn a_handle_of_an_earlier_start_changes_nothing() {
    let disk = || -> Arc<dyn Disk> { Arc::new(MemoryDisk::new(1 << 20)) };
    let units = vec![(UnitConfig::new("disk"), disk())];
    let opened = OpenController::new(&ScsiConfig::new("scsi0"), units).expect("opened");
    let earlier = ScsiGuest::settled(opened.build());
    let later = ScsiGuest::settled(opened.build());
    let added = earlier.handle.add(UnitConfig::new("new"), disk());
    assert!(matches!(added, Err(ScsiError::Gone { .. })), "{added:?}");
    let removed = earlier.handle.remove("disk");
    assert!(
        matches!(removed, Err(ScsiError::Gone { .. })),
        "{removed:?}"
    );
    assert_eq!(later.handle.units().len(), 1);
}

#[test]
fn modes_are_as_after_power_on_and_an_ejected_medium_stays_out() {
    let file = ScsiImage::default().file();
    let config = scsi_disk(&file).removable(true);
    let opened = open(&[("disk", &config)]);
    let mut guest = ScsiGuest::settled(opened.build());
    let before = guest.to(&MODE_SENSE_CONTROL, &[], 64).expect_good().data;
    // MODE SELECT of the control page: D_SENSE and SWP.
    let mut list = [0; 16];
    list[4..].copy_from_slice(&before[4..16]);
    list[6] |= 0x04;
    list[8] |= 0x08;
    guest.to(&[0x15, 0x10, 0, 0, 16, 0], &list, 0).expect_good();
    assert_eq!(guest.to(&WRITE, &[1; 512], 0).status, 2, "protected");
    // PREVENT MEDIUM REMOVAL is also per initiator.
    guest.to(&[0x1e, 0, 0, 0, 1, 0], &[], 0).expect_good();
    drop(guest);
    let mut guest = ScsiGuest::settled(opened.build());
    let after = guest.to(&MODE_SENSE_CONTROL, &[], 64).expect_good().data;
    assert_eq!(after, before);
    guest.to(&WRITE, &[1; 512], 0).expect_good();
    guest.to(&EJECT, &[], 0).expect_good();
    drop(guest);
    let mut guest = ScsiGuest::new(opened.build());
    guest.to(&[0; 6], &[], 0).expect_sense(6, 0x29, 0);
    guest.to(&[0; 6], &[], 0).expect_sense(2, 0x3a, 0);
}

#[test]
fn a_disk_of_the_embedder_replaces_a_path() {
    let own = MemoryDisk::new(1 << 20);
    let config = DiskConfig::new("/nowhere/at/all").bus(Bus::Scsi).target(1);
    let disk: Arc<dyn Disk> = Arc::new(Arc::clone(&own));
    let other: Arc<dyn Disk> = Arc::new(MemoryDisk::new(512));
    let mut given = BTreeMap::from([("mine".to_owned(), disk), ("other".to_owned(), other)]);
    let disks = [("mine".to_owned(), &config)];
    let opened = scsi::open_controllers("m", disks, &mut given).expect("opened");
    assert_eq!(given.into_keys().collect::<Vec<_>>(), ["other"]);
    let mut guest = ScsiGuest::settled(opened[0].build());
    guest.send(SECOND, &WRITE, &[7; 512], 0).expect_good();
    assert_eq!(own.contents()[..512], [7; 512]);
}

/// PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY.
fn register(guest: &mut ScsiGuest, key: u64, persist: bool) {
    let mut list = [0; 24];
    list[8..16].copy_from_slice(&key.to_be_bytes());
    list[20] = u8::from(persist);
    guest
        .to(&[0x5f, 6, 0, 0, 0, 0, 0, 0, 24, 0], &list, 0)
        .expect_good();
}

/// Returns the keys that PERSISTENT RESERVE IN lists.
fn keys(guest: &mut ScsiGuest) -> Vec<u64> {
    let data = guest
        .to(&[0x5e, 0, 0, 0, 0, 0, 0, 0, 255, 0], &[], 255)
        .expect_good()
        .data;
    let key = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("eight"));
    data[8..].chunks(8).map(key).collect()
}

#[test]
fn reservations_that_persist_stay_and_others_end_when_nobody_else_uses_the_disk() {
    let file = ScsiImage::default().file();
    let config = scsi_disk(&file).share(true);
    let opened = open(&[("disk", &config)]);
    let mut guest = ScsiGuest::settled(opened.build());
    register(&mut guest, 5, true);
    drop(guest);
    let mut guest = ScsiGuest::settled(opened.build());
    assert_eq!(keys(&mut guest), [5]);
    register(&mut guest, 6, false);
    drop(guest);
    let mut guest = ScsiGuest::settled(opened.build());
    assert!(keys(&mut guest).is_empty());
    // A disk that another machine uses has not lost its power.
    let disks = [("disk".to_owned(), &config)];
    let others = scsi::open_controllers("other", disks, &mut BTreeMap::new()).expect("opened");
    let mut other = ScsiGuest::settled(others[0].build());
    register(&mut guest, 7, false);
    register(&mut other, 8, false);
    drop(guest);
    let mut guest = ScsiGuest::settled(opened.build());
    assert_eq!(keys(&mut guest), [7, 8]);
}

#[test]
fn machines_that_read_one_image_without_sharing_it_do_not_see_each_other() {
    let file = ScsiImage::default().file();
    let config = scsi_disk(&file)
        .readonly(true)
        .discard(false)
        .media(Media::Cdrom);
    let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let (a, b) = (open(&[("cd", &config)]), open(&[("cd", &config)]));
    let (mut a, mut b) = (ScsiGuest::settled(a.build()), ScsiGuest::settled(b.build()));
    // The first reserves the medium, prevents its removal and ejects it.
    a.to(&[0x16, 0, 0, 0, 0, 0], &[], 0).expect_good();
    b.to(&read, &[], 2048).expect_good();
    a.to(&[0x1e, 0, 0, 0, 1, 0], &[], 0).expect_good();
    b.to(&EJECT, &[], 0).expect_good();
    b.to(&[0; 6], &[], 0).expect_sense(2, 0x3a, 0);
    a.to(&read, &[], 2048).expect_good();
}

#[test]
fn controllers_of_one_machine_have_one_unit_of_an_image() {
    let file = ScsiImage::default().file();
    let config = |controller| {
        scsi_disk(&file)
            .readonly(true)
            .discard(false)
            .media(Media::Cdrom)
            .controller(controller)
    };
    let (first, second) = (config(0), config(1));
    let disks = [("a".to_owned(), &first), ("b".to_owned(), &second)];
    let opened = scsi::open_controllers("m", disks, &mut BTreeMap::new()).expect("opened");
    let [mut a, mut b] = [0, 1].map(|index| ScsiGuest::settled(opened[index].build()));
    a.to(&EJECT, &[], 0).expect_good();
    b.to(&[0; 6], &[], 0).expect_sense(2, 0x3a, 0);
}
