//! Functions that enter and leave the bus while a guest runs, and their BARs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use splitring_virtio::spec::pci::common as reg;
use splitring_virtio::spec::status;

use super::{guest, guest_of, started};
use crate::bus::BusDevice;
use crate::device::SharedRegion;
use crate::pci::root::PciError;
use crate::testing::faults::{alone, resources};
use crate::testing::pci::{Guest, SLOT, TABLE, WINDOW, wait_until};
use crate::testing::probe::{Manner, Probe};

const BUFFER: u64 = 0x1000;
/// The second window for BARs.
const HIGH: std::ops::Range<u64> = 0x10_0000_0000..0x20_0000_0000;

fn probe(manner: Manner) -> Arc<Probe> {
    Arc::new(Probe::new(&[256, 64, 8], manner))
}

/// A probe that shares memory regions of these sizes with its driver, identified by 1, 2 and so on.
fn sharing(sizes: &[u64]) -> Probe {
    let regions = (1..).zip(sizes).map(|(id, &len)| SharedRegion { id, len });
    Probe {
        shared: regions.collect(),
        ..Probe::new(&[8], Manner::Answer)
    }
}

/// What a guest finds in the slot, by an exit and without.
fn assert_absent(guest: &Guest) {
    let by_exit: Vec<u8> = (0..4096)
        .flat_map(|offset| guest.config_read::<1>(offset))
        .collect();
    assert_eq!(by_exit, [0xff; 4096]);
    let at = usize::from(SLOT) << 15;
    assert_eq!(guest.root.pages().copy(at, 4096), [0xff; 4096]);
}

/// What the guest's machine has for its functions: doorbells, messages, a line, ranges of addresses.
fn held(guest: &Guest) -> (usize, usize, Option<u32>, usize) {
    let wiring = &guest.wiring;
    let lines = wiring.message_lines();
    (
        wiring.doorbells().len(),
        lines,
        wiring.line(),
        guest.mmio.ranges(),
    )
}

#[test]
fn an_ejected_function_reads_all_ones_and_its_bar_answers_no_more() {
    let (guest, probe) = started(Manner::Answer);
    let base = guest.bar();
    assert!(guest.mmio.read(base, &mut [0; 4]));
    guest.root.eject(SLOT).unwrap();
    assert_absent(&guest);
    assert!(!guest.mmio.read(base, &mut [0; 4]));
    assert_eq!(probe.record.stops.load(Ordering::SeqCst), 3);
    // Writes find nobody.
    guest.config_write(4, &[0xff; 8]);
    assert_absent(&guest);
}

#[test]
fn what_is_not_there_cannot_be_ejected_and_the_host_bridge_stays() {
    let (guest, _) = guest(Manner::Answer);
    let refused = |slot| guest.root.eject(slot).unwrap_err();
    assert!(matches!(refused(0), PciError::NoSlot(0)));
    assert!(matches!(refused(32), PciError::NoSlot(32)));
    assert!(matches!(refused(4), PciError::SlotEmpty(4)));
    let reserved = guest.root.reserve(4).unwrap();
    assert!(matches!(refused(4), PciError::SlotEmpty(4)));
    drop(reserved);
    guest.root.eject(SLOT).unwrap();
    assert!(matches!(refused(SLOT), PciError::SlotEmpty(SLOT)));
}

#[test]
fn requests_in_flight_are_given_back_before_a_function_is_gone() {
    let (mut guest, probe) = started(Manner::Hold);
    guest.offer(0, &[(BUFFER, 7, true)]);
    guest.kick(0);
    wait_until("it is held", || {
        probe.record.held.load(Ordering::SeqCst) == 1
    });
    guest.root.eject(SLOT).unwrap();
    assert_eq!(guest.rings[0].used(), [(0, 0)]);
    assert_eq!(guest.failures.lock().unwrap().len(), 0);
}

#[test]
fn a_slot_takes_a_hundred_functions_one_after_the_other_and_nothing_of_them_is_left() {
    const TEST: &str = "pci::virtio::tests::hotplug::\
        a_slot_takes_a_hundred_functions_one_after_the_other_and_nothing_of_them_is_left";
    if !alone(TEST) {
        return;
    }
    let (mut guest, first) = started(Manner::Answer);
    guest.root.eject(SLOT).unwrap();
    let (empty, before) = (held(&guest), resources());
    for turn in 0..100 {
        let manner = if turn % 3 == 0 {
            Manner::Hold
        } else {
            Manner::Answer
        };
        let device = probe(manner);
        guest.insert(device.clone());
        assert_eq!(guest.config_read32(0), 0x1044_1af4, "{turn}");
        guest.decode_memory();
        // With the interrupt line and with messages.
        if turn % 2 == 0 {
            guest.enable_msix();
        }
        guest.restart();
        guest.offer(0, &[(BUFFER, 7, true)]);
        guest.kick(0);
        let record = &device.record;
        match manner {
            Manner::Hold => {
                wait_until("it is held", || record.held.load(Ordering::SeqCst) == 1);
            }
            _ => assert_eq!(guest.wait_used(0, 1), [(0, 7)]),
        }
        assert_ne!(held(&guest), empty);
        guest.root.eject(SLOT).unwrap();
        assert_eq!(held(&guest), empty, "{turn}");
        assert_absent(&guest);
    }
    // The guest holds the last one as it held the first one before.
    assert_eq!(Arc::strong_count(&first), 1);
    drop(first);
    wait_until("descriptors and threads are gone", || resources() == before);
    assert_eq!(*guest.failures.lock().unwrap(), []);
}

/// A vCPU that has found the function before it left the bus carries its access through.
#[test]
fn accesses_that_were_under_way_start_an_ejected_function_no_more() {
    let (mut guest, probe) = guest(Manner::Answer);
    guest.enable_msix();
    guest.negotiate();
    guest.rings = (0..3).map(|index| guest.enable_queue(index)).collect();
    let empty_of_messages = guest.wiring.message_lines();
    assert_eq!(empty_of_messages, 4);
    let function = Arc::clone(&guest.function);
    let write = |offset: u64, data: &[u8]| BusDevice::write(function.as_ref(), offset, data);
    guest.root.eject(SLOT).unwrap();
    let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    write(reg::DEVICE_STATUS, &[ready]);
    write(TABLE + 12, &[1, 0, 0, 0]);
    write(TABLE + 12, &[0, 0, 0, 0]);
    assert_eq!(probe.record.starts.load(Ordering::SeqCst), 0);
    assert_eq!(held(&guest), (0, 0, None, 1), "configuration space alone");
    write(reg::DEVICE_STATUS, &[0]);
}

#[test]
fn a_function_can_be_ejected_while_other_processors_use_it_and_its_neighbour() {
    let (mut guest, _) = started(Manner::Answer);
    let neighbour = guest.plug(SLOT + 1, probe(Manner::Answer)).unwrap();
    let base = guest.bar();
    let over = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..3_u64)
        .map(|kind| {
            let (mmio, root) = (Arc::clone(&guest.mmio), Arc::clone(&guest.root));
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                let slot = |slot: u8| crate::testing::pci::ECAM + (u64::from(slot) << 15);
                let mut turns = 0_u64;
                while !over.load(Ordering::Relaxed) {
                    turns += 1;
                    let mut id = [0; 4];
                    mmio.read(slot(SLOT), &mut id);
                    assert!(
                        [[0xff; 4], 0x1044_1af4_u32.to_le_bytes()].contains(&id),
                        "{id:?}"
                    );
                    let loaded = root.pages().load(usize::from(SLOT) << 15);
                    assert!([u32::MAX, 0x1044_1af4].contains(&loaded), "{loaded:#x}");
                    mmio.read(slot(SLOT + 1), &mut id);
                    assert_eq!(id, 0x1044_1af4_u32.to_le_bytes());
                    // Decoding and bus mastering on and off, the BAR, the status and a doorbell.
                    let command = u8::try_from(turns % 4 * 2).unwrap();
                    match kind {
                        0 => drop(mmio.write(slot(SLOT) + 4, &[command, 0])),
                        1 => drop(mmio.write(slot(SLOT) + 0x10, &base.to_le_bytes()[..4])),
                        _ => drop(mmio.write(base + reg::DEVICE_STATUS, &[0])),
                    }
                }
                turns
            })
        })
        .collect();
    for _ in 0..100 {
        guest.root.eject(SLOT).unwrap();
        guest.insert(probe(Manner::Answer));
        guest.decode_memory();
    }
    guest.root.eject(SLOT).unwrap();
    over.store(true, Ordering::Relaxed);
    for thread in threads {
        assert!(thread.join().unwrap() > 0);
    }
    assert_absent(&guest);
    assert_eq!(held(&guest), (0, 0, None, 1));
    drop(neighbour);
}

#[test]
fn a_function_that_cannot_be_made_leaves_its_slot_empty() {
    let (guest, _) = guest(Manner::Answer);
    let slot = SLOT + 1;
    // More capabilities than there is room for, and more addresses than the bus has.
    for impossible in [sharing(&[0x1000; 4]), sharing(&[1 << 37])] {
        let refused = guest.plug(slot, Arc::new(impossible)).unwrap_err();
        assert!(matches!(
            refused,
            PciError::Host { .. } | PciError::NoAddresses { .. }
        ));
        let at = usize::from(slot) << 15;
        assert_eq!(guest.root.pages().copy(at, 256), [0xff; 256]);
    }
    guest.plug(slot, probe(Manner::Answer)).unwrap();
}

#[test]
fn shared_memory_has_a_bar_and_capabilities_and_the_device_learns_where_it_is() {
    let (guest, probe) = guest_of(sharing(&[0x3000, 1 << 32]));
    assert_eq!(
        guest.config_read32(0x18) & 0xf,
        0xc,
        "64 bits, prefetchable"
    );
    let base = u64::from_le_bytes(guest.config_read(0x18)) & !0xf;
    let size = 1 << 33;
    assert!(HIGH.contains(&base) && base % size == 0, "{base:#x}");
    let capability = |id: u8| {
        let of_region =
            |at| guest.config_read::<1>(at + 3) == [8] && guest.config_read::<1>(at + 5) == [id];
        let at = guest.capability(9, of_region).expect("it is there");
        let words = [8, 12, 16, 20].map(|field| guest.config_read32(at + field));
        (guest.config_read::<5>(at)[2..].to_vec(), words)
    };
    assert_eq!(capability(1), (vec![24, 8, 2], [0, 0x3000, 0, 0]));
    assert_eq!(capability(2), (vec![24, 8, 2], [0x3000, 0, 0, 1]));

    let moves = || std::mem::take(&mut *probe.moves.lock().unwrap());
    assert_eq!(moves(), []);
    guest.decode_memory();
    assert_eq!(moves(), [(1, Some(base)), (2, Some(base + 0x3000))]);
    let mut data = [0; 8];
    assert!(guest.mmio.read(base + 0x3000, &mut data) && data == [0xff; 8]);
    // The registers stay where they are.
    let registers = guest.bar();
    let elsewhere = base + size;
    guest.config_write(0x18, &elsewhere.to_le_bytes());
    assert_eq!(moves().last(), Some(&(2, Some(elsewhere + 0x3000))));
    assert_eq!(guest.bar(), registers);
    assert!(guest.mmio.read(registers, &mut data) && !guest.mmio.read(base, &mut data));
    guest.root.eject(SLOT).unwrap();
    assert_eq!(moves(), [(1, None), (2, None)]);
    assert_eq!(guest.mmio.ranges(), 1, "configuration space alone");
}

#[test]
fn bars_that_are_assigned_do_not_overlap_and_their_addresses_are_free_after_an_ejection() {
    let (guest, _) = guest_of(sharing(&[1 << 34]));
    let base = |slot: u8| {
        let mut data = [0; 8];
        guest.root_bus_read(slot, 0x18, &mut data);
        u64::from_le_bytes(data) & !0xf
    };
    let add = |slot| guest.plug(slot, Arc::new(sharing(&[1 << 34])));
    let kept: Vec<_> = (4..7).map(|slot| add(slot).unwrap()).collect();
    let mut bases: Vec<u64> = (SLOT..7).map(base).collect();
    bases.sort_unstable();
    let expected: Vec<u64> = HIGH.step_by(1 << 34).collect();
    assert_eq!(bases, expected);
    assert!(matches!(add(7), Err(PciError::NoAddresses { slot: 7, .. })));
    let freed = base(5);
    guest.root.eject(5).unwrap();
    let last = add(7).unwrap();
    assert_eq!(base(7), freed);
    // Registers are where they always were.
    let mut data = [0; 8];
    guest.root_bus_read(7, 0x10, &mut data);
    assert_eq!(u64::from_le_bytes(data) & !0xf, WINDOW.start + (7 << 20));
    drop((kept, last));
}
