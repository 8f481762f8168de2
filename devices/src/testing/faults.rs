//! Starts that fail half-way, one after each step.
//!
//! What can fail at a start is mostly a descriptor that the process may not have: eventfds, copies.
//! [`every_start_that_fails_leaves_nothing_behind`] gives a start none, then one, then two of them and so on until it
//! succeeds. After each failure the driver resets the device, starts it again and does I/O.
//! [`every_step_that_fails_leaves_nothing_behind`] does the same with a backend that fails at the step that the test
//! says. [`a_running_device_needs_no_descriptor`] is for devices whose start needs none. The limit is the process's, so the
//! tests run in one of their own.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use splitring_virtio::spec::pci::common as reg;
use splitring_virtio::spec::status;

use super::pci::{Guest, wait_until};
use crate::blk::Blk;
use crate::device::VirtioDevice;
use crate::disk::RawDisk;
use crate::disk::config::{Aio, DiskConfig};
use crate::net::passt::Passt;
use crate::net::{MacAddress, Net, NetConfig};

/// Set in the process that a test has for itself.
const ALONE: &str = "SPLITRING_TEST_ALONE";
/// Descriptors that the process may have beyond those at the beginning; more than any start takes.
const ROOM: u64 = 64;

/// Fails the start of the device that `make` makes at each of its steps. `io` starts a request of the device and waits
/// for its success. `test` is the calling test's path in this crate, by which it is run again.
pub(crate) fn every_start_that_fails_leaves_nothing_behind(
    test: &str,
    make: impl FnOnce() -> Arc<dyn VirtioDevice>,
    mut io: impl FnMut(&mut Guest),
) {
    if !alone(test) {
        return;
    }
    let mut guest = Guest::new(make());
    guest.decode_memory();
    // What is made once and stays, such as threads beside the queues, is there from here on.
    guest.restart();
    io(&mut guest);
    guest.set_status(0);
    limit_descriptors();
    fail_at_each_step(&mut guest, start_with, &mut io);
}

/// The same for a device whose backend fails at the step whose number, from 0, `fail_at` is called with before a start,
/// and at none after `fail_at(usize::MAX)`.
pub(crate) fn every_step_that_fails_leaves_nothing_behind(
    test: &str,
    make: impl FnOnce() -> Arc<dyn VirtioDevice>,
    fail_at: impl Fn(usize),
    mut io: impl FnMut(&mut Guest),
) {
    if !alone(test) {
        return;
    }
    let mut guest = Guest::new(make());
    guest.decode_memory();
    guest.restart();
    io(&mut guest);
    guest.set_status(0);
    let start = |guest: &mut Guest, step| {
        prepare(guest);
        fail_at(step);
        guest.add_status(status::DRIVER_OK);
        fail_at(usize::MAX);
    };
    fail_at_each_step(&mut guest, start, &mut io);
}

/// Has `start` fail at each step until it succeeds, of a device that was reset.
fn fail_at_each_step(
    guest: &mut Guest,
    start: impl Fn(&mut Guest, usize),
    io: &mut impl FnMut(&mut Guest),
) {
    let before = resources();
    let mut failures = 0;
    for step in 0.. {
        start(guest, step);
        let failed = guest.status() & status::NEEDS_RESET != 0;
        if failed {
            failures += 1;
            guest.restart();
        }
        assert_eq!(guest.status() & status::NEEDS_RESET, 0);
        io(guest);
        guest.set_status(0);
        wait_until("everything has been given back", || resources() == before);
        if !failed {
            break;
        }
    }
    println!("{failures} starts failed");
    assert!(failures > 0, "no step of the start can fail");
    assert_eq!(*guest.failures.lock().unwrap(), []);
}

/// Runs the device that `make` makes with no descriptor left to the process, from the moment it is plugged in: started,
/// with its interrupt line and with messages, reset and started again, its BAR moved. `io` and `test` are as above.
pub(crate) fn a_running_device_needs_no_descriptor(
    test: &str,
    make: impl FnOnce() -> Arc<dyn VirtioDevice>,
    mut io: impl FnMut(&mut Guest),
) {
    if !alone(test) {
        return;
    }
    let mut guest = Guest::new(make());
    guest.decode_memory();
    limit_descriptors();
    let null = File::open("/dev/null").unwrap();
    let fillers: Vec<File> = std::iter::from_fn(|| null.try_clone().ok()).collect();
    assert!(!fillers.is_empty());
    for _ in 0..3 {
        guest.restart();
        io(&mut guest);
        wait_until("the line is asserted", || guest.wiring.line_asserted());
        guest.set_status(0);
    }
    guest.enable_msix();
    for turn in 0..3 {
        guest.negotiate();
        let queues = guest.common16(reg::NUM_QUEUES);
        guest.rings = (0..queues)
            .map(|index| {
                let ring = guest.enable_queue(index);
                guest.set16(reg::QUEUE_MSIX_VECTOR, index);
                ring
            })
            .collect();
        guest.add_status(status::DRIVER_OK);
        let moved = guest.bar() + 0x1_0000;
        guest.config_write(0x10, &moved.to_le_bytes());
        io(&mut guest);
        wait_until("a message is sent", || !guest.wiring.messages().is_empty());
        assert_eq!(guest.status() & status::NEEDS_RESET, 0, "{turn}");
    }
    assert_eq!(*guest.failures.lock().unwrap(), []);
}

/// Whether this is the process that `test` has for itself. If not, it is run in one, and must pass there.
pub(crate) fn alone(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut alone = Command::new(std::env::current_exe().unwrap());
    let status = alone
        .args([test, "--exact", "--nocapture", "--test-threads=2"])
        .env(ALONE, "1")
        .status();
    assert!(status.unwrap().success(), "in a process of its own");
    false
}

fn limit_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: Some(highest_descriptor() + ROOM),
        ..limit
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Everything up to DRIVER_OK.
fn prepare(guest: &mut Guest) {
    guest.negotiate();
    let queues = guest.common16(reg::NUM_QUEUES);
    guest.rings = (0..queues).map(|index| guest.enable_queue(index)).collect();
}

/// DRIVER_OK, with `allowed` descriptors left to the process.
fn start_with(guest: &mut Guest, allowed: usize) {
    prepare(guest);
    let null = File::open("/dev/null").unwrap();
    let mut fillers: Vec<File> = std::iter::from_fn(|| null.try_clone().ok()).collect();
    assert!(fillers.len() > allowed, "every start fails");
    fillers.truncate(fillers.len() - allowed);
    guest.add_status(status::DRIVER_OK);
}

/// Open descriptors and threads.
pub(crate) fn resources() -> [usize; 2] {
    ["/proc/self/fd", "/proc/self/task"].map(|list| std::fs::read_dir(list).unwrap().count())
}

fn highest_descriptor() -> u64 {
    let probe = File::open("/dev/null").unwrap().as_raw_fd();
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    let numbers = descriptors.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let highest: i32 = numbers.chain([probe]).max().unwrap();
    u64::try_from(highest).unwrap()
}

#[test]
fn a_random_generator_needs_no_descriptor_once_it_is_plugged_in() {
    a_running_device_needs_no_descriptor(
        "testing::faults::a_random_generator_needs_no_descriptor_once_it_is_plugged_in",
        || Arc::new(crate::rng::Rng::new("rng0")),
        |guest| {
            guest.offer(0, &[(0x1_0000, 64, true)]);
            guest.kick(0);
            assert_eq!(guest.wait_used(0, 1)[0].1, 64);
        },
    );
}

#[test]
fn a_block_device_with_rings_needs_no_descriptor_once_it_is_plugged_in() {
    const HEADER: u64 = 0x1_0000;
    const DATA: u64 = 0x2_0000;
    const STATUS: u64 = 0x3_0000;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0x5a; 8192]).unwrap();
    let config = DiskConfig {
        aio: Aio::IoUring,
        ..DiskConfig::new(file.path())
    };
    a_running_device_needs_no_descriptor(
        "testing::faults::a_block_device_with_rings_needs_no_descriptor_once_it_is_plugged_in",
        || {
            let disk = RawDisk::open(&config, 2, 64).unwrap();
            Arc::new(Blk::new("disk0", Arc::new(disk), 2, 64, ""))
        },
        |guest| {
            for queue in 0..2 {
                // A read of the first sector, which is all zeroes as a header.
                guest.poke(HEADER, &[0; 16]);
                guest.poke(STATUS, &[0xff]);
                guest.poke(DATA, &[0; 512]);
                guest.offer(
                    queue,
                    &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)],
                );
                guest.kick(u16::try_from(queue).unwrap());
                guest.wait_used(queue, 1);
                assert_eq!(guest.peek(STATUS, 1), [0]);
                assert_eq!(guest.peek(DATA, 512), [0x5a; 512]);
            }
        },
    );
}

#[test]
fn a_network_card_needs_no_descriptor_once_it_is_plugged_in() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let config = NetConfig {
        passt: true,
        packets: Some(1_000_000),
        ..NetConfig::default()
    };
    a_running_device_needs_no_descriptor(
        "testing::faults::a_network_card_needs_no_descriptor_once_it_is_plugged_in",
        || {
            let passt = Arc::new(Passt::from_fd(ours.into()).unwrap());
            let mac = MacAddress([2, 0, 0, 0, 0, 1]);
            Arc::new(Net::new("net0", mac, &config, passt))
        },
        |guest| {
            // A header and the shortest frame, from the transmit queue.
            guest.poke(0x1_0000, &[0; 72]);
            guest.offer(1, &[(0x1_0000, 72, false)]);
            guest.kick(1);
            guest.wait_used(1, 1);
            let mut frame = [0; 4 + 60];
            theirs.read_exact(&mut frame).unwrap();
        },
    );
}
