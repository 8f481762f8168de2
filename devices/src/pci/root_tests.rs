//! The bus as a guest finds it: ECAM, the ports, and who is where.

use std::sync::Arc;

use super::*;
use crate::testing::pci::{ECAM, Guest, SLOT};
use crate::testing::probe::{Manner, Probe};

fn guest() -> Guest {
    Guest::new(Arc::new(Probe::new(&[8], Manner::Answer)))
}

fn ports(guest: &Guest) -> ConfigPorts {
    ConfigPorts::new(Arc::clone(&guest.root))
}

fn address(slot: u8, register: u32) -> [u8; 4] {
    (0x8000_0000 | u32::from(slot) << 11 | register).to_le_bytes()
}

fn port_read<const N: usize>(ports: &ConfigPorts, port: u64) -> [u8; N] {
    let mut data = [0; N];
    ports.read(port, &mut data);
    data
}

#[test]
fn a_scan_finds_the_host_bridge_the_device_and_nothing_else() {
    let guest = guest();
    let mut found = Vec::new();
    for function in 0..256_u64 {
        let mut id = [0; 4];
        assert!(guest.mmio.read(ECAM + (function << 12), &mut id));
        if id != [0xff; 4] {
            found.push((function, u32::from_le_bytes(id)));
        }
    }
    let device = u64::from(SLOT) << 3;
    assert_eq!(found, [(0, 0x0008_1b36), (device, 0x1044_1af4)]);
    let mut class = [0; 4];
    guest.root_bus_read(0, 8, &mut class);
    assert_eq!(class, 0x0600_0000_u32.to_le_bytes());
}

#[test]
fn what_a_guest_reads_by_an_exit_is_what_the_mapping_shows() {
    let guest = guest();
    guest.config_write(0x10, &[0xff; 4]);
    guest.decode_memory();
    for slot in 0..32_u8 {
        let mut by_exit = [0; 256];
        for (offset, chunk) in (0..).step_by(8).zip(by_exit.chunks_mut(8)) {
            guest.root_bus_read(slot, offset, chunk);
        }
        let at = usize::from(slot) << 15;
        assert_eq!(guest.root.pages().copy(at, 256), by_exit, "slot {slot}");
    }
}

#[test]
fn writes_to_absent_functions_and_past_the_end_do_nothing() {
    let guest = guest();
    let before = guest.root.pages().copy(0, 4096);
    for offset in [1 << 15, 1 << 12, (1 << 20) - 4, 0xffc, 4094] {
        guest.mmio.write(ECAM + offset, &[0; 4]);
    }
    assert_eq!(guest.root.pages().copy(0, 4096), before);
    // An access that leaves a function's page reads ones there.
    let mut data = [0; 4];
    guest.root_bus_read(SLOT, 4094, &mut data);
    assert_eq!(data, [0, 0, 0xff, 0xff]);
}

#[test]
fn the_ports_show_the_same_configuration_space() {
    let guest = guest();
    let ports = ports(&guest);
    ports.write(0, &address(SLOT, 0));
    assert_eq!(port_read(&ports, 0), address(SLOT, 0));
    assert_eq!(port_read(&ports, 4), 0x1044_1af4_u32.to_le_bytes());
    assert_eq!(port_read(&ports, 6), [0x44, 0x10]);
    assert_eq!(port_read(&ports, 5), [0x1a]);
    ports.write(0, &address(SLOT, 4));
    ports.write(4, &[6, 0]);
    assert_eq!(guest.config_read(4), [6, 0]);
    assert!(guest.mmio.read(guest.bar(), &mut [0; 4]), "the BAR answers");
    ports.write(5, &[4]);
    assert_eq!(guest.config_read(4), [6, 4]);
}

#[test]
fn the_data_port_is_silent_without_enable_on_other_buses_and_across_its_end() {
    let guest = guest();
    let ports = ports(&guest);
    for wrong in [
        0x0000_1800_u32,
        0x8001_1800,
        0x80ff_1800,
        0x8000_1900,
        0x8000_f800,
    ] {
        ports.write(0, &wrong.to_le_bytes());
        assert_eq!(port_read(&ports, 4), [0xff; 4], "{wrong:#x}");
        ports.write(4, &[0; 4]);
    }
    ports.write(0, &address(SLOT, 0));
    assert_eq!(port_read(&ports, 6), [0xff; 4]);
    assert_eq!(port_read(&ports, 1), [0xff; 2]);
    // The reset register of other chipsets at 0xCF9 is no address.
    ports.write(1, &[6]);
    assert_eq!(port_read(&ports, 0), address(SLOT, 0));
}

#[test]
fn a_slot_is_given_out_once_and_the_first_is_the_bridges() {
    let guest = guest();
    let refused = |slot| guest.root.reserve(slot).err().unwrap();
    assert!(matches!(refused(SLOT), PciError::SlotTaken(SLOT)));
    assert!(matches!(refused(0), PciError::SlotTaken(0)));
    assert!(matches!(refused(32), PciError::NoSlot(32)));
    let reserved = guest.root.reserve(31).unwrap();
    assert!(matches!(refused(31), PciError::SlotTaken(31)));
    drop(reserved);
    guest.root.reserve(31).unwrap();
}

#[test]
fn slots_take_the_interrupt_lines_in_turn() {
    let guest = guest();
    let lines: Vec<u32> = [0, 1, 7, 8, 31].map(|slot| guest.root.intx(slot)).to_vec();
    assert_eq!(lines, [16, 17, 23, 16, 23]);
}
