//! Links that go down and up, and guests that are paused, with Splitring as a library in this
//! process.

use std::fs;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use splitring::config::NetConfig;
use splitring_tests::library::LibraryGuest;

use crate::net::endpoints::{Host, Net, PING};

const TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) fn card(net: &Net) -> NetConfig {
    NetConfig::tap(net.tap.clone())
}

/// Waits until `done` returns true.
#[track_caller]
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < TIMEOUT, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_link_that_goes_down_and_up_is_seen_and_a_pause_is_announced() {
    let Some(host) = Host::new() else { return };
    let net = Net::number(11);
    let _tap = net.tap(&host, "");
    let mut guest = LibraryGuest::boot_nets("links", vec![card(&net)]);
    guest.succeed(&net.set_up());
    let link = guest.machine.nets().remove(0);
    for _ in 0..3 {
        link.set_link(false).expect("the card is there");
        guest.until("[ \"$(cat /sys/class/net/eth0/carrier)\" = 0 ]");
        assert_ne!(guest.run(&format!("ping -c 1 -w 1 {}", net.host)).1, 0);
        link.set_link(true).expect("the card is there");
        guest.until("[ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]");
        guest.succeed(&format!("{PING} -q -c 1 -w 60 {}", net.host));
    }
    // A host that accepts gratuitous ARP learns the guest's address from an announcement.
    let accept = format!("/proc/sys/net/ipv4/conf/{}/arp_accept", net.tap);
    fs::write(accept, "1").expect("we are root");
    host.tools.sh(&format!("ip neigh flush dev {}", net.tap));
    let sent = |guest: &LibraryGuest| guest.machine.nets()[0].totals().expect("there").sent.frames;
    guest.machine.pause().expect("pauses");
    let before = sent(&guest);
    guest.machine.resume().expect("resumes");
    until("an announcement", || sent(&guest) > before);
    host.tools.sh(&format!(
        "n=0; until ip neigh show dev {} | grep -q '{} lladdr'; do n=$((n+1)); [ $n -gt 50 ] && exit 1; sleep 0.2; done",
        net.tap, net.guest
    ));
    guest.succeed(&format!("{PING} -q -c 1 -w 60 {}", net.host));
    guest.machine.stop();
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_flood_at_a_paused_guest_is_delivered_or_counted_after_the_pause() {
    const FLOOD: u64 = 5000;
    let Some(host) = Host::new() else { return };
    let net = Net::number(12);
    let _tap = net.tap(&host, "");
    let mut guest = LibraryGuest::boot_nets("stopped", vec![card(&net)]);
    guest.succeed(&net.set_up());
    for round in 0..3 {
        guest.machine.pause().expect("pauses");
        let tap = || net.count("tx_packets") + net.count("tx_dropped");
        let before = tap();
        let socket = UdpSocket::bind((net.host.as_str(), 0)).expect("our own address");
        socket.connect((net.guest.as_str(), 9)).expect("a route");
        for _ in 0..FLOOD {
            // The guest refuses the datagrams, which is reported as an error of a later call.
            drop(socket.send(&[0; 64]));
        }
        guest.machine.resume().expect("resumes");
        let dropped = net.count("tx_dropped");
        assert!(dropped > 0, "round {round}: the host kept everything");
        until("the flood is over", || {
            let received = guest.machine.nets()[0].totals().expect("there").received;
            received.frames + received.dropped.sum() == net.count("tx_packets")
        });
        guest.succeed(&format!("{PING} -q -c 2 -w 60 {}", net.host));
        // Some sends report an error instead; every datagram that was sent is delivered or dropped.
        assert!(tap() - before <= FLOOD + 100, "{}", tap() - before);
        assert!(tap() - before >= FLOOD / 2, "{}", tap() - before);
    }
    guest.machine.stop();
}
