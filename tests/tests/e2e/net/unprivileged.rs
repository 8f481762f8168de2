//! A TAP device that was created for an ordinary user needs no privilege.

use std::path::Path;
use std::time::{Duration, Instant};

use splitring_tests::assets::{Disk, Image, Kernel};
use splitring_tests::guest::Launch;
use splitring_tests::user::{UID, User};

use crate::net::endpoints::{Host, Net, check_log};

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_users_own_tap_device_works_without_capabilities_and_within_limits() {
    let Some(host) = Host::new() else { return };
    let net = Net::number(15);
    let _tap = net.tap(&host, &format!("vnet_hdr user {UID}"));
    let user = User::new();
    let root = Disk::copy_of("tools");
    user.own(&root);
    let kernel = Kernel::named("6.12-cloud");
    let launch = Launch::new(&kernel, Image::Vmlinux)
        .by(&user, Path::new("/proc/self/ns/net"))
        .root_disk(root.path());
    let mut guest = net.boot_as(launch, ",bandwidth=1M,packets=5000,mac-filter=on");
    let status = std::fs::read_to_string(format!("/proc/{}/status", guest.pid()));
    let status = status.expect("splitring runs");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(
            status.contains(&format!("{set}:\t0000000000000000")),
            "{status}"
        );
    }
    let start = Instant::now();
    net.transfer_under(&mut guest, 2 << 20, "");
    // Two MiB in each direction at one per second, minus the burst that passes at once.
    assert!(
        start.elapsed() > Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    guest.succeed("ip link set eth0 down && ip link set eth0 address 02:00:00:77:0f:99 && ip link set eth0 up");
    assert_ne!(
        guest.run(&format!("ping -c 2 -w 5 {}", net.host)).status,
        0,
        "under an address that is not its own"
    );
    check_log(&mut guest);
    guest.power_off();
}
