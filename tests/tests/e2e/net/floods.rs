//! Thousands of packets, all accounted for: delivered, or counted where they were dropped.

use std::net::UdpSocket;

use splitring::Resources;
use splitring_devices::disk::config::DiskConfig;
use splitring_tests::assets::Kernel;
use splitring_tests::library::LibraryGuest;

use crate::net::endpoints::{Host, IP, Net, PING};
use crate::net::links::{card, until};

/// All counters.
#[derive(Debug, Clone, Copy)]
struct Counts {
    /// Frames that the TAP device took from the host, and those that it had no space for.
    offered: u64,
    refused: u64,
    /// Frames that the VMM received and delivered.
    delivered: u64,
    lost: u64,
    /// Frames that the guest's driver received.
    guest_received: u64,
    /// Frames that the guest's driver sent.
    guest_sent: u64,
    forwarded: u64,
    kept_back: u64,
    /// Frames that the TAP device received from the VMM.
    arrived: u64,
}

struct Flood {
    guest: LibraryGuest,
    net: Net,
}

impl Flood {
    fn counts(&mut self) -> Counts {
        let totals = self.guest.machine.nets()[0]
            .totals()
            .expect("the card is there");
        let mut guest = |name: &str| -> u64 {
            let path = format!("/sys/class/net/eth0/statistics/{name}");
            let text = self.guest.succeed(&format!("cat {path}"));
            text.trim().parse().expect("a number")
        };
        Counts {
            offered: self.net.count("tx_packets"),
            refused: self.net.count("tx_dropped"),
            delivered: totals.received.frames,
            lost: totals.received.dropped.sum() + totals.received.errors,
            guest_received: guest("rx_packets"),
            guest_sent: guest("tx_packets"),
            forwarded: totals.sent.frames,
            kept_back: totals.sent.dropped.sum() + totals.sent.errors,
            arrived: self.net.count("rx_packets") + self.net.count("rx_dropped"),
        }
    }

    /// Waits until nothing is in flight, and checks that nothing was lost.
    fn settle(&mut self) -> Counts {
        let mut last = self.counts();
        until("all are accounted for", || {
            last = self.counts();
            last.offered == last.delivered + last.lost
                && last.delivered == last.guest_received
                && last.guest_sent == last.forwarded + last.kept_back
                && last.forwarded == last.arrived
        });
        last
    }

    fn flood_guest(&self, packets: u64) {
        let socket = UdpSocket::bind((self.net.host.as_str(), 0)).expect("our own address");
        socket
            .connect((self.net.guest.as_str(), 9))
            .expect("a route");
        let mut sent = 0;
        while sent < packets {
            // A refusal by the guest is reported as the error of a later send.
            sent += u64::from(socket.send(&[0; 22]).is_ok());
        }
    }

    fn flood_host(&mut self, packets: u64) {
        let mac = std::fs::read_to_string(format!("/sys/class/net/{}/address", self.net.tap));
        let mac = mac.expect("the tap is there");
        let (mac, to) = (mac.trim(), &self.net.host);
        self.guest.succeed(&format!(
            "cd /proc/net/pktgen && echo rem_device_all >kpktgend_0 && echo add_device eth0 >kpktgend_0 && \
             for word in 'count {packets}' 'pkt_size 60' 'delay 0' 'dst_mac {mac}' 'dst {to}'; do \
             echo $word >eth0; done; cd /root"
        ));
        // It answers when all packets have been sent; on a slow machine that takes longer than the
        // limit of a line.
        self.guest
            .succeed("(echo start >/proc/net/pktgen/pgctrl; touch /tmp/done) >/dev/null 2>&1 &");
        while self.guest.run("[ -e /tmp/done ]").1 != 0 {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        self.guest.succeed("rm /tmp/done");
    }
}

fn flood(number: u8, packets: u64) {
    let Some(host) = Host::new() else { return };
    let net = Net::number(number);
    let _tap = net.tap(&host, "");
    let modules = Kernel::named("6.12-cloud").extra_modules();
    let modules = DiskConfig::new(modules).readonly(true);
    // A small ring, so that it runs empty.
    let small = card(&net).queue_size(64);
    let guest = LibraryGuest::boot_all("flood", vec![modules], vec![small], Resources::options());
    let mut flood = Flood { guest, net };
    let set_up = flood.net.set_up();
    flood.guest.succeed(&set_up);
    flood.guest.succeed(
        "mkdir -p /tmp/extra && tar -xf /dev/vdb -C /tmp/extra && insmod /tmp/extra/pktgen.ko",
    );
    // A flooded guest answers neighbour discovery too late, and the host would drop its frames.
    let mac = flood.guest.succeed("cat /sys/class/net/eth0/address");
    host.tools.sh(&format!(
        "{IP} neigh replace {} lladdr {} nud permanent dev {}",
        flood.net.guest,
        mac.trim(),
        flood.net.tap
    ));
    let start = flood.settle();
    flood.flood_guest(packets);
    let middle = flood.settle();
    let came = middle.offered + middle.refused - start.offered - start.refused;
    assert!(came >= packets, "{came} of {packets} reached the tap");
    let waits = flood.guest.machine.nets()[0]
        .totals()
        .expect("there")
        .received
        .waits;
    assert!(waits > 0, "the ring never ran empty");
    flood.flood_host(packets);
    let end = flood.settle();
    assert!(end.guest_sent - middle.guest_sent >= packets, "{end:?}");
    println!("{packets} packets each way: {start:?} {middle:?} {end:?}, {waits} waits");
    // The empty rings have been refilled: the device works as before.
    let ping = format!("{PING} -q -c 5 -w 60 {}", flood.net.host);
    flood.guest.succeed(&ping);
    flood.guest.machine.stop();
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn ten_thousand_packets_each_way_are_all_accounted_for() {
    flood(13, 10_000);
}

mod soak {
    use super::*;

    #[test]
    #[ignore = "needs a guest: cargo xtask test"]
    fn a_million_packets_each_way_are_all_accounted_for() {
        flood(14, 1_000_000);
    }
}
