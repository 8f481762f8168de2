//! What a unit reports, what can be switched, and what does not depend on the switches.

use super::provisioning::{unmap, write_same};
use super::*;

#[test]
fn disks_of_all_sizes_report_their_capacity() {
    for (bytes, block) in [
        (4 << 20, 512),
        (4 << 20, 4096),
        (8 << 40, 512),
        (8 << 40, 4096),
    ] {
        let mut unit = Unit::new(
            ScsiImage {
                bytes,
                block,
                ..ScsiImage::default()
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
        // The last block of 8 TiB works like any other.
        let data = vec![0xe7; unit.block];
        unit.write(last, &data);
        assert_eq!(unit.read(last, 1), data);
    }
}

#[test]
fn reported_commands_are_the_supported_ones() {
    let mut unit = Unit::new(ScsiImage::default(), UnitConfig::new("disk"));
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
    let mut unit = Unit::new(ScsiImage::default(), UnitConfig::new("disk"));
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
        ScsiImage {
            readonly: true,
            discard: false,
            ..ScsiImage::default()
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
        // Refused before the missing data is noticed.
        refused(&write_same(unit, width, 0, 0, 1, &[]), sense);
    }
    if unit.guest.to(&[0x42], &[], 0).sense != Some([5, 0x20, 0]) {
        refused(&unmap(unit, &[(0, 1)]), sense);
    }
}

#[test]
fn sense_data_follows_the_format_bit() {
    let mut unit = Unit::new(ScsiImage::default(), UnitConfig::new("disk"));
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
fn removable_media_are_ejected_and_loaded() {
    const NO_MEDIUM: [u8; 3] = [2, 0x3a, 0];
    let config = UnitConfig::new("disk").removable(true);
    let mut unit = Unit::new(ScsiImage::default(), config);
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
    // Power conditions, and stopping without LOEJ, don't eject the medium.
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
    let mut unit = Unit::new(ScsiImage::default(), UnitConfig::new("disk"));
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
    // MODE SENSE returns no more than the allocation length, and reports the full length.
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
