//! Hostile and odd requests, on rings written by hand; the configuration space.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the tests' own numbers are small"
)]

use std::sync::Arc;

use splitring_virtio::spec::feature::{INDIRECT_DESC, VERSION_1};
use splitring_virtio::spec::scsi::{EVENT_QUEUE, event, response};

use super::*;
use crate::device::{Broken, Cause};
use crate::disk::IoFault;
use crate::disk::doubles::{Fate, FaultyDisk, MemoryDisk};
use crate::events::DeviceEvent;
use crate::testing::{Bench, Buffer, observed};

#[path = "scsi/bad_input_tests.rs"]
mod bad_input;
#[path = "scsi/pause_tests.rs"]
mod pause;
#[path = "scsi/provisioning_tests.rs"]
mod provisioning;
#[path = "scsi/removal_tests.rs"]
mod removal;
#[path = "scsi/reserving_tests.rs"]
mod reserving;
#[path = "scsi/reset_tests.rs"]
mod reset;
#[path = "scsi/start_tests.rs"]
mod start;

const REQUESTS: u16 = REQUEST_QUEUE;
const HEADER: u32 = 19 + 32;
const RESPONSE: u32 = 12 + 96;
/// Where the test keeps its request, response and data.
const REQUEST_AT: u64 = 0x1000;
const RESPONSE_AT: u64 = 0x2000;
const OUT_AT: u64 = 0x10_0000;
const IN_AT: u64 = 0x20_0000;

fn disk() -> Arc<dyn Disk> {
    Arc::new(MemoryDisk::new(1 << 20))
}

fn device() -> Scsi {
    Scsi::new(
        &ScsiConfig::new("scsi0"),
        vec![(UnitConfig::new("disk"), disk())],
    )
    .unwrap()
}

/// A started device whose first unit has nothing to report any more.
fn bench() -> Bench<Scsi> {
    let mut bench = Bench::start(
        Arc::new(device()),
        VERSION_1 | INDIRECT_DESC | feature::HOTPLUG,
        64,
    );
    let ready = send(&mut bench, LUN, &[0; 6], &[], &[]).unwrap();
    assert_eq!(ready.status, 2);
    bench
}

const LUN: [u8; 8] = [1, 0, 0x40, 0, 0, 0, 0, 0];

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    response: u8,
    status: u8,
    sense: Vec<u8>,
    residual: u32,
    used: u32,
}

fn header(lun: [u8; 8], cdb: &[u8], cdb_size: usize) -> Vec<u8> {
    let mut bytes = lun.to_vec();
    bytes.extend(7u64.to_le_bytes());
    bytes.extend([0; 3]);
    bytes.extend(cdb);
    bytes.resize(19 + cdb_size, 0);
    bytes
}

fn read_response(bench: &Bench<Scsi>, at: u64, used: u32) -> Seen {
    let bytes = bench.peek(at, RESPONSE as usize);
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let sense = bytes[12..12 + word(0) as usize].to_vec();
    Seen {
        response: bytes[11],
        status: bytes[10],
        sense,
        residual: word(4),
        used,
    }
}

/// Offers request, `out`, response and `room` as given, runs the queue and reads the response.
fn send(
    bench: &mut Bench<Scsi>,
    lun: [u8; 8],
    cdb: &[u8],
    out: &[Buffer],
    room: &[Buffer],
) -> Result<Seen, Broken> {
    bench.poke(REQUEST_AT, &header(lun, cdb, 32));
    bench.poke(RESPONSE_AT, &[0xee; RESPONSE as usize]);
    let mut chain = vec![(REQUEST_AT, HEADER, false)];
    chain.extend(out);
    chain.push((RESPONSE_AT, RESPONSE, true));
    chain.extend(room);
    offer(bench, &chain)
}

fn offer(bench: &mut Bench<Scsi>, chain: &[Buffer]) -> Result<Seen, Broken> {
    let ring = &mut bench.rings[usize::from(REQUESTS)];
    ring.offer(chain);
    let result = bench.kick(REQUESTS);
    let used = bench.rings[usize::from(REQUESTS)].used();
    result?;
    let [(_, len)] = used[..] else {
        panic!("{used:?}")
    };
    Ok(read_response(bench, RESPONSE_AT, len))
}

#[test]
fn data_in_both_directions_is_a_failure() {
    let mut bench = bench();
    let seen = send(
        &mut bench,
        LUN,
        &[0; 6],
        &[(OUT_AT, 1, false)],
        &[(IN_AT, 1, true)],
    )
    .unwrap();
    assert_eq!(seen.response, response::FAILURE);
}

#[test]
fn any_framing_gives_the_same_answer() {
    let read = [0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0];
    let write = [0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0];
    let data: Vec<u8> = (0..=255u8).cycle().take(512).collect();
    for cut in [1, 18, 19, 20, 50, 51, 52, 300, 562] {
        let mut bench = bench();
        // Request and data-out are one run of bytes, cut where it pleases the driver.
        bench.poke(OUT_AT, &[header(LUN, &write, 32), data.clone()].concat());
        let total = HEADER + 512;
        let chain = [
            (OUT_AT, cut, false),
            (OUT_AT + u64::from(cut), total - cut, false),
            (RESPONSE_AT, 5, true),
            (RESPONSE_AT + 5, RESPONSE - 5, true),
        ];
        assert_eq!(
            offer(&mut bench, &chain).unwrap(),
            Seen {
                response: 0,
                status: 0,
                sense: vec![],
                residual: 0,
                used: 12
            }
        );
        // So are response and data-in.
        bench.poke(REQUEST_AT, &header(LUN, &read, 32));
        let cut = cut.min(RESPONSE + 511);
        let total = RESPONSE + 512;
        let chain = [
            (REQUEST_AT, HEADER, false),
            (IN_AT, cut, true),
            (IN_AT + u64::from(cut), total - cut, true),
        ];
        bench.rings[usize::from(REQUESTS)].offer(&chain);
        bench.kick(REQUESTS).unwrap();
        let used = bench.rings[usize::from(REQUESTS)].used();
        assert_eq!(used[0].1, total);
        assert_eq!(read_response(&bench, IN_AT, total).status, 0);
        assert_eq!(bench.peek(IN_AT + u64::from(RESPONSE), 512), data);
    }
}

#[test]
fn the_used_length_covers_what_was_written_and_no_more() {
    let mut bench = bench();
    let inquiry = [0x12, 0, 0, 0, 36, 0];
    bench.poke(IN_AT, &[0x5a; 100]);
    let seen = send(&mut bench, LUN, &inquiry, &[], &[(IN_AT, 100, true)]).unwrap();
    assert_eq!((seen.used, seen.residual), (RESPONSE + 36, 64));
    // From its start to there every byte is the device's.
    assert!(!bench.peek(RESPONSE_AT, RESPONSE as usize).contains(&0xee));
    assert_eq!(bench.peek(IN_AT + 36, 64), [0x5a; 64]);
    let seen = send(&mut bench, LUN, &[0xff], &[], &[]).unwrap();
    assert_eq!((seen.used, seen.sense.len()), (12 + 18, 18));
    assert_eq!(bench.peek(RESPONSE_AT + 30, 4), [0xee; 4]);
}

#[test]
fn sizes_are_clamped_read_back_and_back_to_default_after_a_reset() {
    let device = device();
    let sizes = |device: &Scsi| {
        let mut bytes = [0; 8];
        device.read_config(20, &mut bytes);
        [&bytes[..4], &bytes[4..]].map(|word| u32::from_le_bytes(word.try_into().unwrap()))
    };
    assert_eq!(sizes(&device), [96, 32]);
    for (written, sense, cdb) in [
        (0, 18, 16),
        (u32::MAX, 252, 260),
        (17, 18, 17),
        (64, 64, 64),
    ] {
        device.write_config(20, &written.to_le_bytes());
        device.write_config(24, &u32::to_le_bytes(written));
        assert_eq!(sizes(&device), [sense, cdb], "{written}");
    }
    // Byte by byte, and over the edge of the field and of the space.
    for (at, byte) in [200, 0, 0, 0, 48, 0, 0, 0].into_iter().enumerate() {
        device.write_config(20 + at, &[byte]);
    }
    assert_eq!(sizes(&device), [200, 48]);
    device.write_config(18, &[9, 9, 33, 0, 0]);
    device.write_config(35, &[9; 100]);
    device.write_config(usize::MAX, &[9; 4]);
    assert_eq!(sizes(&device), [33, 48]);
    device.reset();
    assert_eq!(sizes(&device), [96, 32]);
}

#[test]
fn events_go_into_whole_buffers_only() {
    let mut bench = bench();
    let handle = bench.device.handle();
    bench.rings[usize::from(EVENT_QUEUE)].offer(&[(IN_AT, 16, true)]);
    handle.add(UnitConfig::new("new"), disk()).unwrap();
    bench.run(EVENT_QUEUE, Cause::Resume).unwrap();
    assert_eq!(bench.rings[usize::from(EVENT_QUEUE)].used()[0].1, 16);
    let mut expected = vec![
        event::TRANSPORT_RESET as u8,
        0,
        0,
        0,
        1,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    expected.extend(event::RESET_RESCAN.to_le_bytes());
    assert_eq!(bench.peek(IN_AT, 16), expected);
    bench.rings[usize::from(EVENT_QUEUE)].offer(&[(IN_AT, 15, true)]);
    handle.add(UnitConfig::new("newer"), disk()).unwrap();
    assert_eq!(
        bench.run(EVENT_QUEUE, Cause::Resume).unwrap_err().queue,
        Some(EVENT_QUEUE)
    );
    assert_eq!(bench.stop(), 0);
}

/// A disk that cannot be used on any thread.
struct Refusing(Arc<MemoryDisk>);

impl Disk for Refusing {
    fn geometry(&self) -> crate::disk::Geometry {
        self.0.geometry()
    }

    fn open_queue(
        &self,
        _: crate::ram::Ram,
        index: u16,
        _: u16,
    ) -> Result<Box<dyn crate::disk::DiskQueue>, crate::disk::DiskError> {
        Err(crate::disk::DiskError::NoSuchQueue {
            path: "refusing".into(),
            index,
        })
    }
}

#[test]
fn a_disk_that_cannot_be_used_is_logged_a_few_times_however_often_the_guest_tries() {
    let refusing = Refusing(MemoryDisk::new(1 << 20));
    let units: Vec<(_, Arc<dyn Disk>)> = vec![(UnitConfig::new("disk"), Arc::new(refusing))];
    let device = Arc::new(Scsi::new(&ScsiConfig::new("scsi0"), units).unwrap());
    let lines = crate::testing::logged(|| {
        for _ in 0..10 {
            // A reset does not renew the limit.
            let mut bench = Bench::start(Arc::clone(&device), VERSION_1, 64);
            send(&mut bench, LUN, &[0; 6], &[], &[]).unwrap();
            for _ in 0..10 {
                let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
                let seen = send(&mut bench, LUN, &read, &[], &[(IN_AT, 512, true)]).unwrap();
                assert_eq!((seen.response, seen.status), (0, 2));
            }
            assert_eq!(bench.stop(), 0);
        }
    });
    assert!((1..=10).contains(&lines.len()), "{}", lines.len());
    assert!(lines[0].contains("refusing"), "{lines:?}");
}

/// A small generator with a fixed seed.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[test]
fn whatever_is_sent_is_answered() {
    const OPCODES: [u8; 40] = [
        0x00, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x16, 0x17, 0x1a, 0x1b, 0x1d, 0x1e, 0x25, 0x28, 0x2a,
        0x2e, 0x2f, 0x34, 0x35, 0x37, 0x41, 0x42, 0x43, 0x4d, 0x55, 0x5a, 0x5e, 0x5f, 0x88, 0x89,
        0x8a, 0x8b, 0x8e, 0x8f, 0x90, 0x93, 0x9e, 0xa0, 0xa3, 0xb7,
    ];
    let mut bench = bench();
    let mut noise = Noise(0x5eed);
    for round in 0..30_000u32 {
        let mut cdb = [0; 32];
        for byte in &mut cdb {
            // Mostly zero, so that most reserved fields let the command through.
            *byte = if noise.below(4) == 0 {
                noise.next() as u8
            } else {
                0
            };
        }
        cdb[0] = OPCODES[noise.below(OPCODES.len() as u64) as usize];
        let list: Vec<u8> = (0..64)
            .map(|_| {
                if noise.below(3) == 0 {
                    noise.next() as u8
                } else {
                    0
                }
            })
            .collect();
        bench.poke(OUT_AT, &list);
        let scale = 1 << noise.below(18);
        let len = noise.below(scale) as u32;
        let (mut out, mut room) = (vec![], vec![]);
        match noise.below(3) {
            0 if len > 0 => out.push((OUT_AT, len, false)),
            1 if len > 0 => room.push((IN_AT, len, true)),
            _ => {}
        }
        let seen = send(&mut bench, LUN, &cdb, &out, &room).unwrap();
        assert!(
            seen.response <= response::FAILURE,
            "round {round}: {cdb:x?} {seen:?}"
        );
        assert!(seen.residual <= len);
        if seen.status != 2 {
            assert!(seen.sense.is_empty());
        }
    }
    // None of that left it in a state it does not come out of.
    for cdb in [vec![0x17, 0, 0, 0, 0, 0], vec![0x1b, 0, 0, 0, 3, 0]] {
        send(&mut bench, LUN, &cdb, &[], &[]).unwrap();
    }
    assert_eq!(bench.stop(), 0);
}

#[test]
fn disks_that_fail_come_and_go_are_reported() {
    let faulty = Arc::new(FaultyDisk::new(disk()));
    let units = vec![(
        UnitConfig::new("disk"),
        Arc::<FaultyDisk>::clone(&faulty) as _,
    )];
    let device = Arc::new(Scsi::new(&ScsiConfig::new("scsi0"), units).unwrap());
    let (sink, seen) = observed();
    device.report_to(sink);
    let mut bench = Bench::start(Arc::clone(&device), VERSION_1, 64);
    send(&mut bench, LUN, &[0; 6], &[], &[]).unwrap();
    faulty.plan([Fate::Fail(IoFault::Cancelled), Fate::Fail(IoFault::NoSpace)]);
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    for _ in 0..2 {
        let seen = send(&mut bench, LUN, &write, &[(OUT_AT, 512, false)], &[]).unwrap();
        assert_eq!(seen.status, 2);
    }
    assert_eq!(bench.stop(), 0);
    let handle = device.handle();
    handle.add(UnitConfig::new("another"), disk()).unwrap();
    handle.remove("disk").unwrap();
    let (controller, device) = ("scsi0".to_owned(), "disk".to_owned());
    let expected = [
        DeviceEvent::DiskError {
            device: device.clone(),
            error: "Write failed: no space left on the host".into(),
        },
        DeviceEvent::DiskAdded {
            controller: controller.clone(),
            device: "another".into(),
            target: 1,
            lun: 0,
            capacity: 1 << 20,
        },
        DeviceEvent::DiskRemoved { controller, device },
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}
