//! Bad input: what a hostile or broken driver may send, a row each.
//!
//! | input | answer | test |
//! |---|---|---|
//! | no byte for the status | needs reset | `a_request_without_a_status_byte_…` |
//! | header under 16 bytes | IOERR | `a_header_cut_short_…` |
//! | length of no whole sectors | IOERR | `a_length_that_is_no_multiple_of_a_sector_…` |
//! | past the end | IOERR | `write_past_the_end_…`, `one_bad_range_…` |
//! | sector number that overflows | IOERR | `a_sector_number_that_overflows_…` |
//! | write to a read-only disk | IOERR | `a_read_only_device_…` |
//! | too many segments | IOERR | `more_segments_than_offered_…` |
//! | payload of no whole ranges | IOERR | `a_discard_payload_of_no_whole_ranges_…` |
//! | too many or too long ranges | IOERR | `one_bad_range_…`, `a_zeroing_longer_than_offered_…` |
//! | GET_ID buffer under 20 bytes | IOERR | `a_buffer_too_small_for_the_identification_…` |
//! | unknown type or flags | UNSUPP | `unknown_types_and_flags_…`, `what_was_not_negotiated_…` |
//! | host EIO, ENOSPC, short I/O | IOERR | `host_errors_…`, `a_failed_range_…`; the retry in `disk::raw` |
//! | memory changed while it is looked at | nothing | `a_header_changed_after_the_look_…` |

use super::*;
use crate::events::DeviceEvent;
use crate::testing::observed;

#[test]
fn failures_of_the_host_are_reported_once_a_second_and_those_of_the_guest_not_at_all() {
    let mut guest = Guest::new();
    let (sink, seen) = observed();
    guest.bench.device.report_to(sink);
    guest
        .disk
        .plan([IoFault::Cancelled, IoFault::OutOfRange].map(Fate::Fail));
    for _ in 0..2 {
        assert_eq!(guest.receive(request::IN, 0, 512), IOERR);
    }
    assert_eq!(guest.send(request::OUT, SECTORS, 512), IOERR_1);
    assert_eq!(*seen.lock().unwrap(), []);
    guest.disk.plan([Fate::Fail(IoFault::Host(libc::EIO)); 8]);
    for _ in 0..8 {
        assert_eq!(guest.send(request::OUT, 0, 512), IOERR_1);
    }
    let event = DeviceEvent::DiskError {
        device: "disk0".into(),
        error: "Write failed: host error: Input/output error (os error 5)".into(),
    };
    assert_eq!(*seen.lock().unwrap(), [event]);
}

#[test]
fn a_request_without_a_status_byte_breaks_the_device() {
    let mut guest = Guest::new();
    guest.header(request::OUT, 0);
    guest.bench.rings[0].offer(&[(HEADER, 16, false), (DATA, 512, false)]);
    let broken = guest.bench.kick(0).expect_err("needs a reset");
    assert!(
        broken.to_string().contains("no room for its status"),
        "{broken}"
    );
    assert!(guest.disk.seen().is_empty());
    assert_eq!(
        guest.bench.stop(),
        0,
        "the chain was given back all the same"
    );
}

#[test]
fn a_header_cut_short_answers_ioerr() {
    let mut guest = Guest::new();
    guest.header(request::OUT, 0);
    assert_eq!(
        guest.offer(&[(HEADER, 15, false), (STATUS, 1, true)]),
        IOERR_1
    );
    assert_eq!(guest.offer(&[(STATUS, 1, true)]), IOERR_1);
    assert!(guest.disk.seen().is_empty());
}

#[test]
fn a_length_that_is_no_multiple_of_a_sector_answers_ioerr_and_does_nothing() {
    let mut guest = Guest::new();
    for len in [1, 511, 513] {
        assert_eq!(guest.send(request::OUT, 0, len), IOERR_1);
        assert_eq!(guest.receive(request::IN, 0, len), IOERR);
    }
    assert!(guest.disk.seen().is_empty());
}

#[test]
fn write_past_the_end_answers_ioerr_and_writes_nothing() {
    let mut guest = Guest::new();
    guest.bench.poke(DATA, &[7; 1024]);
    for sector in [SECTORS - 1, SECTORS, u64::MAX / 512, u64::MAX] {
        assert_eq!(guest.send(request::OUT, sector, 1024), IOERR_1);
        assert_eq!(guest.receive(request::IN, sector, 1024), IOERR);
    }
    assert!(guest.disk.seen().is_empty());
    assert!(guest.memory.contents().iter().all(|byte| *byte == 0));
    let totals = guest.bench.device.metrics().totals();
    assert_eq!((totals.refused, totals.write.requests), (8, 0));
}

#[test]
fn a_sector_number_that_overflows_answers_ioerr() {
    let mut guest = Guest::new();
    // 2^55 sectors are 2^64 bytes: a wrapping product would be sector 0.
    assert_eq!(guest.send(request::OUT, 1 << 55, 512), IOERR_1);
    assert_eq!(guest.ranges(request::DISCARD, &[(1 << 55, 1, 0)]), IOERR_1);
    assert_eq!(
        guest.ranges(request::WRITE_ZEROES, &[(u64::MAX - 1, u32::MAX, 0)]),
        IOERR_1
    );
    assert!(guest.disk.seen().is_empty());
}

#[test]
fn a_read_only_device_refuses_everything_that_writes() {
    let geometry = Geometry {
        read_only: true,
        ..MemoryDisk::new(DISK_LEN).geometry()
    };
    let mut guest = Guest::with(MemoryDisk::with_geometry(geometry), u64::MAX, 16);
    assert_ne!(guest.bench.device.features() & feature::RO, 0);
    assert_eq!(
        guest.bench.device.features() & (feature::DISCARD | feature::WRITE_ZEROES),
        0
    );
    assert_eq!(guest.send(request::OUT, 0, 512), IOERR_1);
    assert_eq!(
        guest.ranges(request::DISCARD, &[(0, 1, 0)]),
        UNSUPP_1,
        "not negotiated"
    );
    assert!(guest.disk.seen().is_empty());
    assert_eq!(guest.receive(request::IN, 0, 512), Some((status::OK, 513)));
    assert_eq!(guest.flush(), OK_1);
}

#[test]
fn more_segments_than_offered_answer_ioerr() {
    // By leaving out the status' descriptor, or one larger than a ring above 1024 has to be.
    for (size, most) in [(16, 14), (2048, 1022)] {
        let mut guest = Guest::with(MemoryDisk::new(DISK_LEN), u64::MAX, size);
        assert_eq!(guest.config().seg_max.get(), most);
        let data = |segments: u32, writable| {
            (0..segments).map(move |part| (DATA + u64::from(part) * 512, 512, writable))
        };
        for (segments, refused) in [(most + 1, true), (most, false)] {
            let header = |guest: &mut Guest, kind| {
                let _ = guest.disk.seen();
                guest.header(kind, 0);
            };
            header(&mut guest, request::IN);
            let mut read = vec![(HEADER, 16, false)];
            read.extend(data(segments, true));
            let last = read.pop().expect("data");
            // Data and status in one.
            read.push((last.0, 513, true));
            guest.bench.rings[0].offer(&read);
            guest.bench.kick(0).expect("not broken");
            assert_eq!(guest.bench.rings[0].used().len(), 1);
            let status = guest.bench.peek(last.0 + 512, 1);
            assert_eq!(
                status != [status::OK],
                refused,
                "read, {segments} of {most}"
            );
            assert_eq!(guest.disk.seen().is_empty(), refused);

            header(&mut guest, request::OUT);
            let mut write = vec![(HEADER, 16, false)];
            write.extend(data(segments, false));
            if size == 16 && refused {
                // There is no room for a status beside them.
                continue;
            }
            write.push((STATUS, 1, true));
            let expected = if refused { IOERR_1 } else { OK_1 };
            assert_eq!(guest.offer(&write), expected, "write, {segments} of {most}");
            assert_eq!(guest.disk.seen().is_empty(), refused);
        }
    }
}

#[test]
fn a_header_in_pieces_is_not_counted_as_data() {
    let mut guest = Guest::with(MemoryDisk::new(DISK_LEN), u64::MAX, 32);
    let mut small = Guest::with(MemoryDisk::new(DISK_LEN), u64::MAX, 4);
    guest.header(request::OUT, 0);
    let mut chain = vec![(HEADER, 1, false), (HEADER + 1, 15, false)];
    chain.extend((0..29).map(|part| (DATA + part * 512, 512, false)));
    chain.push((STATUS, 1, true));
    assert_eq!(guest.offer(&chain), OK_1, "29 of 30 segments");
    small.header(request::OUT, 0);
    let header_and_data = [
        (HEADER, 15, false),
        (HEADER + 15, 513, false),
        (DATA, 512, false),
        (STATUS, 1, true),
    ];
    assert_eq!(small.offer(&header_and_data), OK_1, "2 of 2 segments");
}

#[test]
fn a_discard_payload_of_no_whole_ranges_answers_ioerr() {
    let mut guest = Guest::new();
    for len in [1, 15, 17] {
        assert_eq!(guest.send(request::DISCARD, 0, len), IOERR_1);
        assert_eq!(guest.send(request::WRITE_ZEROES, 0, len), IOERR_1);
    }
    assert!(guest.disk.seen().is_empty());
}

#[test]
fn one_bad_range_refuses_all_of_them() {
    let mut guest = Guest::new();
    guest.bench.poke(DATA, &[7; 512]);
    guest.send(request::OUT, 0, 512);
    let _ = guest.disk.seen();
    assert_eq!(
        guest.ranges(request::WRITE_ZEROES, &[(0, 1, 0), (SECTORS, 1, 0)]),
        IOERR_1
    );
    assert_eq!(
        guest.ranges(request::DISCARD, &[(0, 1, 0), (SECTORS - 1, 2, 0)]),
        IOERR_1
    );
    assert_eq!(
        guest.ranges(request::DISCARD, &[(0, 1, 0); 17]),
        IOERR_1,
        "more ranges than offered"
    );
    assert!(guest.disk.seen().is_empty());
    assert_eq!(guest.memory.contents()[..512], [7; 512]);
}

#[test]
fn a_zeroing_longer_than_offered_answers_ioerr() {
    let geometry = MemoryDisk::new(64 << 20).geometry();
    let mut guest = Guest::with(MemoryDisk::with_geometry(geometry), u64::MAX, 16);
    let most = guest.config().max_write_zeroes_sectors.get();
    assert_eq!(
        guest.ranges(request::WRITE_ZEROES, &[(0, most + 1, 0)]),
        IOERR_1
    );
    assert_eq!(guest.ranges(request::WRITE_ZEROES, &[(0, most, 0)]), OK_1);
}

#[test]
fn a_buffer_too_small_for_the_identification_answers_ioerr() {
    let mut guest = Guest::new();
    assert_eq!(guest.receive(request::GET_ID, 0, 19), IOERR);
    assert_eq!(guest.bench.peek(DATA, 19), [0; 19]);
}

#[test]
fn unknown_types_and_flags_answer_unsupp() {
    let mut guest = Guest::new();
    for kind in [
        2,
        3,
        5,
        9,
        request::GET_LIFETIME,
        request::SECURE_ERASE,
        u32::MAX,
    ] {
        assert_eq!(guest.send(kind, 0, 512), UNSUPP_1, "type {kind}");
    }
    assert_eq!(
        guest.ranges(request::DISCARD, &[(0, 1, 1)]),
        UNSUPP_1,
        "unmap is for zeroing"
    );
    assert_eq!(guest.ranges(request::DISCARD, &[(0, 1, 2)]), UNSUPP_1);
    assert_eq!(
        guest.ranges(request::WRITE_ZEROES, &[(0, 1, 0), (0, 1, 1 << 31)]),
        UNSUPP_1
    );
    assert!(guest.disk.seen().is_empty());
}

#[test]
fn what_was_not_negotiated_is_unsupported() {
    let mut guest = Guest::with(
        MemoryDisk::new(DISK_LEN),
        !(feature::DISCARD | feature::WRITE_ZEROES),
        16,
    );
    assert_eq!(guest.ranges(request::DISCARD, &[(0, 1, 0)]), UNSUPP_1);
    assert_eq!(guest.ranges(request::WRITE_ZEROES, &[(0, 1, 0)]), UNSUPP_1);
}

#[test]
fn host_errors_answer_ioerr_and_the_device_goes_on() {
    let faults = [
        IoFault::Host(libc::EIO),
        IoFault::NoSpace,
        IoFault::Short,
        IoFault::Stuck,
    ];
    let mut guest = Guest::new();
    for fault in faults {
        guest.disk.plan([
            Fate::Fail(fault),
            Fate::Fail(fault),
            Fate::Fail(fault),
            Fate::Fail(fault),
        ]);
        assert_eq!(guest.receive(request::IN, 0, 512), IOERR);
        assert_eq!(guest.send(request::OUT, 0, 512), IOERR_1);
        assert_eq!(guest.flush(), IOERR_1, "a failed flush is never a success");
        assert_eq!(guest.ranges(request::DISCARD, &[(0, 8, 0)]), IOERR_1);
    }
    assert_eq!(guest.receive(request::IN, 0, 512), Some((status::OK, 513)));
    let totals = guest.bench.device.metrics().totals();
    assert_eq!(
        (totals.read.errors, totals.write.errors, totals.flush.errors),
        (4, 4, 4)
    );
    assert_eq!((totals.read.requests, totals.read.bytes), (5, 512));
}

#[test]
fn a_failed_range_ends_a_discard_of_several() {
    let mut guest = Guest::new();
    guest.disk.plan([Fate::Pass, Fate::Fail(IoFault::NoSpace)]);
    assert_eq!(
        guest.ranges(request::WRITE_ZEROES, &[(0, 8, 0), (8, 8, 0), (16, 8, 0)]),
        IOERR_1
    );
    assert_eq!(guest.disk.seen().len(), 2, "the third was not tried");
}

#[test]
fn a_header_changed_after_the_look_changes_nothing() {
    // The request is held in flight while the driver rewrites its header from a write of sector 1 to something else.
    let mut guest = Guest::new();
    guest.bench.poke(DATA, &[7; 512]);
    guest.disk.plan([Fate::Delay(1)]);
    assert_eq!(guest.send(request::OUT, 1, 512), None);
    guest.header(request::IN, u64::MAX);
    assert_eq!(guest.again().len(), 1);
    assert_eq!(guest.bench.peek(STATUS, 1), [status::OK]);
    assert_eq!(guest.memory.contents()[512..1024], [7; 512]);
}
