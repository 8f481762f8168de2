//! What is done once and not for each chain.

use super::super::play::{DATA, EVENT, INDIRECT, NEXT, PLAIN, Play, WRITE, desc};
use super::pop;
use crate::device::queue::ChainError;

#[test]
fn memory_is_asked_once_where_a_ring_and_its_buffers_lie() {
    for features in [PLAIN, EVENT] {
        let mut play = Play::new(8);
        let mut queue = play.activate(features);
        assert_eq!(play.ram.lookups(), 3, "one for each part of the ring");
        play.chain(
            0,
            &[(DATA, 16, 0), (DATA + 64, 512, WRITE), (DATA, 1, WRITE)],
        );
        let table = DATA + 0x1000;
        play.set_desc(3, desc(table, 32, INDIRECT, 0));
        play.table(
            table,
            &[desc(DATA, 16, NEXT, 1), desc(DATA + 64, 512, WRITE, 0)],
        );
        for _ in 0..100 {
            play.offer(0);
            play.offer(3);
            for _ in 0..2 {
                let chain = pop(&mut queue);
                queue.complete(chain, 1);
            }
            let _ = queue.publish();
            let _ = queue.enable_notification();
        }
        assert_eq!(play.ram.lookups(), 5, "and one to read and one to write");
    }
}

#[test]
fn the_available_index_is_read_once_for_all_it_shows() {
    let mut play = Play::new(8);
    let mut queue = play.activate(PLAIN);
    for head in 0..4 {
        play.chain(head, &[(DATA, 16, 0)]);
        play.stage(head);
    }
    play.show();
    let first = pop(&mut queue);
    play.set_idx(0x4000);
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
