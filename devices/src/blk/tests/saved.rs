//! Disks that are saved and go on in another machine.

use super::pause::{data, offer, status_of};
use super::*;
use crate::disk::LimitedDisk;
use crate::testing::pci::{DEVICE, Guest as Machine, ISR, wait_until};
use crate::testing::restore::{damaged_states_are_errors_at_worst, move_to, save};

/// A device on the image that admits so few requests a second that most wait.
fn device(memory: &Arc<MemoryDisk>) -> Arc<Blk> {
    let disk: Arc<dyn Disk> = Arc::new(Arc::clone(memory));
    let limited = LimitedDisk::new(disk, Some(20), None);
    Arc::new(Blk::new("disk0", Arc::new(limited), 1, 256, ""))
}

#[test]
fn requests_that_a_rate_limit_held_back_and_those_of_the_pause_are_answered_after_a_restore() {
    const WRITES: u8 = 8;
    let memory = MemoryDisk::new(DISK_LEN);
    let mut machine = Machine::started(device(&memory));
    machine.bar_write(DEVICE + 32, &[0]);
    for fill in 1..=WRITES {
        let place = u64::from(fill);
        offer(&mut machine, 0, 0, place, place * 8, Some(fill));
    }
    let before = machine.wait_used(0, 1).len();
    let mut machine = move_to(machine, device(&memory), |machine| {
        assert!(
            save(machine).contains("\"taken\":[["),
            "one was taken and waits"
        );
        offer(machine, 0, 0, 0, 0, None);
    });
    machine.wait_used(0, usize::from(WRITES) + 1 - before);
    for place in 0..=WRITES {
        assert_eq!(status_of(&machine, place.into()), status::OK, "{place}");
    }
    for place in 1..=u64::from(WRITES) {
        offer(&mut machine, 0, 0, 100 + place, place * 8, None);
    }
    machine.wait_used(0, WRITES.into());
    for fill in 1..=WRITES {
        assert_eq!(data(&machine, 100 + u64::from(fill)), [fill; 4096]);
    }
    assert_eq!(machine.bar_read(DEVICE + 32), [0], "the cache stays off");
}

#[test]
fn an_image_that_has_grown_meanwhile_is_announced_to_the_driver() {
    let machine = Machine::started(device(&MemoryDisk::new(DISK_LEN)));
    machine.worker.pause(crate::testing::pci::PATIENCE).unwrap();
    let state = serde_json::from_str(&save(&machine)).unwrap();
    let grown = Machine::new(device(&MemoryDisk::new(2 * DISK_LEN)));
    grown.function.restore(&state).unwrap();
    grown.root.follow(crate::testing::pci::SLOT);
    wait_until("the change is announced", || grown.bar_read(ISR) == [2]);
    let capacity = u64::from_le_bytes(grown.bar_read(DEVICE));
    assert_eq!(capacity, 2 * SECTORS);
}

#[test]
fn damaged_states_of_a_disk_are_errors_at_worst() {
    let memory = MemoryDisk::new(DISK_LEN);
    let mut machine = Machine::started(device(&memory));
    for place in 0..4 {
        offer(&mut machine, 0, 0, place, place * 8, None);
    }
    damaged_states_are_errors_at_worst(&machine, || device(&memory), 200);
}
