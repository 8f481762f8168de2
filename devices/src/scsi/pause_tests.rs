//! Pauses with commands, task management and events under way, in a machine with a worker.

use std::io::Write;
use std::time::Duration;

use splitring_virtio::spec::scsi::{CONTROL_QUEUE, control};

use super::*;
use crate::disk::RawDisk;
use crate::disk::config::{Aio, DiskConfig};
use crate::disk::doubles::GatedDisk;
use crate::disk::piped::piped;
use crate::testing::pci::{Guest, PATIENCE, wait_until};
use crate::worker::PauseError;

#[path = "saved_tests.rs"]
mod saved;

const SOON: Duration = Duration::from_millis(50);
const MEMORY: usize = 8 << 20;
/// Bytes between one command's memory and the next one's, and where it begins.
const SPAN: u64 = 0x2000;
const FIRST: u64 = 0x1_0000;
const UNTOUCHED: u8 = 0xee;
const DISK_LEN: u64 = 1 << 20;
const BLOCK: u32 = 4096;

/// A started machine whose unit is on `disk` and has nothing to report any more.
fn machine(disk: Arc<dyn Disk>, wants: u64) -> (Guest, ScsiHandle) {
    let units = vec![(UnitConfig::new("disk"), disk)];
    let device = Arc::new(Scsi::new(&ScsiConfig::new("scsi0"), units).unwrap());
    let handle = device.handle();
    let mut guest = Guest::new(device);
    guest.wants = wants;
    guest.decode_memory();
    guest.restart();
    command(&mut guest, 0, &[0; 6], &[]);
    guest.wait_used(usize::from(REQUESTS), 1);
    (guest, handle)
}

fn at(place: u64) -> u64 {
    FIRST + place * SPAN
}

/// Offers a command whose memory is in this place, and whose identifier is the place's number.
fn command(guest: &mut Guest, place: u64, cdb: &[u8], data: &[Buffer]) {
    let mut request = LUN.to_vec();
    request.extend(place.to_le_bytes());
    request.extend([0; 3]);
    request.extend(cdb);
    request.resize(HEADER as usize, 0);
    guest.poke(at(place), &request);
    guest.poke(at(place) + 0x800, &[UNTOUCHED; RESPONSE as usize]);
    let mut chain = vec![(at(place), HEADER, false)];
    chain.extend(data.iter().filter(|part| !part.2));
    chain.push((at(place) + 0x800, RESPONSE, true));
    chain.extend(data.iter().filter(|part| part.2));
    guest.offer(usize::from(REQUESTS), &chain);
    guest.kick(REQUESTS);
}

/// READ (10) of 4 KiB.
fn read(guest: &mut Guest, place: u64) {
    let data = at(place) + 0x1000;
    guest.poke(data, &[0; BLOCK as usize]);
    command(
        guest,
        place,
        &[0x28, 0, 0, 0, 0, 8, 0, 0, 8, 0],
        &[(data, BLOCK, true)],
    );
}

/// WRITE (10) of 4 KiB, to be stable before it is answered.
fn write(guest: &mut Guest, place: u64, fill: u8) {
    let data = at(place) + 0x1000;
    guest.poke(data, &[fill; BLOCK as usize]);
    let [high, low] = (place as u16 * 8).to_be_bytes();
    command(
        guest,
        place,
        &[0x2a, 0x08, 0, 0, high, low, 0, 0, 8, 0],
        &[(data, BLOCK, false)],
    );
}

/// Response and status of the command in a place.
fn answer(guest: &Guest, place: u64) -> (u8, u8) {
    let bytes = guest.peek(at(place) + 0x800, 12);
    (bytes[11], bytes[10])
}

const NONE: (u8, u8) = (UNTOUCHED, UNTOUCHED);
const GOOD: (u8, u8) = (response::OK, 0);

/// A pause with a read in flight that `finish` completes, and another one offered meanwhile, which `again` does.
fn waits_for_a_read(disk: Arc<dyn Disk>, finish: impl FnOnce(), again: impl FnOnce()) {
    let (mut guest, _handle) = machine(disk, u64::MAX);
    read(&mut guest, 0);
    let worker = Arc::clone(&guest.worker);
    let error = worker.pause(SOON).unwrap_err();
    assert!(
        error.to_string().contains("scsi0 has 1 in flight"),
        "{error}"
    );
    std::thread::scope(|scope| {
        let pausing = scope.spawn(|| worker.pause(PATIENCE));
        std::thread::sleep(SOON);
        assert!(!pausing.is_finished());
        assert_eq!(answer(&guest, 0), NONE);
        finish();
        pausing.join().unwrap().unwrap();
    });
    assert_eq!(answer(&guest, 0), GOOD);
    assert_eq!(guest.peek(at(0) + 0x1000, 4096), [7; 4096]);
    assert_eq!(guest.rings[usize::from(REQUESTS)].used().len(), 1);
    read(&mut guest, 1);
    let before = guest.peek(0, MEMORY);
    again();
    std::thread::sleep(SOON);
    assert!(guest.peek(0, MEMORY) == before, "nobody writes in a pause");
    worker.resume().unwrap();
    guest.wait_used(usize::from(REQUESTS), 1);
    assert_eq!(guest.peek(at(1) + 0x1000, 4096), [7; 4096]);
}

#[test]
fn a_pause_waits_for_a_read_in_the_shared_ring() {
    let (disk, mut pipe) = piped(DISK_LEN, 0);
    let mut other = pipe.try_clone().unwrap();
    waits_for_a_read(
        Arc::new(disk),
        || pipe.write_all(&[7; 4096]).unwrap(),
        || other.write_all(&[7; 4096]).unwrap(),
    );
}

#[test]
fn a_pause_waits_for_a_read_of_a_disk_with_a_queue_of_its_own() {
    let (disk, mut pipe) = piped(DISK_LEN, 1);
    let mut other = pipe.try_clone().unwrap();
    // A limit, though none that is reached, keeps it out of the shared ring.
    let limited = crate::disk::LimitedDisk::new(Arc::new(disk), Some(1_000_000), None);
    waits_for_a_read(
        Arc::new(limited),
        || pipe.write_all(&[7; 4096]).unwrap(),
        || other.write_all(&[7; 4096]).unwrap(),
    );
}

/// Nothing becomes readable for them: a timer of the worker runs the queue again.
#[test]
fn commands_over_a_rate_limit_are_answered_when_it_lets_them_through() {
    let memory: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_LEN));
    let limited = crate::disk::LimitedDisk::new(memory, Some(50), None);
    let (mut guest, _handle) = machine(Arc::new(limited), u64::MAX);
    for place in 0..12 {
        read(&mut guest, place);
    }
    guest.wait_used(usize::from(REQUESTS), 12);
    for place in 0..12 {
        assert_eq!(answer(&guest, place), GOOD);
    }
}

#[test]
fn a_command_that_hangs_in_the_host_fails_the_pause_until_it_is_aborted() {
    let memory: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_LEN));
    let disk = Arc::new(FaultyDisk::new(memory));
    disk.plan([Fate::Hang]);
    let (mut guest, _handle) = machine(Arc::<FaultyDisk>::clone(&disk), u64::MAX);
    read(&mut guest, 0);
    wait_until("the command hangs", || !disk.seen().is_empty());
    assert!(matches!(
        guest.worker.pause(SOON),
        Err(PauseError::Timeout { .. })
    ));
    write(&mut guest, 1, 1);
    guest.wait_used(usize::from(REQUESTS), 1);
    assert_eq!(answer(&guest, 1), GOOD);
    manage(&mut guest, control::ABORT_TASK_SET);
    guest.wait_used(usize::from(CONTROL_QUEUE), 1);
    assert_eq!(answer(&guest, 0).0, response::ABORTED);
    guest.worker.pause(PATIENCE).unwrap();
}

/// Offers a task management request for the unit.
fn manage(guest: &mut Guest, function: u32) {
    let mut request = control::TMF.to_le_bytes().to_vec();
    request.extend(function.to_le_bytes());
    request.extend(LUN);
    request.extend(0_u64.to_le_bytes());
    guest.poke(0x100, &request);
    guest.poke(0x200, &[UNTOUCHED]);
    let len = request.len() as u32;
    guest.offer(
        usize::from(CONTROL_QUEUE),
        &[(0x100, len, false), (0x200, 1, true)],
    );
    guest.kick(CONTROL_QUEUE);
}

/// A call that the host does not give up keeps a pause from being reached; a request to manage it does not, and is
/// answered after the pause.
#[test]
fn task_management_waits_through_a_pause() {
    let disk = Arc::new(GatedDisk::new(MemoryDisk::new(DISK_LEN)));
    let (mut guest, _handle) = machine(Arc::<GatedDisk>::clone(&disk), u64::MAX);
    read(&mut guest, 0);
    manage(&mut guest, control::LOGICAL_UNIT_RESET);
    std::thread::sleep(SOON);
    assert!(matches!(
        guest.worker.pause(SOON),
        Err(PauseError::Timeout { .. })
    ));
    // The reset reaches the queue that has the command.
    std::thread::sleep(SOON);
    std::thread::scope(|scope| {
        let pausing = scope.spawn(|| guest.worker.pause(PATIENCE));
        std::thread::sleep(SOON);
        disk.pass(1);
        pausing.join().unwrap().unwrap();
    });
    assert_eq!(answer(&guest, 0).0, response::RESET);
    assert_eq!(guest.peek(0x200, 1), [UNTOUCHED]);
    guest.worker.resume().unwrap();
    guest.wait_used(usize::from(CONTROL_QUEUE), 1);
    assert_eq!(guest.peek(0x200, 1), [response::OK]);
}

#[test]
fn an_event_waits_through_a_pause() {
    let memory: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_LEN));
    let (mut guest, handle) = machine(memory, u64::MAX);
    let queue = usize::from(EVENT_QUEUE);
    guest.offer(queue, &[(0x300, 16, true)]);
    guest.kick(EVENT_QUEUE);
    guest.worker.pause(PATIENCE).unwrap();
    let before = guest.peek(0, MEMORY);
    let another: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_LEN));
    handle.add(UnitConfig::new("another"), another).unwrap();
    std::thread::sleep(SOON);
    assert!(guest.peek(0, MEMORY) == before, "nobody writes in a pause");
    guest.worker.resume().unwrap();
    guest.wait_used(queue, 1);
    assert_eq!(guest.peek(0x300, 4), event::TRANSPORT_RESET.to_le_bytes());
}

#[test]
fn a_thousand_pauses_under_load_lose_no_command() {
    const MOST: usize = 16;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(DISK_LEN).unwrap();
    let config = DiskConfig {
        aio: Aio::IoUring,
        ..DiskConfig::new(file.path())
    };
    let disk: Arc<dyn Disk> = Arc::new(RawDisk::open(&config, 0, 256).unwrap());
    let (mut guest, handle) = machine(disk, u64::MAX);
    let ring = usize::from(REQUESTS);
    let (mut pending, mut offered) = (0, 0);
    for round in 0..1000_u16 {
        pending -= guest.rings[ring].used().len();
        for _ in 0..4.min(MOST - pending) {
            write(&mut guest, offered % 64, round.to_le_bytes()[0]);
            pending += 1;
            offered += 1;
        }
        guest.worker.pause(PATIENCE).unwrap();
        if round % 50 == 0 {
            let before = guest.peek(0, MEMORY);
            std::thread::sleep(Duration::from_millis(1));
            assert!(guest.peek(0, MEMORY) == before, "in round {round}");
        }
        guest.worker.resume().unwrap();
    }
    guest.wait_used(ring, pending);
    let (_, totals) = &handle.totals()[0];
    assert_eq!((totals.write.requests, totals.write.errors), (offered, 0));
}
