//! Reservations that are kept over a power loss, on storage that takes its time or fails.

use std::fs::File;

use super::*;
use crate::testing::pci::wait_until;

const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// PERSISTENT RESERVE OUT with a list of 24 bytes: REGISTER AND IGNORE EXISTING KEY.
const REGISTER: [u8; 10] = [0x5f, 6, 0, 0, 0, 0, 0, 0, 24, 0];
/// Commands that are not waited for have a frame each.
const FRAMES: u64 = 0x40_000;
const FRAME: u64 = 0x1000;

fn started(reservations: File) -> Bench<Scsi> {
    let unit = UnitConfig {
        reservations: Some(reservations),
        ..UnitConfig::new("disk")
    };
    let device = Scsi::new(&ScsiConfig::new("scsi0"), vec![(unit, disk())]).unwrap();
    let mut bench = Bench::start(Arc::new(device), VERSION_1 | INDIRECT_DESC, 64);
    send(&mut bench, LUN, &[0; 6], &[], &[]).unwrap();
    bench
}

/// Offers a command with its data-out in a frame of its own and runs the queue. Commands have their frame's number as
/// their identifier.
fn begin(bench: &mut Bench<Scsi>, frame: u64, cdb: &[u8], out: &[u8]) {
    let at = FRAMES + frame * FRAME;
    let mut request = header(LUN, cdb, 32);
    request[8..16].copy_from_slice(&frame.to_le_bytes());
    bench.poke(at, &request);
    bench.poke(at + 0x100, out);
    bench.poke(at + 0x200, &[0xee; RESPONSE as usize]);
    let buffers = [
        (at, HEADER, false),
        (at + 0x100, out.len() as u32, false),
        (at + 0x200, RESPONSE, true),
        (at + 0x300, 512, true),
    ];
    let used = |buffer: &&Buffer| buffer.1 > 0 && (buffer.0 != at + 0x300 || out.is_empty());
    let buffers: Vec<Buffer> = buffers.iter().filter(used).copied().collect();
    bench.rings[usize::from(REQUESTS)].offer_table(at + 0x800, &buffers);
    bench.kick(REQUESTS).unwrap();
}

/// Response and status of the command in a frame, if it has been answered.
fn answer(bench: &mut Bench<Scsi>, frame: u64) -> Option<(u8, u8)> {
    bench.run(REQUESTS, Cause::Resume).unwrap();
    drop(bench.rings[usize::from(REQUESTS)].used());
    let bytes = bench.peek(FRAMES + frame * FRAME + 0x200, 12);
    (bytes[11] != 0xee).then_some((bytes[11], bytes[10]))
}

fn wait(bench: &mut Bench<Scsi>, frame: u64) -> (u8, u8) {
    let mut seen = None;
    wait_until("the command is answered", || {
        seen = answer(bench, frame);
        seen.is_some()
    });
    seen.unwrap()
}

fn list(key: u64, persist: bool) -> Vec<u8> {
    let mut list = [[0; 8], key.to_be_bytes(), [0; 8]].concat();
    list[20] = u8::from(persist);
    list
}

fn keys(bench: &mut Bench<Scsi>) -> Vec<u64> {
    let cdb = [0x5e, 0, 0, 0, 0, 0, 0, 0, 64, 0];
    bench.poke(IN_AT, &[0; 64]);
    let seen = send(bench, LUN, &cdb, &[], &[(IN_AT, 64, true)]).unwrap();
    assert_eq!((seen.response, seen.status), (0, 0));
    let data = bench.peek(IN_AT, 64);
    let length = u32::from_be_bytes(data[4..8].try_into().unwrap()) as usize;
    let key = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
    data[8..8 + length].chunks(8).map(key).collect()
}

#[test]
fn a_change_that_is_being_made_stable_holds_up_no_other_command() {
    let mut bench = started(tempfile::tempfile().unwrap());
    let nexus = Arc::clone(bench.device.hub.map().named("disk").unwrap());
    // The host takes its time: whoever holds this writes a slot of the file.
    let slow = nexus.unit.store.as_ref().unwrap().hold();
    begin(&mut bench, 0, &REGISTER, &list(1, true));
    assert_eq!(answer(&mut bench, 0), None);
    let seen = send(&mut bench, LUN, &READ, &[], &[(IN_AT, 512, true)]).unwrap();
    assert_eq!((seen.response, seen.status), (0, 0));
    assert!(keys(&mut bench).is_empty(), "in force before it is stable");
    // Other changes wait for their turn, of whatever kind.
    begin(&mut bench, 1, &REGISTER, &list(2, true));
    begin(&mut bench, 2, &[0x16, 0, 0, 0, 0, 0], &[]);
    assert_eq!([1, 2].map(|frame| answer(&mut bench, frame)), [None, None]);
    drop(slow);
    assert_eq!([0, 1].map(|frame| wait(&mut bench, frame)), [(0, 0); 2]);
    // RESERVE conflicts with registrations.
    assert_eq!(wait(&mut bench, 2), (0, 0x18));
    assert_eq!(keys(&mut bench), [2]);
    assert_eq!(bench.stop(), 0);
}

#[test]
fn a_change_that_hangs_in_the_host_is_answered_at_a_reset_of_the_controller() {
    let file = tempfile::tempfile().unwrap();
    let mut bench = started(file.try_clone().unwrap());
    let nexus = Arc::clone(bench.device.hub.map().named("disk").unwrap());
    let slow = nexus.unit.store.as_ref().unwrap().hold();
    for frame in [0, 1] {
        begin(&mut bench, frame, &REGISTER, &list(frame + 1, true));
    }
    assert_eq!(bench.stop(), 0);
    for frame in [0, 1] {
        let bytes = bench.peek(FRAMES + frame * FRAME + 0x200, 12);
        assert_eq!(bytes[11], response::RESET);
    }
    drop(slow);
    // What was with the host takes effect, what waited does not.
    let mut bench = Bench::start(Arc::clone(&bench.device), VERSION_1 | INDIRECT_DESC, 64);
    send(&mut bench, LUN, &[0; 6], &[], &[]).unwrap();
    wait_until("the change is in force", || keys(&mut bench) == [1]);
    begin(&mut bench, 0, &REGISTER, &list(3, true));
    assert_eq!(wait(&mut bench, 0), (0, 0));
    assert_eq!(keys(&mut bench), [3]);
    assert_eq!(bench.stop(), 0);
}

#[test]
fn a_change_that_cannot_be_made_stable_fails_and_changes_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut bench = started(File::open(file.path()).unwrap());
    begin(&mut bench, 0, &REGISTER, &list(1, true));
    assert_eq!(wait(&mut bench, 0), (0, 2), "an internal failure");
    assert!(keys(&mut bench).is_empty());
    begin(&mut bench, 1, &REGISTER, &list(2, false));
    assert_eq!(wait(&mut bench, 1), (0, 0), "what need not persist goes on");
    assert_eq!(keys(&mut bench), [2]);
    assert_eq!(bench.stop(), 0);
}
