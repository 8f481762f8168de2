//! Interrupts, notifications and the limits of a pass.

use super::pop;
use crate::device::queue::Interrupt;
use crate::device::tests::driver::{DATA, EVENT, INDIRECT, NEXT, PLAIN, TestDriver, WRITE, desc};
use crate::spec::ring::{AVAIL_F_NO_INTERRUPT, USED_F_NO_NOTIFY};

#[test]
fn without_event_idx_the_interrupt_flag_decides() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(DATA, 16, 0)]);
    // The event index of the other mode must not matter.
    driver.set_used_event(0x1234);
    for (flags, expected) in [
        (0, Interrupt::Needed),
        (AVAIL_F_NO_INTERRUPT, Interrupt::NotNeeded),
        (0xfffe, Interrupt::Needed),
    ] {
        driver.set_avail_flags(flags);
        driver.offer(0);
        let chain = pop(&mut queue);
        queue.complete(chain, 0);
        assert_eq!(queue.publish(), expected);
    }
}

#[test]
fn with_event_idx_the_flag_is_ignored_and_used_event_decides() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(EVENT);
    driver.set_avail_flags(AVAIL_F_NO_INTERRUPT);
    driver.chain(0, &[(DATA, 16, 0)]);
    for (used_event, expected) in [
        (0, Interrupt::Needed),
        (0, Interrupt::NotNeeded),
        (5, Interrupt::NotNeeded),
        (3, Interrupt::Needed),
    ] {
        driver.set_used_event(used_event);
        driver.offer(0);
        let chain = pop(&mut queue);
        queue.complete(chain, 0);
        assert_eq!(queue.publish(), expected);
    }
}

#[test]
fn an_empty_batch_publishes_nothing_and_interrupts_nobody() {
    let driver = TestDriver::new(8);
    for features in [PLAIN, EVENT] {
        let mut queue = driver.activate(features);
        driver.put16(driver.used + 2, 0x55aa);
        assert_eq!(queue.publish(), Interrupt::NotNeeded);
        assert_eq!(driver.used_idx(), 0x55aa);
    }
}

/// Published entries can be taken and made available again before the decision about the batch,
/// which covers all of it.
#[test]
fn a_batch_shown_early_is_decided_about_as_a_whole() {
    let mut driver = TestDriver::new(4);
    driver.set_used_event(0);
    let mut queue = driver.activate(EVENT);
    for head in 0..4 {
        driver.chain(head, &[(DATA, 16, 0)]);
        driver.offer(head);
    }
    let first = pop(&mut queue);
    queue.complete(first, 0);
    queue.publish_used();
    assert_eq!(driver.used_idx(), 1);
    // The ring was full: only published entries make room.
    driver.offer(0);
    for _ in 0..4 {
        let chain = pop(&mut queue);
        queue.complete(chain, 0);
    }
    assert_eq!(driver.used_idx(), 1);
    assert_eq!(
        queue.publish(),
        Interrupt::Needed,
        "the first was asked about"
    );
    assert_eq!(driver.used_idx(), 5);
    assert_eq!(queue.publish(), Interrupt::NotNeeded);
}

/// Requests count until the driver has handled their interrupt.
#[test]
fn requests_are_outstanding_until_their_interrupt_is_handled() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(EVENT);
    for head in 0..8 {
        driver.chain(head, &[(DATA, 16, 0)]);
    }
    driver.set_used_event(0);
    for head in 0..3 {
        driver.offer(head);
    }
    let chain = pop(&mut queue);
    queue.complete(chain, 0);
    assert!(queue.wants_interrupt());
    assert_eq!(queue.outstanding(), 3);
    assert_eq!(queue.publish(), Interrupt::Needed);
    assert!(!queue.wants_interrupt());
    driver.offer(3);
    assert_eq!(queue.outstanding(), 4, "none is taken back");
    // It handles the interrupt, and waits for the next one.
    driver.set_used_event(1);
    let chain = pop(&mut queue);
    queue.complete(chain, 0);
    assert_eq!(queue.outstanding(), 3);
}

/// The event index of a driver that polls stays behind and says nothing about its requests in
/// flight.
#[test]
fn a_stale_event_index_does_not_count_as_requests() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(EVENT);
    driver.chain(0, &[(DATA, 16, 0)]);
    driver.set_used_event(0);
    for round in 0..100_u16 {
        driver.offer(0);
        let chain = pop(&mut queue);
        queue.complete(chain, 0);
        assert_eq!(queue.outstanding(), if round < 8 { round + 1 } else { 0 });
        let _ = queue.publish();
    }
}

#[test]
fn without_event_idx_requests_are_outstanding_until_their_interrupt() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    for head in 0..3 {
        driver.chain(head, &[(DATA, 16, 0)]);
        driver.offer(head);
    }
    let chain = pop(&mut queue);
    queue.complete(chain, 0);
    assert!(queue.wants_interrupt());
    assert_eq!(queue.outstanding(), 3);
    assert_eq!(queue.publish(), Interrupt::Needed);
    assert_eq!(queue.outstanding(), 2);
    driver.set_avail_flags(AVAIL_F_NO_INTERRUPT);
    assert!(!queue.wants_interrupt());
    // An invalid index, which the next pop reports.
    driver.put16(driver.avail + 2, 0x7000);
    assert_eq!(queue.outstanding(), 0);
}

/// 2^16 entries published without a decision look like none, and more of them like few.
#[test]
fn more_than_two_to_the_sixteen_shown_entries_are_not_mistaken_for_few() {
    for over in [0, 1, 5] {
        let mut driver = TestDriver::new(4);
        let mut queue = driver.activate(EVENT);
        driver.chain(0, &[(DATA, 16, 0)]);
        driver.set_used_event(0);
        for _ in 0..65_536 + over {
            driver.offer(0);
            let chain = pop(&mut queue);
            queue.complete(chain, 0);
            queue.publish_used();
        }
        // The driver requested an interrupt for the first entry, and then polled.
        assert_eq!(queue.publish(), Interrupt::Needed, "{over} over");
        assert_eq!(queue.publish(), Interrupt::NotNeeded);
    }
}

#[test]
fn notification_is_suppressed_by_flag_without_event_idx() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    queue.disable_notification();
    assert_eq!(driver.used_flags(), USED_F_NO_NOTIFY);
    assert!(!queue.enable_notification());
    assert_eq!(driver.used_flags(), 0);
    queue.disable_notification();
    driver.chain(0, &[(DATA, 16, 0)]);
    driver.offer(0);
    assert!(
        queue.enable_notification(),
        "the buffer that came meanwhile is seen"
    );
}

#[test]
fn notification_follows_avail_event_with_event_idx_and_the_flags_stay_zero() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(EVENT);
    driver.chain(0, &[(DATA, 16, 0)]);
    for next in 1..5 {
        queue.disable_notification();
        assert_eq!(driver.used_flags(), 0);
        driver.offer(0);
        assert!(queue.enable_notification());
        let chain = pop(&mut queue);
        assert!(queue.pop().unwrap().is_none());
        queue.complete(chain, 0);
        assert!(!queue.enable_notification());
        assert_eq!(driver.avail_event(), next);
        assert_eq!(driver.used_flags(), 0);
    }
}

#[test]
fn a_spurious_notification_finds_nothing() {
    let driver = TestDriver::new(8);
    let mut queue = driver.activate(EVENT);
    for _ in 0..3 {
        assert!(queue.pop().unwrap().is_none());
        assert!(queue.drained());
    }
}

#[test]
fn a_grant_bounds_a_pass_though_the_driver_refills_for_ever() {
    let mut driver = TestDriver::new(4);
    let mut queue = driver.activate(PLAIN);
    for head in 0..4 {
        driver.chain(head, &[(DATA, 16, 0)]);
        driver.offer(head);
    }
    queue.grant(10);
    let mut done = 0;
    while let Some(chain) = queue.pop().unwrap() {
        let head = chain.head();
        queue.complete(chain, 0);
        let _ = queue.publish();
        driver.offer(head);
        done += 1;
        assert!(done <= 10);
    }
    assert_eq!(done, 10);
    assert!(queue.spent() && !queue.drained());
    queue.grant(1);
    let chain = pop(&mut queue);
    queue.complete(chain, 0);
    assert!(queue.pop().unwrap().is_none());
    // The rest of a limit does not add to the next one.
    queue.grant(3);
    let chain = pop(&mut queue);
    queue.complete(chain, 0);
    assert!(!queue.spent());
    queue.grant(1);
    let chain = pop(&mut queue);
    queue.complete(chain, 0);
    assert!(queue.pop().unwrap().is_none());
    assert!(queue.spent());
}

#[test]
fn a_grant_bounds_the_bytes_of_a_pass_and_the_chain_that_exceeds_it_is_the_last() {
    const PIECE: u32 = 7 << 16;
    let mut driver = TestDriver::new(16);
    let mut queue = driver.activate(PLAIN);
    // The same memory repeatedly: 7 MiB per chain, half of it writable.
    let link = |index: u16| if index < 15 { NEXT } else { 0 };
    let half = |index: u16| if index < 8 { 0 } else { WRITE };
    let entry = |index: u16| desc(DATA + 0x1000, PIECE, link(index) | half(index), index + 1);
    let table: Vec<_> = (0..16).map(entry).collect();
    driver.table(DATA, &table);
    for head in 0..8 {
        driver.set_desc(head, desc(DATA, 16 * 16, INDIRECT, 0));
        driver.offer(head);
    }
    let mut pass = |chains| {
        queue.grant(chains);
        let mut taken = 0;
        while let Some(chain) = queue.pop().unwrap() {
            queue.complete(chain, 0);
            taken += 1;
        }
        (taken, queue.spent(), queue.drained())
    };
    assert_eq!(pass(100), (3, true, false));
    assert_eq!(pass(2), (2, true, false));
    assert_eq!(pass(100), (3, true, false));
    assert_eq!(pass(100), (0, false, true));
}
