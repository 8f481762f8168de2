//! MSI-X and the interrupt line.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use splitring_virtio::spec::pci::common as reg;
use splitring_virtio::spec::status;

use super::started;
use crate::testing::pci::{Guest, ISR, PATIENCE, PENDING, SLOT, TABLE, wait_until};
use crate::testing::probe::Manner;
use crate::wiring::MsiMessage;

const BUFFER: u64 = 0x1000;

/// A started guest with MSI-X: queue `n` has vector `n`, configuration changes have 3.
fn with_msix() -> Guest {
    let (mut guest, _) = started(Manner::Answer);
    guest.enable_msix();
    guest.restart();
    for queue in 0..3 {
        guest.set16(reg::QUEUE_SELECT, queue);
        guest.set16(reg::QUEUE_MSIX_VECTOR, queue);
    }
    guest.set16(reg::CONFIG_MSIX_VECTOR, 3);
    guest
}

/// Has queue `index` complete one buffer.
fn complete(guest: &mut Guest, index: u16) {
    guest.offer(usize::from(index), &[(BUFFER, 1, true)]);
    guest.kick(index);
    guest.wait_used(usize::from(index), 1);
    // The interrupt comes after the index: the next thing the worker does is this.
    guest.worker.pause(PATIENCE).unwrap();
    guest.worker.resume().unwrap();
}

fn set_control(guest: &Guest, control: u16) {
    let at = guest.capability(0x11, |_| true).unwrap();
    guest.config_write(at + 2, &control.to_le_bytes());
}

fn command(guest: &Guest, value: u16) {
    guest.config_write(4, &value.to_le_bytes());
}

fn interrupt_status(guest: &Guest) -> bool {
    guest.config_read32(4) & 1 << 19 != 0
}

#[test]
fn each_queue_sends_its_own_message_with_the_functions_requester_id() {
    let mut guest = with_msix();
    for queue in [1, 0, 2] {
        complete(&mut guest, queue);
        let message = MsiMessage {
            address: 0xfee0_0000,
            data: u32::from(queue),
            requester: u16::from(SLOT) << 3,
        };
        assert_eq!(guest.wiring.messages(), [message]);
    }
    assert_eq!(
        guest.wiring.line(),
        Some(16 + u32::from(SLOT)),
        "bound before MSI-X was on"
    );
    assert!(!guest.wiring.line_asserted());
    assert_eq!(guest.bar_read(ISR), [0]);
}

#[test]
fn a_vector_beyond_the_table_reads_back_as_none() {
    let mut guest = with_msix();
    for vector in [4, 5, 0x7ff, 0xfffe, 0xffff] {
        guest.set16(reg::QUEUE_SELECT, 0);
        guest.set16(reg::QUEUE_MSIX_VECTOR, vector);
        assert_eq!(guest.common16(reg::QUEUE_MSIX_VECTOR), 0xffff);
        guest.set16(reg::CONFIG_MSIX_VECTOR, vector);
        assert_eq!(guest.common16(reg::CONFIG_MSIX_VECTOR), 0xffff);
    }
    complete(&mut guest, 0);
    assert_eq!(
        guest.wiring.messages(),
        [],
        "a queue without vector is silent"
    );
}

#[test]
fn a_masked_vector_is_pending_and_fires_once_at_unmask() {
    let mut guest = with_msix();
    guest.set_vector(1, true);
    complete(&mut guest, 1);
    complete(&mut guest, 1);
    assert_eq!(guest.wiring.messages(), []);
    assert_eq!(guest.bar_read(PENDING), [0b10]);
    assert_eq!(guest.bar_read::<8>(PENDING), 2_u64.to_le_bytes());
    guest.set_vector(1, false);
    assert_eq!(guest.wiring.messages().len(), 1);
    assert_eq!(guest.bar_read(PENDING), [0]);
    guest.set_vector(1, false);
    assert_eq!(guest.wiring.messages(), []);
}

#[test]
fn the_function_mask_holds_all_vectors_back() {
    let mut guest = with_msix();
    set_control(&guest, 0xc000);
    complete(&mut guest, 0);
    complete(&mut guest, 2);
    guest.set_vector(2, true);
    assert_eq!(guest.wiring.messages(), []);
    assert_eq!(guest.bar_read(PENDING), [0b101]);
    set_control(&guest, 0x8000);
    let sent: Vec<_> = guest.wiring.messages().iter().map(|m| m.data).collect();
    assert_eq!(sent, [0], "the other is masked by itself");
    assert_eq!(guest.bar_read(PENDING), [0b100]);
}

#[test]
fn a_message_rewritten_under_the_mask_is_the_one_sent() {
    let mut guest = with_msix();
    let entry = TABLE;
    guest.set32(entry + 12, 1);
    complete(&mut guest, 0);
    guest.set32(entry, 0xfee0_1000);
    guest.set32(entry + 4, 0x1);
    guest.set32(entry + 8, 0x4321);
    guest.bar_write(entry + 12, &[0; 4]);
    let sent = guest.wiring.messages();
    let wanted = MsiMessage {
        address: 0x1_fee0_1000,
        data: 0x4321,
        requester: u16::from(SLOT) << 3,
    };
    assert_eq!(sent, [wanted]);
    assert_eq!(guest.bar_read(entry), 0x1_fee0_1000_u64.to_le_bytes());
    assert_eq!(guest.bar_read(entry + 8), 0x4321_u64.to_le_bytes());
}

#[test]
fn the_table_takes_only_aligned_words_and_ends_with_its_last_entry() {
    let guest = with_msix();
    let before: [u8; 8] = guest.bar_read(TABLE);
    guest.bar_write(TABLE, &[9]);
    guest.bar_write(TABLE, &[9, 9]);
    guest.bar_write(TABLE + 2, &[9; 4]);
    guest.bar_write(TABLE + 4, &[9; 8]);
    assert_eq!(guest.bar_read(TABLE), before);
    guest.bar_write(TABLE + 4 * 16, &[9; 8]);
    guest.bar_write(0xfff8, &[9; 8]);
    assert_eq!(guest.bar_read(TABLE + 4 * 16), [0; 8]);
    assert_eq!(guest.bar_read(TABLE + 2), [0; 4]);
    // Reserved bits of the vector control stay zero.
    guest.set32(TABLE + 12, u32::MAX);
    assert_eq!(guest.bar_read(TABLE + 12), 1_u32.to_le_bytes());
}

#[test]
fn no_message_is_lost_between_masking_and_raising() {
    let guest = with_msix();
    let ending = AtomicBool::new(false);
    let mut sent = 0;
    let raised = std::thread::scope(|scope| {
        let raiser = scope.spawn(|| {
            let mut raised = 0_usize;
            let sink: Arc<dyn crate::interrupt::InterruptSink> = guest.function.sink();
            while !ending.load(Ordering::SeqCst) {
                sink.queue(0);
                raised += 1;
            }
            sink.queue(0);
            raised
        });
        for _ in 0..2000 {
            guest.set32(TABLE + 12, 1);
            guest.set32(TABLE + 12, 0);
            sent += guest.wiring.messages().len();
        }
        guest.set32(TABLE + 12, 1);
        ending.store(true, Ordering::SeqCst);
        raiser.join().unwrap()
    });
    assert!(raised > 0);
    guest.wiring.messages();
    // Raised under the mask last of all: exactly that is pending, and it fires.
    assert_eq!(guest.bar_read(PENDING), [1]);
    guest.set32(TABLE + 12, 0);
    assert_eq!(guest.wiring.messages().len(), 1);
    assert!(sent > 0);
}

#[test]
fn an_interrupt_that_cannot_be_made_is_held_back_and_tried_again() {
    let (mut guest, _) = started(Manner::Answer);
    guest.wiring.refuses.store(true, Ordering::SeqCst);
    guest.enable_msix();
    guest.set16(reg::QUEUE_SELECT, 0);
    guest.set16(reg::QUEUE_MSIX_VECTOR, 0);
    complete(&mut guest, 0);
    guest.wiring.refuses.store(false, Ordering::SeqCst);
    assert_eq!(guest.bar_read(PENDING), [1]);
    guest.set_vector(0, false);
    assert_eq!(guest.wiring.messages().len(), 1);
}

#[test]
fn the_line_is_asserted_with_a_reason_in_the_isr_register_which_reading_clears() {
    let (mut guest, probe) = started(Manner::Answer);
    assert_eq!(guest.wiring.line(), Some(16 + u32::from(SLOT)));
    assert!(!interrupt_status(&guest));
    complete(&mut guest, 0);
    assert!(guest.wiring.line_asserted());
    assert!(interrupt_status(&guest));
    probe.change_config(1);
    assert_eq!(guest.bar_read(ISR), [3]);
    assert_eq!(guest.bar_read(ISR), [0]);
    assert!(!interrupt_status(&guest));
}

#[test]
fn after_the_end_of_interrupt_the_line_is_asserted_again_only_for_a_reason() {
    let (mut guest, _) = started(Manner::Answer);
    complete(&mut guest, 0);
    assert!(guest.wiring.line_asserted());
    // Not read yet: the guest was interrupted for another device on the line.
    guest.wiring.end_of_interrupt();
    wait_until("it is asserted again", || guest.wiring.line_asserted());
    assert_eq!(guest.bar_read(ISR), [1]);
    guest.wiring.end_of_interrupt();
    guest.worker.pause(PATIENCE).unwrap();
    guest.worker.resume().unwrap();
    assert!(!guest.wiring.line_asserted());
}

#[test]
fn a_disabled_line_shows_the_interrupt_in_the_status_register_and_comes_when_enabled() {
    let (mut guest, _) = started(Manner::Answer);
    command(&guest, 0x406);
    complete(&mut guest, 0);
    assert!(!guest.wiring.line_asserted());
    assert!(interrupt_status(&guest));
    command(&guest, 0x006);
    assert!(guest.wiring.line_asserted());
}

#[test]
fn turning_msix_off_brings_the_line_back() {
    let mut guest = with_msix();
    set_control(&guest, 0);
    complete(&mut guest, 0);
    assert_eq!(guest.wiring.messages(), []);
    assert!(guest.wiring.line_asserted());
    assert_eq!(guest.bar_read(ISR), [1]);
}

#[test]
fn without_a_line_needed_none_is_bound() {
    let (guest, _) = super::guest(Manner::Answer);
    let mut guest = guest;
    guest.enable_msix();
    guest.restart();
    assert_eq!(guest.wiring.line(), None);
    set_control(&guest, 0);
    assert!(
        guest.wiring.line().is_some(),
        "the running device needs it now"
    );
}

#[test]
fn a_reason_that_came_before_the_line_was_bound_asserts_it() {
    let (mut guest, _) = super::guest(Manner::Answer);
    guest.wiring.refuses.store(true, Ordering::SeqCst);
    guest.restart();
    complete(&mut guest, 0);
    guest.wiring.refuses.store(false, Ordering::SeqCst);
    assert_eq!(guest.wiring.line(), None);
    // Any write of message control tries again.
    set_control(&guest, 0);
    assert!(guest.wiring.line_asserted());
}

#[test]
fn reset_drops_pending_reasons() {
    let (mut guest, _) = started(Manner::Answer);
    complete(&mut guest, 0);
    guest.set_status(0);
    assert!(!interrupt_status(&guest));
    assert_eq!(guest.bar_read(ISR), [0]);
}

#[test]
fn needs_reset_interrupts_only_after_driver_ok() {
    let (mut guest, _) = super::guest(Manner::Answer);
    guest.negotiate();
    guest.rings = vec![guest.enable_queue(0)];
    assert_eq!(guest.bar_read(ISR), [0]);
    guest.add_status(status::DRIVER_OK);
    guest.rings[0].offer_head(999);
    guest.kick(0);
    guest.wait_for_status(status::NEEDS_RESET);
    wait_until("the line is asserted", || guest.wiring.line_asserted());
    assert_eq!(guest.bar_read(ISR), [2]);
}
