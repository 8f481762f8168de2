//! Configuration space, the BAR and the window.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use splitring_virtio::spec::pci::common as reg;

use super::{guest, guest_of, started};
use crate::testing::pci::{DEVICE, ECAM, Guest, ISR, NOTIFY, SLOT, TABLE, WINDOW};
use crate::testing::probe::{Manner, Probe};

/// The fields of the virtio capability of type `kind`: where it is, its length, and BAR, offset and length of what
/// it names.
fn virtio_capability(guest: &Guest, kind: u8) -> (u64, u8, [u32; 3]) {
    let of_kind = |at| guest.config_read::<1>(at + 3) == [kind];
    let at = guest.capability(9, of_kind).expect("it is there");
    let [cap_len] = guest.config_read(at + 2);
    let [bar] = guest.config_read(at + 4);
    let fields = [
        u32::from(bar),
        guest.config_read32(at + 8),
        guest.config_read32(at + 12),
    ];
    (at, cap_len, fields)
}

#[test]
fn it_is_a_modern_device_of_its_type() {
    let (guest, _) = guest(Manner::Answer);
    assert_eq!(guest.config_read32(0), 0x1044_1af4);
    assert_eq!(guest.config_read32(8), 0xff00_0001);
    let [low, high] = guest.config_read(0x2e);
    assert!(u16::from_le_bytes([low, high]) >= 0x40, "not transitional");
    assert_eq!(guest.config_read(0x3c), [16 + SLOT, 1]);
}

#[test]
fn there_is_one_aligned_capability_of_each_type() {
    let (guest, _) = guest(Manner::Answer);
    let mut seen = Vec::new();
    let mut at = u64::from(guest.config_read::<1>(0x34)[0]);
    while at != 0 {
        assert_eq!(at % 4, 0);
        let [id, next, _, kind] = guest.config_read(at);
        seen.push((id, if id == 9 { kind } else { 0 }));
        at = u64::from(next);
    }
    seen.sort_unstable();
    assert_eq!(seen, [(9, 1), (9, 2), (9, 3), (9, 4), (9, 5), (0x11, 0)]);
    let (_, len, common) = virtio_capability(&guest, 1);
    assert_eq!((len, common), (16, [0, 0, 56]));
    let (at, len, notify) = virtio_capability(&guest, 2);
    assert_eq!((len, notify), (20, [0, 0x4000, 12]));
    assert_eq!(guest.config_read32(at + 16), 4, "multiplier");
    assert_eq!(virtio_capability(&guest, 3).2, [0, 0x1000, 1]);
    assert_eq!(virtio_capability(&guest, 4).2, [0, 0x2000, 0x1000]);
    assert_eq!(virtio_capability(&guest, 5).1, 20);
}

#[test]
fn msix_has_a_vector_a_queue_and_one_more() {
    let (guest, _) = guest(Manner::Answer);
    let at = guest.capability(0x11, |_| true).unwrap();
    assert_eq!(guest.config_read(at + 2), 3_u16.to_le_bytes());
    assert_eq!(guest.config_read32(at + 4), 0x8000);
    assert_eq!(guest.config_read32(at + 8), 0x3000);
}

#[test]
fn the_bar_is_preset_but_answers_only_with_memory_decoding_on() {
    let (guest, _) = guest_of(Probe::new(&[8], Manner::Answer));
    assert_eq!(guest.bar(), WINDOW.start + (u64::from(SLOT) << 20));
    assert!(!guest.mmio.read(guest.bar(), &mut [0; 4]));
    guest.decode_memory();
    assert_eq!(guest.common16(reg::NUM_QUEUES), 1);
    guest.config_write(4, &[0]);
    assert!(!guest.mmio.read(guest.bar(), &mut [0; 4]));
}

#[test]
fn a_running_device_keeps_working_where_its_bar_moves_and_nowhere_else() {
    let (mut guest, _) = started(Manner::Answer);
    let old = guest.bar();
    let bells = |base: u64| [0, 4, 8].map(|at| base + NOTIFY + at).to_vec();
    assert_eq!(guest.wiring.doorbells(), bells(old));
    let new = 0x12_3456_0000_u64;
    // Half by half and with decoding on, as a careless guest does.
    guest.config_write(0x10, &new.to_le_bytes()[..4]);
    guest.config_write(0x14, &new.to_le_bytes()[4..]);
    assert_eq!(guest.bar(), new);
    assert_eq!(guest.wiring.doorbells(), bells(new));
    assert!(!guest.mmio.read(old, &mut [0; 4]));
    guest.offer(0, &[(0x1000, 32, true)]);
    guest.kick(0);
    assert_eq!(guest.wait_used(0, 1), [(0, 32)]);
}

#[test]
fn sizing_a_running_device_takes_its_doorbells_away_until_the_address_is_back() {
    let (mut guest, _) = started(Manner::Answer);
    let base = guest.bar();
    guest.config_write(0x10, &[0xff; 4]);
    guest.config_write(0x14, &[0xff; 4]);
    assert_eq!(guest.config_read32(0x10), 0xffff_0004);
    assert!(guest.wiring.doorbells().is_empty());
    guest.config_write(0x10, &base.to_le_bytes()[..4]);
    guest.config_write(0x14, &base.to_le_bytes()[4..]);
    guest.offer(1, &[(0x1000, 1, true)]);
    guest.kick(1);
    assert_eq!(guest.wait_used(1, 1), [(0, 1)]);
}

#[test]
fn a_bar_answers_neither_outside_the_windows_nor_over_another_device() {
    let (guest, _) = guest(Manner::Answer);
    let blocker = Arc::new(Guest::new(Arc::new(Probe::new(&[1], Manner::Answer))));
    guest
        .mmio
        .insert(WINDOW.start, 0x1000, blocker.function.clone())
        .unwrap();
    for base in [
        ECAM,
        0,
        WINDOW.end - 0x8000,
        WINDOW.start,
        0xfee0_0000,
        !0xffff,
    ] {
        guest.config_write(0x10, &base.to_le_bytes()[..4]);
        guest.config_write(0x14, &base.to_le_bytes()[4..]);
        let mut data = [0; 2];
        guest.mmio.read(base + reg::NUM_QUEUES, &mut data);
        assert_ne!(u16::from_le_bytes(data), 3, "{base:#x}");
    }
    // ECAM is where it was.
    assert_eq!(guest.config_read32(0), 0x1044_1af4);
    // Room again: the next write of the function finds it.
    assert!(guest.mmio.remove(WINDOW.start));
    guest.config_write(0x10, &WINDOW.start.to_le_bytes()[..4]);
    guest.config_write(0x14, &[0; 4]);
    assert_eq!(guest.common16(reg::NUM_QUEUES), 3);
}

/// Sets the window to `length` bytes at `offset` of BAR 0; answers where its data is.
fn open_window(guest: &Guest, offset: u64, length: u32) -> u64 {
    let (at, ..) = virtio_capability(guest, 5);
    guest.config_write(at + 4, &[0]);
    guest.config_write(at + 8, &u32::try_from(offset).unwrap().to_le_bytes());
    guest.config_write(at + 12, &length.to_le_bytes());
    at + 16
}

#[test]
fn a_driver_can_do_everything_through_the_window() {
    let (mut guest, _) = guest_of(Probe::new(&[8], Manner::Answer));
    // Bus mastering alone: the BAR does not answer.
    guest.config_write(4, &[4, 0]);
    let write = |guest: &Guest, offset: u64, data: &[u8]| {
        let at = open_window(guest, offset, u32::try_from(data.len()).unwrap());
        guest.config_write(at, data);
    };
    let read = |guest: &Guest, offset, len| guest.config_read32(open_window(guest, offset, len));
    write(&guest, reg::DEVICE_STATUS, &[3]);
    write(&guest, reg::DRIVER_FEATURE_SELECT, &[1, 0, 0, 0]);
    write(&guest, reg::DRIVER_FEATURE, &[1, 0, 0, 0]);
    write(&guest, reg::DEVICE_STATUS, &[11]);
    assert_eq!(read(&guest, reg::DEVICE_STATUS, 1), 11);
    assert_eq!(read(&guest, reg::NUM_QUEUES, 2), 1);
    assert_eq!(read(&guest, DEVICE, 4), 0x0403_0201);
    let ring = crate::testing::GuestRing::new(&guest.ram, 0, 8);
    for (register, addr) in [
        (reg::QUEUE_DESC, ring.descriptors()),
        (reg::QUEUE_DRIVER, ring.available_ring()),
        (reg::QUEUE_DEVICE, ring.used_ring()),
    ] {
        write(
            &guest,
            register,
            &u32::try_from(addr).unwrap().to_le_bytes(),
        );
    }
    guest.rings = vec![ring];
    write(&guest, reg::QUEUE_ENABLE, &[1, 0]);
    write(&guest, reg::DEVICE_STATUS, &[15]);
    guest.offer(0, &[(0x1000, 5, true)]);
    write(&guest, NOTIFY, &[0, 0]);
    assert_eq!(guest.wait_used(0, 1), [(0, 5)]);
    // Reading the ISR register through the window clears it, as it does in the BAR.
    crate::testing::pci::wait_until("the ISR bit is set", || read(&guest, ISR, 1) == 1);
    assert_eq!(read(&guest, ISR, 1), 0);
}

#[test]
fn a_window_that_is_no_register_access_reads_zero_and_writes_nothing() {
    let (guest, _) = guest(Manner::Answer);
    let (at, ..) = virtio_capability(&guest, 5);
    for (bar, offset, length) in [
        (1, reg::NUM_QUEUES, 2),
        (0, reg::NUM_QUEUES, 0),
        (0, reg::NUM_QUEUES, 3),
        (0, reg::NUM_QUEUES, 8),
        (0, reg::NUM_QUEUES + 1, 2),
        (0, 0x1_0000, 4),
        (0, 0xffff_fffc, 4),
        (0, reg::NUM_QUEUES, u32::MAX),
    ] {
        let data = open_window(&guest, offset, length);
        guest.config_write(at + 4, &[bar]);
        assert_eq!(guest.config_read32(data), 0, "{bar} {offset:#x} {length}");
        guest.config_write(data, &[0xff; 4]);
    }
    assert_eq!(guest.status(), 0);
}

#[test]
fn the_first_use_of_the_window_ends_direct_reads_and_others_have_nothing_to_end() {
    let (guest, _) = guest(Manner::Answer);
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let hook = Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    guest.root.pages().set_exit_on_read(hook);
    guest.config_write(4, &[6, 0]);
    let (at, ..) = virtio_capability(&guest, 5);
    guest.config_read32(at + 16);
    assert_eq!(count.load(Ordering::SeqCst), 0);
    for field in [4, 4, 8, 12, 16] {
        guest.config_write(at + field, &[0]);
        assert_eq!(count.load(Ordering::SeqCst), 1, "{field}");
    }
}

#[test]
fn accesses_across_regions_and_to_nothing_read_zero_and_do_no_harm() {
    let (guest, _) = guest(Manner::Answer);
    for offset in [
        0x38,
        0x34 + 2,
        ISR - 4,
        ISR + 1,
        0x3100,
        NOTIFY,
        TABLE - 2,
        0xfffc,
    ] {
        let data: [u8; 4] = guest.bar_read(offset);
        if offset != 0x36 {
            assert_eq!(data, [0; 4], "{offset:#x}");
        }
        guest.bar_write(offset, &[0xff; 4]);
    }
    assert_eq!(guest.status(), 0);
}
