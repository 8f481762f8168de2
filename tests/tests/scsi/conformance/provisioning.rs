//! WRITE SAME, UNMAP and GET LBA STATUS.

use super::*;

pub(super) fn write_same(
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
            // WSNZ is set: a length of 0 does not mean the end of the unit.
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
            // Half a block is too short, and two blocks are too long.
            let half = &block[..block.len() / 2];
            refused(&write_same(&mut unit, width, 0, 0, 1, half), BAD_FIELD);
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
    // Sparse, so that the range exists without disk space.
    let mut unit = Unit::new(
        ScsiImage {
            bytes: 64 << 20,
            ..ScsiImage::default()
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
    assert_eq!(limits[4], 1, "WSNZ");
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

pub(super) fn unmap(unit: &mut Unit, ranges: &[(u64, u32)]) -> Answer {
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
fn unmap_deallocates_all_of_its_list_or_nothing() {
    let mut unit = Unit::new(ScsiImage::default(), UnitConfig::new("disk"));
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
    // The first range is valid and the last is not: neither is unmapped.
    let end = unit.blocks;
    refused(&unmap(&mut unit, &[(0, 8), (end, 1)]), OUT_OF_RANGE);
    refused(&unmap(&mut unit, &[(0, 8), (u64::MAX, 2)]), OUT_OF_RANGE);
    refused(&unmap(&mut unit, &[(0, 8); 257]), [5, 0x26, 0]);
    assert_eq!(unit.read(0, 256), data);
}

#[test]
fn malformed_unmap_lists_apply_nothing() {
    let mut unit = Unit::new(ScsiImage::default(), UnitConfig::new("disk"));
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
fn lba_status_distinguishes_holes_from_data() {
    let mut unit = Unit::new(
        ScsiImage {
            block: 4096,
            bytes: 4 << 20,
            ..ScsiImage::default()
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
