//! The common registers: widths, selectors, features, queues.

use splitring_virtio::spec::pci::common as reg;
use splitring_virtio::spec::{feature, status};

use super::{guest, guest_of, started};
use crate::device::FeatureRule;
use crate::testing::pci::{DEVICE, Guest};
use crate::testing::probe::{Manner, Probe};

const V1: u64 = feature::VERSION_1;

#[test]
fn feature_selectors_beyond_one_read_zero_and_accept_nothing() {
    let (guest, _) = guest(Manner::Answer);
    let ring = feature::INDIRECT_DESC | feature::EVENT_IDX;
    assert_eq!(guest.offered(), V1 | ring);
    for select in [2, 3, 0xffff_ffff] {
        guest.set32(reg::DEVICE_FEATURE_SELECT, select);
        assert_eq!(guest.common(reg::DEVICE_FEATURE), [0; 4]);
        guest.set32(reg::DRIVER_FEATURE_SELECT, select);
        guest.set32(reg::DRIVER_FEATURE, u32::MAX);
        assert_eq!(guest.common(reg::DRIVER_FEATURE), [0; 4]);
    }
    guest.set32(reg::DRIVER_FEATURE_SELECT, 0);
    assert_eq!(guest.common(reg::DRIVER_FEATURE), [0; 4]);
}

#[test]
fn features_ok_is_refused_without_version_1_for_unknown_bits_and_missing_dependencies() {
    let mut probe = Probe::new(&[8], Manner::Answer);
    probe.features = 0b111;
    probe.rules = vec![FeatureRule {
        feature: 0b100,
        needs_any: 0b11,
    }];
    let (guest, _) = guest_of(probe);
    guest.decode_memory();
    for (features, accepted) in [
        (0, false),
        (0b001, false),
        (V1 | 0b1000, false),
        (V1 | feature::RING_RESET, false),
        (V1 | 0b100, false),
        (V1 | 0b101, true),
        (V1 | 0b110, true),
        (V1, true),
    ] {
        guest.set_status(0);
        guest.set_status(3);
        guest.accept(features);
        guest.set_status(11);
        let wanted = if accepted { 11 } else { 3 };
        assert_eq!(guest.status(), wanted, "{features:#x}");
    }
}

#[test]
fn an_operator_can_mask_features() {
    let mut probe = Probe::new(&[8], Manner::Answer);
    probe.features = 0b11;
    let probe = std::sync::Arc::new(probe);
    let guest = Guest::with_mask(probe.clone(), !(feature::EVENT_IDX | 0b10 | V1));
    guest.decode_memory();
    assert_eq!(guest.offered(), V1 | feature::INDIRECT_DESC | 0b01);
}

#[test]
fn the_device_learns_what_was_negotiated() {
    let (guest, probe) = started(Manner::Answer);
    let features = probe
        .record
        .features
        .load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(features, guest.offered());
}

#[test]
fn only_natural_widths_write_and_64_bit_fields_take_halves() {
    let (guest, _) = guest(Manner::Answer);
    for (offset, width) in [
        (reg::DEVICE_FEATURE_SELECT, 1),
        (reg::DRIVER_FEATURE_SELECT, 2),
        (reg::CONFIG_MSIX_VECTOR, 4),
        (reg::DEVICE_STATUS, 2),
        (reg::DEVICE_STATUS, 4),
        (reg::QUEUE_SELECT, 1),
        (reg::QUEUE_SIZE, 4),
        (reg::QUEUE_DESC, 2),
        (reg::QUEUE_DESC + 2, 4),
        (reg::DEVICE_FEATURE_SELECT, 8),
    ] {
        let before: [u8; 56] = image(&guest);
        guest.bar_write(offset, &vec![1; width]);
        assert_eq!(image(&guest), before, "{offset:#x} with {width} bytes");
    }
    guest.set64(reg::QUEUE_DESC, 0x1_2345_6780);
    assert_eq!(
        guest.common(reg::QUEUE_DESC),
        0x1_2345_6780_u64.to_le_bytes()
    );
    guest.bar_write(reg::QUEUE_DEVICE, &0x9_8765_4320_u64.to_le_bytes());
    assert_eq!(
        guest.common(reg::QUEUE_DEVICE),
        0x9_8765_4320_u64.to_le_bytes()
    );
}

fn image(guest: &Guest) -> [u8; 56] {
    let mut image = [0; 56];
    for (offset, chunk) in (0..).step_by(4).zip(image.chunks_mut(4)) {
        chunk.copy_from_slice(&guest.common::<4>(offset));
    }
    image
}

#[test]
fn read_only_registers_stay() {
    let (guest, _) = guest(Manner::Answer);
    let before = image(&guest);
    guest.set32(reg::DEVICE_FEATURE, u32::MAX);
    guest.set16(reg::NUM_QUEUES, 9);
    guest.bar_write(reg::CONFIG_GENERATION, &[9]);
    guest.set16(reg::QUEUE_NOTIFY_OFF, 9);
    assert_eq!(image(&guest), before);
}

#[test]
fn a_queue_that_is_not_there_has_size_0_and_no_vector_and_takes_no_writes() {
    let (guest, _) = guest(Manner::Answer);
    for queue in [3, 4, 0x7fff, 0xffff] {
        guest.set16(reg::QUEUE_SELECT, queue);
        guest.set16(reg::QUEUE_SIZE, 8);
        guest.set16(reg::QUEUE_MSIX_VECTOR, 0);
        guest.set16(reg::QUEUE_ENABLE, 1);
        guest.set64(reg::QUEUE_DESC, 0x1000);
        assert_eq!(guest.common16(reg::QUEUE_SELECT), queue);
        assert_eq!(guest.common16(reg::QUEUE_SIZE), 0);
        assert_eq!(guest.common16(reg::QUEUE_MSIX_VECTOR), 0xffff);
        assert_eq!(guest.common16(reg::QUEUE_ENABLE), 0);
        assert_eq!(guest.common(reg::QUEUE_DESC), [0; 8]);
    }
}

#[test]
fn smaller_powers_of_two_are_accepted_as_queue_size_and_nothing_else() {
    let (guest, _) = guest(Manner::Answer);
    guest.set16(reg::QUEUE_SELECT, 0);
    assert_eq!(guest.common16(reg::QUEUE_SIZE), 256);
    for (size, wanted) in [
        (128, 128),
        (512, 128),
        (0, 128),
        (100, 128),
        (0x8000, 128),
        (1, 1),
        (256, 256),
    ] {
        guest.set16(reg::QUEUE_SIZE, size);
        assert_eq!(guest.common16(reg::QUEUE_SIZE), wanted, "{size} written");
    }
    // SeaBIOS asks for 256 everywhere and takes what it reads back.
    guest.set16(reg::QUEUE_SELECT, 1);
    guest.set16(reg::QUEUE_SIZE, 256);
    assert_eq!(guest.common16(reg::QUEUE_SIZE), 64);
}

#[test]
fn a_started_queue_cannot_be_changed() {
    let (mut guest, _) = started(Manner::Answer);
    guest.set16(reg::QUEUE_SELECT, 0);
    guest.set16(reg::QUEUE_SIZE, 2);
    guest.set64(reg::QUEUE_DESC, 0xdead_0000);
    guest.set64(reg::QUEUE_DEVICE, 0xdead_0000);
    guest.set16(reg::QUEUE_ENABLE, 0);
    assert_eq!(guest.common16(reg::QUEUE_SIZE), 256);
    assert_eq!(guest.common16(reg::QUEUE_ENABLE), 1);
    for _ in 0..3 {
        guest.offer(0, &[(0x1000, 3, true)]);
    }
    guest.kick(0);
    assert_eq!(guest.wait_used(0, 3), [(0, 3), (1, 3), (2, 3)]);
}

#[test]
fn status_bits_never_clear_but_by_reset() {
    let (guest, _) = started(Manner::Answer);
    guest.set_status(1);
    assert_eq!(guest.status(), 15);
    guest.set_status(0x40 | 0x30);
    assert_eq!(guest.status(), 15, "not the driver's bits");
    guest.set_status(status::FAILED);
    assert_eq!(guest.status(), 15 | status::FAILED);
    guest.set_status(0);
    assert_eq!(guest.status(), 0);
}

#[test]
fn the_device_configuration_is_read_and_written_at_any_width() {
    let (guest, probe) = guest(Manner::Answer);
    assert_eq!(guest.bar_read(DEVICE), [1]);
    assert_eq!(guest.bar_read(DEVICE + 2), [3, 4]);
    assert_eq!(guest.bar_read(DEVICE), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(guest.bar_read(DEVICE + 6), [7, 8, 0, 0]);
    assert_eq!(guest.bar_read(DEVICE + 0xff8), [0; 8]);
    guest.bar_write(DEVICE + 1, &[9, 9]);
    guest.bar_write(DEVICE + 0xffc, &[1; 4]);
    assert_eq!(*probe.config.lock().unwrap(), [1, 9, 9, 4, 5, 6, 7, 8]);
}
