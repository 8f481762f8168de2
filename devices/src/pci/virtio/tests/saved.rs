//! Functions that are saved and go on as others.

use splitring_virtio::spec::pci::common as reg;

use super::*;
use crate::blk::Blk;
use crate::disk::doubles::MemoryDisk;
use crate::rng::Rng;
use crate::saved::StateError;
use crate::testing::pci::{ISR, PATIENCE, SLOT, TABLE, wait_until};
use crate::testing::restore::{damaged_states_are_errors_at_worst, move_to, save};

const BUFFER: u64 = 0x1_0000;

fn rng() -> Arc<Rng> {
    Arc::new(Rng::new("rng0"))
}

fn offer(guest: &mut Guest) {
    guest.offer(0, &[(BUFFER, 64, true)]);
    guest.kick(0);
}

#[test]
fn a_random_generator_goes_on_with_what_was_offered_in_the_pause_and_its_messages() {
    let mut guest = Guest::new(rng());
    guest.decode_memory();
    guest.enable_msix();
    guest.restart();
    guest.set16(reg::QUEUE_SELECT, 0);
    guest.set16(reg::QUEUE_MSIX_VECTOR, 1);
    offer(&mut guest);
    guest.wait_used(0, 1);
    let mut guest = move_to(guest, rng(), offer);
    guest.wait_used(0, 1);
    wait_until("a message is sent", || {
        guest.wiring.messages().iter().any(|sent| sent.data == 1)
    });
    // The doorbell works where the BAR was.
    offer(&mut guest);
    guest.wait_used(0, 1);
    guest.restart();
    offer(&mut guest);
    guest.wait_used(0, 1);
}

#[test]
fn a_message_that_was_masked_is_sent_when_it_is_unmasked_after_a_restore() {
    let mut guest = Guest::new(rng());
    guest.decode_memory();
    guest.enable_msix();
    guest.restart();
    guest.set16(reg::QUEUE_SELECT, 0);
    guest.set16(reg::QUEUE_MSIX_VECTOR, 1);
    guest.set_vector(1, true);
    offer(&mut guest);
    guest.wait_used(0, 1);
    let guest = move_to(guest, rng(), |_| ());
    assert!(guest.wiring.messages().is_empty());
    guest.bar_write(TABLE + 16 + 12, &[0; 4]);
    wait_until("it is sent", || !guest.wiring.messages().is_empty());
}

#[test]
fn a_line_that_was_asserted_is_asserted_again_after_a_restore() {
    let mut guest = Guest::started(rng());
    offer(&mut guest);
    guest.wait_used(0, 1);
    wait_until("the line is asserted", || guest.wiring.line_asserted());
    let guest = move_to(guest, rng(), |_| ());
    wait_until("it is asserted again", || guest.wiring.line_asserted());
    assert_eq!(guest.bar_read(ISR), [1]);
}

#[test]
fn a_device_that_needs_a_reset_still_does_after_a_restore_and_a_reset_heals_it() {
    let mut guest = Guest::started(rng());
    guest.offer(0, &[(u64::MAX - 4, 16, true)]);
    guest.kick(0);
    guest.wait_for_status(0x40);
    let mut guest = move_to(guest, rng(), |_| ());
    assert_ne!(guest.status() & 0x40, 0);
    guest.restart();
    offer(&mut guest);
    guest.wait_used(0, 1);
}

#[test]
fn a_driver_that_was_negotiating_goes_on_negotiating() {
    let guest = Guest::new(rng());
    guest.decode_memory();
    guest.negotiate();
    let ring = guest.enable_queue(0);
    let mut guest = move_to(guest, rng(), |_| ());
    guest.rings = vec![ring.in_copy(&guest.ram)];
    guest.add_status(splitring_virtio::spec::status::DRIVER_OK);
    offer(&mut guest);
    guest.wait_used(0, 1);
}

#[test]
fn a_device_that_waits_for_the_bus_or_lost_it_goes_on_when_it_gets_it() {
    for lost in [false, true] {
        let mut guest = Guest::new(rng());
        guest.config_write(4, &(if lost { 6_u16 } else { 2 }).to_le_bytes());
        guest.restart();
        guest.config_write(4, &2_u16.to_le_bytes());
        let mut guest = move_to(guest, rng(), offer);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(guest.rings[0].used().is_empty());
        guest.decode_memory();
        guest.wait_used(0, 1);
    }
}

#[test]
fn a_device_that_runs_is_not_saved_and_one_in_use_takes_nothing_over() {
    let guest = Guest::started(rng());
    assert!(matches!(
        guest.function.save(),
        Err(StateError::Busy { ref device, .. }) if device == "rng0"
    ));
    guest.worker.pause(PATIENCE).unwrap();
    let state = serde_json::from_str(&save(&guest)).unwrap();
    let refused = guest.function.restore(&state).unwrap_err();
    assert!(refused.to_string().contains("in use"), "{refused}");
}

#[test]
fn a_device_of_another_kind_or_without_a_state_is_refused() {
    let guest = Guest::started(rng());
    guest.worker.pause(PATIENCE).unwrap();
    let state = serde_json::from_str(&save(&guest)).unwrap();
    let disk = Arc::new(MemoryDisk::new(1 << 20));
    let other = Guest::new(Arc::new(Blk::new("disk0", disk, 1, 64, "")));
    let refused = other.function.restore(&state).unwrap_err();
    assert!(matches!(refused, StateError::Refused { .. }), "{refused}");
    let (guest, _) = started(Manner::Answer);
    guest.worker.pause(PATIENCE).unwrap();
    assert!(matches!(
        guest.function.save(),
        Err(StateError::Unsupported { .. })
    ));
    guest.root.follow(SLOT);
}

#[test]
fn damaged_states_of_a_random_generator_are_errors_at_worst() {
    let guest = Guest::new(rng());
    guest.decode_memory();
    guest.enable_msix();
    let mut guest = guest;
    guest.restart();
    damaged_states_are_errors_at_worst(&guest, || rng(), 200);
}
