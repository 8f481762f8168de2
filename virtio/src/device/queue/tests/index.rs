//! Heads and indices: order, wrap, repetition, jumps, one-entry and full rings.

use super::{fault_of, lens, pop};
use crate::device::queue::{ChainError, ChainFault, Interrupt};
use crate::device::tests::driver::{DATA, EVENT, IN_ORDER, PLAIN, TestDriver, WRITE};

#[test]
fn an_available_index_that_jumps_is_refused() {
    for jump in [9, 100, 0x8000, 0xffff] {
        let mut driver = TestDriver::new(8);
        let mut queue = driver.activate(PLAIN);
        driver.set_idx(jump);
        assert_eq!(
            queue.pop().unwrap_err(),
            ChainError::IndexJump {
                avail: jump,
                next: 0
            }
        );
        assert_eq!(queue.pop().unwrap_err(), ChainError::Broken);
        assert!(
            !queue.enable_notification(),
            "a broken queue has nothing to look at again"
        );
    }
}

#[test]
fn a_head_made_available_twice_is_refused() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(3, &[(DATA, 16, 0)]);
    driver.offer(3);
    let chain = pop(&mut queue);
    driver.offer(3);
    assert_eq!(fault_of(&mut queue, 3), ChainFault::Duplicate);
    // Requests in flight can still be completed.
    queue.complete(chain, 0);
    assert_eq!(queue.publish(), Interrupt::Needed);
    assert_eq!(driver.used_idx(), 1);
}

#[test]
fn a_head_can_be_used_again_once_it_is_completed() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(3, &[(DATA, 16, 0)]);
    for round in 1..=3 {
        driver.offer(3);
        let chain = pop(&mut queue);
        assert_eq!(queue.in_flight(), 1);
        queue.complete(chain, 0);
        assert_eq!(queue.in_flight(), 0);
        assert_eq!(queue.publish(), Interrupt::Needed);
        assert_eq!(driver.used_idx(), round);
    }
}

#[test]
fn indices_wrap_at_65535_with_batches() {
    for features in [PLAIN, EVENT, IN_ORDER] {
        let mut driver = TestDriver::new(4);
        let mut queue = driver.activate_at(65533, features);
        for head in 0..4 {
            driver.chain(head, &[(DATA, 16, WRITE)]);
        }
        for round in 0..3u16 {
            let base = 65533u16.wrapping_add(round * 4);
            // Interrupt after the third of the batch.
            driver.set_used_event(base.wrapping_add(2));
            for head in 0..4 {
                driver.stage(head);
            }
            driver.show();
            for head in 0..4 {
                let chain = pop(&mut queue);
                assert_eq!(chain.head(), head);
                queue.complete(chain, u32::from(head));
            }
            assert!(queue.pop().unwrap().is_none());
            assert_eq!(queue.publish(), Interrupt::Needed);
            assert_eq!(driver.used_idx(), base.wrapping_add(4));
            for head in 0..4u16 {
                let entry = driver.used_entry(base.wrapping_add(head));
                assert_eq!(entry, (u32::from(head), u32::from(head)));
            }
        }
    }
}

#[test]
fn a_queue_of_one_entry_works_over_and_over() {
    let mut driver = TestDriver::new(1);
    let mut queue = driver.activate(EVENT);
    driver.chain(0, &[(DATA, 16, WRITE)]);
    for round in 1..=70_000u32 {
        driver.offer(0);
        let chain = pop(&mut queue);
        assert!(queue.pop().unwrap().is_none());
        queue.complete(chain, 16);
        let _ = queue.publish();
        assert_eq!(u32::from(driver.used_idx()), round & 0xffff);
    }
}

#[test]
fn a_full_ring_is_popped_whole_and_completed_in_any_order() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    for head in 0..8 {
        driver.chain(head, &[(DATA + 64 * u64::from(head), 16, WRITE)]);
        driver.stage(head);
    }
    driver.show();
    let mut chains: Vec<_> = (0..8).map(|_| pop(&mut queue)).collect();
    assert!(queue.pop().unwrap().is_none());
    assert_eq!(queue.in_flight(), 8);
    chains.swap(0, 5);
    chains.reverse();
    let order: Vec<_> = chains.iter().map(|chain| u32::from(chain.head())).collect();
    for chain in chains {
        queue.complete(chain, 3);
    }
    assert_eq!(queue.publish(), Interrupt::Needed);
    let used: Vec<_> = (0..8).map(|n| driver.used_entry(n).0).collect();
    assert_eq!(used, order);
}

#[test]
fn descriptors_are_read_once() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(DATA, 16, 0), (DATA, 1, WRITE)]);
    driver.offer(0);
    let chain = pop(&mut queue);
    // A double fetch would see these.
    driver.chain(0, &[(0, 77, WRITE), (u64::MAX, 99, 0)]);
    assert_eq!(lens(&chain), (vec![16], vec![1]));
    queue.complete(chain, 55);
    assert_eq!(queue.publish(), Interrupt::Needed);
    assert_eq!(
        driver.used_entry(0),
        (0, 1),
        "the length is cut to what was popped"
    );
}

#[test]
fn a_head_offered_again_before_its_use_was_published_is_refused() {
    let mut driver = TestDriver::new(1);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(DATA, 16, 0)]);
    driver.offer(0);
    let chain = pop(&mut queue);
    queue.complete(chain, 0);
    driver.offer(0);
    assert_eq!(
        queue.pop().unwrap_err(),
        ChainError::IndexJump { avail: 2, next: 1 }
    );
    assert_eq!(queue.publish(), Interrupt::Needed);
    assert_eq!(driver.used_idx(), 1);
}
