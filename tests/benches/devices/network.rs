//! iperf3 and ping between the guest and the machine it runs on, over a tap device.
//!
//! The machine's end runs from the same disk as the guest's, mounted over a loop device: nothing has
//! to be installed.

use std::process::Child;

use splitring_tests::assets::Disk;
use splitring_tests::guest::Guest;
use splitring_tests::network::{Tap, Toolbox};

use crate::Mode;
use crate::peers::{self, Extra};
use crate::sample::Table;

const TAP: &str = "bench0";
const HOST: &str = "192.0.2.1";
const GUEST: &str = "192.0.2.2";
const SECONDS: u32 = 3;
const PINGS: u32 = 200;
const COUNTED_MIB: u32 = 32;
const INSTRUCTIONS_PER_S: f64 = 1e9;

pub(crate) fn run(mode: Mode) -> Table {
    let root = Disk::copy_of("tools");
    let server_root = Disk::copy_of("tools");
    let tools = Toolbox::mount(server_root.path());
    let _tap = Tap::create(&tools, TAP, "", &format!("{HOST}/24"));
    let _server = Server(tools.spawn("iperf3", &["-s"]));
    let mut table = Table::default();
    for round in 0..mode.rounds() {
        let mut subjects = [
            ("splitring", false),
            ("QEMU, vhost off", false),
            ("QEMU, vhost on", true),
        ];
        if round % 2 == 1 {
            subjects.reverse();
        }
        for (subject, vhost) in subjects {
            let extra = Extra::Tap(TAP, vhost);
            let guest = if subject == "splitring" {
                peers::splitring(root.path(), extra)
            } else {
                peers::qemu(root.path(), extra)
            };
            measure(&mut table, subject, guest, mode);
        }
    }
    table.first("splitring")
}

fn measure(table: &mut Table, subject: &str, mut guest: Guest, mode: Mode) {
    guest.succeed(&format!(
        "ip addr add {GUEST}/24 dev eth0 && ip link set eth0 up"
    ));
    guest.succeed(&format!("ping -q -c 1 -w 20 {HOST}"));
    for (name, direction) in [("guest→host", ""), ("host→guest", "-R")] {
        let bound = match mode {
            Mode::Pairs(_) => format!("-t {SECONDS}"),
            Mode::Count => format!("-n {COUNTED_MIB}M"),
        };
        let summary = guest.succeed(&format!(
            "iperf3 -c {HOST} {bound} {direction} -f m | grep receiver"
        ));
        let value = match mode {
            Mode::Pairs(_) => before(&summary, "Mbits/sec"),
            Mode::Count => seconds(&summary) * INSTRUCTIONS_PER_S / f64::from(COUNTED_MIB),
        };
        table.add(name, subject, value);
    }
    let pings = guest.succeed(&format!("ping -q -f -c {PINGS} {HOST}"));
    let value = match mode {
        Mode::Pairs(_) => average_ms(&pings),
        Mode::Count => average_ms(&pings) * INSTRUCTIONS_PER_S / 1000.0,
    };
    table.add("ping", subject, value);
    guest.power_off();
}

/// The number in front of `unit`.
fn before(text: &str, unit: &str) -> f64 {
    let words: Vec<_> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == unit).expect(text);
    words[at - 1].parse().expect(text)
}

/// The end of iperf3's interval, `0.00-1.23 sec`.
fn seconds(summary: &str) -> f64 {
    let words: Vec<_> = summary.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "sec").expect(summary);
    words[at - 1]
        .rsplit('-')
        .next()
        .and_then(|end| end.parse().ok())
        .expect(summary)
}

/// From `rtt min/avg/max/mdev = 0.1/0.2/0.3/0.1 ms`.
fn average_ms(summary: &str) -> f64 {
    let figures = summary.split(" = ").nth(1).expect(summary);
    figures
        .split('/')
        .nth(1)
        .and_then(|average| average.parse().ok())
        .expect(summary)
}

/// An iperf3 server on this machine; killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
