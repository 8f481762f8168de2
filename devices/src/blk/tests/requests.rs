//! What the device is for: data under any framing, stability as negotiated, its configuration space.

use super::*;

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
fn rings_of_one_and_two_work_by_tables() {
    const TABLE: u64 = 0x800;
    for (size, mask) in [
        (1, u64::MAX),
        (1, !EVENT_IDX),
        (2, u64::MAX),
        (2, !EVENT_IDX),
    ] {
        let mut guest = Guest::with_ring(MemoryDisk::new(DISK_LEN), mask, size, 256);
        let request = |guest: &mut Guest, kind, sector, data: &[Buffer]| {
            guest.header(kind, sector);
            let mut chain = vec![(HEADER, 16, false)];
            chain.extend(data);
            chain.push((STATUS, 1, true));
            guest.bench.poke(STATUS, &[UNTOUCHED]);
            let head = guest.bench.rings[0].offer_table(TABLE, &chain);
            guest.bench.kick(0).expect("not broken");
            let used = guest.bench.rings[0].used();
            assert!(used.len() == 1 && used[0].0 == head, "{used:?}");
            assert_eq!(guest.bench.peek(STATUS, 1), [status::OK]);
        };
        for sector in 0..8_u8 {
            let data = [sector + 1; 512];
            guest.bench.poke(DATA, &data);
            request(
                &mut guest,
                request::OUT,
                sector.into(),
                &[(DATA, 100, false), (DATA + 100, 412, false)],
            );
            request(&mut guest, request::FLUSH, 0, &[]);
            guest.bench.poke(DATA, &[0; 512]);
            request(&mut guest, request::IN, sector.into(), &[(DATA, 512, true)]);
            assert_eq!(guest.bench.peek(DATA, 512), data, "ring of {size}");
        }
    }
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
    // A larger buffer gets no more.
    guest.bench.poke(DATA, &[0xff; 1 << 16]);
    assert_eq!(
        guest.receive(request::GET_ID, 0, 1 << 16),
        Some((status::OK, 20))
    );
    let rest = guest.bench.peek(DATA + 20, (1 << 16) - 20);
    assert!(rest.iter().all(|byte| *byte == 0xff));
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
fn all_features_are_offered_and_can_be_hidden() {
    let device = || {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(DISK_LEN));
        Blk::new("disk0", disk, 2, 16, "")
    };
    let offered = feature::SEG_MAX
        | feature::BLK_SIZE
        | feature::TOPOLOGY
        | feature::FLUSH
        | feature::CONFIG_WCE
        | feature::MQ
        | feature::DISCARD
        | feature::WRITE_ZEROES;
    assert_eq!(device().features(), offered);
    assert_eq!(device().mask(), u64::MAX);
    assert_eq!(device().without(feature::MQ).mask(), !feature::MQ);
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

#[test]
fn only_what_was_written_is_reported_as_used() {
    let mut guest = Guest::new();
    guest.bench.poke(DATA, &[0; 1024]);
    let (extra, status_at) = ((DATA + 4096, 512, true), (STATUS, 1, true));
    for kind in [request::OUT, request::FLUSH, request::DISCARD] {
        guest.header(kind, 0);
        let data: &[Buffer] = match kind {
            request::OUT => &[(DATA, 512, false)],
            // A range of no sectors.
            request::DISCARD => &[(DATA, 16, false)],
            _ => &[],
        };
        let chain = [&[(HEADER, 16, false)], data, &[extra, status_at]].concat();
        assert_eq!(guest.offer(&chain), Some((status::OK, 0)), "{kind}");
        let chain = [&[(HEADER, 16, false)], data, &[status_at]].concat();
        assert_eq!(guest.offer(&chain), Some((status::OK, 1)), "{kind}");
    }
    assert_eq!(guest.receive(request::IN, 0, 512), Some((status::OK, 513)));
}
