//! Piecewise construction of buffers: what the device gets, and what is refused.

use super::*;

#[test]
fn readable_and_writable_lists_reach_the_device_and_come_back_with_what_it_wrote() {
    for features in [0, BOTH] {
        let mut bed = Testbed::new(1 << 16);
        let mut queue = bed.queue::<(List, List)>(QueueOptions::new(8, features).tables(8));
        let mut device = bed.device_end(queue.areas(), features);
        let out = List::from_buffers([bed.piece(b"head"), bed.piece(b"er")]);
        let token = (out, list(&mut bed, &[3, 5]));
        let mut buffer = queue.start_buf(token, 4, 2).unwrap();
        assert_eq!(buffer.add_sg(|token| &token.0, 9).unwrap(), 2);
        let mut buffer = buffer.writable();
        assert_eq!(buffer.add_sg(|token| &token.1, 2).unwrap(), 2);
        let ticket = buffer.end_buf().unwrap();
        assert!(device.pop().unwrap().is_none(), "not published yet");
        assert_eq!(queue.publish(), Kick::Needed);

        let mut chain = device.pop().unwrap().unwrap();
        let mut read = [0; 6];
        chain.reader().read_exact(&mut read).unwrap();
        assert_eq!((&read, chain.writable_len()), (b"header", 8));
        chain.writer().write_all(b"answer").unwrap();
        device.complete(chain, 6);
        assert!(queue.pop().unwrap().is_none(), "not published yet");
        let _ = device.publish();
        assert!(queue.holds(ticket));
        let done = queue.pop().unwrap().unwrap();
        assert_eq!((done.written, done.ticket), (6, ticket));
        let mut written = Vec::new();
        let mut lists = done.token;
        lists
            .1
            .for_each_mut(|piece| written.extend_from_slice(piece.bytes()));
        assert_eq!(written, b"answer\0\0");
        assert!(!queue.holds(ticket));
        assert_eq!((queue.free_slots(), queue.in_flight()), (8, 0));
    }
}

#[test]
fn a_full_queue_hands_the_token_back_and_takes_it_after_a_pop() {
    let mut bed = Testbed::new(1 << 16);
    let mut queue = bed.queue::<List>(QueueOptions::new(4, 0));
    let mut device = bed.device_end(queue.areas(), 0);
    let first = list(&mut bed, &[1, 1, 1]);
    let second = list(&mut bed, &[1, 1]);
    queue.add_outbuf(first, 3, |list| list).unwrap();
    let refused = queue.add_outbuf(second, 2, |list| list).unwrap_err();
    assert_eq!((refused.why, refused.token.segments()), (Refusal::Full, 2));
    let _ = queue.publish();
    let chain = device.pop().unwrap().unwrap();
    device.complete(chain, 0);
    let _ = device.publish();
    assert_eq!(queue.pop().unwrap().unwrap().token.segments(), 3);
    queue.add_outbuf(refused.token, 2, |list| list).unwrap();
    assert_eq!(queue.free_slots(), 2);
}

#[test]
fn a_buffer_that_is_dropped_was_never_there() {
    let mut bed = Testbed::new(1 << 16);
    for features in [0, INDIRECT_DESC] {
        let mut queue = bed.queue::<List>(QueueOptions::new(4, features).tables(4));
        let mut device = bed.device_end(queue.areas(), features);
        for _ in 0..20 {
            let token = list(&mut bed, &[1, 1, 1]);
            let mut buffer = queue.start_buf(token, 3, 2).unwrap();
            buffer.add_sg(|list| list, 2).unwrap();
            drop(buffer);
            assert_eq!((queue.free_slots(), queue.in_flight()), (4, 0));
            assert_eq!(queue.publish(), Kick::NotNeeded);
        }
        let token = list(&mut bed, &[1, 1]);
        let token = queue.start_buf(token, 2, 1).unwrap().abort();
        queue.add_outbuf(token, 2, |list| list).unwrap();
        let _ = queue.publish();
        let chain = device.pop().unwrap().unwrap();
        assert_eq!(chain.readable().len(), 2);
        chain.abandon();
        assert!(device.pop().unwrap().is_none());
    }
}

#[test]
fn reservations_hold_and_a_spoiled_buffer_cannot_be_ended() {
    let mut bed = Testbed::new(1 << 16);
    let mut queue = bed.queue::<List>(QueueOptions::new(8, 0));
    let over = |buffer: &mut Builder<'_, List, Window>| buffer.add_sg(|list| list, 2);

    let token = list(&mut bed, &[1, 1]);
    let mut buffer = queue.start_buf(token, 3, 2).unwrap();
    assert_eq!(buffer.room(), 3);
    assert_eq!(over(&mut buffer), Ok(2));
    assert_eq!(
        over(&mut buffer),
        Err(AddError::OverReserved),
        "a segment too many"
    );
    let refused = buffer.end_buf().unwrap_err();
    assert_eq!(refused.why, Refusal::Add(AddError::OverReserved));

    let mut buffer = queue.start_buf(refused.token, 8, 1).unwrap();
    assert_eq!(over(&mut buffer), Ok(2));
    assert_eq!(
        over(&mut buffer),
        Err(AddError::OverReserved),
        "a list too many"
    );
    let token = buffer.abort();

    let buffer = queue.start_buf(token, 8, 1).unwrap();
    let refused = buffer.end_buf().unwrap_err();
    assert_eq!(refused.why, Refusal::Empty);

    let mut buffer = queue.start_buf(refused.token, 8, 1).unwrap();
    over(&mut buffer).unwrap();
    buffer.end_buf().unwrap();
    assert_eq!(
        queue.free_slots(),
        6,
        "fewer segments than announced take fewer slots"
    );
}

#[test]
fn what_can_not_be_a_buffer_is_refused() {
    let mut bed = Testbed::new(1 << 16);
    let mut queue = bed.queue::<List>(QueueOptions::new(4, INDIRECT_DESC).tables(4));
    let five = list(&mut bed, &[1; 5]);
    assert_eq!(why(queue.add_inbuf(five, 5, |list| list)), Refusal::TooLong);
    assert_eq!(
        why(queue.add_inbuf(List::new(1), 0, |list| list)),
        Refusal::Empty
    );
    let short = Refusal::Add(AddError::TooShort);
    let one = list(&mut bed, &[1]);
    assert_eq!(why(queue.add_inbuf(one, 2, |list| list)), short);
    let none = list(&mut bed, &[0]);
    let empty = Refusal::Add(AddError::EmptySegment);
    assert_eq!(why(queue.add_inbuf(none, 1, |list| list)), empty);
    let lost = List::from(elsewhere());
    let map = Refusal::Add(AddError::Map(MapError::Unreachable));
    assert_eq!(why(queue.add_inbuf(lost, 1, |list| list)), map);
    assert_eq!(queue.free_slots(), 4);

    let token = list(&mut bed, &[8]);
    let mut buffer = queue.start_buf(token, 1, 1).unwrap();
    let outside = 4..9;
    let added = buffer.add_bytes(|list| list.iter().next().unwrap(), outside);
    assert_eq!(added, Err(AddError::TooShort));
}

#[test]
fn a_chain_never_has_more_than_four_gibibytes_nor_its_writable_part_that_many() {
    let raw = |lens: &[u32]| -> ScatterList<RawSegment> {
        ScatterList::from_buffers(
            lens.iter()
                .map(|len| crate::mem::testbed::raw(0x1000, *len)),
        )
    };
    let mut bed = Testbed::new(1 << 16);
    let mut queue = bed.queue::<ScatterList<RawSegment>>(QueueOptions::new(8, 0));
    let too_long = Refusal::Add(AddError::TooLong);
    let half = 1 << 31;
    assert!(queue.add_outbuf(raw(&[half, half]), 2, |list| list).is_ok());
    let more = queue.add_outbuf(raw(&[half, half, 1]), 3, |list| list);
    assert_eq!(why(more), too_long);
    let more = queue.add_inbuf(raw(&[half, half]), 2, |list| list);
    assert_eq!(why(more), too_long);
    assert!(
        queue
            .add_inbuf(raw(&[half, half - 1]), 2, |list| list)
            .is_ok()
    );
}

#[test]
fn raw_segments_go_in_at_the_address_they_name() {
    let mut bed = Testbed::new(1 << 16);
    let mut queue = bed.queue::<ScatterList<RawSegment>>(QueueOptions::new(2, 0));
    let token = ScatterList::from(crate::mem::testbed::raw(0xdead_beef_0000, 77));
    queue.add_inbuf(token, 1, |list| list).unwrap();
    assert_eq!(
        desc(&bed, queue.areas(), 0),
        (0xdead_beef_0000, 77, DESC_F_WRITE, 1)
    );
}

#[test]
fn lists_are_added_through_links_up_to_an_end_marker_or_nents() {
    let mut bed = Testbed::new(1 << 16);
    let mut queue = bed.queue::<List>(QueueOptions::new(8, 0));
    let mut device = bed.device_end(queue.areas(), 0);
    let mut token = List::new(3);
    token.set(0, bed.take(1)).unwrap();
    token.set(1, bed.take(2)).unwrap();
    let mut tail = list(&mut bed, &[3, 4, 5]);
    tail.mark_end(1);
    token.chain(tail).unwrap();

    let mut lengths = |queue: &mut Queue<List, Window>| -> Vec<usize> {
        let _ = queue.publish();
        let chain = device.pop().unwrap().unwrap();
        let lengths = chain.readable().iter().map(|it| it.len()).collect();
        device.complete(chain, 0);
        let _ = device.publish();
        lengths
    };
    for (nents, expected) in [(8, &[1, 2, 3, 4][..]), (3, &[1, 2, 3]), (1, &[1])] {
        let mut buffer = queue.start_buf(token, 8, 1).unwrap();
        buffer.add_sg(|list| list, nents).unwrap();
        buffer.end_buf().unwrap();
        assert_eq!(lengths(&mut queue), expected);
        token = queue.pop().unwrap().unwrap().token;
    }
    queue.add_sgs(token, 1, |list| [list]).unwrap();
    assert_eq!(lengths(&mut queue), [1, 2, 3, 4]);
}

#[test]
fn add_sgs_takes_the_first_lists_as_readable_and_the_others_as_writable() {
    let mut bed = Testbed::new(1 << 16);
    let mut queue = bed.queue::<[List; 3]>(QueueOptions::new(8, 0));
    let mut device = bed.device_end(queue.areas(), 0);
    let token = [
        list(&mut bed, &[1, 2]),
        list(&mut bed, &[3]),
        list(&mut bed, &[4]),
    ];
    queue.add_sgs(token, 2, |token| token.each_ref()).unwrap();
    let _ = queue.publish();
    let chain = device.pop().unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (6, 4));
    chain.abandon();
}

/// A list of up to 40 entries, some of them empty and one possibly the end, linked to another list.
fn long_list(bed: &mut Testbed, seed: u64) -> List {
    let mut state = seed;
    let mut below = |limit: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from((state >> 33) % limit).unwrap()
    };
    let mut part = |entries: usize, bed: &mut Testbed| {
        let mut list = List::new(entries);
        for index in 0..entries {
            if below(5) > 0 {
                list.set(index, bed.take(1 + index)).unwrap();
            }
        }
        if below(3) == 0 {
            list.mark_end(below(entries as u64));
        }
        list
    };
    let count = |number: u64| usize::try_from(number).unwrap();
    let (first, second) = (2 + count(seed % 39), 1 + count(seed * 7 % 40));
    let mut list = part(first, bed);
    let tail = part(second, bed);
    drop(list.take(first - 1));
    list.chain(tail).unwrap();
    list
}

#[test]
fn long_lists_with_gaps_ends_and_links_go_in_whole_as_short_ones_do() {
    const SIZE: u16 = 128;
    for seed in 0..200 {
        for features in [0, INDIRECT_DESC] {
            let mut bed = Testbed::new(1 << 20);
            let options = QueueOptions::new(SIZE, features).tables(SIZE);
            let mut queue = bed.queue::<List>(options.policy(IndirectPolicy::Rfc));
            let mut device = bed.device_end(queue.areas(), features);
            let mut token = long_list(&mut bed, seed);
            let lengths: Vec<usize> = token.iter().map(|piece| piece.len()).collect();
            let there = lengths.len();
            for nents in [there, there + 1, usize::MAX, there / 2, 1] {
                let most = nents.min(there);
                if most == 0 {
                    continue;
                }
                // Announced exactly, and with more than needed.
                for room in [most, usize::from(SIZE)] {
                    let mut buffer = queue.start_buf(token, room, 1).unwrap();
                    assert_eq!(buffer.add_sg(|list| list, nents), Ok(most), "{lengths:?}");
                    buffer.end_buf().unwrap();
                    let _ = queue.publish();
                    let chain = device.pop().unwrap().unwrap();
                    let seen = chain.readable().iter().map(|it| it.len());
                    assert_eq!(seen.collect::<Vec<_>>(), lengths[..most]);
                    device.complete(chain, 0);
                    let _ = device.publish();
                    token = queue.pop().unwrap().unwrap().token;
                }
            }
            if there > 2 {
                let mut buffer = queue.start_buf(token, there - 1, 1).unwrap();
                let refused = buffer.add_sg(|list| list, there);
                assert_eq!(refused, Err(AddError::OverReserved));
                token = buffer.abort();
            }
            assert_eq!(queue.free_slots(), SIZE);
            drop(token);
        }
    }
}
