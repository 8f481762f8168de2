//! A stock guest's network card: what is transferred arrives whole, whatever the offloads, queues and sizes.
//!
//! Run by `cargo xtask test`, which knows where a stock kernel can run.

use splitring_tests::assets::{Disk, Image, Kernel};
use splitring_tests::dmesg;
use splitring_tests::guest::{Guest, Launch};
use splitring_tests::network::{Tap, Toolbox, collect, content, serve};

/// The guest's shell would take its own, simpler ones.
const IP: &str = "/usr/bin/ip";
const PING: &str = "/usr/bin/ping";
const TRANSFER: usize = 8 << 20;

/// The two ends of one test's network; every test has its own, so that they can run side by side.
struct Net {
    tap: String,
    host: String,
    guest: String,
    port: u16,
}

impl Net {
    fn number(number: u8) -> Self {
        Self {
            tap: format!("spltest{number}"),
            host: format!("10.77.{number}.1"),
            guest: format!("10.77.{number}.2"),
            port: 5000 + u16::from(number),
        }
    }

    /// Boots a guest with tools and this card, and gives it its address.
    fn boot(&self, root: &Disk, cpus: u32, keys: &str) -> Guest {
        let kernel = Kernel::named("6.12-cloud");
        let mut guest = Launch::new(&kernel, Image::Vmlinux)
            .cpus(cpus)
            .root_disk(root.path())
            .option("--net", format!("tap={}{keys}", self.tap))
            .boot();
        guest.succeed(&format!(
            "ip addr add {}/24 dev eth0 && ip link set eth0 up && ping -q -c 2 -w 30 {}",
            self.guest, self.host
        ));
        guest
    }

    /// The same bytes both ways over TCP, compared whole.
    fn transfer(&self, guest: &mut Guest) {
        let address = format!("{}:{}", self.host, self.port);
        let bytes = content(TRANSFER);
        let server = serve(&address, bytes.clone());
        guest.succeed(&format!(
            "busybox nc {} {} </dev/null >/tmp/blob",
            self.host, self.port
        ));
        server.join().expect("all was sent");
        let back = collect(&address);
        guest.succeed(&format!(
            "busybox nc {} {} </tmp/blob",
            self.host, self.port
        ));
        assert!(
            back.join().expect("all came back") == bytes,
            "the bytes are not the ones that were sent"
        );
    }
}

fn tools() -> (Disk, Toolbox) {
    let disk = Disk::copy_of("tools");
    let toolbox = Toolbox::mount(disk.path());
    (disk, toolbox)
}

fn check_log(guest: &mut Guest) {
    let log = guest.succeed(dmesg::COMMAND);
    let unexpected = dmesg::unexpected(&log);
    assert!(
        unexpected.is_empty(),
        "unexpected kernel messages:\n{}",
        unexpected.join("\n")
    );
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn transfers_arrive_whole_with_every_kind_of_offload_switched_off() {
    let (_disk, tools) = tools();
    let net = Net::number(1);
    let _tap = Tap::create(&tools, &net.tap, "", &format!("{}/24", net.host));
    let root = Disk::copy_of("tools");
    let mut guest = net.boot(&root, 1, "");
    net.transfer(&mut guest);
    for offload in [
        "gro off", "tso off", "gso off", "rx off", "tx off", "sg off",
    ] {
        // What goes off takes what needs it along, so this goes from everything to nothing.
        guest.run(&format!("ethtool -K eth0 {offload}"));
        net.transfer(&mut guest);
    }
    check_log(&mut guest);
    guest.power_off();
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn four_queue_pairs_work_and_are_switched_under_load() {
    let (_disk, tools) = tools();
    let net = Net::number(2);
    let _tap = Tap::create(&tools, &net.tap, "multi_queue", &format!("{}/24", net.host));
    let root = Disk::copy_of("tools");
    let mut guest = net.boot(&root, 4, ",queues=4");
    for pairs in [4, 1, 3] {
        guest.succeed(&format!("ethtool -L eth0 combined {pairs}"));
        net.transfer(&mut guest);
    }
    guest.succeed(&format!("(ping -q -f -c 2000 {} >/tmp/ping &)", net.host));
    for pairs in [1, 4, 2, 4] {
        guest.succeed(&format!("ethtool -L eth0 combined {pairs}"));
    }
    net.transfer(&mut guest);
    check_log(&mut guest);
    guest.power_off();
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn small_and_large_frames_pass_and_ipv6_too() {
    let (_disk, tools) = tools();
    let net = Net::number(3);
    let tap = Tap::create(&tools, &net.tap, "", &format!("{}/24", net.host));
    let root = Disk::copy_of("tools");
    let mut guest = net.boot(&root, 1, ",mtu=9000");
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
    tools.sh(&format!("ip addr add fd77::1/64 dev {} nodad", net.tap));
    guest.succeed(&format!("{PING} -q -c 3 -s 1400 -w 30 fd77::1"));
    check_log(&mut guest);
    guest.power_off();
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn promiscuity_multicast_and_a_changed_address_work() {
    let (_disk, tools) = tools();
    let net = Net::number(4);
    let _tap = Tap::create(&tools, &net.tap, "", &format!("{}/24", net.host));
    let root = Disk::copy_of("tools");
    let mut guest = net.boot(&root, 1, "");
    guest.succeed("ip link set eth0 promisc on && ip link set eth0 promisc off");
    guest.succeed("ip link set eth0 down && ip link set eth0 address 02:00:00:77:04:99 && ip link set eth0 up");
    guest.succeed(&format!("ping -q -c 3 -w 30 {}", net.host));
    guest.succeed(&format!(
        "{IP} link set eth0 allmulticast on && {IP} maddr add 33:33:00:00:77:04 dev eth0"
    ));
    net.transfer(&mut guest);
    check_log(&mut guest);
    guest.power_off();
}
