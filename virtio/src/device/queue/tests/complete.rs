//! Completion: lengths, dropped chains, order of use, dirty pages.

use super::pop;
use crate::device::queue::{ChainError, Interrupt};
use crate::device::tests::driver::{DATA, IN_ORDER, PLAIN, TestDriver, WRITE};

#[test]
fn used_length_never_exceeds_the_writable_part() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(DATA, 16, 0), (DATA, 10, WRITE)]);
    for (position, (written, shown)) in (0..).zip([(0, 0), (10, 10), (11, 10), (u32::MAX, 10)]) {
        driver.offer(0);
        let chain = pop(&mut queue);
        queue.complete(chain, written);
        let _ = queue.publish();
        assert_eq!(driver.used_entry(position), (0, shown));
    }
}

#[test]
fn a_request_given_up_half_way_reports_what_was_written_and_not_what_others_wrote() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(DATA, 16, 0), (DATA, 10, WRITE)]);
    let mut position = 0;
    // Completed, cancelled after 3 bytes, cancelled before the first: each in the slot of the
    // previous one.
    for written in [10usize, 3, 0] {
        driver.offer(0);
        let mut chain = pop(&mut queue);
        let mut writer = chain.writer();
        writer.write_all(&[7; 10][..written]).unwrap();
        let count = u32::try_from(writer.written()).unwrap();
        queue.complete(chain, count);
        let _ = queue.publish();
        assert_eq!(
            driver.used_entry(position),
            (0, u32::try_from(written).unwrap())
        );
        position += 1;
    }
    // Abandoned at a reset: nothing is published.
    driver.offer(0);
    pop(&mut queue).abandon();
    assert_eq!(queue.publish(), Interrupt::NotNeeded);
    assert_eq!(driver.used_entry(position), (0, 0));
}

#[test]
fn a_forgotten_chain_breaks_its_queue_and_an_abandoned_one_does_not() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(DATA, 16, 0)]);
    driver.chain(1, &[(DATA, 16, 0)]);
    driver.offer(0);
    pop(&mut queue).abandon();
    assert!(!queue.is_broken());
    assert_eq!(queue.in_flight(), 1);
    driver.offer(1);
    drop(pop(&mut queue));
    assert!(queue.is_broken());
    assert_eq!(queue.pop().unwrap_err(), ChainError::Broken);
}

#[test]
fn a_chain_completed_on_another_queue_breaks_both_and_publishes_nothing() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    let other = TestDriver::new(8);
    let mut stranger = other.activate(PLAIN);
    driver.chain(0, &[(DATA, 16, 0)]);
    driver.offer(0);
    let chain = pop(&mut queue);
    stranger.complete(chain, 0);
    assert!(queue.is_broken() && stranger.is_broken());
    assert_eq!(stranger.publish(), Interrupt::NotNeeded);
}

#[test]
fn a_chain_outlives_its_queue_and_the_test_s_memory() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(DATA, 4, 0)]);
    driver.ram.write(DATA, b"data");
    driver.offer(0);
    let chain = pop(&mut queue);
    drop((queue, driver));
    assert_eq!(chain.reader().read_obj::<[u8; 4]>().unwrap(), *b"data");
}

#[test]
fn in_order_entries_show_in_the_order_they_became_available() {
    let mut driver = TestDriver::new(4);
    let mut queue = driver.activate(IN_ORDER);
    for head in 0..4 {
        driver.chain(head, &[(DATA, 16, WRITE)]);
    }
    for head in [2, 0, 3, 1] {
        driver.offer(head);
    }
    let mut chains: Vec<_> = (0..4).map(|_| pop(&mut queue)).collect();
    queue.complete(chains.remove(1), 7); // head 0
    assert_eq!(queue.publish(), Interrupt::NotNeeded);
    assert_eq!(driver.used_idx(), 0, "head 2 came first and is not done");
    queue.complete(chains.remove(0), 8); // head 2
    assert_eq!(queue.publish(), Interrupt::Needed);
    assert_eq!(driver.used_idx(), 2);
    queue.complete(chains.remove(1), 9); // head 1
    queue.complete(chains.remove(0), 10); // head 3
    assert_eq!(queue.publish(), Interrupt::Needed);
    let used: Vec<_> = (0..4).map(|n| driver.used_entry(n)).collect();
    assert_eq!(used, [(2, 8), (0, 7), (3, 10), (1, 9)]);
}

#[test]
fn completion_marks_the_writable_part_and_publication_the_used_ring() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    let (out, status) = (DATA + 0x1800, DATA + 0x5000);
    driver.chain(
        0,
        &[(DATA, 16, 0), (out, 0x1000, WRITE), (status, 1, WRITE)],
    );
    driver.offer(0);
    let chain = pop(&mut queue);
    driver.ram.track_dirty();
    queue.complete(chain, 1);
    let pages = [DATA, out, out + 0xfff, DATA + 0x3000, status];
    assert_eq!(
        pages.map(|page| driver.ram.is_dirty(page)),
        [false, true, true, false, true]
    );
    assert!(!driver.ram.is_dirty(driver.used));
    let _ = queue.publish();
    assert!(driver.ram.is_dirty(driver.used));
    driver.ram.track_dirty();
    let _ = queue.enable_notification();
    assert!(driver.ram.is_dirty(driver.used));
}

#[test]
fn a_forgotten_or_abandoned_chain_marks_its_writable_part_too() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    driver.chain(0, &[(DATA, 16, WRITE)]);
    driver.chain(1, &[(DATA + 0x4000, 16, WRITE)]);
    driver.offer(0);
    driver.offer(1);
    let first = pop(&mut queue);
    let second = pop(&mut queue);
    driver.ram.track_dirty();
    first.abandon();
    assert!(driver.ram.is_dirty(DATA) && !driver.ram.is_dirty(DATA + 0x4000));
    drop(second);
    assert!(driver.ram.is_dirty(DATA + 0x4000));
}
