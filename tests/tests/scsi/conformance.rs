//! What an independent conformance suite asks of a disk, family by family: transfers of all widths at both ends of
//! the unit, past them, of nothing, with protection and cache bits; comparing, repeating and merging commands; limits
//! that are kept; reports that agree with what is done.

use splitring_devices::disk::config::Aio;
use splitring_devices::scsi::UnitConfig;

use crate::guest::{Answer, Guest, Image, one};

const MISCOMPARE: [u8; 3] = [0xe, 0x1d, 0];
const OUT_OF_RANGE: [u8; 3] = [5, 0x21, 0];
const BAD_FIELD: [u8; 3] = [5, 0x24, 0];

/// The length of a CDB decides where its fields are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Width {
    Six,
    Ten,
    Twelve,
    Sixteen,
}

use Width::{Six, Sixteen, Ten, Twelve};

/// Whether data goes in, out, or nowhere.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flow {
    In,
    Out,
    None,
}

/// A family of commands that transfer a run of blocks.
#[derive(Clone, Copy, Debug)]
struct Family {
    opcode: u8,
    width: Width,
    flow: Flow,
    /// Bits of byte 1 that the plain command sets.
    flags: u8,
    /// DPO and FUA, as far as the command has them.
    cache_bits: u8,
    /// It has a field for protection information.
    protection: bool,
}

const fn family(opcode: u8, width: Width, flow: Flow, flags: u8, cache_bits: u8) -> Family {
    let protection = !matches!(width, Six) && cache_bits != 0;
    Family {
        opcode,
        width,
        flow,
        flags,
        cache_bits,
        protection,
    }
}

const READS: [Family; 4] = [
    family(0x08, Six, Flow::In, 0, 0),
    family(0x28, Ten, Flow::In, 0, 0x18),
    family(0xa8, Twelve, Flow::In, 0, 0x18),
    family(0x88, Sixteen, Flow::In, 0, 0x18),
];
const WRITES: [Family; 5] = [
    family(0x0a, Six, Flow::Out, 0, 0),
    family(0x2a, Ten, Flow::Out, 0, 0x18),
    family(0xaa, Twelve, Flow::Out, 0, 0x18),
    family(0x8a, Sixteen, Flow::Out, 0, 0x18),
    family(0x8b, Sixteen, Flow::Out, 0, 0x18),
];
const WRITE_AND_VERIFIES: [Family; 3] = [
    family(0x2e, Ten, Flow::Out, 0x02, 0x10),
    family(0xae, Twelve, Flow::Out, 0x02, 0x10),
    family(0x8e, Sixteen, Flow::Out, 0x02, 0x10),
];
const VERIFIES: [Family; 3] = [
    family(0x2f, Ten, Flow::Out, 0x02, 0x10),
    family(0xaf, Twelve, Flow::Out, 0x02, 0x10),
    family(0x8f, Sixteen, Flow::Out, 0x02, 0x10),
];
const PREFETCHES: [Family; 2] = [
    family(0x34, Ten, Flow::None, 0, 0),
    family(0x90, Sixteen, Flow::None, 0, 0),
];

fn cdb(width: Width, opcode: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    let (lba, blocks) = (lba.to_be_bytes(), blocks.to_be_bytes());
    match width {
        Six => {
            cdb[1] |= lba[5] & 0x1f;
            cdb.extend([lba[6], lba[7], blocks[3], 0]);
        }
        Ten => {
            cdb.extend(&lba[4..]);
            cdb.extend([0, blocks[2], blocks[3], 0]);
        }
        Twelve => {
            cdb.extend(&lba[4..]);
            cdb.extend(blocks);
            cdb.extend([0, 0]);
        }
        Sixteen => {
            cdb.extend(lba);
            cdb.extend(blocks);
            cdb.extend([0, 0]);
        }
    }
    cdb
}

/// A guest with one unit of known size.
struct Unit {
    guest: Guest,
    _file: tempfile::NamedTempFile,
    block: usize,
    blocks: u64,
}

impl Unit {
    fn new(image: Image, unit: UnitConfig) -> Self {
        let (file, device) = one(image, unit);
        let block = usize::try_from(image.block).unwrap();
        Self {
            guest: Guest::settled(device),
            _file: file,
            block,
            blocks: image.bytes / u64::from(image.block),
        }
    }

    fn transfer(
        &mut self,
        family: Family,
        flags: u8,
        lba: u64,
        blocks: u32,
        data: &[u8],
    ) -> Answer {
        let cdb = cdb(
            family.width,
            family.opcode,
            family.flags | flags,
            lba,
            blocks,
        );
        let room = if family.flow == Flow::In {
            self.block * blocks as usize
        } else {
            0
        };
        self.guest.to(&cdb, data, room)
    }

    fn data(&self, family: Family, blocks: u32, fill: u8) -> Vec<u8> {
        match family.flow {
            Flow::Out => vec![fill; self.block * blocks as usize],
            _ => Vec::new(),
        }
    }

    fn read(&mut self, lba: u64, blocks: u32) -> Vec<u8> {
        let answer = self.transfer(READS[3], 0, lba, blocks, &[]).expect_good();
        assert_eq!(answer.residual, 0);
        answer.data
    }

    fn write(&mut self, lba: u64, data: &[u8]) {
        let blocks = u32::try_from(data.len() / self.block).unwrap();
        self.transfer(WRITES[3], 0, lba, blocks, data).expect_good();
    }

    /// The bits of byte 1 that the device says the command has.
    fn reported_bits(&mut self, opcode: u8) -> u8 {
        let answer = self.guest.to(
            &[0xa3, 0x0c, 1, opcode, 0, 0, 0, 0, 0xff, 0xff, 0, 0],
            &[],
            0xffff,
        );
        answer.expect_good().data[5]
    }
}

/// The disks every family is tried on.
fn units() -> Vec<Unit> {
    let small = Image::default();
    [
        small,
        Image {
            block: 4096,
            bytes: 16 << 20,
            ..small
        },
        Image {
            aio: Aio::Plain,
            discard: false,
            ..small
        },
    ]
    .into_iter()
    .map(|image| Unit::new(image, UnitConfig::new("disk")))
    .collect()
}

/// 1, 2, and then sparser up to 256: what the suite tries densely.
fn counts() -> impl Iterator<Item = u32> {
    (1..=256).filter(|count| *count < 4 || count % 85 == 0 || *count > 254)
}

#[track_caller]
fn refused(answer: &Answer, sense: [u8; 3]) {
    answer.expect_sense(sense[0], sense[1], sense[2]);
}

#[test]
fn transfers_work_at_both_ends_of_the_unit() {
    for mut unit in units() {
        for family in READS
            .into_iter()
            .chain(WRITES)
            .chain(WRITE_AND_VERIFIES)
            .chain(PREFETCHES)
        {
            for count in counts() {
                // A length of 256 in six bytes is written as 0.
                let data = unit.data(family, count, 0xa6);
                unit.transfer(family, 0, 0, count, &data).expect_good();
                unit.transfer(family, 0, unit.blocks - u64::from(count), count, &data)
                    .expect_good();
            }
        }
    }
}

#[test]
fn transfers_past_the_end_are_refused_whole() {
    for mut unit in units() {
        let last = unit.blocks - 1;
        let before = unit.read(last, 1);
        for family in READS
            .into_iter()
            .chain(WRITES)
            .chain(WRITE_AND_VERIFIES)
            .chain(VERIFIES)
            .chain(PREFETCHES)
        {
            if family.width == Six {
                continue;
            }
            let mut far = vec![0x8000_0000, 0xffff_ffff];
            if family.width == Sixteen {
                far.extend([1 << 63, u64::MAX, 1 << 55, 1 << 54]);
            }
            for count in counts() {
                let data = unit.data(family, count, 0xa6);
                let near = unit.blocks + 1 - u64::from(count);
                for lba in far.iter().copied().chain([near]) {
                    refused(&unit.transfer(family, 0, lba, count, &data), OUT_OF_RANGE);
                }
                if count > 1 {
                    refused(&unit.transfer(family, 0, last, count, &data), OUT_OF_RANGE);
                }
            }
        }
        assert_eq!(unit.read(last, 1), before);
    }
}

#[test]
fn transfers_of_nothing_are_good_within_the_unit_only() {
    for mut unit in units() {
        for family in READS
            .into_iter()
            .chain(WRITES)
            .chain(WRITE_AND_VERIFIES)
            .chain(VERIFIES)
            .chain(PREFETCHES)
        {
            if family.width == Six {
                continue;
            }
            unit.transfer(family, 0, 0, 0, &[]).expect_good();
            for lba in [unit.blocks + 1, 0x8000_0000, 0xffff_ffff] {
                refused(&unit.transfer(family, 0, lba, 0, &[]), OUT_OF_RANGE);
            }
        }
    }
}

#[test]
fn protection_bits_are_refused_and_cache_bits_taken_as_reported() {
    for mut unit in units() {
        for family in READS
            .into_iter()
            .chain(WRITES)
            .chain(WRITE_AND_VERIFIES)
            .chain(VERIFIES)
        {
            if family.width == Six {
                continue;
            }
            let data = match family.opcode {
                0x2f | 0xaf | 0x8f => unit.read(0, 1),
                _ => unit.data(family, 1, 0xa6),
            };
            if family.protection {
                for protect in 1..8u8 {
                    refused(&unit.transfer(family, protect << 5, 0, 1, &data), BAD_FIELD);
                }
            }
            assert_eq!(unit.reported_bits(family.opcode) & 0x18, family.cache_bits);
            for bits in [0x10, 0x08, 0x18] {
                let answer = unit.transfer(family, bits & family.cache_bits, 0, 1, &data);
                answer.expect_good();
            }
        }
    }
}

#[test]
fn verify_compares_bytes_only_when_told_to() {
    for mut unit in units() {
        for family in VERIFIES {
            for count in counts() {
                for lba in [0, unit.blocks - u64::from(count)] {
                    let good = unit.read(lba, count);
                    unit.transfer(family, 0, lba, count, &good).expect_good();
                    let mut wrong = good.clone();
                    let at = (count as usize * 97 + 13) % wrong.len();
                    wrong[at] ^= b'X';
                    let answer = unit.transfer(family, 0, lba, count, &wrong);
                    refused(&answer, MISCOMPARE);
                    let information =
                        u32::from_be_bytes(answer.raw_sense[3..7].try_into().unwrap());
                    assert_eq!((answer.raw_sense[0], information as usize), (0xf0, at));
                    let plain = cdb(family.width, family.opcode, 0, lba, count);
                    unit.guest.to(&plain, &[], 0).expect_good();
                }
            }
        }
    }
}

#[test]
fn write_and_verify_leaves_its_data_behind() {
    for mut unit in units() {
        for (family, fill) in WRITE_AND_VERIFIES.into_iter().zip(1..) {
            let data = unit.data(family, 3, fill);
            unit.transfer(family, 0, 5, 3, &data).expect_good();
            assert_eq!(unit.read(5, 3), data);
        }
    }
}

#[test]
fn orwrite_sets_bits_and_clears_none() {
    for mut unit in units() {
        for count in counts() {
            for lba in [0, unit.blocks - u64::from(count)] {
                let bytes = unit.block * count as usize;
                unit.write(lba, &vec![0; bytes]);
                unit.transfer(WRITES[4], 0, lba, count, &vec![0xa5; bytes])
                    .expect_good();
                assert_eq!(unit.read(lba, count), vec![0xa5; bytes]);
                unit.transfer(WRITES[4], 0, lba, count, &vec![0x5a; bytes])
                    .expect_good();
                assert_eq!(unit.read(lba, count), vec![0xff; bytes]);
            }
        }
    }
}

fn compare_and_write(unit: &mut Unit, lba: u64, old: &[u8], new: &[u8], flags: u8) -> Answer {
    let blocks = u32::try_from(new.len() / unit.block).unwrap();
    let mut cdb = cdb(Sixteen, 0x89, flags, lba, 0);
    cdb[13] = u8::try_from(blocks).unwrap();
    unit.guest.to(&cdb, &[old, new].concat(), 0)
}

#[test]
fn compare_and_write_is_all_or_nothing() {
    for mut unit in units() {
        for count in counts().filter(|count| *count < 256) {
            for lba in [0, unit.blocks - u64::from(count)] {
                let bytes = unit.block * count as usize;
                let (old, new) = (vec![b'A'; bytes], vec![b'B'; bytes]);
                unit.write(lba, &old);
                let mut wrong = old.clone();
                wrong[bytes - 27] = b'C';
                refused(
                    &compare_and_write(&mut unit, lba, &wrong, &new, 0),
                    MISCOMPARE,
                );
                assert_eq!(unit.read(lba, count), old);
                compare_and_write(&mut unit, lba, &old, &new, 0).expect_good();
                assert_eq!(unit.read(lba, count), new);
            }
        }
        let (block, end) = (vec![0; unit.block], unit.blocks);
        for protect in 1..8u8 {
            refused(
                &compare_and_write(&mut unit, 0, &block, &block, protect << 5),
                BAD_FIELD,
            );
        }
        refused(
            &compare_and_write(&mut unit, end, &block, &block, 0),
            OUT_OF_RANGE,
        );
        assert_eq!(unit.reported_bits(0x89) & 0x18, 0x18);
    }
}

fn write_same(
    unit: &mut Unit,
    width: Width,
    flags: u8,
    lba: u64,
    blocks: u32,
    data: &[u8],
) -> Answer {
    let opcode = if width == Ten { 0x41 } else { 0x93 };
    unit.guest
        .to(&cdb(width, opcode, flags, lba, blocks), data, 0)
}

#[test]
fn write_same_repeats_a_block_within_its_limits() {
    const UNMAP: u8 = 0x08;
    const NO_DATA: u8 = 0x01;
    for mut unit in units() {
        let thin = unit.reported_bits(0x93) & UNMAP != 0;
        for width in [Ten, Sixteen] {
            for count in counts() {
                for lba in [0, unit.blocks - u64::from(count)] {
                    let block = vec![count.to_le_bytes()[0] | 1; unit.block];
                    write_same(&mut unit, width, 0, lba, count, &block).expect_good();
                    assert_eq!(unit.read(lba, count), block.repeat(count as usize));
                    let zero = vec![0; unit.block];
                    if thin {
                        write_same(&mut unit, width, UNMAP, lba, count, &zero).expect_good();
                    } else {
                        refused(
                            &write_same(&mut unit, width, UNMAP, lba, count, &zero),
                            BAD_FIELD,
                        );
                        write_same(&mut unit, width, 0, lba, count, &zero).expect_good();
                    }
                    assert_eq!(unit.read(lba, count), zero.repeat(count as usize));
                }
            }
            let (block, end) = (vec![1; unit.block], unit.blocks);
            // WSNZ is set, so nothing runs to the end of the unit.
            refused(&write_same(&mut unit, width, 0, 0, 0, &block), BAD_FIELD);
            for protect in 1..8u8 {
                refused(
                    &write_same(&mut unit, width, protect << 5, 0, 1, &block),
                    BAD_FIELD,
                );
            }
            // Anchoring is not offered.
            refused(&write_same(&mut unit, width, 0x10, 0, 1, &block), BAD_FIELD);
            refused(&write_same(&mut unit, width, 0x18, 0, 1, &block), BAD_FIELD);
            refused(
                &write_same(&mut unit, width, 0, end, 1, &block),
                OUT_OF_RANGE,
            );
            // Half a block can't be taken, two blocks can't be meant.
            let short = write_same(&mut unit, width, 0, 0, 1, &block[..block.len() / 2]);
            assert_eq!(short.response, 1);
            refused(
                &write_same(&mut unit, width, 0, 0, 1, &block.repeat(2)),
                BAD_FIELD,
            );
        }
        write_same(&mut unit, Sixteen, NO_DATA, 3, 4, &[]).expect_good();
        assert_eq!(unit.read(3, 4), vec![0; 4 * unit.block]);
    }
}

#[test]
fn lengths_beyond_the_reported_limits_are_refused() {
    // Sparse, so that the range is there without the disk.
    let mut unit = Unit::new(
        Image {
            bytes: 64 << 20,
            ..Image::default()
        },
        UnitConfig::new("disk"),
    );
    let limits = unit
        .guest
        .to(&[0x12, 1, 0xb0, 0, 64, 0], &[], 64)
        .expect_good()
        .data;
    let most = u32::from_be_bytes(limits[8..12].try_into().unwrap());
    let repeat = u64::from_be_bytes(limits[36..44].try_into().unwrap());
    assert_eq!((most, repeat), (0xffff, 0xffff));
    let block = vec![7; unit.block];
    refused(
        &write_same(&mut unit, Sixteen, 0, 0, 0x1_0000, &block),
        BAD_FIELD,
    );
    write_same(&mut unit, Sixteen, 0, 0, 0xffff, &block).expect_good();
    assert_eq!(unit.read(0xfffe, 1), block);
    let verify = cdb(Sixteen, 0x8f, 0, 0, 0x1_0000);
    refused(&unit.guest.to(&verify, &[], 0), BAD_FIELD);
    unit.guest
        .to(&cdb(Sixteen, 0x8f, 0, 0, 0xffff), &[], 0)
        .expect_good();
}

fn unmap(unit: &mut Unit, ranges: &[(u64, u32)]) -> Answer {
    let mut list = Vec::new();
    let length = u16::try_from(ranges.len() * 16).unwrap();
    list.extend((length + 6).to_be_bytes());
    list.extend(length.to_be_bytes());
    list.extend([0; 4]);
    for (lba, count) in ranges {
        list.extend(lba.to_be_bytes());
        list.extend(count.to_be_bytes());
        list.extend([0; 4]);
    }
    let total = u16::try_from(list.len()).unwrap().to_be_bytes();
    unit.guest
        .to(&[0x42, 0, 0, 0, 0, 0, 0, total[0], total[1], 0], &list, 0)
}

#[test]
fn unmap_deallocates_what_its_list_says_or_nothing() {
    let mut unit = Unit::new(Image::default(), UnitConfig::new("disk"));
    let data = vec![b'a'; unit.block * 256];
    unit.write(0, &data);
    for count in counts() {
        unmap(&mut unit, &[(0, count)]).expect_good();
        assert_eq!(unit.read(0, count), vec![0; unit.block * count as usize]);
    }
    unit.write(0, &data);
    let each: Vec<(u64, u32)> = (0..256).map(|lba| (lba, 1)).collect();
    unmap(&mut unit, &each).expect_good();
    assert_eq!(unit.read(0, 256), vec![0; data.len()]);
    for nothing in [
        vec![],
        vec![(0, 0)],
        vec![(unit.blocks, 0)],
        vec![(7, 0); 256],
    ] {
        unmap(&mut unit, &nothing).expect_good();
    }
    unit.write(0, &data);
    // The first range is good and the last is not: neither is touched.
    let end = unit.blocks;
    refused(&unmap(&mut unit, &[(0, 8), (end, 1)]), OUT_OF_RANGE);
    refused(&unmap(&mut unit, &[(0, 8), (u64::MAX, 2)]), OUT_OF_RANGE);
    refused(&unmap(&mut unit, &[(0, 8); 257]), [5, 0x26, 0]);
    assert_eq!(unit.read(0, 256), data);
}

#[test]
fn malformed_unmap_lists_apply_nothing() {
    let mut unit = Unit::new(Image::default(), UnitConfig::new("disk"));
    unit.write(0, &vec![9; unit.block]);
    let list = |data: u16, length: u16, bytes: usize| {
        let mut list = [data.to_be_bytes(), length.to_be_bytes(), [0; 2], [0; 2]].concat();
        list.extend(0u64.to_be_bytes());
        list.extend(1u32.to_be_bytes());
        list.resize(bytes, 0);
        list
    };
    let cases: [(Vec<u8>, [u8; 3]); 5] = [
        (list(22, 16, 7), [5, 0x1a, 0]),
        (list(22, 16, 23), [5, 0x1a, 0]),
        (list(22, 32, 24), [5, 0x1a, 0]),
        (list(23, 16, 24), [5, 0x1a, 0]),
        (list(22, 15, 24), [5, 0x26, 0]),
    ];
    for (list, sense) in cases {
        let cdb = [
            0x42,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            u8::try_from(list.len()).unwrap(),
            0,
        ];
        refused(&unit.guest.to(&cdb, &list, 0), sense);
    }
    assert_eq!(unit.read(0, 1), vec![9; unit.block]);
}

#[test]
fn lba_status_tells_holes_from_data() {
    let mut unit = Unit::new(
        Image {
            block: 4096,
            bytes: 4 << 20,
            ..Image::default()
        },
        UnitConfig::new("disk"),
    );
    let status = |unit: &mut Unit, lba: u64, room: u8| {
        let mut cdb = vec![0x9e, 0x12];
        cdb.extend(lba.to_be_bytes());
        cdb.extend([0, 0, 0, room, 0, 0]);
        unit.guest.to(&cdb, &[], room.into())
    };
    unit.write(0, &vec![1; unit.block * 256]);
    for lba in (0..255).step_by(17) {
        unmap(&mut unit, &[(lba, 1)]).expect_good();
        let hole = status(&mut unit, lba, 24).expect_good().data;
        assert_eq!(
            (hole.len(), &hole[8..16], &hole[16..21]),
            (24, &lba.to_be_bytes()[..], &[0, 0, 0, 1, 1][..])
        );
        let data = status(&mut unit, lba + 1, 24).expect_good().data;
        assert_eq!((&data[8..16], data[20]), (&(lba + 1).to_be_bytes()[..], 0));
    }
    let all = status(&mut unit, 0, 255).expect_good().data;
    assert_eq!(
        u32::from_be_bytes(all[..4].try_into().unwrap()) as usize,
        all.len().div_ceil(16) * 16 - 8 - 4
    );
    let end = unit.blocks;
    refused(&status(&mut unit, end, 24), OUT_OF_RANGE);
    refused(&status(&mut unit, u64::MAX, 24), OUT_OF_RANGE);
}

#[test]
fn capacities_of_all_sizes() {
    for (bytes, block) in [
        (4 << 20, 512),
        (4 << 20, 4096),
        (8 << 40, 512),
        (8 << 40, 4096),
    ] {
        let mut unit = Unit::new(
            Image {
                bytes,
                block,
                ..Image::default()
            },
            UnitConfig::new("disk"),
        );
        let last = unit.blocks - 1;
        let ten = unit
            .guest
            .to(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[], 8)
            .expect_good()
            .data;
        let short = u32::try_from(last).unwrap_or(u32::MAX);
        assert_eq!(ten, [short.to_be_bytes(), block.to_be_bytes()].concat());
        for room in 0..=40u8 {
            let cdb = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, room, 0, 0];
            let answer = unit.guest.to(&cdb, &[], room.into()).expect_good();
            assert_eq!(answer.data.len(), usize::from(room.min(32)));
            if room >= 12 {
                assert_eq!(answer.data[..8], last.to_be_bytes());
                assert_eq!(answer.data[8..12], block.to_be_bytes());
            }
        }
        // The last block of 8 TiB is as good as any.
        let data = vec![0xe7; unit.block];
        unit.write(last, &data);
        assert_eq!(unit.read(last, 1), data);
    }
}

#[test]
fn reported_commands_are_the_ones_that_are_there() {
    let mut unit = Unit::new(Image::default(), UnitConfig::new("disk"));
    let list = unit
        .guest
        .to(
            &[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0],
            &[],
            0xffff,
        )
        .expect_good()
        .data;
    let mut opcodes: Vec<u8> = list[4..].chunks(8).map(|item| item[0]).collect();
    opcodes.dedup();
    for opcode in 0..=u8::MAX {
        let answer = unit.guest.to(&[opcode], &[], 0);
        let known = answer.sense != Some([5, 0x20, 0]);
        assert_eq!(
            known,
            opcodes.contains(&opcode),
            "opcode {opcode:#x}: {answer:x?}"
        );
    }
}

#[test]
fn software_write_protection_keeps_every_write_out() {
    let mut unit = Unit::new(Image::default(), UnitConfig::new("disk"));
    let sense = |unit: &mut Unit, control: u8| {
        unit.guest
            .to(&[0x1a, 0x08, control << 6 | 0x0a, 0, 255, 0], &[], 255)
            .expect_good()
            .data
    };
    assert_eq!(sense(&mut unit, 1)[4 + 4] & 0x08, 0x08, "SWP is changeable");
    let mut page = sense(&mut unit, 0);
    let select = |unit: &mut Unit, page: &[u8]| {
        let list = [&[0, 0, 0, 0], &page[4..]].concat();
        let length = u8::try_from(list.len()).unwrap();
        unit.guest.to(&[0x15, 0x10, 0, 0, length, 0], &list, 0)
    };
    page[4 + 4] |= 0x08;
    select(&mut unit, &page).expect_good();
    assert_eq!(sense(&mut unit, 0)[2] & 0x80, 0x80, "WP in the header");
    unit.read(0, 1);
    every_write_is_refused(&mut unit, [7, 0x27, 2]);
    page[4 + 4] &= !0x08;
    select(&mut unit, &page).expect_good();
    unit.write(0, &vec![1; 512]);
}

#[test]
fn a_read_only_disk_is_write_protected() {
    let mut unit = Unit::new(
        Image {
            readonly: true,
            discard: false,
            ..Image::default()
        },
        UnitConfig::new("disk"),
    );
    unit.read(0, 1);
    every_write_is_refused(&mut unit, [7, 0x27, 0]);
}

#[track_caller]
fn every_write_is_refused(unit: &mut Unit, sense: [u8; 3]) {
    for family in WRITES.into_iter().chain(WRITE_AND_VERIFIES) {
        let data = unit.data(family, 1, 1);
        refused(&unit.transfer(family, 0, 0, 1, &data), sense);
    }
    let block = vec![0; unit.block];
    refused(&compare_and_write(unit, 0, &block, &block, 0), sense);
    for width in [Ten, Sixteen] {
        refused(&write_same(unit, width, 0, 0, 1, &block), sense);
        // Refused before anybody misses the data that is not there.
        refused(&write_same(unit, width, 0, 0, 1, &[]), sense);
    }
    if unit.guest.to(&[0x42], &[], 0).sense != Some([5, 0x20, 0]) {
        refused(&unmap(unit, &[(0, 1)]), sense);
    }
}

#[test]
fn sense_data_follows_the_format_bit() {
    let mut unit = Unit::new(Image::default(), UnitConfig::new("disk"));
    let bad = cdb(Sixteen, 0x88, 0, u64::MAX, 1);
    assert_eq!(unit.guest.to(&bad, &[], 512).raw_sense[0] & 0x7f, 0x70);
    let mut page = unit
        .guest
        .to(&[0x1a, 0x08, 0x0a, 0, 255, 0], &[], 255)
        .expect_good()
        .data;
    page[0] = 0;
    page[2] = 0;
    page[4 + 2] |= 0x04;
    unit.guest
        .to(&[0x15, 0x10, 0, 0, 16, 0], &page, 0)
        .expect_good();
    let answer = unit.guest.to(&bad, &[], 512);
    assert_eq!(
        (answer.raw_sense[0], answer.sense),
        (0x72, Some(OUT_OF_RANGE))
    );
}

#[test]
fn removable_media_go_and_come() {
    const NO_MEDIUM: [u8; 3] = [2, 0x3a, 0];
    let config = UnitConfig {
        removable: true,
        ..UnitConfig::new("disk")
    };
    let mut unit = Unit::new(Image::default(), config);
    assert_eq!(
        unit.guest
            .to(&[0x12, 0, 0, 0, 36, 0], &[], 36)
            .expect_good()
            .data[1],
        0x80
    );
    let start_stop = |unit: &mut Unit, bits: u8| unit.guest.to(&[0x1b, 1, 0, 0, bits, 0], &[], 0);
    let ready = |unit: &mut Unit| unit.guest.to(&[0; 6], &[], 0);
    let prevent =
        |unit: &mut Unit, on: u8| unit.guest.to(&[0x1e, 0, 0, 0, on, 0], &[], 0).expect_good();
    // Power conditions and stopping without LOEJ leave the medium in.
    for bits in (0x12..=0xf2u8).step_by(16).chain([0, 1, 4, 5]) {
        start_stop(&mut unit, bits).expect_good();
        ready(&mut unit).expect_good();
    }
    start_stop(&mut unit, 2).expect_good();
    refused(&ready(&mut unit), NO_MEDIUM);
    let data = vec![0; unit.block];
    for family in READS
        .into_iter()
        .chain(WRITES)
        .chain(WRITE_AND_VERIFIES)
        .chain(VERIFIES)
        .chain(PREFETCHES)
    {
        let data = unit.data(family, 1, 0);
        refused(&unit.transfer(family, 0, 0, 1, &data), NO_MEDIUM);
    }
    refused(&compare_and_write(&mut unit, 0, &data, &data, 0), NO_MEDIUM);
    refused(&write_same(&mut unit, Ten, 0, 0, 1, &data), NO_MEDIUM);
    refused(&unmap(&mut unit, &[(0, 1)]), NO_MEDIUM);
    for cdb in [
        vec![0x35; 1],
        vec![0x91],
        vec![0x25],
        vec![0x9e, 0x10],
        vec![0x9e, 0x12],
    ] {
        refused(&unit.guest.to(&cdb, &[], 0), NO_MEDIUM);
    }
    prevent(&mut unit, 1);
    refused(&start_stop(&mut unit, 3), [5, 0x53, 2]);
    prevent(&mut unit, 0);
    start_stop(&mut unit, 3).expect_good();
    ready(&mut unit).expect_good();
    prevent(&mut unit, 1);
    refused(&start_stop(&mut unit, 2), [5, 0x53, 2]);
    ready(&mut unit).expect_good();
    prevent(&mut unit, 0);
    start_stop(&mut unit, 2).expect_good();
    refused(&ready(&mut unit), NO_MEDIUM);
    start_stop(&mut unit, 3).expect_good();
}

#[test]
fn the_rest_of_the_mandatory_commands_answer() {
    let mut unit = Unit::new(Image::default(), UnitConfig::new("disk"));
    for length in 5..=511u16 {
        let [high, low] = length.to_be_bytes();
        let answer = unit
            .guest
            .to(&[0x12, 0, 0, high, low, 0], &[], length.into())
            .expect_good();
        assert_eq!(answer.data.len(), usize::from(length.min(96)));
    }
    for page in unit
        .guest
        .to(&[0x12, 1, 0, 0, 255, 0], &[], 255)
        .expect_good()
        .data[4..]
        .to_vec()
    {
        let answer = unit
            .guest
            .to(&[0x12, 1, page, 0, 255, 0], &[], 255)
            .expect_good();
        assert_eq!(usize::from(answer.data[3]) + 4, answer.data.len());
    }
    refused(&unit.guest.to(&[0x12, 0, 1, 1, 0, 0], &[], 256), BAD_FIELD);
    // MODE SENSE returns no more than asked for, and says what it leaves free.
    let short = unit
        .guest
        .to(&[0x1a, 0, 0x3f, 0, 4, 0], &[], 4)
        .expect_good();
    assert_eq!((short.data.len(), short.residual), (4, 0));
    let long = unit
        .guest
        .to(&[0x1a, 0, 0x3f, 0, 255, 0], &[], 255)
        .expect_good();
    assert_eq!(long.data.len() + long.residual as usize, 255);
    for cdb in [
        vec![0x37, 0, 0, 0, 0, 0, 0, 0, 32, 0],
        vec![0xb7, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0],
        vec![0x4d, 0, 0x40, 0, 0, 0, 0, 0, 32, 0],
        vec![0xa0, 0, 2, 0, 0, 0, 0, 0, 0, 32, 0, 0],
        vec![0xa3, 0x0d, 0x80, 0, 0, 0, 0, 0, 0, 32, 0, 0],
        vec![0x03, 0, 0, 0, 32, 0],
    ] {
        unit.guest.to(&cdb, &[], 32).expect_good();
    }
    for cdb in [
        vec![0x35],
        vec![0x91],
        vec![0x1d, 4],
        vec![0x1b, 0, 0, 0, 1, 0],
    ] {
        unit.guest.to(&cdb, &[], 0).expect_good();
    }
}
