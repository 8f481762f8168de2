//! Starts that fail half-way, one after each step.
//!
//! What can fail at a start is mostly a descriptor that the process may not have: eventfds, epoll instances, timers,
//! copies. [`every_start_that_fails_leaves_nothing_behind`] gives a start none, then one, then two of them and so on
//! until it succeeds. After each failure the driver resets the device, starts it again and does I/O. The limit is the
//! process's, so the test runs in one of its own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use splitring_virtio::spec::status;

use super::pci::{Guest, wait_until};
use crate::blk::Blk;
use crate::device::VirtioDevice;
use crate::disk::RawDisk;
use crate::disk::config::{Aio, DiskConfig};

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
    if std::env::var_os(ALONE).is_none() {
        let mut alone = Command::new(std::env::current_exe().unwrap());
        let status = alone
            .args([test, "--exact", "--nocapture", "--test-threads=2"])
            .env(ALONE, "1")
            .status();
        assert!(status.unwrap().success(), "in a process of its own");
        return;
    }
    let mut guest = Guest::new(make());
    guest.decode_memory();
    // What is made once and stays, such as threads beside the queues, is there from here on.
    guest.restart();
    io(&mut guest);
    guest.set_status(0);
    let before = resources();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(highest_descriptor() + ROOM),
            ..limit
        },
    )
    .unwrap();
    let mut failures = 0;
    for allowed in 0.. {
        start_with(&mut guest, allowed);
        let failed = guest.status() & status::NEEDS_RESET != 0;
        if failed {
            failures += 1;
            guest.restart();
        }
        assert_eq!(guest.status() & status::NEEDS_RESET, 0);
        io(&mut guest);
        guest.set_status(0);
        wait_until("everything has been given back", || resources() == before);
        if !failed {
            break;
        }
    }
    println!("{failures} starts failed");
    assert!(failures > 0, "no step of the start needs a descriptor");
    assert_eq!(*guest.failures.lock().unwrap(), []);
}

/// DRIVER_OK, with `allowed` descriptors left to the process.
fn start_with(guest: &mut Guest, allowed: usize) {
    guest.negotiate();
    let queues = guest.common16(splitring_virtio::spec::pci::common::NUM_QUEUES);
    guest.rings = (0..queues).map(|index| guest.enable_queue(index)).collect();
    let null = File::open("/dev/null").unwrap();
    let mut fillers: Vec<File> = std::iter::from_fn(|| null.try_clone().ok()).collect();
    assert!(fillers.len() > allowed, "every start fails");
    fillers.truncate(fillers.len() - allowed);
    guest.add_status(status::DRIVER_OK);
}

/// Open descriptors and threads.
fn resources() -> [usize; 2] {
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
fn a_random_generator_survives_every_start_that_fails() {
    every_start_that_fails_leaves_nothing_behind(
        "testing::faults::a_random_generator_survives_every_start_that_fails",
        || Arc::new(crate::rng::Rng::new("rng0")),
        |guest| {
            guest.offer(0, &[(0x1_0000, 64, true)]);
            guest.kick(0);
            assert_eq!(guest.wait_used(0, 1)[0].1, 64);
        },
    );
}

#[test]
fn a_block_device_and_its_rings_survive_every_start_that_fails() {
    const HEADER: u64 = 0x1_0000;
    const DATA: u64 = 0x2_0000;
    const STATUS: u64 = 0x3_0000;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0x5a; 8192]).unwrap();
    let config = DiskConfig {
        aio: Aio::Ring,
        ..DiskConfig::new(file.path())
    };
    every_start_that_fails_leaves_nothing_behind(
        "testing::faults::a_block_device_and_its_rings_survive_every_start_that_fails",
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
