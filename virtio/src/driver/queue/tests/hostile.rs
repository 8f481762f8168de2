//! Invalid used rings.

use super::*;

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
    use IndirectPolicy::{Always, Never};
    let kinds = [(0, Never), (EVENT_IDX, Never), (BOTH, Always)];
    let lies = lies.into_iter();
    for ((idx, id, len, expected), (features, policy)) in
        lies.flat_map(|lie| kinds.map(|kind| (lie, kind)))
    {
        let mut bed = Testbed::new(1 << 16);
        let options = QueueOptions::new(4, features).tables(4).policy(policy);
        let mut queue = two_in_flight_of(&mut bed, options);
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

/// QEMU's virtio-scsi counts data that it has read as written.
#[test]
fn a_length_that_is_too_long_is_cut_where_that_is_asked_for() {
    let mut bed = Testbed::new(1 << 16);
    let mut queue = two_in_flight_of(&mut bed, QueueOptions::new(4, 0).clamp_lengths());
    bed.forge_used(queue.areas(), 1, 0, u32::MAX);
    assert_eq!(queue.pop().unwrap().unwrap().written, 2);
}

#[test]
fn a_buffer_completed_twice_breaks_the_queue_and_an_honest_one_before_it_comes_back() {
    let mut bed = Testbed::new(1 << 16);
    let mut queue = two_in_flight(&mut bed);
    bed.forge_used(queue.areas(), 1, 1, 8);
    bed.forge_used(queue.areas(), 2, 1, 8);
    assert_eq!(queue.pop().unwrap().unwrap().written, 8);
    assert_eq!(queue.pop().err(), Some(Broken::NotInFlight(1)));
}

#[test]
fn what_the_device_writes_into_the_driver_s_areas_changes_nothing() {
    let mut bed = Testbed::new(1 << 16);
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
