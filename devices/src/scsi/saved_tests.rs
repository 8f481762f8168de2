//! Controllers that are saved and go on in another machine.

use super::*;
use crate::disk::LimitedDisk;
use crate::testing::restore::{damaged_states_are_errors_at_worst, move_to, save};

/// So few commands a second that most wait.
fn limited(memory: &Arc<MemoryDisk>) -> Arc<dyn Disk> {
    let disk: Arc<dyn Disk> = Arc::new(Arc::clone(memory));
    Arc::new(LimitedDisk::new(disk, Some(30), None))
}

fn controller(memory: &Arc<MemoryDisk>) -> Arc<Scsi> {
    let units = vec![(UnitConfig::new("disk"), limited(memory))];
    Arc::new(Scsi::new(&ScsiConfig::new("scsi0"), units).unwrap())
}

/// Carries a command out; the status and the data.
fn run(guest: &mut Guest, cdb: &[u8], out: &[u8], room: u32) -> (u8, Vec<u8>) {
    const PLACE: u64 = 100;
    let (to, from) = (at(PLACE) + 0x1000, at(PLACE) + 0x1800);
    guest.poke(to, out);
    let mut data = Vec::new();
    if !out.is_empty() {
        data.push((to, u32::try_from(out.len()).unwrap(), false));
    }
    if room > 0 {
        data.push((from, room, true));
    }
    command(guest, PLACE, cdb, &data);
    guest.wait_used(usize::from(REQUESTS), 1);
    let status = guest.peek(at(PLACE) + 0x800 + 10, 1)[0];
    (status, guest.peek(from, room as usize))
}

/// The control mode page with its header.
fn control_page(guest: &mut Guest) -> Vec<u8> {
    let (status, page) = run(guest, &[0x1a, 0x08, 0x0a, 0, 16, 0], &[], 16);
    assert_eq!(status, 0);
    page
}

/// A machine whose driver has changed a mode page, has a reservation, and has not heard of a medium
/// that was changed.
fn changed(memory: &Arc<MemoryDisk>) -> Guest {
    let (mut guest, handle) = machine(limited(memory), u64::MAX);
    let mut page = control_page(&mut guest);
    (page[0], page[2]) = (0, 0);
    page[4 + 2] |= 0x04;
    assert_eq!(run(&mut guest, &[0x15, 0x10, 0, 0, 16, 0], &page, 0).0, 0);
    assert_eq!(run(&mut guest, &[0x16, 0, 0, 0, 0, 0], &[], 0).0, 0);
    handle.load("disk", false).unwrap();
    handle.load("disk", true).unwrap();
    guest
}

#[test]
fn a_controller_goes_on_with_modes_reservations_attentions_events_and_commands_that_wait() {
    const COMMANDS: u64 = 12;
    let memory = MemoryDisk::new(DISK_LEN);
    let mut guest = changed(&memory);
    // The attention is reported to one command; the next ones have an attention of their own again.
    assert_eq!(run(&mut guest, &[0; 6], &[], 0).0, 2);
    for place in 0..COMMANDS {
        read(&mut guest, place);
    }
    let before = guest.wait_used(usize::from(REQUESTS), 1).len();
    let mut guest = move_to(guest, controller(&memory), |guest| {
        let text = save(guest);
        assert!(text.contains("\"taken\":[["), "commands wait");
        assert!(text.contains("\"changed\""), "an event waits: {text}");
        read(guest, COMMANDS);
    });
    let left = usize::try_from(COMMANDS).unwrap() + 1 - before;
    guest.wait_used(usize::from(REQUESTS), left);
    for place in 0..=COMMANDS {
        assert_eq!(answer(&guest, place), GOOD, "{place}");
    }
    assert_eq!(control_page(&mut guest)[4 + 2] & 0x04, 0x04);
    guest.offer(usize::from(EVENT_QUEUE), &[(0x2000, 16, true)]);
    guest.kick(EVENT_QUEUE);
    guest.wait_used(usize::from(EVENT_QUEUE), 1);
    assert_eq!(guest.peek(0x2000, 4), event::PARAM_CHANGE.to_le_bytes());
}

#[test]
fn an_attention_that_waits_is_reported_after_a_restore() {
    let memory = MemoryDisk::new(DISK_LEN);
    let guest = changed(&memory);
    let mut guest = move_to(guest, controller(&memory), |_| ());
    assert_eq!(run(&mut guest, &[0; 6], &[], 0).0, 2);
    assert_eq!(run(&mut guest, &[0; 6], &[], 0).0, 0);
}

#[test]
fn a_controller_with_other_disks_does_not_take_the_state_over() {
    let memory = MemoryDisk::new(DISK_LEN);
    let guest = changed(&memory);
    guest.worker.pause(PATIENCE).unwrap();
    let state = serde_json::from_str(&save(&guest)).unwrap();
    let none = Scsi::new(&ScsiConfig::new("scsi0"), Vec::new()).unwrap();
    let refused = Guest::new(Arc::new(none)).function.restore(&state);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("no disk at target 0"), "{refused}");
}

#[test]
fn damaged_states_of_a_controller_are_errors_at_worst() {
    let memory = MemoryDisk::new(DISK_LEN);
    let mut guest = changed(&memory);
    for place in 0..6 {
        read(&mut guest, place);
    }
    damaged_states_are_errors_at_worst(&guest, || controller(&memory), 200);
}
