//! Work that is done once, and not per chain.

use super::pop;
use crate::device::queue::ChainError;
use crate::device::tests::driver::{DATA, EVENT, INDIRECT, NEXT, PLAIN, TestDriver, WRITE, desc};

#[test]
fn memory_is_asked_once_where_a_ring_and_its_buffers_lie() {
    for features in [PLAIN, EVENT] {
        let mut driver = TestDriver::new(8);
        let mut queue = driver.activate(features);
        assert_eq!(driver.ram.lookups(), 3, "one for each part of the ring");
        driver.chain(
            0,
            &[(DATA, 16, 0), (DATA + 64, 512, WRITE), (DATA, 1, WRITE)],
        );
        let table = DATA + 0x1000;
        driver.set_desc(3, desc(table, 32, INDIRECT, 0));
        driver.table(
            table,
            &[desc(DATA, 16, NEXT, 1), desc(DATA + 64, 512, WRITE, 0)],
        );
        for _ in 0..100 {
            driver.offer(0);
            driver.offer(3);
            for _ in 0..2 {
                let chain = pop(&mut queue);
                queue.complete(chain, 1);
            }
            let _ = queue.publish();
            let _ = queue.enable_notification();
        }
        assert_eq!(driver.ram.lookups(), 5, "and one to read and one to write");
    }
}

#[test]
fn the_available_index_is_read_once_for_all_it_shows() {
    let mut driver = TestDriver::new(8);
    let mut queue = driver.activate(PLAIN);
    for head in 0..4 {
        driver.chain(head, &[(DATA, 16, 0)]);
        driver.stage(head);
    }
    driver.show();
    let first = pop(&mut queue);
    driver.set_idx(0x4000);
    let rest: Vec<_> = (0..3).map(|_| pop(&mut queue)).collect();
    let jumped = ChainError::IndexJump {
        avail: 0x4000,
        next: 4,
    };
    assert_eq!(queue.pop().unwrap_err(), jumped);
    for chain in [first].into_iter().chain(rest) {
        queue.complete(chain, 0);
    }
}
