//! iperf3 in both directions over every kind of queue and address. `cargo xtask bench net` measures
//! rates; here iperf3 only has to complete.

use splitring_tests::assets::Disk;
use splitring_tests::guest::Guest;

use crate::net::endpoints::{Host, IP, Net, check_log};

/// Runs iperf3. Returns the receiver's rate in bits per second.
fn run(guest: &mut Guest, address: &str, port: u16, options: &str) -> f64 {
    let line =
        format!("iperf3 -J -c {address} -p {port} -t 1 {options} >/tmp/iperf; cat /tmp/iperf");
    let text = guest.succeed(&line);
    let report: serde_json::Value = serde_json::from_str(&text).expect("iperf3 answers in JSON");
    let end = &report["end"];
    let sum = [&end["sum_received"], &end["sum"]]
        .into_iter()
        .find_map(|sum| sum["bits_per_second"].as_f64());
    sum.unwrap_or_else(|| panic!("`{line}`: {text}"))
}

fn matrix(number: u8, runs: &[(u8, &str, bool)]) {
    let Some(host) = Host::new() else { return };
    let net = Net::number(number);
    let _tap = net.tap(&host, "multi_queue");
    let (host6, guest6) = (format!("fd77:{number}::1"), format!("fd77:{number}::2"));
    host.tools
        .sh(&format!("ip addr add {host6}/64 dev {} nodad", net.tap));
    let port = net.port.to_string();
    let _server = host.tools.spawn("iperf3", &["-s", "-p", &port]);
    let root = Disk::copy_of("tools");
    let mut guest = net.boot(&root, 2, ",queues=4");
    guest.succeed(&format!("{IP} addr add {guest6}/64 dev eth0 nodad"));
    for (pairs, options, six) in runs {
        guest.succeed(&format!("ethtool -L eth0 combined {pairs}"));
        let address = if *six { &host6 } else { &net.host };
        let rate = run(&mut guest, address, net.port, options);
        println!(
            "{pairs} pairs, {options}, IPv6 {six}: {:.1} Mbit/s",
            rate / 1e6
        );
        assert!(rate > 0.0, "nothing arrived: {options}");
    }
    check_log(&mut guest);
    guest.power_off();
}

mod soak {
    use super::*;

    #[test]
    #[ignore = "needs a guest: cargo xtask test"]
    fn iperf3_completes_over_one_pair_and_over_four() {
        matrix(
            9,
            &[
                (1, "-R", true),
                (4, "-P 4", false),
                (4, "-u -b 50M", true),
                (1, "-u -b 50M -R", false),
            ],
        );
    }

    #[test]
    #[ignore = "needs a guest: cargo xtask test"]
    fn iperf3_completes_with_every_option() {
        let mut runs = Vec::new();
        for pairs in [1, 4] {
            for options in [
                "-P 4",
                "-P 4 -R",
                "-u -b 50M -P 2",
                "-u -b 50M -P 2 -R",
                "",
                "-R",
            ] {
                runs.extend([(pairs, options, false), (pairs, options, true)]);
            }
        }
        matrix(10, &runs);
    }
}
