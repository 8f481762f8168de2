//! Hundreds of disks on one controller.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use splitring_tests::assets::Disk;
use splitring_tests::dmesg;
use splitring_tests::guest::Guest;

use crate::guest;

const DISKS: usize = 256;

/// A field of a process's or thread's status.
fn field(status: &str, name: &str) -> u64 {
    let text = fs::read_to_string(status).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

/// How often each of its threads but the virtual CPUs has slept.
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

#[test]
#[ignore = "needs a stock guest"]
fn scsi_hundreds_of_disks_are_found_and_cost_nothing_while_idle() {
    let disks: Vec<Disk> = (0..DISKS).map(|_| Disk::empty(1 << 20)).collect();
    let with_keys: Vec<(&Disk, &str)> = disks.iter().map(|disk| (disk, "")).collect();
    let (_root, mut guest) = guest(&with_keys);
    assert_eq!(
        guest.succeed("ls -d /sys/block/sd* | wc -l").trim(),
        DISKS.to_string()
    );
    guest.succeed("for d in /sys/block/sd*; do dd if=/dev/${d##*/} of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null || exit 1; done");
    // Else the root disk's journal and its timer count as well.
    guest.succeed("sync; mount -o remount,ro /");
    // The console may still be saying something; disks that wake anybody do so all the time.
    let mut woken = String::new();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_secs(3));
        let before = sleeps(&guest);
        std::thread::sleep(Duration::from_secs(5));
        let after = sleeps(&guest);
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
    let log = guest.succeed(dmesg::COMMAND);
    let unexpected = dmesg::unexpected(&log);
    assert!(unexpected.is_empty(), "{}", unexpected.join("\n"));
    guest.power_off();
}
