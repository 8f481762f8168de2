//! REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT FUNCTIONS (SPC-4 §6.35, §6.36), from the command table.

use super::cdb::{Profile, Reporting};
use super::sense::Sense;
use super::table::{self, Entry};
use super::wire::{self, Bytes};

/// REPORT SUPPORTED OPERATION CODES.
pub(crate) fn report(profile: Profile, what: Reporting, timeouts: bool) -> Result<Vec<u8>, Sense> {
    match what {
        Reporting::All => Ok(all(profile, timeouts)),
        Reporting::Opcode(opcode) => {
            let found = rows(profile, opcode).next();
            if found.is_some_and(|row| row.action.is_some()) {
                return Err(Sense::cdb_field(2, Some(2)));
            }
            Ok(one(found, profile, timeouts))
        }
        Reporting::Action(opcode, action) => {
            if rows(profile, opcode).any(|row| row.action.is_none()) {
                return Err(Sense::cdb_field(2, Some(2)));
            }
            Ok(one(with_action(profile, opcode, action), profile, timeouts))
        }
        Reporting::Either(opcode, action) => {
            let plain = rows(profile, opcode)
                .find(|row| row.action.is_none())
                .filter(|_| action == 0);
            Ok(one(
                plain.or_else(|| with_action(profile, opcode, action)),
                profile,
                timeouts,
            ))
        }
    }
}

fn rows(profile: Profile, opcode: u8) -> impl Iterator<Item = &'static Entry> {
    table::rows(opcode).filter(move |row| row.serves(profile))
}

fn with_action(profile: Profile, opcode: u8, action: u16) -> Option<&'static Entry> {
    rows(profile, opcode).find(|row| row.action.map(u16::from) == Some(action))
}

fn all(profile: Profile, timeouts: bool) -> Vec<u8> {
    let mut out = Bytes::new();
    out.u32(0);
    for row in table::all(profile) {
        let flags = (u8::from(timeouts) << 1) | u8::from(row.action.is_some());
        out.u8(row.opcode)
            .u8(0)
            .u16(row.action.unwrap_or(0).into())
            .u8(0)
            .u8(flags)
            .u16(wire::len16(row.len()));
        timeout(&mut out, timeouts);
    }
    let length = wire::len32(out.len().saturating_sub(4));
    out.patch_u32(0, length);
    out.finish()
}

fn one(row: Option<&Entry>, profile: Profile, timeouts: bool) -> Vec<u8> {
    const NOT_SUPPORTED: u8 = 1;
    const AS_THE_STANDARD_SAYS: u8 = 3;
    let mut out = Bytes::new();
    let Some(row) = row else {
        out.u8(0).u8(NOT_SUPPORTED).u16(0);
        return out.finish();
    };
    out.u8(0)
        .u8((u8::from(timeouts) << 7) | AS_THE_STANDARD_SAYS)
        .u16(wire::len16(row.len()));
    for byte in row.usage(profile) {
        out.u8(byte);
    }
    timeout(&mut out, timeouts);
    out.finish()
}

/// The command timeouts descriptor: how long anything takes is the host's to know, so both fields are 0.
fn timeout(out: &mut Bytes, wanted: bool) {
    if wanted {
        out.u16(0x0a).u8(0).u8(0).u32(0).u32(0);
    }
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
pub(crate) fn task_functions(extended: bool) -> Vec<u8> {
    const ABORT_TASK: u8 = 0x80;
    const ABORT_TASK_SET: u8 = 0x40;
    const CLEAR_TASK_SET: u8 = 0x10;
    const UNIT_RESET: u8 = 0x08;
    const QUERY_TASK: u8 = 0x04;
    const QUERY_TASK_SET: u8 = 0x02;
    const NEXUS_RESET: u8 = 0x01;
    let mut out = Bytes::new();
    out.u8(ABORT_TASK | ABORT_TASK_SET | CLEAR_TASK_SET | UNIT_RESET | QUERY_TASK);
    out.u8(QUERY_TASK_SET | NEXUS_RESET)
        .u8(0)
        .u8(if extended { 0x0c } else { 0 });
    if extended {
        out.zeros(12);
    }
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::cdb::Kind;

    const DISK: Profile = Profile {
        kind: Kind::Disk,
        thin: true,
    };

    #[test]
    fn every_listed_command_is_described_alone_and_the_other_way_is_refused() {
        let list = all(DISK, false);
        assert_eq!(wire::u32_at(&list, 0) as usize, list.len() - 4);
        assert!(list.len() > 4 + 50 * 8);
        for item in list[4..].chunks(8) {
            let (opcode, action) = (item[0], wire::u16_at(item, 2));
            let (right, wrong) = match item[5] & 1 {
                1 => (Reporting::Action(opcode, action), Reporting::Opcode(opcode)),
                _ => (Reporting::Opcode(opcode), Reporting::Action(opcode, action)),
            };
            let described = report(DISK, right, false).unwrap();
            assert_eq!((described[1], described[4]), (3, opcode));
            assert_eq!(wire::u16_at(&described, 2), wire::u16_at(item, 6));
            assert_eq!(
                report(DISK, wrong, false),
                Err(Sense::cdb_field(2, Some(2)))
            );
            assert_eq!(
                report(DISK, Reporting::Either(opcode, action), false).unwrap(),
                described
            );
        }
    }

    #[test]
    fn timeouts_are_described_on_request() {
        let (without, with) = (all(DISK, false), all(DISK, true));
        assert_eq!((with.len() - 4) / 20, (without.len() - 4) / 8);
        assert!(
            with[4..]
                .chunks(20)
                .all(|item| item[5] & 2 != 0 && wire::u16_at(item, 8) == 0x0a)
        );
        let one = report(DISK, Reporting::Opcode(0), true).unwrap();
        assert_eq!((one[1], one.len()), (0x83, 4 + 6 + 12));
    }

    #[test]
    fn what_is_not_there_is_reported_as_unsupported() {
        for what in [
            Reporting::Opcode(0xff),
            Reporting::Action(0x9e, 0x1f),
            Reporting::Either(0xff, 0),
        ] {
            assert_eq!(report(DISK, what, false).unwrap(), [0, 1, 0, 0]);
        }
        let action = report(DISK, Reporting::Action(0x9e, 0x10), false).unwrap();
        assert_eq!(action[5], 0x10);
    }

    #[test]
    fn task_functions_in_both_lengths() {
        assert_eq!(task_functions(false), [0xdc, 0x03, 0, 0]);
        assert_eq!(task_functions(true).len(), 16);
    }
}
