//! A memory balloon in a stock guest: the host gets the memory that the guest returns or reports as
//! free. With Splitring as a library in this process.

use std::time::{Duration, Instant};

use splitring::balloon::{BalloonHandle, BalloonTotals};
use splitring::config::{BalloonConfig, Bytes, DiskConfig};
use splitring_tests::assets::Disk;
use splitring_tests::library::LibraryGuest;

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 512 * MIB;
const PATIENCE: Duration = Duration::from_secs(180);

/// Resident memory of this process, the guest's included.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("our status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a number of KiB") << 10
}

fn totals(balloon: &BalloonHandle) -> BalloonTotals {
    balloon.totals().expect("it is there")
}

#[track_caller]
fn wait_until(what: &str, balloon: &BalloonHandle, done: impl Fn(&BalloonTotals) -> bool) {
    let start = Instant::now();
    while !done(&totals(balloon)) {
        let resident = resident() / MIB;
        let waited = start.elapsed();
        assert!(
            waited < PATIENCE,
            "{what}: {resident} MiB resident, {:?}",
            totals(balloon)
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_stock_guest_gives_memory_back_and_gets_it_again() {
    let data = Disk::empty(400 * MIB);
    let config = BalloonConfig::new()
        .deflate_on_oom(true)
        .free_page_reporting(true)
        .stats_interval(1);
    let disks = vec![DiskConfig::new(data.path()).readonly(true)];
    let mut guest = LibraryGuest::boot_changed("balloon", disks, |machine| {
        machine.memory(Bytes(MEMORY)).balloon(config)
    });
    let balloon = guest.machine.balloon().expect("a balloon");
    wait_until("statistics arrive", &balloon, |totals| {
        totals.statistics.is_some()
    });
    let statistics = totals(&balloon).statistics.expect("just seen");
    let total = statistics.total.expect("Linux says it");
    assert!((MEMORY * 3 / 4..MEMORY).contains(&total), "{statistics:?}");
    assert!(statistics.free.expect("Linux says it") < total);

    // A file in memory is removed: what was its memory is reported.
    guest.succeed("mkdir -p /tmp/big && mount -t tmpfs -o size=100% none /tmp/big");
    guest.succeed("dd if=/dev/zero of=/tmp/big/file bs=1M count=200 2>/dev/null");
    let full = resident();
    let reported = totals(&balloon).reported;
    guest.succeed("rm /tmp/big/file");
    wait_until("free pages are reported", &balloon, |totals| {
        totals.reported - reported > 150 * MIB && resident() < full - 120 * MIB
    });

    // The page cache is not free memory, but the guest can do without it.
    guest.succeed("cat /dev/vdb >/dev/null");
    let cached = resident();
    balloon.set_target(MEMORY / 2).expect("possible");
    wait_until("the balloon is inflated", &balloon, |totals| {
        totals.actual == MEMORY / 2
    });
    wait_until("the host has the memory", &balloon, |_| {
        resident() < cached - 120 * MIB
    });
    let inflated = totals(&balloon);
    assert_eq!(inflated.inflated - inflated.deflated, MEMORY / 2);
    assert_eq!(inflated.ignored, 0);

    // More than is left: the guest takes it out of the balloon rather than kill anybody.
    guest.succeed(
        "dd if=/dev/zero of=/tmp/big/file bs=1M count=230 2>/dev/null && rm /tmp/big/file",
    );
    let left = totals(&balloon).actual;
    assert!(left < MEMORY / 2, "{left}");

    balloon.set_target(0_u64).expect("possible");
    wait_until("the balloon is empty", &balloon, |totals| {
        totals.actual == 0
    });
    guest.succeed("dd if=/dev/zero of=/tmp/big/file bs=1M count=300 2>/dev/null");
    guest.succeed("! dmesg | grep -i -e 'out of memory' -e 'oom-kill'");
    let last = totals(&balloon).statistics.expect("still there");
    assert!(last.received > statistics.received, "they go on arriving");
    guest.machine.stop();
}
