//! Frames on their way to the guest: into one buffer, into several, and what happens where there are too few.

use splitring_virtio::spec::net::{Header, feature};
use zerocopy::FromBytes;

use super::*;

#[test]
fn without_mergeable_buffers_a_frame_fills_one_and_num_buffers_is_one() {
    let mut card = Card::new(0);
    let head = card.offer(RX, &[(0x1000, 1526, true)]);
    card.offer(RX, &[(0x2000, 1526, true)]);
    card.arrive(frame(1000));
    card.bench.run(RX, Cause::Source(0)).unwrap();
    assert_eq!(card.used(RX), [(head, HEAD + 1000)]);
    let header = Header::read_from_bytes(&card.bench.peek(0x1000, 12)).unwrap();
    assert_eq!(
        (header.num_buffers.get(), header.flags),
        (1, 0),
        "flags are zero without GUEST_CSUM"
    );
    assert_eq!(card.bench.peek(0x100c, 1000), frame(1000));
}

/// More descriptors than one system call takes: the rest of the frame is copied.
#[test]
fn a_buffer_in_thousands_of_pieces_gets_the_whole_frame() {
    let config = NetConfig {
        queue_size: Some(2048),
        ..NetConfig::default()
    };
    let mut card = Card::sized(0, 2048, config);
    let pieces: Vec<Buffer> = (0..1500).map(|i| (0x10000 + i, 1, true)).collect();
    let head = card.offer(RX, &pieces);
    card.arrive(frame(1400));
    card.bench.run(RX, Cause::Source(0)).unwrap();
    assert_eq!(card.used(RX), [(head, HEAD + 1400)]);
    assert_eq!(card.bench.peek(0x1000c, 1400), frame(1400));
}

#[test]
fn mergeable_buffers_are_filled_one_after_the_other_and_published_together() {
    let mut card = Card::new(feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO4);
    let heads: Vec<u16> = (0..64)
        .map(|i| card.offer(RX, &[(0x10000 + i * 0x1000, 1526, true)]))
        .collect();
    card.arrive(frame(4000));
    card.arrive(frame(60));
    card.bench.run(RX, Cause::Source(0)).unwrap();
    let last = HEAD + 4000 - 2 * 1526;
    assert_eq!(
        card.used(RX),
        [
            (heads[0], 1526),
            (heads[1], 1526),
            (heads[2], last),
            (heads[3], HEAD + 60)
        ]
    );
    let header = Header::read_from_bytes(&card.bench.peek(0x10000, 12)).unwrap();
    assert_eq!((header.num_buffers.get(), header.flags), (3, 2));
    let joined = [
        card.bench.peek(0x1000c, 1514),
        card.bench.peek(0x11000, 1526),
        card.bench.peek(0x12000, last as usize),
    ]
    .concat();
    assert_eq!(joined, frame(4000));
}

#[test]
fn a_frame_that_needs_more_buffers_than_there_are_waits_for_them_whole() {
    let mut card = Card::new(feature::MRG_RXBUF);
    card.offer(RX, &[(0x10000, 1526, true)]);
    card.arrive(frame(4000));
    card.arrive(frame(60));
    assert_eq!(card.bench.run(RX, Cause::Source(0)), Ok(Outcome::Idle));
    assert!(card.used(RX).is_empty());
    assert_eq!(
        card.host.lock().unwrap().to_guest.len(),
        1,
        "read no further"
    );
    for i in 1..4 {
        card.offer(RX, &[(0x10000 + i * 0x1000, 1526, true)]);
    }
    card.bench.kick(RX).unwrap();
    let lengths: Vec<u32> = card.used(RX).iter().map(|used| used.1).collect();
    assert_eq!(lengths, [1526, 1526, HEAD + 4000 - 2 * 1526, HEAD + 60]);
    let joined = [
        card.bench.peek(0x1000c, 1514),
        card.bench.peek(0x11000, 1526),
        card.bench.peek(0x12000, 960),
    ];
    assert_eq!(joined.concat(), frame(4000));
    // For that frame, and for the next one, which the ring is empty for.
    assert_eq!(card.bench.device.metrics().totals().received.waits, 2);
}

#[test]
fn frames_of_every_length_arrive_whole_after_one_another() {
    // Long and short ones in turn: what is read at once, what is copied behind it, and the change between them.
    let at = |head: u16| 0x10000 + u64::from(head) * 0x600;
    let mut card = Card::new(feature::MRG_RXBUF);
    let mut next = 0;
    for len in [
        14, 9000, 60, 60, 60, 65_553, 1514, 1515, 3040, 3041, 60, 20_000, 20_000, 61,
    ] {
        // A driver that refills its ring after every frame; descriptors come round in order.
        while next < 256 {
            card.offer(RX, &[(at(next), 1526, true)]);
            next += 1;
        }
        card.arrive(frame(len));
        card.bench.run(RX, Cause::Source(0)).unwrap();
        let used = card.used(RX);
        let bytes: Vec<u8> = used
            .iter()
            .flat_map(|(head, part)| card.bench.peek(at(*head), *part as usize))
            .collect();
        assert_eq!(usize::from(bytes[10]), used.len(), "{len}");
        assert!(bytes[12..] == frame(len), "{len}");
        for (head, _) in used {
            card.offer(RX, &[(at(head), 1526, true)]);
        }
    }
}

#[test]
fn a_frame_that_waits_for_buffers_is_counted_when_the_driver_resets() {
    let mut card = Card::new(feature::MRG_RXBUF);
    card.offer(RX, &[(0x10000, 1526, true)]);
    card.arrive(frame(4000));
    card.bench.run(RX, Cause::Source(0)).unwrap();
    card.bench.stop();
    let received = card.bench.device.metrics().totals().received;
    assert_eq!((received.frames, received.dropped.link_down), (0, 1));
}

#[test]
fn a_reset_gives_held_buffers_back_and_the_card_starts_again() {
    let mut card = Card::new(feature::MRG_RXBUF);
    for i in 0..16 {
        card.offer(RX, &[(0x10000 + i * 0x1000, 1526, true)]);
    }
    card.bench.run(RX, Cause::Resume).unwrap();
    card.host.lock().unwrap().full = true;
    card.bench.poke(0x1000, &[0; 72]);
    card.offer(TX, &[(0x1000, 72, false)]);
    card.bench.kick(TX).unwrap();
    card.bench.stop();
    let host = card.host.lock().unwrap();
    assert_eq!((host.pairs, host.offloads), (1, Some(Offloads::empty())));
}

/// A card whose driver filters by address and VLAN, with one buffer full of a pattern.
fn watched() -> Card {
    let mut card = Card::new(feature::CTRL_VQ | feature::CTRL_RX | feature::CTRL_VLAN);
    card.bench.poke(0x1000, &[0xee; 1526]);
    card.offer(RX, &[(0x1000, 1526, true)]);
    card
}

/// Whether the buffer is as it was, and unused.
fn untouched(card: &mut Card) -> bool {
    card.used(RX).is_empty() && card.bench.peek(0x1000, 1526) == [0xee; 1526]
}

#[test]
fn a_frame_that_the_guest_does_not_get_leaves_its_buffers_alone() {
    let mut foreign = frame(1000);
    foreign[5] ^= 0xff;
    let mut tagged = frame(1000);
    tagged[12..16].copy_from_slice(&[0x81, 0, 0, 5]);
    for unwanted in [foreign, tagged, vec![], frame(66_000)] {
        let mut card = watched();
        let len = unwanted.len();
        card.arrive(unwanted);
        card.bench.run(RX, Cause::Source(0)).unwrap();
        assert!(untouched(&mut card), "{len}");
        let dropped = card.bench.device.metrics().totals().received.dropped;
        assert_eq!(dropped.sum(), 1, "{len}");
        card.arrive(frame(1000));
        card.bench.run(RX, Cause::Source(0)).unwrap();
        assert_eq!(card.used(RX).len(), 1, "{len}");
        assert_eq!(card.bench.peek(0x100c, 1000), frame(1000), "{len}");
    }
}

#[test]
fn with_the_link_down_frames_are_dropped_beside_the_guests_buffers_and_none_waits() {
    // A driver that wants everything, and one that filters.
    for features in [0, feature::MRG_RXBUF, feature::CTRL_VQ | feature::CTRL_RX] {
        let mut card = Card::new(features);
        // One that waits for more buffers when the link goes down.
        card.offer(RX, &[(0x3000, 500, true)]);
        card.arrive(frame(1000));
        card.bench.run(RX, Cause::Source(0)).unwrap();
        card.bench.poke(0x1000, &[0xee; 1526]);
        card.offer(RX, &[(0x1000, 1526, true)]);
        card.bench.device.set_link(false);
        for _ in 0..3 {
            card.arrive(frame(1000));
        }
        card.bench.run(RX, Cause::Source(0)).unwrap();
        assert!(untouched(&mut card), "{features:#x}");
        assert!(card.host.lock().unwrap().to_guest.is_empty());
        let dropped = card.bench.device.metrics().totals().received.dropped;
        assert_eq!(dropped.sum(), 4, "{features:#x}");
        card.bench.device.set_link(true);
        card.arrive(frame(400));
        card.bench.run(RX, Cause::Source(0)).unwrap();
        assert_eq!(card.used(RX).len(), 1, "{features:#x}");
        assert_eq!(card.bench.peek(0x300c, 400), frame(400), "{features:#x}");
    }
}
