//! Which buffers use indirect tables, and the layout of the tables.

use super::*;

/// Adds `count` one-byte segments under a policy; returns whether they use a table.
fn goes_indirect(policy: IndirectPolicy, filled: usize, count: usize) -> Option<bool> {
    let mut bed = Testbed::new(1 << 16);
    let options = QueueOptions::new(8, INDIRECT_DESC).tables(5).policy(policy);
    let mut queue = bed.queue::<List>(options);
    for _ in 0..filled {
        let one = list(&mut bed, &[1]);
        queue.add_outbuf(one, 1, |list| list).unwrap();
    }
    let head = u16::try_from(filled).unwrap();
    let token = list(&mut bed, &vec![1; count]);
    queue.add_outbuf(token, count, |list| list).ok()?;
    Some(desc(&bed, queue.areas(), head).2 & DESC_F_INDIRECT != 0)
}

#[test]
fn policies_choose_between_ring_and_table() {
    use IndirectPolicy::{Always, Auto, Never, Rfc};
    for policy in [Never, Always, Rfc, Auto] {
        assert_eq!(
            goes_indirect(policy, 0, 1),
            Some(false),
            "one segment gains nothing"
        );
        assert_eq!(goes_indirect(policy, 8, 1), None, "{policy:?}, full");
        assert_eq!(goes_indirect(policy, 8, 2), None, "{policy:?}, full");
    }
    assert_eq!(goes_indirect(Never, 0, 5), Some(false));
    assert_eq!(goes_indirect(Never, 4, 5), None);
    assert_eq!(goes_indirect(Always, 0, 2), Some(true));
    assert_eq!(goes_indirect(Always, 7, 5), Some(true));
    assert_eq!(goes_indirect(Always, 0, 6), None, "longer than a table");
    assert_eq!(goes_indirect(Rfc, 0, 2), Some(true));
    assert_eq!(goes_indirect(Rfc, 7, 5), Some(true));
    assert_eq!(
        goes_indirect(Rfc, 0, 6),
        Some(false),
        "no table: direct after all"
    );
    assert_eq!(
        goes_indirect(Auto, 0, 4),
        Some(false),
        "short, and room to spare"
    );
    assert_eq!(goes_indirect(Auto, 0, 5), Some(true), "long");
    assert_eq!(goes_indirect(Auto, 5, 2), Some(true), "the ring fills up");
    assert_eq!(
        goes_indirect(Auto, 0, 8),
        Some(false),
        "longer than a table"
    );
}

#[test]
fn without_the_feature_nothing_is_indirect_and_no_memory_is_set_aside() {
    let mut bed = Testbed::new(1 << 16);
    let options = QueueOptions::new(8, 0)
        .tables(8)
        .policy(IndirectPolicy::Always);
    assert_eq!(options.memory_len(), QueueOptions::new(8, 0).memory_len());
    let mut queue = bed.queue::<List>(options);
    let token = list(&mut bed, &[1, 1]);
    queue.add_outbuf(token, 2, |list| list).unwrap();
    assert_eq!(desc(&bed, queue.areas(), 0).2, DESC_F_NEXT);
}

#[test]
fn an_indirect_buffer_takes_one_slot_and_a_table_of_exactly_its_segments() {
    let mut bed = Testbed::new(1 << 16);
    let options = QueueOptions::new(4, INDIRECT_DESC)
        .tables(4)
        .policy(IndirectPolicy::Rfc);
    let mut queue = bed.queue::<List>(options);
    let mut device = bed.device_end(queue.areas(), INDIRECT_DESC);
    for filled in 0..4 {
        let token = list(&mut bed, &[1, 2, 3]);
        queue.add_buf(token, 2, 1, |list| list).unwrap();
        let (_, len, flags, _) = desc(&bed, queue.areas(), filled);
        assert_eq!((len, flags), (48, DESC_F_INDIRECT));
    }
    assert_eq!(queue.free_slots(), 0);
    let _ = queue.publish();
    while let Some(chain) = device.pop().unwrap() {
        assert_eq!((chain.readable_len(), chain.writable_len()), (3, 3));
        device.complete(chain, 3);
    }
    let _ = device.publish();
    while let Some(done) = queue.pop().unwrap() {
        assert_eq!((done.written, done.token.segments()), (3, 3));
    }
    assert_eq!(queue.free_slots(), 4);
}
