//! The table's own invariants, and CDBs good and bad.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the tests' own numbers are small"
)]

use super::*;
use crate::scsi::cdb::Kind;
use crate::scsi::sense::Code;

const DISK: Profile = Profile {
    kind: Kind::Disk,
    thin: true,
};
const THICK: Profile = Profile {
    kind: Kind::Disk,
    thin: false,
};
const CDROM: Profile = Profile {
    kind: Kind::Cdrom,
    thin: false,
};
const WLUN: Profile = Profile {
    kind: Kind::ReportLuns,
    thin: false,
};

fn decode(bytes: &[u8], profile: Profile) -> Result<Command, Sense> {
    let cdb = Cdb::new(bytes);
    parse(lookup(&cdb, profile)?, &cdb, profile)
}

#[test]
fn rows_are_sorted_found_by_opcode_and_as_long_as_their_group_says() {
    let rows: Vec<_> = [DISK, CDROM, WLUN]
        .into_iter()
        .flat_map(table::all)
        .collect();
    assert!(rows.len() < 255);
    for profile in [DISK, CDROM] {
        let keys: Vec<_> = table::all(profile)
            .map(|row| (row.opcode, row.action))
            .collect();
        assert!(keys.is_sorted());
    }
    for row in rows {
        // The top three bits of an opcode are the group, which fixes the length (SPC-4 table 20).
        let length = match row.opcode >> 5 {
            0 => 6,
            1 | 2 => 10,
            4 => 16,
            5 => 12,
            _ => panic!("opcode {:#x} in no group", row.opcode),
        };
        assert_eq!(row.len(), length, "opcode {:#x}", row.opcode);
        assert_eq!(row.usage[0], row.opcode);
        assert!(table::rows(row.opcode).any(|found| core::ptr::eq(found, row)));
        if row.action.is_some() {
            assert_eq!(row.usage[1] & 0x1f, 0);
        }
    }
    assert_eq!(table::rows(0xff).count(), 0);
}

#[test]
fn every_single_reserved_bit_is_refused_with_its_position() {
    for profile in [DISK, CDROM, WLUN] {
        for row in table::all(profile) {
            for at in 1..row.len() {
                for bit in 0..8u8 {
                    let mask = row.mask(profile).nth(at).unwrap();
                    if mask & (1 << bit) != 0 {
                        continue;
                    }
                    let mut cdb = vec![0; row.len()];
                    cdb[0] = row.opcode;
                    cdb[1] = row.action.unwrap_or(0);
                    cdb[at] |= 1 << bit;
                    let sense = decode(&cdb, profile).unwrap_err();
                    assert_eq!(
                        sense,
                        Sense::cdb_field(at as u16, Some(bit)),
                        "{:#x} byte {at}",
                        row.opcode
                    );
                }
            }
        }
    }
}

#[test]
fn unknown_opcodes_and_service_actions_are_told_apart() {
    assert_eq!(decode(&[0xff], DISK), Err(Sense::INVALID_OPCODE));
    assert_eq!(decode(&[0x9e, 0x1f], DISK).unwrap_err().code, Code(0x24, 0));
    assert_eq!(decode(&[0x5e, 4], DISK).unwrap_err().code, Code(0x24, 0));
}

#[test]
fn each_kind_of_unit_knows_its_own_commands() {
    assert_eq!(decode(&[0x42], THICK), Err(Sense::INVALID_OPCODE));
    assert!(decode(&[0x42], DISK).is_ok());
    assert_eq!(decode(&[0x43], DISK), Err(Sense::INVALID_OPCODE));
    assert!(decode(&[0x43], CDROM).is_ok());
    assert_eq!(decode(&[0x2a], CDROM), Err(Sense::INVALID_OPCODE));
    assert_eq!(decode(&[0x28], WLUN), Err(Sense::INVALID_OPCODE));
    assert!(decode(&[0xa0], WLUN).is_ok());
    // Without thin provisioning the UNMAP bit of WRITE SAME means nothing.
    assert_eq!(
        decode(&[0x93, 0x08], THICK),
        Err(Sense::cdb_field(1, Some(3)))
    );
    assert!(decode(&[0x93, 0x08], DISK).is_ok());
}

#[test]
fn extents_of_all_widths() {
    let read = |cdb: &[u8]| match decode(cdb, DISK) {
        Ok(Command::Read { extent, fua }) => (extent.lba, extent.blocks, fua),
        other => panic!("{other:?}"),
    };
    assert_eq!(read(&[0x08, 0x1f, 0xff, 0xfe, 0]), (0x1f_fffe, 256, false));
    assert_eq!(read(&[0x08, 0, 0, 1, 2]), (1, 2, false));
    assert_eq!(
        read(&[0x28, 0x18, 1, 2, 3, 4, 0x1f, 5, 6]),
        (0x0102_0304, 0x0506, true)
    );
    assert_eq!(
        read(&[0xa8, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (0x0102_0304, 0x0506_0708, false)
    );
    assert_eq!(
        read(&[0x88, 8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        (0x0102_0304_0506_0708, 0x090a_0b0c, true)
    );
}

#[test]
fn fields_that_contradict_are_refused() {
    assert_eq!(
        decode(&[0x12, 0, 1, 0, 36], DISK),
        Err(Sense::cdb_field(2, None))
    );
    assert_eq!(
        decode(&[0x2f, 0x04], DISK),
        Err(Sense::cdb_field(1, Some(2)))
    );
    assert_eq!(
        decode(&[0x2e, 0x06], DISK),
        Err(Sense::cdb_field(1, Some(2)))
    );
    assert_eq!(
        decode(&[0x15, 0x11, 0, 0, 12], DISK),
        Err(Sense::cdb_field(1, Some(0)))
    );
    assert_eq!(
        decode(&[0x15, 0, 0, 0, 12], DISK),
        Err(Sense::cdb_field(1, Some(4)))
    );
    assert_eq!(
        decode(&[0x1d, 0x24], DISK),
        Err(Sense::cdb_field(1, Some(7)))
    );
    assert_eq!(
        decode(&[0xa3, 0x0c, 0x04], DISK),
        Err(Sense::cdb_field(2, Some(2)))
    );
}

#[test]
fn data_lengths_follow_the_cdb() {
    let verify = decode(&[0x2f, 0x06, 0, 0, 0, 0, 0, 0, 9], DISK).unwrap();
    assert_eq!(verify.data_out(512), 512);
    let compare = decode(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3], DISK).unwrap();
    assert_eq!(compare.data_out(4096), 3 * 2 * 4096);
    let same = decode(&[0x93, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3], DISK).unwrap();
    assert_eq!(same.data_out(512), 0);
    let read = decode(&[0x28, 0, 0, 0, 0, 0, 0, 0xff, 0xff], DISK).unwrap();
    assert_eq!((read.data_in(4096), read.data_out(4096)), (65535 * 4096, 0));
}
