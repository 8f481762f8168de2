//! Hundreds of disks on one controller.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use splitring_tests::assets::Disk;
use splitring_tests::dmesg;
use splitring_tests::guest::Guest;

use crate::scsi::{boot, launch};

const DISKS: usize = 256;
/// Limit on the additional memory of the process.
const LIMIT_KIB: u64 = 4 << 10;

/// Returns a field of a process's or thread's status.
fn field(status: &str, name: &str) -> u64 {
    let text = fs::read_to_string(status).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

/// Returns how often each thread other than the vCPUs' has slept.
fn sleeps(guest: &Guest) -> BTreeMap<String, u64> {
    let threads = fs::read_dir(format!("/proc/{}/task", guest.pid())).expect("threads");
    let mut sleeps = BTreeMap::new();
    for thread in threads.flatten() {
        let dir = thread.path();
        let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
        if !name.starts_with("vcpu") {
            let status = dir.join("status");
            let count = field(&status.to_string_lossy(), "voluntary_ctxt_switches:");
            let name = format!("{} {}", thread.file_name().display(), name.trim());
            sleeps.insert(name, count);
        }
    }
    sleeps
}

/// Returns the resident set in KiB without the guest's memory, which is a file with this name.
fn own_memory(guest: &Guest) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", guest.pid())).expect("it runs");
    let (mut sum, mut guests, mut of_guest) = (0, 0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Rss:"), Some(kib)) if !of_guest => sum += kib.parse::<u64>().expect("a number"),
            (Some(range), Some(_)) if !range.ends_with(':') => {
                of_guest = line.contains("memfd:guest-memory");
                guests += u32::from(of_guest);
            }
            _ => {}
        }
    }
    assert!(guests > 0, "no guest memory among the mappings:\n{smaps}");
    sum
}

/// Boots a guest that has found `count` disks and read from each. Its memory is a file, so that it
/// can be told from the process's own, and no kernel waits in memory to be cached.
fn guest_of(count: usize) -> (Vec<Disk>, Disk, Guest) {
    let disks: Vec<Disk> = (0..count).map(|_| Disk::empty(1 << 20)).collect();
    let with_keys: Vec<(&Disk, &str)> = disks.iter().map(|disk| (disk, "")).collect();
    let (root, launch) = launch();
    let launch = launch
        .memory("256M,shared=on")
        .option("--kernel-cache", "off");
    let mut guest = boot(launch, &with_keys);
    let found = guest.succeed("ls -d /sys/block/sd* | wc -l");
    assert_eq!(found.trim(), count.to_string());
    guest.succeed("for d in /sys/block/sd*; do dd if=/dev/${d##*/} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null || exit 1; done");
    (disks, root, guest)
}

/// Asserts that no thread other than the vCPUs' wakes up.
fn stays_asleep(guest: &Guest) {
    // The console may still print something; disks that wake a thread do so all the time.
    let mut woken = String::new();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_secs(3));
        let before = sleeps(guest);
        std::thread::sleep(Duration::from_secs(5));
        let after = sleeps(guest);
        let mut changed = after
            .iter()
            .filter(|(name, count)| before.get(*name) != Some(count));
        woken = changed
            .next()
            .map_or_else(String::new, |(name, _)| name.clone());
        if woken.is_empty() {
            break;
        }
    }
    assert!(woken.is_empty(), "{woken}");
}

#[test]
#[ignore = "needs a stock guest"]
fn hundreds_of_disks_take_little_memory_and_no_time_while_idle() {
    let alone = {
        let (_disks, _root, guest) = guest_of(1);
        own_memory(&guest)
    };
    let (_disks, _root, mut guest) = guest_of(DISKS);
    let all = own_memory(&guest);
    println!("{alone} KiB with one disk, {all} KiB with {DISKS}");
    assert!(all < alone + LIMIT_KIB, "{alone} KiB became {all} KiB");
    // Otherwise the root disk's journal and its timer would count as well.
    guest.succeed("sync; mount -o remount,ro /");
    stays_asleep(&guest);
    let log = guest.succeed(dmesg::COMMAND);
    let unexpected = dmesg::unexpected(&log);
    assert!(unexpected.is_empty(), "{}", unexpected.join("\n"));
    guest.power_off();
}
