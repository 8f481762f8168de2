//! A guest that does anything at all to a function: nothing panics, hangs or outlives a reset.

use std::sync::Arc;

use proptest::prelude::*;

use crate::testing::pci::{Guest, NOTIFY, PENDING, SLOT, TABLE, WINDOW};
use crate::testing::probe::{Manner, Probe};

#[derive(Debug, Clone)]
enum Deed {
    WriteConfig(u64, Vec<u8>),
    ReadConfig(u64, usize),
    WriteBar(u64, Vec<u8>),
    ReadBar(u64, usize),
    Scribble(u64, Vec<u8>),
    Restart,
    Offer(usize, u64, u32, bool),
    Kick(u16),
}

/// The values drivers write, and any others.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(0xffff_fff0),
        0..64_u64,
        Just(WINDOW.start),
        any::<u64>(),
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    (
        word(),
        prop_oneof![Just(1_usize), Just(2), Just(4), Just(8)],
    )
        .prop_map(|(value, len)| value.to_le_bytes()[..len].to_vec())
}

fn register() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..0x40_u64,
        1 => Just(0x14_u64),
        1 => 0x1000..0x1004_u64,
        1 => 0x2000..0x2010_u64,
        1 => PENDING..PENDING + 9,
        1 => NOTIFY..NOTIFY + 20,
        2 => TABLE..TABLE + 0x50,
        1 => 0..0x1_0010_u64,
    ]
}

fn deed() -> impl Strategy<Value = Deed> {
    let width = || prop_oneof![Just(1_usize), Just(2), Just(4), Just(8)];
    let config = || prop_oneof![0..0x100_u64, 0..0x1000_u64];
    prop_oneof![
        2 => (config(), bytes()).prop_map(|(at, data)| Deed::WriteConfig(at, data)),
        1 => (config(), width()).prop_map(|(at, len)| Deed::ReadConfig(at, len)),
        6 => (register(), bytes()).prop_map(|(at, data)| Deed::WriteBar(at, data)),
        2 => (register(), width()).prop_map(|(at, len)| Deed::ReadBar(at, len)),
        2 => (0..0x4000_u64, bytes()).prop_map(|(at, data)| Deed::Scribble(at, data)),
        2 => Just(Deed::Restart),
        3 => (0..2_usize, word(), any::<u32>(), any::<bool>())
            .prop_map(|(ring, at, len, writable)| Deed::Offer(ring, at, len, writable)),
        3 => (0..3_u16).prop_map(Deed::Kick),
    ]
}

/// Gives the BAR its place back and the device a fresh start, whatever was done.
fn recover(guest: &mut Guest) {
    let base = WINDOW.start + (u64::from(SLOT) << 20);
    guest.config_write(4, &[0, 0]);
    guest.config_write(0x10, &base.to_le_bytes()[..4]);
    guest.config_write(0x14, &base.to_le_bytes()[4..]);
    guest.decode_memory();
    guest.restart();
}

fn act(guest: &mut Guest, deed: &Deed) {
    let mut data = [0; 8];
    let ecam = |at: u64| crate::testing::pci::ECAM + (u64::from(SLOT) << 15) + at;
    match deed {
        Deed::WriteConfig(at, data) => drop(guest.mmio.write(ecam(*at), data)),
        Deed::ReadConfig(at, len) => drop(guest.mmio.read(ecam(*at), &mut data[..*len])),
        Deed::WriteBar(at, data) => {
            let addr = guest.bar().wrapping_add(*at);
            if !guest.wiring.ring_doorbell(addr) {
                guest.mmio.write(addr, data);
            }
        }
        Deed::ReadBar(at, len) => {
            let addr = guest.bar().wrapping_add(*at);
            guest.mmio.read(addr, &mut data[..*len]);
        }
        Deed::Scribble(at, data) => {
            for ring in 0..2 {
                let base = guest.rings[ring].descriptors();
                guest.poke(base + at, data);
            }
        }
        Deed::Restart => recover(guest),
        Deed::Offer(ring, at, len, writable) => {
            guest.offer(*ring, &[(*at, *len, *writable)]);
        }
        Deed::Kick(queue) => {
            let addr = guest.bar().wrapping_add(NOTIFY + 4 * u64::from(*queue));
            if !guest.wiring.ring_doorbell(addr) {
                guest.mmio.write(addr, &queue.to_le_bytes());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_guest_does_a_reset_gives_a_working_device(
        deeds in prop::collection::vec(deed(), 1..120),
        hold in any::<bool>(),
    ) {
        let manner = if hold { Manner::Hold } else { Manner::Answer };
        let mut guest = Guest::new(Arc::new(Probe::new(&[64, 16], manner)));
        recover(&mut guest);
        for deed in &deeds {
            act(&mut guest, deed);
        }
        recover(&mut guest);
        let before = guest.rings[1].used().len();
        prop_assert_eq!(before, 0);
        guest.offer(1, &[(0x1000, 9, true)]);
        guest.kick(1);
        if !hold {
            prop_assert_eq!(guest.wait_used(1, 1), [(0, 9)]);
        }
        guest.set_status(0);
        prop_assert_eq!(guest.status(), 0);
        prop_assert!(guest.failures.lock().unwrap().is_empty());
    }
}
