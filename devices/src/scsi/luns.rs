//! REPORT LUNS, its well-known unit, and unit numbers with nothing behind them (SPC-4 §5.10, §6.33, §8).

use super::address;
use super::cdb::{Cdb, Command, Kind, Profile};
use super::exec::cut;
use super::identity;
use super::parse;
use super::sense::{Sense, Status};
use super::wire::{self, Bytes};

/// The profile of the REPORT LUNS well-known unit.
const WELL_KNOWN: Profile = Profile {
    kind: Kind::ReportLuns,
    thin: false,
};

/// A command to the REPORT LUNS well-known unit; `luns` are the addresses it lists.
pub(crate) fn well_known(cdb: &Cdb, luns: &[[u8; 8]]) -> Result<Vec<u8>, Status> {
    let command =
        parse::lookup(cdb, WELL_KNOWN).and_then(|entry| parse::parse(entry, cdb, WELL_KNOWN))?;
    let data = match command {
        Command::Inquiry { page: None, .. } => identity::standard(Kind::ReportLuns, false),
        // The list of pages is the only page.
        Command::Inquiry { page: Some(0), .. } => vec![0x1e, 0, 0, 1, 0],
        Command::Inquiry { .. } => return Err(Sense::cdb_field(2, None).into()),
        Command::RequestSense { descriptor, .. } => Sense::NONE.encode(descriptor),
        Command::ReportLuns { select, .. } => report_luns(select, luns)?,
        _ => Vec::new(),
    };
    Ok(cut(&command, data))
}

/// A command to a unit number with nothing behind it, on a target that exists (SPC-4 §5.10).
pub(crate) fn absent(cdb: &Cdb, luns: &[[u8; 8]]) -> Result<Vec<u8>, Status> {
    let command =
        parse::lookup(cdb, WELL_KNOWN).and_then(|entry| parse::parse(entry, cdb, WELL_KNOWN));
    let Ok(command) = command else {
        return Err(Sense::LUN_NOT_SUPPORTED.into());
    };
    let data = match command {
        Command::Inquiry { page: None, .. } => identity::absent(),
        Command::RequestSense { descriptor, .. } => Sense::LUN_NOT_SUPPORTED.encode(descriptor),
        Command::ReportLuns { select, .. } => report_luns(select, luns)?,
        _ => return Err(Sense::LUN_NOT_SUPPORTED.into()),
    };
    Ok(cut(&command, data))
}

/// REPORT LUNS (SPC-4 §6.33).
pub(crate) fn report_luns(select: u8, luns: &[[u8; 8]]) -> Result<Vec<u8>, Sense> {
    let (units, well_known) = match select {
        0 => (luns, false),
        1 => (&[][..], true),
        2 => (luns, true),
        _ => return Err(Sense::cdb_field(2, None)),
    };
    let mut out = Bytes::new();
    out.zeros(8);
    for lun in units {
        out.slice(lun);
    }
    if well_known {
        out.slice(&address::WELL_KNOWN);
    }
    let length = wire::len32(out.len().saturating_sub(8));
    out.patch_u32(0, length);
    Ok(out.finish())
}
