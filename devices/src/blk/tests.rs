//! The device, played with by a guest on plain memory: first what a hostile driver may try, then what it is for.

use splitring_virtio::spec::blk::{Range, RequestHeader, request, status};
use splitring_virtio::spec::feature::{EVENT_IDX, VERSION_1};

use super::*;
use crate::device::{Cause, Outcome};
use crate::disk::IoFault;
use crate::disk::doubles::{Fate, FaultyDisk, MemoryDisk, Seen};
use crate::testing::{Bench, Buffer};

const HEADER: u64 = 0x1000;
const STATUS: u64 = 0x1800;
const DATA: u64 = 0x1_0000;
const DISK_LEN: u64 = 1 << 20;
const SECTORS: u64 = DISK_LEN / 512;
/// A status the device never writes.
const UNTOUCHED: u8 = 0xee;

struct Guest {
    bench: Bench<Blk>,
    disk: Arc<FaultyDisk>,
    memory: Arc<MemoryDisk>,
}

/// What came of a request: status and used length.
type Answer = (u8, u32);

impl Guest {
    fn new() -> Self {
        Self::with(MemoryDisk::new(DISK_LEN), u64::MAX, 16)
    }

    fn with(memory: Arc<MemoryDisk>, mask: u64, size: u16) -> Self {
        let disk = Arc::new(FaultyDisk::new(Arc::new(Arc::clone(&memory))));
        let device = Blk::new("disk0", Arc::<FaultyDisk>::clone(&disk), 1, size, "serial");
        let features = (device.features() | EVENT_IDX) & mask | VERSION_1;
        let bench = Bench::start(Arc::new(device), features, size);
        Self {
            bench,
            disk,
            memory,
        }
    }

    fn header(&self, kind: u32, sector: u64) {
        let header = RequestHeader {
            kind: kind.into(),
            reserved: 0.into(),
            sector: sector.into(),
        };
        self.bench.poke(HEADER, header.as_bytes());
    }

    /// Offers a chain as it is and runs the device; the answer if there is one.
    fn offer(&mut self, buffers: &[Buffer]) -> Option<Answer> {
        self.bench.poke(STATUS, &[UNTOUCHED]);
        let head = self.bench.rings[0].offer(buffers);
        let _ = self.bench.kick(0);
        let used = self.bench.rings[0].used();
        assert!(used.len() <= 1 && used.iter().all(|(id, _)| *id == head));
        used.first()
            .map(|(_, len)| (self.bench.peek(STATUS, 1)[0], *len))
    }

    /// Header, readable data at [`DATA`] and status.
    fn send(&mut self, kind: u32, sector: u64, len: u32) -> Option<Answer> {
        self.header(kind, sector);
        self.offer(&[(HEADER, 16, false), (DATA, len, false), (STATUS, 1, true)])
    }

    /// Header, writable data at [`DATA`] and status.
    fn receive(&mut self, kind: u32, sector: u64, len: u32) -> Option<Answer> {
        self.header(kind, sector);
        self.offer(&[(HEADER, 16, false), (DATA, len, true), (STATUS, 1, true)])
    }

    fn flush(&mut self) -> Option<Answer> {
        self.header(request::FLUSH, 0);
        self.offer(&[(HEADER, 16, false), (STATUS, 1, true)])
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> Option<Answer> {
        let mut bytes = Vec::new();
        for (sector, count, flags) in ranges {
            let range = Range {
                sector: (*sector).into(),
                num_sectors: (*count).into(),
                flags: (*flags).into(),
            };
            bytes.extend_from_slice(range.as_bytes());
        }
        self.bench.poke(DATA, &bytes);
        self.send(kind, 0, u32::try_from(bytes.len()).unwrap())
    }

    /// Runs the device once more, as when its disk has something.
    fn again(&mut self) -> Vec<u16> {
        let _ = self.bench.run(0, Cause::Source(0)).expect("not broken");
        self.bench.rings[0]
            .used()
            .into_iter()
            .map(|(id, _)| id)
            .collect()
    }

    fn config(&self) -> Config {
        let mut config = Config::default();
        self.bench.device.read_config(0, config.as_mut_bytes());
        config
    }
}

const IOERR: Option<Answer> = Some((status::IOERR, 0));
/// A failed request without data: the status is all that is written.
const IOERR_1: Option<Answer> = Some((status::IOERR, 1));
const UNSUPP_1: Option<Answer> = Some((status::UNSUPP, 1));
const OK_1: Option<Answer> = Some((status::OK, 1));

// Bad input, one test a row of the table.

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
    // Only in a ring above 1024 can a chain have more than is offered.
    let mut guest = Guest::with(MemoryDisk::new(DISK_LEN), u64::MAX, 2048);
    let chain = |segments: u64| {
        let mut chain = vec![(HEADER, 16, false)];
        chain.extend((0..segments).map(|part| (DATA + part * 512, 512, false)));
        chain.push((STATUS, 1, true));
        chain
    };
    guest.header(request::OUT, 0);
    assert_eq!(guest.offer(&chain(1100)), IOERR_1);
    assert!(guest.disk.seen().is_empty());
    assert_eq!(guest.offer(&chain(1022)), OK_1);
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

// What it is for.

#[test]
fn what_is_written_is_read_again_under_any_framing() {
    let pattern: Vec<u8> = (0..4096_u32)
        .map(|number| u8::try_from(number * 7 % 251).unwrap())
        .collect();
    let framings: [&[u32]; 6] = [
        &[4096],
        &[1, 4095],
        &[512, 3584],
        &[2000, 96, 2000],
        &[0, 4096, 0],
        &[1; 8],
    ];
    for framing in framings {
        let mut guest = Guest::with(MemoryDisk::new(DISK_LEN), u64::MAX, 32);
        guest.bench.poke(DATA, &pattern);
        let cut = |writable: bool| {
            let mut parts = Vec::new();
            let mut at = DATA;
            for len in framing {
                parts.push((at, *len, writable));
                at += u64::from(*len);
            }
            parts.push((at, u32::try_from(DATA + 4096 - at).unwrap(), writable));
            parts
        };
        guest.header(request::OUT, 3);
        let mut chain = vec![(HEADER, 7, false), (HEADER + 7, 9, false)];
        chain.extend(cut(false));
        chain.push((STATUS, 1, true));
        assert_eq!(guest.offer(&chain), OK_1, "{framing:?}");
        guest.bench.poke(DATA, &[0; 4096]);
        guest.header(request::IN, 3);
        let mut chain = vec![(HEADER, 16, false)];
        chain.extend(cut(true));
        chain.push((STATUS, 1, true));
        assert_eq!(guest.offer(&chain), Some((status::OK, 4097)), "{framing:?}");
        assert_eq!(guest.bench.peek(DATA, 4096), pattern, "{framing:?}");
    }
}

#[test]
fn header_with_data_and_data_with_status_may_share_a_descriptor() {
    let mut guest = Guest::with(MemoryDisk::new(DISK_LEN), u64::MAX, 2);
    guest.header(request::OUT, 1);
    guest.bench.poke(HEADER + 16, &[9; 512]);
    assert_eq!(
        guest.offer(&[(HEADER, 528, false), (STATUS, 1, true)]),
        OK_1
    );
    guest.header(request::IN, 1);
    guest.bench.rings[0].offer(&[(HEADER, 16, false), (DATA, 513, true)]);
    guest.bench.kick(0).expect("not broken");
    assert_eq!(guest.bench.rings[0].used().len(), 1);
    assert_eq!(guest.bench.peek(DATA, 512), [9; 512]);
    assert_eq!(guest.bench.peek(DATA + 512, 1), [status::OK]);
}

#[test]
fn the_identification_is_cut_at_20_bytes_and_padded_with_zeroes() {
    let mut guest = Guest::new();
    guest.bench.poke(DATA, &[0xff; 32]);
    assert_eq!(
        guest.receive(request::GET_ID, 0, 20),
        Some((status::OK, 21))
    );
    assert_eq!(
        guest.bench.peek(DATA, 20),
        b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_LEN));
    let long = Blk::new("disk0", disk, 1, 16, "a serial number of many letters");
    assert_eq!(&long.shared.serial, b"a serial number of m");
}

#[test]
fn completions_may_overtake_one_another() {
    let mut guest = Guest::new();
    guest
        .disk
        .plan([Fate::Delay(2), Fate::Delay(0), Fate::Pass]);
    let mut heads = Vec::new();
    for sector in 0..3 {
        let at = HEADER + sector * 16;
        let header = RequestHeader {
            kind: request::IN.into(),
            reserved: 0.into(),
            sector: sector.into(),
        };
        guest.bench.poke(at, header.as_bytes());
        let status = STATUS + sector;
        heads.push(guest.bench.rings[0].offer(&[
            (at, 16, false),
            (DATA + sector * 512, 512, true),
            (status, 1, true),
        ]));
    }
    guest.bench.kick(0).expect("not broken");
    let mut order: Vec<u16> = guest.bench.rings[0]
        .used()
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    for _ in 0..4 {
        order.extend(guest.again());
    }
    assert_eq!(order, [heads[2], heads[1], heads[0]]);
    assert_eq!(guest.bench.peek(STATUS, 3), [status::OK; 3]);
}

#[test]
fn a_reset_with_requests_in_flight_leaves_none() {
    let mut guest = Guest::new();
    guest.disk.plan([Fate::Delay(1000), Fate::Delay(1000)]);
    assert_eq!(guest.receive(request::IN, 0, 512), None);
    assert_eq!(guest.send(request::OUT, 0, 512), None);
    assert_eq!(guest.bench.stop(), 0);
}

#[test]
fn a_reset_between_two_ranges_does_not_call_the_rest_done() {
    let mut guest = Guest::new();
    guest.disk.plan([Fate::Delay(1000)]);
    assert_eq!(
        guest.ranges(request::WRITE_ZEROES, &[(0, 8, 0), (8, 8, 0)]),
        None
    );
    assert_eq!(guest.bench.stop(), 0);
    assert_eq!(guest.bench.peek(STATUS, 1), [status::IOERR]);
    assert_eq!(guest.disk.seen().len(), 1);
}

#[test]
fn zeroes_and_discards_reach_the_disk_with_their_flags() {
    let mut guest = Guest::new();
    assert_eq!(
        guest.ranges(request::DISCARD, &[(8, 16, 0), (64, 8, 0)]),
        OK_1
    );
    assert_eq!(
        guest.ranges(request::WRITE_ZEROES, &[(0, 8, 1), (8, 8, 0)]),
        OK_1
    );
    let expected = [
        Seen::Discard(4096, 8192),
        Seen::Discard(32768, 4096),
        Seen::WriteZeroes(0, 4096, true),
        Seen::WriteZeroes(4096, 4096, false),
    ];
    assert_eq!(guest.disk.seen(), expected);
}

// Caching (section 5.2.6.2).

#[test]
fn with_flush_a_write_is_left_to_the_cache() {
    let mut guest = Guest::with(MemoryDisk::new(DISK_LEN), !feature::CONFIG_WCE, 16);
    guest.send(request::OUT, 0, 512);
    guest.flush();
    assert_eq!(guest.disk.seen(), [Seen::Write(0, false), Seen::Flush]);
}

#[test]
fn without_flush_and_config_wce_a_write_is_stable_before_it_completes() {
    let mut guest = Guest::with(
        MemoryDisk::new(DISK_LEN),
        !(feature::FLUSH | feature::CONFIG_WCE),
        16,
    );
    guest.send(request::OUT, 0, 512);
    assert_eq!(guest.disk.seen(), [Seen::Write(0, true)]);
}

#[test]
fn the_driver_switches_the_cache_off_and_a_reset_switches_it_on_again() {
    let mut guest = Guest::new();
    assert_eq!(guest.config().writeback, 1);
    guest.bench.device.write_config(CONFIG_WRITEBACK, &[0]);
    assert_eq!(guest.config().writeback, 0);
    guest.send(request::OUT, 0, 512);
    guest.bench.device.write_config(CONFIG_WRITEBACK, &[1]);
    guest.send(request::OUT, 0, 512);
    assert_eq!(
        guest.disk.seen(),
        [Seen::Write(0, true), Seen::Write(0, false)]
    );
    guest.bench.device.write_config(CONFIG_WRITEBACK, &[0]);
    guest.bench.stop();
    assert_eq!(guest.config().writeback, 1);
}

#[test]
fn a_writethrough_disk_offers_no_cache_to_flush() {
    let geometry = Geometry {
        write_cache: false,
        ..MemoryDisk::new(DISK_LEN).geometry()
    };
    let guest = Guest::with(MemoryDisk::with_geometry(geometry), u64::MAX, 16);
    assert_eq!(
        guest.bench.device.features() & (feature::FLUSH | feature::CONFIG_WCE),
        0
    );
    guest.bench.device.write_config(CONFIG_WRITEBACK, &[1]);
    assert_eq!(guest.config().writeback, 0, "the operator's word stands");
}

// Configuration space.

#[test]
fn the_configuration_space_describes_the_disk() {
    let guest = Guest::with(MemoryDisk::new(DISK_LEN), u64::MAX, 128);
    let config = guest.config();
    assert_eq!(config.capacity.get(), SECTORS);
    assert_eq!(
        config.seg_max.get(),
        126,
        "header and status have a descriptor each"
    );
    assert_eq!((config.blk_size.get(), config.physical_block_exp), (512, 3));
    assert_eq!((config.min_io_size.get(), config.num_queues.get()), (8, 1));
    assert_eq!(
        (
            config.max_discard_seg.get(),
            config.max_write_zeroes_seg.get()
        ),
        (16, 16)
    );
    assert_eq!(
        (
            config.discard_sector_alignment.get(),
            config.write_zeroes_may_unmap
        ),
        (8, 1)
    );
    let mut piece = [0xaa; 4];
    guest.bench.device.read_config(20, &mut piece);
    assert_eq!(piece, 512_u32.to_le_bytes(), "any part can be read");
    guest.bench.device.read_config(1 << 20, &mut piece);
    guest.bench.device.write_config(0, &[0xff; 8]);
    assert_eq!(
        guest.config().capacity.get(),
        SECTORS,
        "only one field can be written"
    );
}

#[test]
fn seg_max_fits_rings_of_any_size() {
    for (size, seg_max) in [
        (1, 1),
        (2, 1),
        (4, 2),
        (256, 254),
        (1024, 1022),
        (32768, 1022),
    ] {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_LEN));
        assert_eq!(
            Blk::new("disk0", disk, 1, size, "").seg_max(),
            seg_max,
            "{size}"
        );
    }
}

#[test]
fn several_queues_serve_one_disk() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_LEN));
    let device = Arc::new(Blk::new("disk0", disk, 4, 16, ""));
    let features = device.features();
    assert_ne!(features & feature::MQ, 0);
    let mut bench = Bench::start(Arc::clone(&device), features | VERSION_1, 16);
    for queue in 0..4_u16 {
        let header = RequestHeader {
            kind: request::IN.into(),
            ..RequestHeader::default()
        };
        bench.poke(HEADER, header.as_bytes());
        bench.rings[usize::from(queue)].offer(&[
            (HEADER, 16, false),
            (DATA, 512, true),
            (STATUS, 1, true),
        ]);
        assert_eq!(bench.kick(queue), Ok(Outcome::Idle));
        assert_eq!(bench.rings[usize::from(queue)].used().len(), 1);
    }
    assert_eq!(device.metrics().totals().read.requests, 4);
}
