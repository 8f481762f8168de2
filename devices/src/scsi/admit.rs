//! Whether a command may run: unit attention, reservation, fields, medium, protection, range, in that order
//! (SAM-5 §5.3.1, SPC-4 §5.13, SBC-3 §4.5). What it then does is `exec`'s business.

use super::cdb::{Cdb, Command, Extent};
use super::identity::{MAX_TRANSFER_BLOCKS, MAX_WRITE_SAME_BLOCKS};
use super::parse;
use super::sense::{Sense, Status};
use super::table::{Access, Entry, op};
use super::unit::Nexus;

/// Decides whether a command may run on this path, and says what it is.
pub(crate) fn admit(nexus: &Nexus, cdb: &Cdb) -> Result<Command, Status> {
    let reports_itself = matches!(
        cdb.opcode(),
        op::INQUIRY | op::REQUEST_SENSE | op::REPORT_LUNS
    );
    if !reports_itself && let Some(sense) = nexus.attention() {
        return Err(sense.into());
    }
    let profile = nexus.facts.profile;
    let entry = parse::lookup(cdb, profile)?;
    if nexus.unit.conflicts(nexus.port, entry.access) {
        return Err(Status::ReservationConflict);
    }
    let command = parse::parse(entry, cdb, profile)?;
    if let Some(access) = own_access(&command)
        && nexus.unit.conflicts(nexus.port, access)
    {
        return Err(Status::ReservationConflict);
    }
    if entry.medium && !nexus.unit.loaded() {
        return Err(Sense::NO_MEDIUM.into());
    }
    check(nexus, entry, &command)?;
    Ok(command)
}

/// How a reservation treats commands whose fields decide it (SPC-4 table 66, SBC-3 table 15).
fn own_access(command: &Command) -> Option<Access> {
    match command {
        Command::StartStop {
            start: true,
            power: 0,
            load_eject: false,
            ..
        } => Some(Access::Shared),
        Command::PreventAllow { prevent: false } => Some(Access::Shared),
        Command::StartStop { .. } | Command::PreventAllow { .. } => Some(Access::Write),
        _ => None,
    }
}

/// Protection, range and length.
fn check(nexus: &Nexus, entry: &Entry, command: &Command) -> Result<(), Status> {
    let writes = match command {
        Command::Write { .. }
        | Command::WriteAndVerify { .. }
        | Command::WriteSame { .. }
        | Command::CompareAndWrite { .. }
        | Command::OrWrite { .. }
        | Command::Unmap { .. } => nexus.write_refusal(),
        _ => None,
    };
    if let Some(refusal) = writes {
        return Err(refusal);
    }
    let (extent, limit) = match *command {
        Command::Read { extent, .. }
        | Command::Write { extent, .. }
        | Command::WriteAndVerify { extent, .. }
        | Command::Verify { extent, .. }
        | Command::OrWrite { extent, .. } => (extent, MAX_TRANSFER_BLOCKS),
        Command::WriteSame { extent, .. } => (extent, MAX_WRITE_SAME_BLOCKS),
        Command::CompareAndWrite { extent, .. }
        | Command::PreFetch { extent }
        | Command::Synchronize { extent } => (extent, u32::MAX),
        Command::GetLbaStatus { lba, .. } => (Extent { lba, blocks: 1 }, u32::MAX),
        _ => return Ok(()),
    };
    match extent.lba.checked_add(extent.blocks.into()) {
        Some(end) if end <= nexus.blocks() => {}
        _ => return Err(Sense::LBA_OUT_OF_RANGE.into()),
    }
    let nothing_to_repeat = extent.blocks == 0 && matches!(command, Command::WriteSame { .. });
    if extent.blocks > limit || nothing_to_repeat {
        return Err(Sense::cdb_field(length_field(entry), None).into());
    }
    Ok(())
}

/// Where the transfer length of a medium access command is, by the length of its CDB.
fn length_field(entry: &Entry) -> u16 {
    match entry.len() {
        6 => 4,
        10 => 7,
        12 => 6,
        _ => 10,
    }
}
