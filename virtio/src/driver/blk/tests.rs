//! The block driver against a minimal device on the crate's own device end.
#![expect(clippy::cast_possible_truncation, reason = "numbers of small disks")]

use super::*;
use crate::device::chain::DescriptorChain;
use crate::device::queue::ActiveQueue;
use crate::driver::{IndirectPolicy, QueueOptions, Window};
use crate::mem::PlainRam;
use crate::mem::testbed::Testbed;
use crate::scatterlist::ScatterList;
use crate::spec::blk::Config;
use crate::spec::feature::{EVENT_IDX, INDIRECT_DESC};

const SECTORS: usize = 64;
const RANGES: usize = 4;
const ALL: u64 = FEATURES & !feature::RO;

struct Rig {
    bed: Testbed,
    blk: Blk<DmaBytes, Window>,
    device: ActiveQueue<PlainRam>,
    disk: Vec<u8>,
    /// Request type, and the lengths of readable and writable descriptors, as seen by the device.
    seen: Vec<(u32, Vec<usize>, Vec<usize>)>,
    /// The status to answer with, if set.
    force: Option<u8>,
}

fn info(features: u64) -> Info {
    let config = Config {
        capacity: (SECTORS as u64).into(),
        seg_max: 6.into(),
        size_max: 4096.into(),
        blk_size: 512.into(),
        max_discard_sectors: 8.into(),
        max_discard_seg: 16.into(),
        max_write_zeroes_sectors: 16.into(),
        max_write_zeroes_seg: 2.into(),
        num_queues: 3.into(),
        ..Config::default()
    };
    Info::new(&config, features)
}

impl Rig {
    fn new(features: u64, policy: IndirectPolicy) -> Self {
        let mut bed = Testbed::new(1 << 20);
        let ring = EVENT_IDX | INDIRECT_DESC;
        let options = QueueOptions::new(16, ring).tables(16).policy(policy);
        let queue = bed.queue(options);
        let frames = bed.take(16 * Blk::<DmaBytes, Window>::frame_len(RANGES));
        let device = bed.device_end(queue.areas(), ring);
        Self {
            bed,
            blk: Blk::new(queue, frames, RANGES, info(features)),
            device,
            disk: (0..SECTORS * 512).map(|at| (at / 512) as u8).collect(),
            seen: Vec::new(),
            force: None,
        }
    }

    fn bio(&mut self, transfer: Transfer, sector: u64, pieces: &[usize]) -> Bio {
        let data = pieces
            .iter()
            .map(|len| self.bed.take(*len))
            .collect::<Vec<_>>();
        Bio {
            transfer,
            sector,
            data: ScatterList::from_buffers(data),
        }
    }

    fn serve(&mut self) {
        while let Some(chain) = self.device.pop().unwrap() {
            let (chain, written) = self.answer(chain);
            self.device.complete(chain, written);
        }
        let _ = self.device.publish();
    }

    fn answer(&mut self, mut chain: DescriptorChain<PlainRam>) -> (DescriptorChain<PlainRam>, u32) {
        let lengths =
            |segments: &[crate::mem::Segment]| segments.iter().map(|it| it.len()).collect();
        let (readable, writable) = (lengths(chain.readable()), lengths(chain.writable()));
        let mut reader = chain.reader();
        let header: RequestHeader = reader.read_obj().unwrap();
        let mut data = vec![0; reader.remaining() as usize];
        reader.read_exact(&mut data).unwrap();
        let kind = header.kind.get();
        self.seen.push((kind, readable, writable));
        let at = header.sector.get() as usize * 512;
        let room = chain.writable_len() as usize - 1;
        let mut reply = Vec::new();
        match kind {
            kind::IN => reply = self.disk[at..at + room].to_vec(),
            kind::OUT => self.disk[at..at + data.len()].copy_from_slice(&data),
            kind::GET_ID => reply = b"serial-0123456789abc".to_vec(),
            kind::WRITE_ZEROES | kind::DISCARD => {
                for range in data.chunks(16) {
                    let from = u64::from_le_bytes(range[..8].try_into().unwrap()) as usize * 512;
                    let len = u32::from_le_bytes(range[8..12].try_into().unwrap()) as usize * 512;
                    self.disk[from..from + len].fill(0);
                }
            }
            _ => {}
        }
        let mut writer = chain.writer();
        writer.write_all(&reply).unwrap();
        writer
            .write_all(&[self.force.unwrap_or(status::OK)])
            .unwrap();
        (chain, reply.len() as u32 + 1)
    }

    /// Submits a request, runs the device and returns the completed request.
    fn run(&mut self, submit: impl FnOnce(&mut Blk<DmaBytes, Window>)) -> CompletedRequest {
        submit(&mut self.blk);
        let _ = self.blk.publish();
        self.serve();
        let done = self.blk.poll().unwrap().expect("done");
        assert!(self.blk.poll().unwrap().is_none());
        done
    }
}

fn contents(work: &mut Work) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut take = |bio: &mut Bio| {
        bio.data
            .for_each_mut(|it| bytes.extend_from_slice(it.bytes()))
    };
    match work {
        Work::Bio(bio) => take(bio),
        Work::Merged(merged) => {
            for mut bio in merged.drain() {
                take(&mut bio);
            }
        }
        _ => {}
    }
    bytes
}

#[test]
fn a_bio_goes_out_as_its_segments_between_header_and_status() {
    for policy in [IndirectPolicy::Never, IndirectPolicy::Always] {
        let mut rig = Rig::new(ALL, policy);
        let bio = rig.bio(Transfer::Read, 3, &[512, 1024, 512]);
        let mut done = rig.run(|blk| blk.bio(7, bio).unwrap());
        assert_eq!((done.tag, done.result, done.id), (7, Ok(()), None));
        let bytes = contents(&mut done.work);
        assert_eq!(
            [bytes[0], bytes[512], bytes[1535], bytes[2047]],
            [3, 4, 5, 6]
        );
        assert_eq!(rig.seen, [(kind::IN, vec![16], vec![512, 1024, 512, 1])]);

        let mut bio = rig.bio(Transfer::Write, 10, &[256, 256]);
        bio.data.for_each_mut(|piece| piece.bytes_mut().fill(0xaa));
        let done = rig.run(|blk| blk.bio(8, bio).unwrap());
        assert_eq!(done.result, Ok(()));
        assert_eq!(rig.seen[1], (kind::OUT, vec![16, 256, 256], vec![1]));
        assert_eq!(rig.disk[10 * 512..11 * 512], [0xaa; 512]);
        assert_eq!((rig.disk[10 * 512 - 1], rig.disk[11 * 512]), (9, 11));
    }
}

#[test]
fn adjacent_bios_go_out_as_one_request_list_after_list() {
    let mut rig = Rig::new(ALL, IndirectPolicy::Auto);
    let mut merged = Merged::with_capacity(4);
    let middle = rig.bio(Transfer::Read, 5, &[512, 512]);
    let back = rig.bio(Transfer::Read, 7, &[512]);
    let front = rig.bio(Transfer::Read, 4, &[256, 256]);
    let apart = rig.bio(Transfer::Read, 9, &[512]);
    let write = rig.bio(Transfer::Write, 8, &[512]);
    let ragged = rig.bio(Transfer::Read, 8, &[511]);
    for bio in [middle, back, front] {
        merged.merge(bio).unwrap();
    }
    for bio in [apart, write, ragged] {
        assert!(merged.merge(bio).is_err());
    }
    let sectors: Vec<_> = merged.bios().iter().map(|bio| bio.sector).collect();
    assert_eq!(sectors, [4, 5, 7]);
    let last = rig.bio(Transfer::Read, 8, &[512]);
    merged.merge(last).unwrap();
    let more = rig.bio(Transfer::Read, 9, &[512]);
    assert!(merged.merge(more).is_err(), "no room, no allocation");

    let mut done = rig.run(|blk| blk.merged(1, merged).unwrap());
    assert_eq!(
        rig.seen,
        [(kind::IN, vec![16], vec![256, 256, 512, 512, 512, 512, 1])]
    );
    let bytes = contents(&mut done.work);
    let firsts: Vec<_> = bytes.chunks(512).map(|sector| sector[0]).collect();
    assert_eq!(firsts, [4, 5, 6, 7, 8]);
}

#[test]
fn flush_and_get_id_have_no_data_of_the_caller_s() {
    let mut rig = Rig::new(ALL, IndirectPolicy::Auto);
    let done = rig.run(|blk| blk.flush(1).unwrap());
    assert!(matches!(done.work, Work::Flush));
    let done = rig.run(|blk| blk.get_id(2).unwrap());
    assert_eq!(done.id.as_ref(), Some(b"serial-0123456789abc"));
    let expected = [
        (kind::FLUSH, vec![16], vec![1]),
        (kind::GET_ID, vec![16], vec![20, 1]),
    ];
    assert_eq!(rig.seen, expected);
}

fn range(sector: u64, sectors: u32, flags: u32) -> Range {
    Range {
        sector: sector.into(),
        num_sectors: sectors.into(),
        flags: flags.into(),
    }
}

#[test]
fn discards_and_zeroes_carry_their_ranges_as_a_payload() {
    let mut rig = Rig::new(ALL, IndirectPolicy::Auto);
    let ranges = [range(2, 1, 0), range(6, 8, 0), range(20, 1, 0)];
    let done = rig.run(|blk| blk.discard(1, &ranges).unwrap());
    assert_eq!(done.result, Ok(()));
    let done = rig.run(|blk| blk.write_zeroes(2, &[range(40, 16, 1)]).unwrap());
    assert!(matches!(done.work, Work::WriteZeroes));
    let expected = [
        (kind::DISCARD, vec![16, 48], vec![1]),
        (kind::WRITE_ZEROES, vec![16, 16], vec![1]),
    ];
    assert_eq!(rig.seen, expected);
    let zero = |sector: usize| rig.disk[sector * 512..][..512] == [0; 512];
    assert!([2, 6, 13, 20, 40, 55].into_iter().all(zero));
    assert!(![1, 3, 5, 14, 19, 21, 39, 56].into_iter().any(zero));
}

fn why(submitted: Result<(), NotSubmitted>) -> BlkSubmitError {
    submitted.expect_err("refused").why
}

#[test]
fn what_the_device_would_refuse_is_not_submitted_and_comes_back() {
    let mut rig = Rig::new(ALL, IndirectPolicy::Auto);
    for (sector, pieces, expected) in [
        (0, &[100][..], BlkSubmitError::OutOfRange),
        (0, &[], BlkSubmitError::OutOfRange),
        (63, &[512, 512], BlkSubmitError::OutOfRange),
        (u64::MAX, &[512], BlkSubmitError::OutOfRange),
        (0, &[512; 7], BlkSubmitError::Segments),
        (0, &[4608], BlkSubmitError::Segments),
    ] {
        let bio = rig.bio(Transfer::Read, sector, pieces);
        let refused = rig.blk.bio(0, bio).unwrap_err();
        assert_eq!(refused.why, expected, "{sector} {pieces:?}");
        let Work::Bio(bio) = refused.work else {
            panic!("not the bio")
        };
        assert_eq!(bio.data.segments(), pieces.len());
    }
    assert_eq!(
        why(rig.blk.discard(0, &[range(60, 5, 0)])),
        BlkSubmitError::OutOfRange
    );
    assert_eq!(
        why(rig.blk.discard(0, &[range(u64::MAX, 5, 0)])),
        BlkSubmitError::OutOfRange
    );
    assert_eq!(
        why(rig.blk.discard(0, &[range(0, 9, 0)])),
        BlkSubmitError::NotOffered
    );
    assert_eq!(
        why(rig.blk.discard(0, &[range(0, 1, 0); 5])),
        BlkSubmitError::NotOffered,
        "no frame"
    );
    assert_eq!(
        why(rig.blk.write_zeroes(0, &[range(0, 1, 0); 3])),
        BlkSubmitError::NotOffered
    );
    assert_eq!(rig.blk.in_flight(), 0);

    rig.blk.set_info(info(feature::RO));
    let bio = rig.bio(Transfer::Write, 0, &[512]);
    assert_eq!(why(rig.blk.bio(0, bio)), BlkSubmitError::ReadOnly);
    assert_eq!(why(rig.blk.flush(0)), BlkSubmitError::NotOffered);
    assert_eq!(
        why(rig.blk.discard(0, &[range(0, 1, 0)])),
        BlkSubmitError::NotOffered
    );
    rig.blk.set_info(info(feature::RO | feature::DISCARD));
    assert_eq!(
        why(rig.blk.discard(0, &[range(0, 1, 0)])),
        BlkSubmitError::ReadOnly
    );
}

#[test]
fn features_decide_which_configuration_fields_count() {
    let plain = info(0);
    let expected = (1, u32::MAX, 512, 1, None, None);
    let fields = (
        plain.seg_max,
        plain.size_max,
        plain.block_size,
        plain.queues,
    );
    assert_eq!(
        (
            fields.0,
            fields.1,
            fields.2,
            fields.3,
            plain.discard,
            plain.write_zeroes
        ),
        expected
    );
    let all = info(ALL);
    assert_eq!(
        (all.seg_max, all.size_max, all.queues, all.flush),
        (6, 4096, 3, true)
    );
}

#[test]
fn every_status_is_told_apart() {
    let mut rig = Rig::new(ALL, IndirectPolicy::Auto);
    for (status, expected) in [
        (status::IOERR, RequestError::Io),
        (status::UNSUPP, RequestError::Unsupported),
        (3, RequestError::Status(3)),
        (NOT_WRITTEN, RequestError::Status(0xff)),
    ] {
        rig.force = Some(status);
        let done = rig.run(|blk| blk.get_id(0).unwrap());
        assert_eq!((done.result, done.id), (Err(expected), None));
    }
}

#[test]
fn a_full_queue_gives_the_bio_back_and_a_reset_all_of_them() {
    for policy in [IndirectPolicy::Never, IndirectPolicy::Always] {
        let mut rig = Rig::new(ALL, policy);
        let mut sent = 0;
        let refused = loop {
            let bio = rig.bio(Transfer::Read, 0, &[512, 512]);
            match rig.blk.bio(sent, bio) {
                Ok(()) => sent += 1,
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused.why, BlkSubmitError::Queue(Refusal::Full));
        assert_eq!(
            sent,
            if policy == IndirectPolicy::Never {
                4
            } else {
                16
            }
        );
        let mut tags = Vec::new();
        let proof = rig.bed.proof();
        rig.blk
            .reclaim(&proof, |done| tags.push((done.tag, done.result)))
            .unwrap();
        tags.sort_unstable_by_key(|(tag, _)| *tag);
        let not_done = Err(RequestError::Status(NOT_WRITTEN));
        assert_eq!(
            tags,
            (0..sent).map(|tag| (tag, not_done)).collect::<Vec<_>>()
        );
        rig.device = rig
            .bed
            .device_end(rig.blk.areas(), EVENT_IDX | INDIRECT_DESC);
        let done = rig.run(|blk| blk.flush(99).unwrap());
        assert_eq!((done.tag, done.result), (99, Ok(())));
    }
}

#[test]
fn a_lying_device_breaks_the_queue_and_the_driver_says_so() {
    let mut rig = Rig::new(ALL, IndirectPolicy::Auto);
    rig.blk.flush(0).unwrap();
    let _ = rig.blk.publish();
    rig.bed.forge_used(rig.blk.areas(), 1, 9, 0);
    assert_eq!(rig.blk.poll().err(), Some(Broken::NotInFlight(9)));
    assert!(matches!(
        why(rig.blk.flush(1)),
        BlkSubmitError::Queue(Refusal::Broken(_))
    ));
}
