//! Transfers arrive complete, whatever offloads and queues are switched meanwhile, and whatever
//! receive mode the driver uses.

use splitring_tests::guest::Guest;

use crate::net::endpoints::{Net, PING};

const OFFLOADS: [&str; 5] = ["rx", "tx", "tso", "gso", "gro"];
const UNDER_LOAD: usize = 4 << 20;
/// Feature bits, by their position in sysfs.
const GUEST_TSO4: usize = 7;
const MRG_RXBUF: usize = 15;

/// Transfers while the offloads switch from the inverse of `combination` (one bit each) to it.
fn switch_under_load(guest: &mut Guest, net: &Net, combination: u32) {
    let words = |inverted: bool| -> String {
        let bits = (0..).zip(OFFLOADS);
        bits.map(|(bit, name)| {
            let on = (combination >> bit & 1 == 1) != inverted;
            format!(" {name} {}", if on { "on" } else { "off" })
        })
        .collect()
    };
    // A kernel refuses offloads that it can't switch, and switches the others.
    let meanwhile = format!(
        "sleep 0.1; ethtool -K eth0{} 2>/dev/null; sleep 0.1; ethtool -K eth0{} 2>/dev/null;",
        words(true),
        words(false)
    );
    net.transfer_under(guest, UNDER_LOAD, &meanwhile);
}

fn offloads(net: &Net, combinations: impl Iterator<Item = u32>) {
    net.with_guest(1, "", |guest, _, _| {
        net.transfer(guest);
        for combination in combinations {
            switch_under_load(guest, net, combination);
        }
    });
}

/// Transfers over several of four queue pairs, then runs `then`.
fn four_queue_pairs(net: &Net, then: impl FnOnce(&mut Guest)) {
    net.with_guest(4, ",queues=4", |guest, _, _| {
        for pairs in [4, 1, 3] {
            guest.succeed(&format!("ethtool -L eth0 combined {pairs}"));
            net.transfer(guest);
        }
        then(guest);
    });
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn transfers_arrive_complete_with_every_kind_of_offload_switched_off() {
    let net = Net::number(17);
    net.with_guest(1, "", |guest, _, _| {
        net.transfer(guest);
        for offload in [
            "gro off", "tso off", "gso off", "rx off", "tx off", "sg off",
        ] {
            // Switching one off also switches off its dependents, so this ends with all of them
            // off.
            guest.run(&format!("ethtool -K eth0 {offload}"));
            net.transfer(guest);
        }
    });
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn four_queue_pairs_work() {
    four_queue_pairs(&Net::number(18), |_| {});
}

/// A guest that is not offered `hidden` uses another receive mode.
fn receive(number: u8, hidden: &str, lacking: &[usize]) {
    let net = Net::number(number);
    net.with_guest(1, &format!(",hide={hidden}"), |guest, _, _| {
        let features = guest.succeed("cat /sys/class/net/eth0/device/features");
        let has: Vec<usize> = [GUEST_TSO4, MRG_RXBUF]
            .into_iter()
            .filter(|bit| features.as_bytes()[*bit] == b'1')
            .collect();
        assert!(has.iter().all(|bit| !lacking.contains(bit)), "{features}");
        assert_eq!(has.len() + lacking.len(), 2, "{features}");
        net.transfer(guest);
        guest.succeed(&format!("{PING} -q -c 3 -s 60000 -w 60 {}", net.host));
        net.transfer_under(
            guest,
            UNDER_LOAD,
            "ethtool -K eth0 gro off rx off 2>/dev/null; sleep 0.2; ethtool -K eth0 gro on rx on 2>/dev/null;",
        );
    });
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_driver_without_mergeable_buffers_receives_into_big_ones() {
    receive(5, "mrg-rxbuf", &[MRG_RXBUF]);
}

#[test]
#[ignore = "needs a guest: cargo xtask test"]
fn a_driver_without_mergeable_buffers_and_segmentation_receives_into_small_ones() {
    receive(6, "mrg-rxbuf:guest-tso", &[MRG_RXBUF, GUEST_TSO4]);
}

mod soak {
    use super::*;

    #[test]
    #[ignore = "needs a guest: cargo xtask test"]
    fn transfers_arrive_complete_while_offloads_are_switched() {
        offloads(&Net::number(1), [0b00000, 0b11111, 0b00110].into_iter());
    }

    #[test]
    #[ignore = "needs a guest: cargo xtask test"]
    fn transfers_arrive_complete_under_every_combination_of_offloads() {
        offloads(&Net::number(1), 0..1 << OFFLOADS.len());
    }

    #[test]
    #[ignore = "needs a guest: cargo xtask test"]
    fn four_queue_pairs_work_and_are_switched_under_load() {
        let net = Net::number(2);
        let switches: String = [1, 4, 2, 4]
            .iter()
            .map(|pairs| format!("sleep 0.2; ethtool -L eth0 combined {pairs} || exit 1; "))
            .collect();
        four_queue_pairs(&net, |guest| {
            net.transfer_under(guest, UNDER_LOAD, &switches);
            guest.succeed(&format!("{PING} -q -f -c 500 {}", net.host));
        });
    }

    #[test]
    #[ignore = "needs a guest: cargo xtask test"]
    fn transfers_arrive_complete_with_every_kind_of_ring_and_checksum() {
        receive(7, "event-idx", &[]);
        receive(7, "indirect-desc:event-idx", &[]);
        receive(7, "guest-csum", &[GUEST_TSO4]);
        receive(7, "csum:ctrl-guest-offloads", &[]);
        receive(7, "ctrl-vq", &[]);
        receive(
            7,
            "mrg-rxbuf:guest-csum:event-idx",
            &[MRG_RXBUF, GUEST_TSO4],
        );
    }
}
