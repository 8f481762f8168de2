//! From the bytes of a CDB to a typed [`Command`], by its row of the [`table`].
//!
//! A row says which bits mean something; any other bit that is set is refused here, for all commands alike.

use super::cdb::{Cdb, Command, Profile};
use super::sense::Sense;
use super::table::{self, Entry};
use super::wire;

/// Finds the row of `cdb` for this profile.
pub(crate) fn lookup(cdb: &Cdb, profile: Profile) -> Result<&'static Entry, Sense> {
    let mut known_opcode = false;
    for entry in table::rows(cdb.opcode()).filter(|entry| entry.serves(profile)) {
        match entry.action {
            None => return Ok(entry),
            Some(action) if action == cdb.action() => return Ok(entry),
            Some(_) => known_opcode = true,
        }
    }
    // An opcode with other service actions exists: then the field, not the opcode, is wrong.
    Err(if known_opcode {
        Sense::cdb_field(1, Some(4))
    } else {
        Sense::INVALID_OPCODE
    })
}

/// Refuses bits that mean nothing in this command, then lets its row build the typed command.
pub(crate) fn parse(entry: &Entry, cdb: &Cdb, profile: Profile) -> Result<Command, Sense> {
    if !entry.admits(cdb, profile) {
        return Err(stray_bit(entry, cdb, profile));
    }
    (entry.parse)(cdb)
}

/// Where the first bit is that means nothing.
fn stray_bit(entry: &Entry, cdb: &Cdb, profile: Profile) -> Sense {
    let stray = entry
        .mask(profile)
        .enumerate()
        .skip(1)
        .find_map(|(at, allowed)| {
            let bit = (cdb.u8(at) & !allowed).checked_ilog2()?;
            Some(Sense::cdb_field(wire::len16(at), u8::try_from(bit).ok()))
        });
    stray.unwrap_or(Sense::INVALID_FIELD_IN_CDB)
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
