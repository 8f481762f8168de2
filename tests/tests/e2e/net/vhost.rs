//! Frames that the host's vhost-net moves, with Splitring as a library in this process.

use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use splitring_needs as needs;
use splitring_tests::dmesg;
use splitring_tests::library::LibraryGuest;
use splitring_tests::network::content;

use crate::net::endpoints::{Host, Net, PING};
use crate::net::links::{card, until};

/// Feature bits, by their place in sysfs: mergeable buffers, receive modes, indirect tables, event
/// indices, version 1.
const OFFERED: [(usize, u8); 5] = [(15, b'1'), (18, b'0'), (28, b'1'), (29, b'1'), (32, b'1')];

/// The same bytes both ways over TCP, compared whole.
#[track_caller]
fn transfer(live: &mut LibraryGuest, net: &Net) {
    let bytes = 8 << 20;
    let (server, line) = net.give(bytes);
    live.succeed(&line);
    server.join().expect("all was sent");
    let (back, line) = net.take();
    live.succeed(&line);
    let same = back.join().expect("all came back") == content(bytes);
    assert!(same, "the bytes are not the ones that were sent");
}

/// Returns the number of the kernel's threads that serve this process's rings. Since Linux 6.4 they
/// are threads of the process, before that of the kernel. Each is named after the thread that
/// opened the rings.
fn kernel_threads() -> usize {
    let comms = |path: &str| {
        let entries = fs::read_dir(path).expect("proc is mounted").flatten();
        let comm = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("comm")).ok();
        entries.filter_map(comm).collect::<Vec<_>>()
    };
    let ours = comms("/proc/self/task");
    let of_process = ours
        .iter()
        .filter(|comm| comm.starts_with("vhost-"))
        .count();
    let tasks = fs::read_dir("/proc/self/task").expect("our own").flatten();
    let named: Vec<_> = tasks
        .map(|task| format!("vhost-{}", task.file_name().display()))
        .collect();
    let of_kernel = comms("/proc").into_iter();
    of_process
        + of_kernel
            .filter(|comm| named.iter().any(|name| name == comm.trim()))
            .count()
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn frames_that_the_kernel_moves_arrive_whole_through_pauses_links_and_reboots() {
    let Some(host) = Host::new() else { return };
    if !needs::vhost_net() {
        return;
    }
    let net = Net::number(41);
    let _tap = net.tap(&host, "multi_queue");
    let mut live = LibraryGuest::boot_nets("vhost", vec![card(&net).vhost(true).queues(2)]);
    assert!(kernel_threads() >= 2, "the kernel serves two pairs");
    live.succeed(&net.set_up());
    let features = live.succeed("cat /sys/class/net/eth0/device/features");
    for (bit, value) in OFFERED {
        assert_eq!(features.as_bytes()[bit], value, "bit {bit}: {features}");
    }
    transfer(&mut live, &net);
    live.succeed("ethtool -L eth0 combined 2");
    transfer(&mut live, &net);
    let sent = live.machine.nets()[0].totals().expect("there").sent.frames;
    assert_eq!(sent, 0, "none of them came through this process");

    // A pause: nothing moves, and afterwards everything does.
    live.machine.pause().expect("pauses");
    let received = || net.count("rx_packets");
    let before = received();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(received(), before, "the guest sent in a pause");
    live.machine.resume().expect("resumes");
    transfer(&mut live, &net);

    // A link that is down moves nothing; what came meanwhile is stale.
    let link = live.machine.nets().remove(0);
    link.set_link(false).expect("the card is there");
    live.until("[ \"$(cat /sys/class/net/eth0/carrier)\" = 0 ]");
    // The worker has been told; it stops the kernel's part when it has a processor.
    std::thread::sleep(Duration::from_millis(200));
    let socket = UdpSocket::bind((net.host.as_str(), 0)).expect("our own address");
    for _ in 0..5 {
        socket
            .send_to(&[0; 64], (net.guest.as_str(), 9))
            .expect("the interface takes it");
    }
    link.set_link(true).expect("the card is there");
    live.until("[ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]");
    until("the stale frames are dropped", || {
        let totals = link.totals().expect("the card is there");
        totals.received.dropped.link_down >= 5
    });
    transfer(&mut live, &net);

    // A driver that goes and comes, and a machine that is built again: the interface stays the
    // same.
    live.succeed(
        "d=$(basename $(readlink /sys/class/net/eth0/device)) && cd /sys/bus/virtio/drivers/virtio_net && \
         echo $d >unbind && echo $d >bind && cd /",
    );
    live.succeed(&net.set_up());
    transfer(&mut live, &net);
    let log = live.succeed(dmesg::COMMAND);
    let unexpected = dmesg::unexpected(&log);
    assert!(unexpected.is_empty(), "{unexpected:?}");
    live.machine.reset().expect("is built again");
    live.wait_for("@@ ready");
    live.succeed(&net.set_up());
    transfer(&mut live, &net);
    live.succeed(&format!("{PING} -q -f -c 500 {}", net.host));
    live.machine.stop();
}
