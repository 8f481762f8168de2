//! The requirements of an independent conformance suite, by family: transfers of all CDB lengths at
//! both ends of the unit, past the end, of zero blocks, with protection and cache bits; COMPARE AND
//! WRITE, WRITE SAME and ORWRITE; limits that are enforced; reports that match the behaviour.

mod provisioning;
mod state;

use splitring_devices::disk::config::Aio;
use splitring_devices::scsi::UnitConfig;

use splitring_tests::scsi::{Answer, ScsiGuest, ScsiImage, one};

const MISCOMPARE: [u8; 3] = [0xe, 0x1d, 0];
const OUT_OF_RANGE: [u8; 3] = [5, 0x21, 0];
const BAD_FIELD: [u8; 3] = [5, 0x24, 0];

/// The length of a CDB, which determines the offsets of its fields.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Width {
    Six,
    Ten,
    Twelve,
    Sixteen,
}

use Width::{Six, Sixteen, Ten, Twelve};

/// The direction of the data.
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
    /// Bits of byte 1 that the basic command sets.
    flags: u8,
    /// DPO and FUA, if the command has them.
    cache_bits: u8,
    /// The command has a field for protection information.
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
    guest: ScsiGuest,
    _file: tempfile::NamedTempFile,
    block: usize,
    blocks: u64,
}

impl Unit {
    fn new(image: ScsiImage, unit: UnitConfig) -> Self {
        let (file, device) = one(image, unit);
        let block = usize::try_from(image.block).unwrap();
        Self {
            guest: ScsiGuest::settled(device),
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

    /// Returns the bits of byte 1 that the device reports for the command.
    fn reported_bits(&mut self, opcode: u8) -> u8 {
        let answer = self.guest.to(
            &[0xa3, 0x0c, 1, opcode, 0, 0, 0, 0, 0xff, 0xff, 0, 0],
            &[],
            0xffff,
        );
        answer.expect_good().data[5]
    }
}

/// The disks on which every family is tested.
fn units() -> Vec<Unit> {
    let small = ScsiImage::default();
    [
        small,
        ScsiImage {
            block: 4096,
            bytes: 16 << 20,
            ..small
        },
        ScsiImage {
            aio: Aio::Threads,
            discard: false,
            ..small
        },
    ]
    .into_iter()
    .map(|image| Unit::new(image, UnitConfig::new("disk")))
    .collect()
}

/// 1, 2, and then sparser up to 256: the suite tests all of them.
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
                // A length of 256 is encoded as 0 in a 6-byte CDB.
                let data = unit.data(family, count, 0xa6);
                unit.transfer(family, 0, 0, count, &data).expect_good();
                unit.transfer(family, 0, unit.blocks - u64::from(count), count, &data)
                    .expect_good();
            }
        }
    }
}

#[test]
fn transfers_past_the_end_are_refused_completely() {
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
fn transfers_of_zero_blocks_succeed_within_the_unit_only() {
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
fn write_and_verify_writes_its_data() {
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
        // A count of 256 is encoded as 0 in its byte, but data for 256 blocks does not match a
        // count of 0.
        let none = cdb(Sixteen, 0x89, 0, 0, 0);
        unit.guest.to(&none, &[], 0).expect_good();
        refused(&unit.guest.to(&none, &block.repeat(512), 0), BAD_FIELD);
        assert_eq!(unit.reported_bits(0x89) & 0x18, 0x18);
    }
}
