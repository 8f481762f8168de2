//! Frames of every size and kind: MTU, VLANs, multicast, addresses.

use splitring_tests::assets::{Disk, Image, Kernel};
use splitring_tests::guest::{Guest, Launch};

use crate::net::endpoints::{Host, IP, Net, PING, check_log};

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn small_and_large_frames_pass_and_ipv6_too() {
    let net = Net::number(3);
    net.with_guest(1, ",mtu=9000", |guest, tap, host| {
        assert_eq!(
            guest.succeed("cat /sys/class/net/eth0/mtu").trim(),
            "9000",
            "the MTU the device offers"
        );
        for mtu in [9000, 1500, 576, 68] {
            tap.set_mtu(mtu);
            guest.succeed(&format!("ip link set eth0 mtu {mtu}"));
            let payload = mtu - 28;
            guest.succeed(&format!(
                "{PING} -q -c 3 -M do -s {payload} -w 30 {}",
                net.host
            ));
        }
        tap.set_mtu(1500);
        guest.succeed(&format!("{IP} link set eth0 mtu 1500"));
        guest.succeed(&format!("{IP} addr add fd77::2/64 dev eth0 nodad"));
        host.tools
            .sh(&format!("ip addr add fd77::1/64 dev {} nodad", net.tap));
        guest.succeed(&format!("{PING} -q -c 3 -s 1400 -w 30 fd77::1"));
    });
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn vlans_multicast_promiscuity_and_a_changed_address_work() {
    let Some(host) = Host::new() else { return };
    let net = Net::number(4);
    let _tap = net.tap(&host, "");
    let root = Disk::copy_of("tools");
    let kernel = Kernel::named("6.12-cloud");
    let launch = Launch::new(&kernel, Image::Vmlinux)
        .root_disk(root.path())
        .disk(&kernel.extra_modules(), ",readonly=on");
    let mut guest = net.boot_as(launch, "");
    guest.load_extra("/dev/vdb", "8021q");
    let tap = &net.tap;
    host.tools.sh(&format!(
        "ip link add link {tap} name v{tap} type vlan id 5 && ip addr add 10.78.4.1/24 dev v{tap} && ip link set v{tap} up"
    ));
    // Without its VLAN in the filter table no tagged frame passes.
    guest.succeed(&format!(
        "{IP} link add link eth0 name eth0.6 type vlan id 6 && ip addr add 10.78.4.2/24 dev eth0.6 && {IP} link set eth0.6 up"
    ));
    let ping = format!("{PING} -q -c 2 -w 10 10.78.4.1");
    assert_ne!(guest.run(&ping).status, 0, "another VLAN");
    guest.succeed(&format!(
        "{IP} link del eth0.6 && {IP} link add link eth0 name eth0.5 type vlan id 5 && \
         ip addr add 10.78.4.2/24 dev eth0.5 && {IP} link set eth0.5 up"
    ));
    guest.succeed(&ping.replace("-w 10", "-w 60"));

    guest.succeed(&format!("{IP} link set eth0 promisc on"));
    let foreign = "02:00:00:77:04:44";
    let rx = "cat /sys/class/net/eth0/statistics/rx_packets";
    let arrived = |guest: &mut Guest| -> bool {
        let count = |guest: &mut Guest| guest.succeed(rx).trim().parse::<u64>().expect("a number");
        let before = count(guest);
        host.tools.sh(&format!(
            "ip neigh replace 10.77.4.9 lladdr {foreign} dev {tap} && \
             (ping -q -c 5 -i 0.2 -W 1 10.77.4.9 >/dev/null 2>&1; true)"
        ));
        count(guest) >= before + 5
    };
    assert!(
        arrived(&mut guest),
        "promiscuous, and a foreign frame did not arrive"
    );
    guest.succeed(&format!("{IP} link set eth0 promisc off"));
    assert!(!arrived(&mut guest), "a foreign frame arrived");

    guest.succeed(&format!(
        "{IP} link set eth0 down && {IP} link set eth0 address {foreign} && {IP} link set eth0 up"
    ));
    assert!(arrived(&mut guest), "the address is its own now");
    guest.succeed(&format!("{PING} -q -c 3 -w 60 {}", net.host));
    guest.succeed(&format!(
        "{IP} link set eth0 allmulticast on && {IP} maddr add 33:33:00:00:77:04 dev eth0"
    ));
    net.transfer(&mut guest);
    check_log(&mut guest);
    guest.power_off();
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn promiscuity_multicast_and_a_changed_address_work() {
    let net = Net::number(16);
    net.with_guest(1, "", |guest, _, _| {
    guest.succeed("ip link set eth0 promisc on && ip link set eth0 promisc off");
    guest.succeed("ip link set eth0 down && ip link set eth0 address 02:00:00:77:16:99 && ip link set eth0 up");
    guest.succeed(&format!("ping -q -c 3 -w 30 {}", net.host));
    guest.succeed(&format!(
        "{IP} link set eth0 allmulticast on && {IP} maddr add 33:33:00:00:77:04 dev eth0"
    ));
    net.transfer(guest);
    });
}

mod soak {
    use super::*;

    #[test]
    #[ignore = "needs a guest: cargo xtask test"]
    fn every_size_from_68_to_9000_passes_whole() {
        let net = Net::number(8);
        net.with_guest(1, ",mtu=9000", |guest, tap, _| {
            // Every power of two with its neighbours, and some sizes in between.
            let sizes = [
                68, 69, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 1279, 1280,
                1281, 1499, 1500, 1501, 2047, 2048, 2049, 4095, 4096, 4097, 8191, 8192, 8193, 8999,
                9000,
            ];
            for mtu in sizes {
                tap.set_mtu(mtu);
                guest.succeed(&format!("{IP} link set eth0 mtu {mtu}"));
                let payload = mtu - 28;
                guest.succeed(&format!(
                    "{PING} -q -c 2 -M do -s {payload} -w 30 {}",
                    net.host
                ));
                if mtu >= 552 {
                    net.transfer_under(guest, 1 << 20, "");
                }
            }
        });
    }
}
