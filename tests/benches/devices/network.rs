//! iperf3 and ping between the guest and the machine that it runs on, over a TAP device.
//!
//! The machine's end runs from the same disk as the guest's, mounted over a loop device, so that
//! nothing has to be installed.

use splitring_tests::assets::{self, Disk};
use splitring_tests::guest::Guest;
use splitring_tests::network::{Tap, Toolbox};

use crate::peers::{self, Extra};
use crate::sample::Table;
use crate::{Mode, Plan};

const TAP: &str = "bench0";
const HOST: &str = "192.0.2.1";
const GUEST: &str = "192.0.2.2";
const SECONDS: u32 = 3;
const PINGS: u32 = 300;
/// The full path, because the guest's shell has a simpler one built in.
const PING: &str = "/usr/bin/ping";
const UDP_BYTES: u32 = 64;
const OURS: &str = "splitring";
/// Compared with both of ours: the card that moves frames itself, and the one whose frames the
/// kernel moves too, whose workloads are called `vhost …`.
const QEMU_VHOST: &str = "QEMU, vhost on";
/// The workloads: megabits per second, thousands of received datagrams per second, milliseconds.
const TCP_OUT: &str = "TCP guest→host";
const TCP_IN: &str = "TCP host→guest";
const UDP_OUT: &str = "UDP guest→host";
const UDP_IN: &str = "UDP host→guest";
const PINGED: &str = "ping";
/// MiB to transfer under the clock that counts instructions.
const TCP_COUNTED: u32 = 512;
const INSTRUCTIONS_PER_S: f64 = 1e9;

pub(crate) fn run(plan: Plan<'_>) -> Table {
    let root = Disk::copy_of("tools");
    let server_root = Disk::copy_of("tools");
    let tools = Toolbox::mount(server_root.path());
    let _tap = Tap::create(&tools, TAP, "", &format!("{HOST}/24"));
    let mut table = Table::default();
    for round in plan.mode.rounds() {
        let mut subjects = vec![
            (OURS, false),
            (OURS, true),
            ("QEMU, vhost off", false),
            (QEMU_VHOST, true),
        ];
        if assets::base().is_some() {
            subjects.push(("base", false));
        }
        subjects.retain(|(name, _)| plan.wants_subject(name));
        if round % 2 == 1 {
            subjects.reverse();
        }
        for (subject, vhost) in subjects {
            let extra = Extra::Tap(TAP, vhost);
            let figures = peers::last_of(3, || {
                // A new server for each run: it would wait for a guest that has crashed.
                let _server = tools.spawn("iperf3", &["-s"]);
                let start = match subject {
                    OURS => peers::splitring,
                    "base" => peers::base,
                    _ => peers::qemu,
                };
                let mut guest = start(root.path(), extra);
                let figures = measure(&mut guest, plan);
                guest.power_off();
                figures
            });
            for (workload, value) in figures {
                if subject != OURS || !vhost {
                    table.add(workload, subject, value);
                }
                if vhost {
                    let subject = if subject == OURS { OURS } else { "QEMU" };
                    table.add(&format!("vhost {workload}"), subject, value);
                }
            }
        }
    }
    table.first(OURS)
}

fn measure(guest: &mut Guest, plan: Plan<'_>) -> Vec<(&'static str, f64)> {
    let mode = plan.mode;
    let mut figures = Vec::new();
    guest.succeed(&format!(
        "ip addr add {GUEST}/24 dev eth0 && ip link set eth0 up"
    ));
    guest.succeed(&format!("{PING} -q -c 1 -w 20 {HOST}"));
    for (name, direction) in [(TCP_OUT, ""), (TCP_IN, "-R")] {
        if plan.wants(name) {
            let bound = mode.bound(TCP_COUNTED, "M");
            let summary = receiver(guest, &format!("{bound} {direction} -f m"));
            let value = match mode {
                Mode::Pair(_) | Mode::Turns(_) => before(&summary, "Mbits/sec"),
                Mode::Count => instructions(seconds(&summary), TCP_COUNTED),
            };
            figures.push((name, value));
        }
    }
    for (name, direction) in [(UDP_OUT, ""), (UDP_IN, "-R")] {
        if plan.wants(name) {
            // By time even where instructions are counted: a receiver that misses datagrams would
            // wait for their number forever.
            let bound = format!(
                "-t {}",
                if matches!(mode, Mode::Count) {
                    1
                } else {
                    SECONDS
                }
            );
            let options = format!("-u -b 0 -l {UDP_BYTES} {bound} {direction}");
            let summary = receiver(guest, &options);
            let rate = datagrams(&summary) / seconds(&summary);
            figures.push((name, mode.rate(rate)));
        }
    }
    if plan.wants(PINGED) {
        let pings = guest.succeed(&format!("{PING} -q -i 0.002 -c {PINGS} {HOST}"));
        let value = match mode {
            Mode::Pair(_) | Mode::Turns(_) => average_ms(&pings),
            Mode::Count => average_ms(&pings) * INSTRUCTIONS_PER_S / 1000.0,
        };
        figures.push((PINGED, value));
    }
    figures
}

impl Mode {
    /// Returns how long iperf3 runs: for a time, or for `count` bytes.
    fn bound(self, count: u32, unit: &str) -> String {
        match self {
            Self::Pair(_) | Self::Turns(_) => format!("-t {SECONDS}"),
            Self::Count => format!("-n {count}{unit}"),
        }
    }

    /// Returns a rate in thousands per second, or in instructions per unit.
    fn rate(self, each_second: f64) -> f64 {
        match self {
            Self::Pair(_) | Self::Turns(_) => each_second / 1000.0,
            Self::Count => INSTRUCTIONS_PER_S / each_second,
        }
    }
}

/// Returns the receiver's line of one iperf3 run.
fn receiver(guest: &mut Guest, options: &str) -> String {
    guest.succeed(&format!("iperf3 -c {HOST} {options} | grep receiver"))
}

fn instructions(seconds: f64, units: u32) -> f64 {
    seconds * INSTRUCTIONS_PER_S / f64::from(units)
}

/// Returns the number of received datagrams: iperf3 reports how many were lost, `12/3456 (0.3%)`.
fn datagrams(summary: &str) -> f64 {
    let counts = summary.split_whitespace().find_map(|word| {
        let (lost, all) = word.split_once('/')?;
        Some((lost.parse::<f64>().ok()?, all.parse::<f64>().ok()?))
    });
    let (lost, all) = counts.expect(summary);
    all - lost
}

/// Returns the number before `unit`.
fn before(text: &str, unit: &str) -> f64 {
    let words: Vec<_> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == unit).expect(text);
    words[at - 1].parse().expect(text)
}

/// Returns the end of iperf3's interval, `0.00-1.23 sec`.
fn seconds(summary: &str) -> f64 {
    let words: Vec<_> = summary.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "sec").expect(summary);
    words[at - 1]
        .rsplit('-')
        .next()
        .and_then(|end| end.parse().ok())
        .expect(summary)
}

/// Parses `rtt min/avg/max/mdev = 0.1/0.2/0.3/0.1 ms`.
fn average_ms(summary: &str) -> f64 {
    let figures = summary.split(" = ").nth(1).expect(summary);
    figures
        .split('/')
        .nth(1)
        .and_then(|average| average.parse().ok())
        .expect(summary)
}
