//! Both ends over one memory, and used rings written by a hostile device.

use std::rc::Rc;

use super::*;
use crate::driver::{AddError, Bounce, Builder, DmaBuf, MapError, RawSegment, Refusal, Window};
use crate::mem::testbed::{Bed, elsewhere};
use crate::scatterlist::ScatterList;
use crate::spec::feature::{EVENT_IDX, INDIRECT_DESC};
use crate::spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};

const BOTH: u64 = EVENT_IDX | INDIRECT_DESC;

type List = ScatterList;

/// A list of pieces of these lengths.
fn list(bed: &mut Bed, lengths: &[usize]) -> List {
    List::from_buffers(lengths.iter().map(|len| bed.take(*len)).collect::<Vec<_>>())
}

fn why<T>(refused: Result<Ticket, crate::driver::Refused<T>>) -> Refusal {
    refused.expect_err("refused").why
}

/// Descriptor `slot` as address, length, flags, next.
fn desc(bed: &Bed, areas: QueueAreas, slot: u16) -> (u64, u32, u16, u16) {
    let bytes = bed.read(areas.descriptors + u64::from(slot) * 16, 16);
    (
        u64::from_le_bytes(bytes[..8].try_into().unwrap()),
        u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
        u16::from_le_bytes(bytes[12..14].try_into().unwrap()),
        u16::from_le_bytes(bytes[14..].try_into().unwrap()),
    )
}

#[test]
fn readable_and_writable_lists_reach_the_device_and_come_back_with_what_it_wrote() {
    for features in [0, BOTH] {
        let mut bed = Bed::new(1 << 16);
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
    let mut bed = Bed::new(1 << 16);
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
    let mut bed = Bed::new(1 << 16);
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
    let mut bed = Bed::new(1 << 16);
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
    let mut bed = Bed::new(1 << 16);
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
    let mut bed = Bed::new(1 << 16);
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
    let mut bed = Bed::new(1 << 16);
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
    let mut bed = Bed::new(1 << 16);
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
    let mut bed = Bed::new(1 << 16);
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

/// Adds `count` one-byte segments under a policy and says whether they went into a table.
fn goes_indirect(policy: IndirectPolicy, filled: usize, count: usize) -> Option<bool> {
    let mut bed = Bed::new(1 << 16);
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
    let mut bed = Bed::new(1 << 16);
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
    let mut bed = Bed::new(1 << 16);
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

/// A queue of 4 with buffers of 2 + 8 bytes in slots 0 and 1-2.
fn two_in_flight(bed: &mut Bed) -> Queue<List, Window> {
    two_in_flight_of(bed, QueueOptions::new(4, 0))
}

fn two_in_flight_of(bed: &mut Bed, options: QueueOptions) -> Queue<List, Window> {
    let mut queue = bed.queue::<List>(options);
    let (small, large) = (list(bed, &[2]), list(bed, &[1, 8]));
    queue.add_inbuf(small, 1, |list| list).unwrap();
    queue.add_buf(large, 1, 1, |list| list).unwrap();
    let _ = queue.publish();
    queue
}

#[test]
fn a_used_entry_that_can_not_be_true_breaks_the_queue_for_good() {
    let lies = [
        (1, 4, 0, Broken::NoSuchSlot(4)),
        (1, u32::MAX, 0, Broken::NoSuchSlot(u32::MAX)),
        (1, 0x1_0000, 0, Broken::NoSuchSlot(0x1_0000)),
        (1, 2, 0, Broken::NotInFlight(2)),
        (1, 3, 0, Broken::NotInFlight(3)),
        (1, 0, 3, too_long(0, 3, 2)),
        (1, 1, 9, too_long(1, 9, 8)),
        (1, 0, u32::MAX, too_long(0, u32::MAX, 2)),
        (3, 0, 0, jump(3)),
        (u16::MAX, 0, 0, jump(u16::MAX)),
    ];
    for (idx, id, len, expected) in lies {
        let mut bed = Bed::new(1 << 16);
        let mut queue = two_in_flight(&mut bed);
        bed.forge_used(queue.areas(), idx, id, len);
        for _ in 0..2 {
            assert_eq!(queue.pop().err(), Some(expected));
        }
        assert_eq!((queue.broken(), queue.in_flight()), (Some(expected), 2));
        bed.forge_used(queue.areas(), 1, 0, 0);
        assert_eq!(queue.pop().err(), Some(expected), "the latch holds");
        let token = list(&mut bed, &[1]);
        let refused = queue.add_inbuf(token, 1, |list| list);
        assert_eq!(why(refused), Refusal::Broken(expected));
        assert_eq!(queue.publish(), Kick::NotNeeded);

        let mut back = 0;
        queue.reclaim(&bed.proof(), |_| back += 1).unwrap();
        assert_eq!((back, queue.broken(), queue.free_slots()), (2, None, 4));
    }
}

fn too_long(slot: u16, claimed: u32, writable: u32) -> Broken {
    Broken::TooLong {
        slot,
        claimed,
        writable,
    }
}

fn jump(moved: u16) -> Broken {
    Broken::IndexJump {
        moved,
        in_flight: 2,
    }
}

/// QEMU's virtio-scsi counts the data it has read as written.
#[test]
fn a_length_that_is_too_long_is_cut_where_that_is_asked_for() {
    let mut bed = Bed::new(1 << 16);
    let mut queue = two_in_flight_of(&mut bed, QueueOptions::new(4, 0).clamp_lengths());
    bed.forge_used(queue.areas(), 1, 0, u32::MAX);
    assert_eq!(queue.pop().unwrap().unwrap().written, 2);
}

#[test]
fn a_buffer_completed_twice_breaks_the_queue_and_an_honest_one_before_it_comes_back() {
    let mut bed = Bed::new(1 << 16);
    let mut queue = two_in_flight(&mut bed);
    bed.forge_used(queue.areas(), 1, 1, 8);
    bed.forge_used(queue.areas(), 2, 1, 8);
    assert_eq!(queue.pop().unwrap().unwrap().written, 8);
    assert_eq!(queue.pop().err(), Some(Broken::NotInFlight(1)));
}

#[test]
fn what_the_device_writes_into_the_driver_s_areas_changes_nothing() {
    let mut bed = Bed::new(1 << 16);
    let mut queue = two_in_flight(&mut bed);
    let areas = queue.areas();
    bed.write(areas.descriptors, &[0xff; 64]);
    bed.write(areas.driver, &[0xff; 12]);
    bed.forge_used(areas, 1, 1, 8);
    assert_eq!(queue.pop().unwrap().unwrap().token.segments(), 2);
    bed.forge_used(areas, 2, 0, 2);
    assert_eq!(queue.pop().unwrap().unwrap().token.segments(), 1);
    let token = list(&mut bed, &[1, 1, 1, 1]);
    queue.add_inbuf(token, 4, |list| list).unwrap();
    let links = [0, 1, 2, 3].map(|slot| desc(&bed, areas, slot).3);
    assert_eq!(links, [1, 2, 3, 0], "each slot once");
    assert_eq!(queue.free_slots(), 0);
}

#[test]
fn spurious_interrupts_find_nothing() {
    let mut bed = Bed::new(1 << 16);
    let mut queue = two_in_flight(&mut bed);
    for _ in 0..3 {
        assert!(queue.pop().unwrap().is_none());
    }
    bed.forge_used(queue.areas(), 1, 0, 0);
    assert!(queue.pop().unwrap().is_some());
    assert!(queue.pop().unwrap().is_none());
}

/// Drives `rounds` batches through both ends and checks every kick and interrupt decision.
fn lap(size: u16, batch: u16, features: u64, rounds: u32) {
    let mut bed = Bed::new(1 << 20);
    let mut queue = bed.queue::<(u32, DmaBytes)>(QueueOptions::new(size, features));
    let mut device = bed.device_end(queue.areas(), features);
    let mut spare: Vec<_> = (0..size).map(|_| bed.take(8)).collect();
    let mut sent = 0u32;
    let mut received = 0u32;
    assert!(!queue.enable_interrupts());
    for _ in 0..rounds {
        assert!(
            !device.enable_notification(),
            "nothing was published meanwhile"
        );
        for _ in 0..batch {
            let mut buffer = queue.start_buf((sent, spare.pop().unwrap()), 1, 1).unwrap();
            buffer.add_bytes(|token| &token.1, 0..8).unwrap();
            buffer.end_buf().unwrap();
            sent += 1;
        }
        assert_eq!(queue.publish(), Kick::Needed);
        while let Some(chain) = device.pop().unwrap() {
            device.complete(chain, 0);
        }
        let interrupt = device.publish();
        assert_eq!(interrupt, crate::device::queue::Interrupt::Needed);
        while let Some(done) = queue.pop().unwrap() {
            assert_eq!(done.token.0, received);
            received += 1;
            spare.push(done.token.1);
        }
        assert!(!queue.enable_interrupts());
    }
    assert_eq!((received, queue.free_slots()), (sent, size));
}

#[test]
fn indices_wrap_with_batched_adds_and_no_notification_is_lost() {
    for features in [0, EVENT_IDX] {
        lap(8, 7, features, 20_000);
        lap(1, 1, features, 70_000);
        lap(256, 256, features, 600);
    }
}

#[test]
fn a_device_that_does_not_ask_is_not_kicked() {
    let mut bed = Bed::new(1 << 16);
    for features in [0, EVENT_IDX] {
        let mut queue = bed.queue::<List>(QueueOptions::new(4, features));
        let mut device = bed.device_end(queue.areas(), features);
        let mut kick = |queue: &mut Queue<List, Window>| {
            let token = list(&mut bed, &[1]);
            queue.add_outbuf(token, 1, |list| list).unwrap();
            queue.publish()
        };
        assert_eq!(kick(&mut queue), Kick::Needed);
        device.disable_notification();
        assert_eq!(kick(&mut queue), Kick::NotNeeded);
        assert_eq!(queue.publish(), Kick::NotNeeded, "nothing new");
        assert!(device.enable_notification(), "there is something already");
    }
}

#[test]
fn more_than_two_to_the_sixteen_exposed_buffers_are_not_mistaken_for_few() {
    for over in [0u32, 1, 5] {
        let mut bed = Bed::new(1 << 16);
        let mut queue = bed.queue::<DmaBytes>(QueueOptions::new(4, EVENT_IDX));
        let mut device = bed.device_end(queue.areas(), EVENT_IDX);
        let mut token = Some(bed.take(8));
        // The device asks to be told of the very first buffer, and then polls.
        assert!(!device.enable_notification());
        for _ in 0..65_535 + over {
            let mut buffer = queue.start_buf(token.take().unwrap(), 1, 1).unwrap();
            buffer.add_bytes(|token| token, 0..8).unwrap();
            buffer.end_buf().unwrap();
            queue.expose();
            let chain = device.pop().unwrap().unwrap();
            device.complete(chain, 0);
            let _ = device.publish();
            token = Some(queue.pop().unwrap().unwrap().token);
        }
        assert_eq!(queue.publish(), Kick::Needed, "{over} over");
    }
}

#[test]
fn enabling_interrupts_tells_of_what_came_before() {
    let mut bed = Bed::new(1 << 16);
    for features in [0, EVENT_IDX] {
        let mut queue = bed.queue::<List>(QueueOptions::new(4, features));
        let mut device = bed.device_end(queue.areas(), features);
        queue.disable_interrupts();
        let token = list(&mut bed, &[1]);
        queue.add_outbuf(token, 1, |list| list).unwrap();
        let _ = queue.publish();
        let chain = device.pop().unwrap().unwrap();
        device.complete(chain, 0);
        let _ = device.publish();
        assert!(queue.enable_interrupts());
        queue.pop().unwrap().unwrap();
        assert!(!queue.enable_interrupts());
    }
}

#[test]
fn only_a_later_reset_of_the_same_device_gives_buffers_back() {
    let mut bed = Bed::new(1 << 16);
    let earlier = bed.proof();
    let mut queue = two_in_flight(&mut bed);
    let other = Bed::new(4096).proof();
    let nothing = |_| panic!("a buffer was given back");
    assert_eq!(queue.reclaim(&earlier, nothing), Err(NotProven));
    assert_eq!(queue.reclaim(&other, nothing), Err(NotProven));
    assert_eq!(queue.in_flight(), 2);

    let proof = bed.proof();
    let mut back = Vec::new();
    queue.reclaim(&proof, |token| back.push(token)).unwrap();
    assert_eq!(
        (back.len(), queue.in_flight(), queue.free_slots()),
        (2, 0, 4)
    );
    assert_eq!(
        queue.reclaim(&proof, nothing),
        Err(NotProven),
        "the queue is younger now"
    );

    // A fresh queue, which the device is told of anew.
    let mut device = bed.device_end(queue.areas(), 0);
    queue
        .add_inbuf(back.pop().unwrap(), 1, |list| list)
        .unwrap();
    assert_eq!(queue.publish(), Kick::Needed);
    let chain = device.pop().unwrap().unwrap();
    device.complete(chain, 0);
    let _ = device.publish();
    assert!(queue.pop().unwrap().is_some());
}

#[test]
fn a_queue_that_goes_away_leaks_what_the_device_may_still_use() {
    let mut bed = Bed::new(1 << 16);
    let witness = Rc::new(());
    {
        let mut queue = bed.queue::<(List, Rc<()>)>(QueueOptions::new(4, 0));
        let token = (list(&mut bed, &[1]), Rc::clone(&witness));
        queue.add_inbuf(token, 1, |token| &token.0).unwrap();
    }
    assert_eq!(Rc::strong_count(&witness), 2, "leaked, published or not");

    let mut queue = bed.queue::<(List, Rc<()>)>(QueueOptions::new(4, 0));
    let token = (list(&mut bed, &[1]), Rc::clone(&witness));
    queue.add_inbuf(token, 1, |token| &token.0).unwrap();
    let Ok((memory, _)) = queue.dismantle(&bed.proof(), drop) else {
        panic!("the proof is good");
    };
    assert_eq!(Rc::strong_count(&witness), 2, "given back and dropped");
    assert_eq!(memory.len(), QueueOptions::new(4, 0).memory_len());
}

#[test]
fn tickets_tell_buffers_of_one_slot_apart() {
    let mut bed = Bed::new(1 << 16);
    let mut queue = bed.queue::<List>(QueueOptions::new(1, 0));
    let token = list(&mut bed, &[1]);
    let first = queue.add_inbuf(token, 1, |list| list).unwrap();
    let _ = queue.publish();
    bed.forge_used(queue.areas(), 1, 0, 0);
    let token = queue.pop().unwrap().unwrap().token;
    let second = queue.add_inbuf(token, 1, |list| list).unwrap();
    assert_ne!(first, second);
    assert!(queue.holds(second) && !queue.holds(first));
}

#[test]
fn memory_that_is_no_queue_is_refused() {
    let mut bed = Bed::new(1 << 20);
    let hook = bed.window();
    let device = DeviceId::new();
    let refused = |size, memory: DmaBytes| {
        let queue = Queue::<(), _>::new(QueueOptions::new(size, 0), memory, hook, &device);
        queue.err().expect("refused")
    };
    let need = QueueOptions::new(8, 0).memory_len();
    for size in [0, 3, 6, 32769, 65535] {
        let error = refused(size, bed.take(1 << 10));
        assert_eq!(error, QueueMemoryError::Size(size));
    }
    let error = refused(8, bed.take(need - 1));
    let have = need - 1;
    assert_eq!(error, QueueMemoryError::TooSmall { need, have });
    let mut odd = bed.take(need + 64);
    drop(odd.split_to(2));
    assert_eq!(refused(8, odd), QueueMemoryError::Misaligned);
    let heap = DmaBytes::zeroed(need, 64).unwrap();
    assert_eq!(refused(8, heap), QueueMemoryError::Unreachable);
}

/// A queue whose buffers bounce through `slots` slots of memory of the device's own.
fn bouncing(bed: &mut Bed, slots: usize, tables: u16) -> Queue<List, Bounce> {
    let memory = bed.take(slots * 512);
    let bus = bed.address(&memory);
    let hook = Bounce::new(memory, bus, bed.window()).unwrap();
    let options = QueueOptions::new(8, INDIRECT_DESC).tables(tables);
    let options = options.policy(IndirectPolicy::Rfc);
    bed.queue_with(options, hook).unwrap()
}

/// A list outside the memory the device sees.
fn private(contents: &[&[u8]]) -> List {
    List::from_buffers(contents.iter().map(|bytes| DmaBytes::from(bytes.to_vec())))
}

#[test]
fn bounced_buffers_carry_bytes_both_ways_and_only_those_the_device_wrote() {
    for tables in [0, 8] {
        let mut bed = Bed::new(1 << 16);
        let mut queue = bouncing(&mut bed, 8, tables);
        let mut device = bed.device_end(queue.areas(), INDIRECT_DESC);
        for round in 0..20 {
            let token = private(&[b"out", b"......", b"......"]);
            queue.add_buf(token, 1, 2, |list| list).unwrap();
            let _ = queue.publish();
            let mut chain = device.pop().unwrap().unwrap();
            let mut read = [0; 3];
            chain.reader().read_exact(&mut read).unwrap();
            assert_eq!(&read, b"out", "round {round}");
            // One byte more than is owned up to: it stays out.
            chain.writer().write_all(b"abcdefghi").unwrap();
            device.complete(chain, 8);
            let _ = device.publish();
            let mut done = queue.pop().unwrap().unwrap();
            let mut got = Vec::new();
            done.token
                .for_each_mut(|piece| got.push(piece.bytes().to_vec()));
            assert_eq!(got, [&b"out"[..], b"abcdef", b"gh...."]);
        }
    }
}

#[test]
fn bounce_memory_comes_back_with_pops_aborts_and_resets() {
    for tables in [0, 8] {
        let mut bed = Bed::new(1 << 16);
        let mut queue = bouncing(&mut bed, 3, tables);
        let big = [7u8; 1024];
        for _ in 0..3 {
            let mut buffer = queue.start_buf(private(&[&big, b"x"]), 2, 1).unwrap();
            buffer.add_sg(|list| list, 2).unwrap();
            drop(buffer);
        }
        queue.add_outbuf(private(&[&big]), 1, |list| list).unwrap();
        let full = queue.add_outbuf(private(&[b"a", b"b"]), 2, |list| list);
        let exhausted = Refusal::Add(AddError::Map(MapError::Exhausted));
        assert_eq!(why(full), exhausted);
        queue.add_outbuf(private(&[b"a"]), 1, |list| list).unwrap();
        let huge = [0u8; 2048];
        let never = queue.add_outbuf(private(&[&huge]), 1, |list| list);
        assert_eq!(
            why(never),
            Refusal::Add(AddError::Map(MapError::Unreachable))
        );

        let mut back = 0;
        queue.reclaim(&bed.proof(), |_| back += 1).unwrap();
        assert_eq!(back, 2);
        queue
            .add_inbuf(private(&[&big, b"x"]), 2, |list| list)
            .unwrap();
    }
}

#[test]
fn a_bounced_writable_segment_never_shows_an_earlier_buffer() {
    let mut bed = Bed::new(1 << 16);
    let mut queue = bouncing(&mut bed, 1, 0);
    let mut device = bed.device_end(queue.areas(), INDIRECT_DESC);
    for (outs, ins, token) in [(1, 0, private(&[b"secret"])), (0, 1, private(&[b"......"]))] {
        queue.add_buf(token, outs, ins, |list| list).unwrap();
        let _ = queue.publish();
        let chain = device.pop().unwrap().unwrap();
        // The device claims six bytes and writes none.
        let claimed = if ins == 1 { 6 } else { 0 };
        device.complete(chain, claimed);
        let _ = device.publish();
        let mut done = queue.pop().unwrap().unwrap();
        if ins == 1 {
            done.token
                .for_each_mut(|piece| assert_eq!(piece.bytes(), [0; 6]));
        }
    }
}

#[test]
fn owners_of_static_memory_divide_it_and_owners_of_heap_memory_do_not() {
    let mut bytes = DmaBytes::zeroed(16, 16).unwrap();
    assert!(bytes.split_to(8).is_none());
    let mut bytes = bytes.leak();
    assert!(bytes.split_to(17).is_none());
    let mut front = bytes.split_to(10).unwrap();
    front.bytes_mut().fill(1);
    assert_eq!(
        (front.len(), bytes.len(), bytes.bytes()),
        (10, 6, &[0; 6][..])
    );
    assert_eq!(DmaBytes::zeroed(0, 1).unwrap().region().len(), 0);
}
