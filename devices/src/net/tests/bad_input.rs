//! What a hostile or broken driver can put into the rings of a card, and the card's answer. One test for each answer, one
//! line for each input: dropped and counted; held or dropped whole; a reset needed; `ERR`.

use splitring_virtio::spec::net::{Header, ctrl, feature, flags, gso};
use zerocopy::IntoBytes;

use super::*;

/// Every offload a driver can have negotiated.
const SENDING: u64 = feature::CSUM
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN
    | feature::HOST_UFO
    | feature::HOST_USO;

/// A header that passes where everything was negotiated.
fn good() -> Header {
    Header {
        flags: flags::NEEDS_CSUM,
        gso_type: gso::TCPV4,
        hdr_len: 54.into(),
        gso_size: 1448.into(),
        csum_start: 34.into(),
        csum_offset: 16.into(),
        ..Header::default()
    }
}

#[test]
fn a_packet_that_cannot_be_is_dropped_completed_and_counted() {
    let plain = Header::default();
    let with = |change: fn(&mut Header)| {
        let mut header = good();
        change(&mut header);
        header
    };
    let rows = [
        ("nothing at all", SENDING, plain, 0),
        ("shorter than the header", SENDING, plain, 11),
        ("no frame behind the header", SENDING, plain, 12),
        ("a frame without its addresses", SENDING, plain, 12 + 13),
        ("longer than a packet can be", SENDING, plain, 12 + 65_554),
        ("longer still", SENDING, plain, 12 + (1 << 20)),
        (
            "an unknown segmentation",
            SENDING,
            with(|h| h.gso_type = 9),
            2012,
        ),
        ("only ECN", SENDING, with(|h| h.gso_type = gso::ECN), 2012),
        (
            "UDP fragments with ECN",
            SENDING,
            with(|h| h.gso_type = gso::UDP | gso::ECN),
            2012,
        ),
        (
            "segments of no size",
            SENDING,
            with(|h| h.gso_size = 0.into()),
            2012,
        ),
        (
            "segments without a checksum",
            SENDING,
            with(|h| h.flags = 0),
            2012,
        ),
        (
            "headers longer than the frame",
            SENDING,
            with(|h| h.hdr_len = 2001.into()),
            2012,
        ),
        (
            "a checksum past the frame",
            SENDING,
            with(|h| h.csum_start = 1983.into()),
            2012,
        ),
        (
            "a checksum far past it",
            SENDING,
            with(|h| {
                h.csum_start = u16::MAX.into();
                h.csum_offset = u16::MAX.into();
            }),
            2012,
        ),
        (
            "a checksum not negotiated",
            0,
            with(|h| h.gso_type = 0),
            2012,
        ),
        ("segmentation not negotiated", feature::CSUM, good(), 2012),
        (
            "another segmentation than negotiated",
            SENDING & !feature::HOST_TSO4,
            good(),
            2012,
        ),
        (
            "ECN not negotiated",
            SENDING & !feature::HOST_ECN,
            with(|h| h.gso_type |= gso::ECN),
            2012,
        ),
        (
            "UDP segments not negotiated",
            SENDING & !feature::HOST_USO,
            with(|h| h.gso_type = gso::UDP_L4),
            2012,
        ),
    ];
    for (what, features, header, len) in rows {
        let mut card = Card::new(features);
        card.bench.poke(0x1000, header.as_bytes());
        // A chain has at least one buffer, and that may be empty only where another one is not.
        let head = card.offer(TX, &[(0x1000, len.max(1), false)]);
        card.bench.kick(TX).unwrap();
        assert_eq!(
            (card.used(TX), card.dropped()),
            (vec![(head, 0)], 1),
            "{what}"
        );
        assert!(card.host.lock().unwrap().from_guest.is_empty(), "{what}");
        // The next one passes.
        card.bench.poke(0x1000, Header::default().as_bytes());
        card.offer(TX, &[(0x1000, 72, false)]);
        card.bench.kick(TX).unwrap();
        assert_eq!(card.host.lock().unwrap().from_guest.len(), 1, "{what}");
    }
    let mut card = Card::new(SENDING);
    card.bench.poke(0x1000, good().as_bytes());
    card.offer(TX, &[(0x1000, 2012, false)]);
    card.bench.kick(TX).unwrap();
    assert_eq!(card.dropped(), 0, "what all rows are changes of passes");
}

#[test]
fn a_frame_that_does_not_fit_is_held_or_dropped_whole_and_nothing_is_written_past_the_buffers() {
    // Mergeable, ring size, buffers of 500 bytes, the frame's length; whether it is dropped.
    let rows = [
        ("one buffer, too small", false, 256, 1, 1000, true),
        ("one buffer, one byte too small", false, 256, 1, 489, true),
        ("other buffers do not help", false, 256, 3, 1000, true),
        ("too few buffers", true, 256, 2, 1000, false),
        ("one byte more than the buffers", true, 256, 2, 989, false),
        ("more than the whole ring", true, 4, 4, 4000, true),
        ("longer than a frame can be", true, 256, 250, 66_000, true),
    ];
    for (what, mergeable, size, buffers, len, dropped) in rows {
        let features = if mergeable { feature::MRG_RXBUF } else { 0 };
        let mut card = Card::sized(features, size, NetConfig::default());
        for i in 0..buffers {
            card.offer(RX, &[(0x10000 + i * 0x400, 500, true)]);
        }
        card.arrive(frame(len));
        card.bench.run(RX, Cause::Source(0)).unwrap();
        assert!(card.used(RX).is_empty(), "{what}");
        for i in 0..buffers {
            let past = card.bench.peek(0x10000 + i * 0x400 + 500, 0x400 - 500);
            assert!(
                past.iter().all(|byte| *byte == 0),
                "{what}: past buffer {i}"
            );
        }
        let counted = card
            .bench
            .device
            .metrics()
            .totals()
            .received
            .dropped
            .too_long;
        assert_eq!(counted, u64::from(dropped), "{what}");
        card.arrive(frame(100));
        for i in 0..if dropped { 0 } else { 5 } {
            card.offer(RX, &[(0x90000 + i * 0x400, 500, true)]);
        }
        card.bench.kick(RX).unwrap();
        let sum: u32 = card.used(RX).iter().map(|used| used.1).sum();
        let held = if dropped { 0 } else { HEAD + len as u32 };
        assert_eq!(sum, held + HEAD + 100, "{what}: and then the next frame");
    }
}

#[test]
fn a_ring_that_cannot_be_served_needs_a_reset() {
    type Break = fn(&mut Card) -> Result<Outcome, crate::device::Broken>;
    let rows: [(&str, u64, Break); 6] = [
        ("a receive buffer under the header", 0, |card| {
            card.offer(RX, &[(0x1000, 11, true)]);
            card.bench.run(RX, Cause::Source(0))
        }),
        ("a mergeable one under it", feature::MRG_RXBUF, |card| {
            card.offer(RX, &[(0x1000, 11, true)]);
            card.bench.run(RX, Cause::Source(0))
        }),
        (
            "a receive buffer that can't be written",
            feature::MRG_RXBUF,
            |card| {
                card.offer(RX, &[(0x1000, 1526, false)]);
                card.bench.run(RX, Cause::Source(0))
            },
        ),
        (
            "a control command without a byte for its answer",
            feature::CTRL_VQ,
            |card| {
                card.offer(CTRL, &[(0x100, 3, false)]);
                card.bench.kick(CTRL)
            },
        ),
        ("a packet outside memory", 0, |card| {
            card.offer(TX, &[(u64::MAX - 4, 64, false)]);
            card.bench.kick(TX)
        }),
        ("a head that is none", 0, |card| {
            card.bench.rings[usize::from(TX)].offer_head(9999);
            card.bench.kick(TX)
        }),
    ];
    for (what, features, break_it) in rows {
        let mut card = Card::new(features);
        assert!(break_it(&mut card).is_err(), "{what}");
        assert!(card.host.lock().unwrap().from_guest.is_empty(), "{what}");
    }
}

#[test]
fn a_control_command_with_far_too_much_room_for_its_answer_is_refused_and_only_its_last_byte_written()
 {
    const ROOM: u32 = 1 << 20;
    for (room, answer) in [(4096, ctrl::OK), (4097, ctrl::ERR), (ROOM, ctrl::ERR)] {
        let mut card = Card::new(feature::CTRL_VQ | feature::CTRL_RX);
        card.bench.poke(0x100, &[ctrl::RX, ctrl::RX_PROMISC, 1]);
        card.bench.poke(0x1000, &vec![0xee; ROOM as usize]);
        card.offer(CTRL, &[(0x100, 3, false), (0x1000, room, true)]);
        card.bench.kick(CTRL).unwrap();
        let (front, last) = (room as usize - 1, 0x1000 + u64::from(room) - 1);
        let refused = answer == ctrl::ERR;
        assert_eq!(card.used(CTRL)[0].1, if refused { 0 } else { room });
        assert_eq!(card.bench.peek(last, 1), [answer], "{room}");
        let filling = if refused { 0xee } else { 0 };
        let written = card.bench.peek(0x1000, front);
        assert!(written.iter().all(|byte| *byte == filling), "{room}");
        let mut foreign = frame(60);
        foreign[5] ^= 0xff;
        card.offer(RX, &[(0x20_0000, 1526, true)]);
        card.arrive(foreign);
        card.bench.run(RX, Cause::Source(0)).unwrap();
        assert_eq!(
            card.used(RX).is_empty(),
            refused,
            "what it asked for: {room}"
        );
    }
}

#[test]
fn a_control_command_that_makes_no_sense_is_answered_by_err_and_changes_nothing() {
    let table = |count: u32, bytes: usize| {
        let counted = [&[ctrl::MAC, ctrl::MAC_TABLE_SET][..], &count.to_le_bytes()].concat();
        [counted, vec![2; bytes]].concat()
    };
    let rows = [
        ("nothing", vec![]),
        ("a class alone", vec![ctrl::RX]),
        ("an unknown class", vec![9, 0]),
        ("an unknown command", vec![ctrl::RX, 9, 1]),
        (
            "a mode without its switch",
            vec![ctrl::RX, ctrl::RX_PROMISC],
        ),
        (
            "a mode with too much",
            vec![ctrl::RX, ctrl::RX_PROMISC, 1, 1],
        ),
        (
            "an address cut short",
            vec![ctrl::MAC, ctrl::MAC_ADDR_SET, 2, 0, 0, 0, 0],
        ),
        (
            "a group's address",
            vec![ctrl::MAC, ctrl::MAC_ADDR_SET, 1, 0, 0, 0, 0, 1],
        ),
        ("one table where there are two", table(0, 0)),
        ("more addresses than follow", table(2, 6)),
        ("more than 32 bits of bytes hold", table(0x2aaa_aaab, 6)),
        ("as many as there can be", table(u32::MAX, 64)),
        ("a command longer than any", table(6000, 36_004)),
        (
            "a VLAN that is none",
            vec![ctrl::VLAN, ctrl::VLAN_ADD, 0, 0x10],
        ),
        ("half a VLAN", vec![ctrl::VLAN, ctrl::VLAN_ADD, 5]),
        ("no pairs", vec![ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, 0, 0]),
        (
            "more pairs than there are",
            vec![ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, 2, 0],
        ),
        (
            "pairs without end",
            vec![ctrl::MQ, ctrl::MQ_VQ_PAIRS_SET, 0xff, 0xff],
        ),
        ("offloads cut short", vec![ctrl::GUEST_OFFLOADS, 0, 0]),
        (
            "offloads not negotiated",
            [&[ctrl::GUEST_OFFLOADS, 0][..], &u64::MAX.to_le_bytes()].concat(),
        ),
        (
            "an acknowledgement with data",
            vec![ctrl::ANNOUNCE, ctrl::ANNOUNCE_ACK, 0],
        ),
    ];
    let features = feature::CTRL_VQ
        | feature::CTRL_RX
        | feature::CTRL_VLAN
        | feature::CTRL_MAC_ADDR
        | feature::CTRL_GUEST_OFFLOADS
        | feature::GUEST_CSUM
        | feature::GUEST_ANNOUNCE;
    let mut card = Card::new(features);
    let before = card.bench.device.state.filter().1;
    for (what, command) in rows {
        card.bench.poke(0x10_0000, &command);
        card.bench.poke(0x900, &[0xaa]);
        let len = command.len() as u32;
        card.offer(CTRL, &[(0x10_0000, len.max(1), false), (0x900, 1, true)]);
        card.bench.kick(CTRL).unwrap();
        let used = card.used(CTRL);
        assert_eq!(
            (card.bench.peek(0x900, 1)[0], used[0].1),
            (ctrl::ERR, 1),
            "{what}"
        );
        assert_eq!(card.bench.device.state.filter().1, before, "{what}");
        let host = card.host.lock().unwrap();
        assert_eq!(
            (host.pairs, host.offloads),
            (1, Some(Offloads::CSUM)),
            "{what}"
        );
    }
}
