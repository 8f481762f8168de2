//! What a guest must not send, row by row:
//!
//! | bad input | answer |
//! |---|---|
//! | request or response area shorter than its header and `cdb_size` or `sense_size` | needs a reset |
//! | bad LUN format or target | BAD_TARGET |
//! | unknown control type | FAILURE |
//! | unknown opcode, reserved field, LBA past the end, bad UNMAP or MODE SELECT list | CHECK CONDITION, nothing applied |
//! | `sense_size` 0 or huge, `cdb_size` under 16 or huge | clamped; `sense_len` is honest |

use super::*;

/// Values a driver may write into `sense_size` and `cdb_size`.
const SIZES: [u32; 10] = [0, 1, 15, 16, 18, 20, 96, 252, 260, u32::MAX];

/// A device whose driver has written these sizes, and what they came to.
fn with_sizes(sense: u32, cdb: u32) -> (Scsi, u32, u32) {
    let device = device();
    device.write_config(SENSE_SIZE_AT, &sense.to_le_bytes());
    device.write_config(CDB_SIZE_AT, &cdb.to_le_bytes());
    let Sizes { cdb, sense } = device.sizes();
    (device, sense, cdb)
}

#[test]
fn a_request_or_response_area_cut_short_needs_a_reset() {
    for chain in [
        vec![
            (REQUEST_AT, HEADER - 1, false),
            (RESPONSE_AT, RESPONSE, true),
        ],
        vec![
            (REQUEST_AT, HEADER, false),
            (RESPONSE_AT, RESPONSE - 1, true),
        ],
        vec![(REQUEST_AT, HEADER, false)],
        vec![(RESPONSE_AT, RESPONSE, true)],
        vec![(REQUEST_AT, 1, false), (RESPONSE_AT, 1, true)],
    ] {
        let mut bench = bench();
        bench.poke(REQUEST_AT, &header(LUN, &[0; 6], 32));
        bench.rings[usize::from(REQUESTS)].offer(&chain);
        assert_eq!(bench.kick(REQUESTS).unwrap_err().queue, Some(REQUESTS));
        assert_eq!(bench.stop(), 0, "its chain is completed all the same");
    }
}

#[test]
fn areas_as_long_as_the_sizes_say_are_answered_and_shorter_ones_need_a_reset() {
    for written in SIZES {
        for (less, answered) in [([0, 0], true), ([1, 0], false), ([0, 1], false)] {
            let (device, sense, cdb) = with_sizes(written, written);
            let mut bench = Bench::start(Arc::new(device), VERSION_1, 64);
            bench.poke(REQUEST_AT, &header(LUN, &[0x12], cdb as usize));
            let chain = [
                (REQUEST_AT, 19 + cdb - less[0], false),
                (RESPONSE_AT, 12 + sense - less[1], true),
            ];
            bench.rings[usize::from(REQUESTS)].offer(&chain);
            assert_eq!(
                bench.kick(REQUESTS).is_ok(),
                answered,
                "{written}: {less:?}"
            );
        }
    }
}

#[test]
fn a_bad_lun_format_or_target_is_a_bad_target() {
    let mut bench = bench();
    for lun in [
        [0; 8],
        [2, 0, 0x40, 0, 0, 0, 0, 0],
        [1, 1, 0x40, 0, 0, 0, 0, 0],
        [1, 0, 0x80, 0, 0, 0, 0, 0],
        [1, 0, 0x40, 0, 0, 0, 0, 1],
        [0xff; 8],
    ] {
        let seen = send(&mut bench, lun, &[0; 6], &[], &[]).unwrap();
        assert_eq!(
            (seen.response, seen.used),
            (response::BAD_TARGET, 12),
            "{lun:x?}"
        );
    }
    // The well-known unit of the controller lists every unit by its full address.
    let all = [0xc1, 1, 0, 0, 0, 0, 0, 0];
    let cdb = [0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
    let seen = send(&mut bench, all, &cdb, &[], &[(IN_AT, 64, true)]).unwrap();
    assert_eq!((seen.response, seen.status, seen.residual), (0, 0, 48));
    assert_eq!(
        bench.peek(IN_AT, 16),
        [0, 0, 0, 8, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    );
}

#[test]
fn an_unknown_control_type_fails_and_one_cut_short_needs_a_reset() {
    let order = |kind: u32| [kind.to_le_bytes().to_vec(), vec![0; 20]].concat();
    let run = |kind: u32, len: u32, room: u32| {
        let mut bench = bench();
        bench.poke(REQUEST_AT, &order(kind));
        bench.poke(RESPONSE_AT, &[0xee; 16]);
        let mut chain = vec![(REQUEST_AT, len, false)];
        if room > 0 {
            chain.push((RESPONSE_AT, room, true));
        }
        bench.rings[0].offer(&chain);
        let result = bench.kick(0);
        let used = bench.rings[0].used();
        (
            result.is_ok(),
            used.first().map(|(_, len)| *len),
            bench.peek(RESPONSE_AT, 16),
        )
    };
    for (kind, len, room) in [
        (0, 23, 1),
        (0, 3, 1),
        (0, 24, 0),
        (1, 15, 5),
        (1, 16, 4),
        (2, 16, 4),
        (9, 4, 0),
    ] {
        assert!(
            !run(kind, len, room).0,
            "kind {kind}, {len} and {room} bytes"
        );
    }
    // An unknown kind's response is taken to be its last byte.
    let (whole, used, bytes) = run(9, 4, 3);
    assert_eq!((whole, used, bytes[2]), (true, Some(3), response::FAILURE));
    let (_, used, bytes) = run(0, 24, 1);
    assert_eq!((used, bytes[0]), (Some(1), response::BAD_TARGET));
}

#[test]
fn sizes_of_any_value_are_clamped_and_the_sense_length_is_honest() {
    for (sense_size, cdb_size) in [(0u32, 0u32), (18, 16), (20, 260), (u32::MAX, u32::MAX)] {
        let device = device();
        device.write_config(20, &sense_size.to_le_bytes());
        device.write_config(24, &cdb_size.to_le_bytes());
        let mut bytes = [0; 8];
        device.read_config(20, &mut bytes);
        let sense = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let cdb = u32::from_le_bytes(bytes[4..].try_into().unwrap());
        let mut bench = Bench::start(Arc::new(device), VERSION_1, 64);
        bench.poke(
            REQUEST_AT,
            &header(LUN, &[0x12, 0, 0, 0, 36, 0], cdb as usize),
        );
        let chain = [
            (REQUEST_AT, 19 + cdb, false),
            (RESPONSE_AT, 12 + sense, true),
            (IN_AT, 36, true),
        ];
        let seen = offer(&mut bench, &chain).unwrap();
        assert_eq!((seen.status, seen.used), (0, 12 + sense + 36));
        bench.poke(REQUEST_AT, &header(LUN, &[0; 6], cdb as usize));
        let seen = offer(&mut bench, &chain[..2]).unwrap();
        assert_eq!((seen.status, seen.sense.len() as u32), (2, sense.min(18)));
    }
}

/// A command, its data-out, and the sense key, code and qualifier it gets.
type Refused = (&'static [u8], &'static [u8], [u8; 3]);

const OPCODE: [u8; 3] = [5, 0x20, 0];
const FIELD: [u8; 3] = [5, 0x24, 0];
const RANGE: [u8; 3] = [5, 0x21, 0];
const LIST: [u8; 3] = [5, 0x26, 0];
const LENGTH: [u8; 3] = [5, 0x1a, 0];

/// The disk has 2048 blocks of 512 bytes.
#[rustfmt::skip]
const REFUSED: &[Refused] = &[
    // Opcodes nobody serves, and service actions.
    (&[0xff], &[], OPCODE),
    (&[0x04, 0, 0, 0, 0, 0], &[], OPCODE),
    (&[0x7f, 0, 0, 0, 0, 0, 0, 0x18, 0, 9], &[], OPCODE),
    (&[0x9e, 0x1f], &[], FIELD),
    (&[0x5f, 0x1f, 0, 0, 0, 0, 0, 0, 24, 0], &[0; 24], FIELD),
    // Reserved fields: protection, group bits beyond the group, NACA.
    (&[0x2a, 0x20, 0, 0, 0, 0, 0, 0, 1, 0], &[0xff; 512], FIELD),
    (&[0x2a, 0x01, 0, 0, 0, 0, 0, 0, 1, 0], &[0xff; 512], FIELD),
    (&[0x2a, 0, 0, 0, 0, 0, 0x80, 0, 1, 0], &[0xff; 512], FIELD),
    (&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 4], &[0xff; 512], FIELD),
    (&[0x41, 0x10, 0, 0, 0, 0, 0, 0, 1, 0], &[0xff; 512], FIELD),
    // Past the end, by one and by so much that the sum overflows.
    (&[0x2a, 0, 0, 0, 8, 0, 0, 0, 1, 0], &[0xff; 512], RANGE),
    (&[0x2a, 0, 0, 0, 7, 0xff, 0, 0, 2, 0], &[0xff; 1024], RANGE),
    (&[0x8a, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0], &[0xff; 512], RANGE),
    (&[0x93, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0, 0], &[0xff; 512], RANGE),
    (&[0x89, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0, 0], &[0xff; 1024], RANGE),
    (&[0x8b, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0, 0], &[0xff; 512], RANGE),
    (&[0x2e, 0, 0, 0, 8, 0, 0, 0, 1, 0], &[0xff; 512], RANGE),
    // UNMAP: a good range first, so that a list applied in order would show.
    (&[0x42, 0, 0, 0, 0, 0, 0, 0, 40, 0], &[
        0, 38, 0, 32, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0, 0, 0, 0,
    ], RANGE),
    (&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &[
        0, 22, 0, 17, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0,
    ], LENGTH),
    (&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &[
        0, 22, 0, 15, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0,
    ], LIST),
    (&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &[
        0, 99, 0, 16, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0,
    ], LENGTH),
    (&[0x42, 0, 0, 0, 0, 0, 0, 0, 7, 0], &[0, 22, 0, 16, 0, 0, 0], LENGTH),
    // MODE SELECT: no page that is there, one that is too short, one that can't be changed, saving, descriptors.
    (&[0x15, 0x10, 0, 0, 6, 0], &[0, 0, 0, 0, 0x3e, 0], LIST),
    (&[0x15, 0x10, 0, 0, 8, 0], &[0, 0, 0, 0, 0x0a, 2, 0, 0], LENGTH),
    (&[0x15, 0x10, 0, 0, 16, 0], &[0, 0, 0, 0, 0x0a, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], LIST),
    (&[0x15, 0x10, 0, 0, 24, 0], &[
        0, 0, 0, 0, 0x08, 0x12, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ], LIST),
    (&[0x15, 0x10, 0, 0, 3, 0], &[0, 0, 0], LENGTH),
    (&[0x15, 0x11, 0, 0, 4, 0], &[0, 0, 0, 0], FIELD),
    (&[0x55, 0x10, 0, 0, 0, 0, 0, 0, 8, 0], &[0, 0, 0, 0, 0, 0, 0, 9], LENGTH),
    (&[0x55, 0x10, 0, 0, 0, 0, 0, 0, 16, 0], &[0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 2, 0], LIST),
    // PERSISTENT RESERVE OUT: too short, flags that are not offered, a type that is not there.
    (&[0x5f, 0, 0, 0, 0, 0, 0, 0, 23, 0], &[0; 23], LENGTH),
    (&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], &[
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x08, 0, 0, 0,
    ], LIST),
];

#[test]
fn what_must_not_be_asked_is_refused_with_its_sense_and_nothing_of_it_applied() {
    let disk = MemoryDisk::new(1 << 20);
    let shared: Arc<dyn Disk> = Arc::new(Arc::clone(&disk));
    let device = Scsi::new(
        &ScsiConfig::new("scsi0"),
        vec![(UnitConfig::new("disk"), shared)],
    );
    let mut bench = Bench::start(Arc::new(device.unwrap()), VERSION_1, 64);
    send(&mut bench, LUN, &[0; 6], &[], &[]).unwrap();
    bench.poke(OUT_AT, &[0x11; 0x10000]);
    let fill = [0x2a, 0, 0, 0, 0, 0, 0, 0, 128, 0];
    let filled = send(&mut bench, LUN, &fill, &[(OUT_AT, 0x10000, false)], &[]).unwrap();
    assert_eq!(filled.status, 0);
    // All that a command could change: blocks, modes, registrations.
    let state = |bench: &mut Bench<Scsi>| {
        let mut seen = vec![disk.contents()];
        for cdb in [
            &[0x1a, 0, 0x3f, 0, 255, 0][..],
            &[0x5e, 3, 0, 0, 0, 0, 0, 0, 255, 0],
        ] {
            bench.poke(IN_AT, &[0; 255]);
            let answer = send(bench, LUN, cdb, &[], &[(IN_AT, 255, true)]).unwrap();
            assert_eq!(answer.status, 0);
            seen.push(bench.peek(IN_AT, 255));
        }
        seen
    };
    let before = state(&mut bench);
    for (cdb, out, sense) in REFUSED {
        bench.poke(OUT_AT, out);
        let parts = [(OUT_AT, out.len() as u32, false)];
        let parts = if out.is_empty() { &[][..] } else { &parts };
        let seen = send(&mut bench, LUN, cdb, parts, &[]).unwrap();
        let said = [2, 12, 13].map(|at| seen.sense.get(at).copied().unwrap_or(0));
        assert_eq!(
            (seen.response, seen.status, said),
            (0, 2, *sense),
            "{cdb:x?} {out:x?}"
        );
        assert!(state(&mut bench) == before, "{cdb:x?} {out:x?}");
    }
    assert_eq!(bench.stop(), 0);
}
