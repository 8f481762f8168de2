//! The one table of commands (SPC-4 §6, SBC-3 §5, MMC-6 §6).
//!
//! A row says which CDB bits have a meaning, which kinds of logical unit know the command, what a reservation held
//! by somebody else does to it, whether it needs a medium, and how its CDB becomes a typed command. REPORT
//! SUPPORTED OPERATION CODES answers from the same rows, so what is reported is what is done.

pub(crate) mod op;

use super::cdb::{Cdb, Check, Command, Extent, Kind, ModeForm, Profile, Reporting};
use super::sense::Sense;

/// What a persistent or SPC-2 reservation of another nexus does to a command (SPC-4 table 66, SBC-3 table 15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Goes through under any reservation.
    Always,
    /// Goes through under persistent reservations, conflicts with an SPC-2 reservation.
    Shared,
    /// Conflicts with the exclusive-access types.
    Read,
    /// Conflicts with every type.
    Write,
    /// PERSISTENT RESERVE OUT, RESERVE, RELEASE, START STOP UNIT and PREVENT ALLOW judge their own fields.
    Own,
}

/// Who knows a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    All,
    /// Disks and CD-ROMs.
    Units,
    Disk,
    /// Disks whose blocks can be deallocated.
    ThinDisk,
    Cdrom,
}

/// One command.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) opcode: u8,
    /// The service action in byte 1, where the opcode is shared by several commands.
    pub(crate) action: Option<u8>,
    /// CDB usage data (SPC-4 §6.35.3): the opcode, then one bit for each bit with a meaning; service action bits are 0.
    pub(crate) usage: &'static [u8],
    /// The same over the first 16 bytes of a CDB at once, all bits set where there is nothing to check.
    known: u128,
    pub(crate) on: On,
    pub(crate) access: Access,
    /// Fails with NOT READY while there is no medium.
    pub(crate) medium: bool,
    pub(crate) parse: fn(&Cdb) -> Result<Command, Sense>,
}

impl Entry {
    /// Whether a logical unit of this profile knows the command.
    pub(crate) fn serves(&self, profile: Profile) -> bool {
        match self.on {
            On::All => true,
            On::Units => profile.kind != Kind::ReportLuns,
            On::Disk => profile.kind == Kind::Disk,
            On::ThinDisk => profile.kind == Kind::Disk && profile.thin,
            On::Cdrom => profile.kind == Kind::Cdrom,
        }
    }

    /// CDB usage data for this profile, the service action filled in.
    pub(crate) fn usage(&self, profile: Profile) -> impl Iterator<Item = u8> + '_ {
        let unmap_bit = self.unmap_bit() != 0 && !profile.thin;
        self.usage
            .iter()
            .enumerate()
            .map(move |(at, &bits)| match at {
                1 if unmap_bit => bits & !0x08,
                1 => bits | self.action.unwrap_or(0),
                _ => bits,
            })
    }

    /// The bits a CDB may set.
    pub(crate) fn mask(&self, profile: Profile) -> impl Iterator<Item = u8> + '_ {
        let action_bits = if self.action.is_some() { 0x1f } else { 0 };
        self.usage(profile)
            .enumerate()
            .map(move |(at, bits)| if at == 1 { bits | action_bits } else { bits })
    }

    /// Whether a CDB sets only bits it may set: what [`Self::mask`] says, at a glance.
    pub(crate) fn admits(&self, cdb: &Cdb, profile: Profile) -> bool {
        let unmap = match profile.thin {
            true => 0,
            false => self.unmap_bit(),
        };
        cdb.head() & !(self.known & !unmap) == 0
    }

    /// The UNMAP bit of WRITE SAME, as a CDB's head has it.
    fn unmap_bit(&self) -> u128 {
        match self.opcode {
            op::WRITE_SAME_10 | op::WRITE_SAME_16 => 0x08 << 8,
            _ => 0,
        }
    }

    /// Length of the CDB in bytes.
    pub(crate) fn len(&self) -> usize {
        self.usage.len()
    }
}

/// The rows of one opcode.
pub(crate) fn rows(opcode: u8) -> impl Iterator<Item = &'static Entry> {
    let first = FIRST.get(usize::from(opcode)).copied().unwrap_or(NO_ROW);
    let rows = TABLE.get(usize::from(first)..).unwrap_or_default();
    rows.iter().take_while(move |entry| entry.opcode == opcode)
}

/// Every row a logical unit of this profile serves, in the order of opcodes.
pub(crate) fn all(profile: Profile) -> impl Iterator<Item = &'static Entry> {
    TABLE.iter().filter(move |entry| entry.serves(profile))
}

const NO_ROW: u8 = u8::MAX;

/// Index of each opcode's first row.
static FIRST: [u8; 256] = first_rows();

#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "evaluated at compile time, where a slip is a build error; a test holds the table below 255 rows"
)]
const fn first_rows() -> [u8; 256] {
    let mut first = [NO_ROW; 256];
    let mut row = TABLE.len();
    while row > 0 {
        row -= 1;
        first[TABLE[row].opcode as usize] = row as u8;
    }
    first
}

/// A row without service action.
const fn row(
    usage: &'static [u8],
    on: On,
    access: Access,
    medium: bool,
    parse: fn(&Cdb) -> Result<Command, Sense>,
) -> Entry {
    let opcode = match usage.first() {
        Some(opcode) => *opcode,
        None => 0,
    };
    Entry {
        opcode,
        action: None,
        usage,
        known: known_bits(usage),
        on,
        access,
        medium,
        parse,
    }
}

/// The same row for one service action.
const fn act(action: u8, entry: Entry) -> Entry {
    const ACTION: u128 = 0x1f << 8;
    Entry {
        action: Some(action),
        known: entry.known | ACTION,
        ..entry
    }
}

/// CDB usage data of up to 16 bytes as one number; the opcode and what lies behind the CDB are not checked.
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "evaluated at compile time, where a slip is a build error"
)]
const fn known_bits(usage: &[u8]) -> u128 {
    let mut bytes = [0xff; 16];
    let mut at = 1;
    while at < usage.len() {
        bytes[at] = usage[at];
        at += 1;
    }
    u128::from_le_bytes(bytes)
}

use Access::{Always, Own, Read, Shared, Write};
use On::{All, Cdrom, Disk, ThinDisk, Units};

const F: u8 = 0xff;

/// Every command, ascending by opcode, then by service action.
#[rustfmt::skip]
const TABLE: &[Entry] = &[
    row(&[op::TEST_UNIT_READY, 0, 0, 0, 0, 0], All, Shared, true, |_| Ok(Command::TestUnitReady)),
    row(&[op::REQUEST_SENSE, 0x01, 0, 0, F, 0], All, Always, false, |c| {
        Ok(Command::RequestSense { descriptor: c.bit(1, 0x01), alloc: c.u8(4).into() })
    }),
    row(&[op::READ_6, 0x1f, F, F, F, 0], Disk, Read, true, |c| Ok(Command::Read { extent: extent6(c), fua: false })),
    row(&[op::WRITE_6, 0x1f, F, F, F, 0], Disk, Write, true, |c| Ok(Command::Write { extent: extent6(c), fua: false })),
    row(&[op::INQUIRY, 0x01, F, F, F, 0], All, Always, false, inquiry),
    row(&[op::MODE_SELECT_6, 0x11, 0, 0, F, 0], Units, Write, false, |c| mode_select(c, ModeForm::Six, c.u8(4).into())),
    row(&[op::RESERVE_6, 0, 0, 0, 0, 0], Units, Own, false, |_| Ok(Command::Reserve)),
    row(&[op::RELEASE_6, 0, 0, 0, 0, 0], Units, Own, false, |_| Ok(Command::Release)),
    row(&[op::MODE_SENSE_6, 0x08, F, F, F, 0], Units, Read, false, |c| Ok(mode_sense(c, ModeForm::Six, c.u8(4).into()))),
    row(&[op::START_STOP_UNIT, 0x01, 0, 0x0f, 0xf7, 0], Units, Own, false, |c| Ok(Command::StartStop {
        power: c.u8(4) >> 4, no_flush: c.bit(4, 0x04), load_eject: c.bit(4, 0x02), start: c.bit(4, 0x01),
    })),
    row(&[op::SEND_DIAGNOSTIC, 0xf7, 0, F, F, 0], Units, Write, false, send_diagnostic),
    row(&[op::PREVENT_ALLOW, 0, 0, 0, 0x03, 0], Units, Own, false, |c| {
        Ok(Command::PreventAllow { prevent: c.bit(4, 0x01) })
    }),
    row(&[op::READ_CAPACITY_10, 0, 0, 0, 0, 0, 0, 0, 0, 0], Units, Shared, true, |_| Ok(Command::ReadCapacity10)),
    row(&[op::READ_10, 0x18, F, F, F, F, 0x1f, F, F, 0], Units, Read, true, |c| {
        Ok(Command::Read { extent: extent10(c), fua: c.bit(1, 0x08) })
    }),
    row(&[op::WRITE_10, 0x18, F, F, F, F, 0x1f, F, F, 0], Disk, Write, true, |c| {
        Ok(Command::Write { extent: extent10(c), fua: c.bit(1, 0x08) })
    }),
    row(&[op::WRITE_AND_VERIFY_10, 0x16, F, F, F, F, 0x1f, F, F, 0], Disk, Write, true, |c| write_and_verify(c, extent10(c))),
    row(&[op::VERIFY_10, 0x16, F, F, F, F, 0x1f, F, F, 0], Disk, Read, true, |c| verify(c, extent10(c))),
    row(&[op::PRE_FETCH_10, 0x02, F, F, F, F, 0x1f, F, F, 0], Disk, Read, true, |c| {
        Ok(Command::PreFetch { extent: extent10(c) })
    }),
    row(&[op::SYNCHRONIZE_CACHE_10, 0x06, F, F, F, F, 0x1f, F, F, 0], Units, Write, true, |c| {
        Ok(Command::Synchronize { extent: extent10(c) })
    }),
    row(&[op::READ_DEFECT_DATA_10, 0, 0x1f, 0, 0, 0, 0, F, F, 0], Disk, Read, true, |c| {
        Ok(Command::ReadDefectData { twelve: false, lists: c.u8(2), alloc: c.u16(7).into() })
    }),
    row(&[op::WRITE_SAME_10, 0x08, F, F, F, F, 0x1f, F, F, 0], Disk, Write, true, |c| {
        Ok(Command::WriteSame { extent: extent10(c), unmap: c.bit(1, 0x08), no_data: false })
    }),
    row(&[op::UNMAP, 0, 0, 0, 0, 0, 0x1f, F, F, 0], ThinDisk, Write, true, |c| Ok(Command::Unmap { length: c.u16(7).into() })),
    row(&[op::READ_TOC, 0x02, 0x0f, 0, 0, 0, F, F, F, 0], Cdrom, Read, true, |c| Ok(Command::ReadToc {
        msf: c.bit(1, 0x02), format: c.u8(2) & 0x0f, track: c.u8(6), alloc: c.u16(7).into(),
    })),
    row(&[op::GET_CONFIGURATION, 0x03, F, F, 0, 0, 0, F, F, 0], Cdrom, Always, false, |c| Ok(Command::GetConfiguration {
        selection: c.u8(1) & 0x03, start: c.u16(2), alloc: c.u16(7).into(),
    })),
    row(&[op::GET_EVENT_STATUS, 0x01, 0, 0, F, 0, 0, F, F, 0], Cdrom, Always, false, |c| Ok(Command::GetEventStatus {
        polled: c.bit(1, 0x01), classes: c.u8(4), alloc: c.u16(7).into(),
    })),
    row(&[op::LOG_SENSE, 0, 0x7f, F, 0, F, F, F, F, 0], Units, Always, false, |c| Ok(Command::LogSense {
        page: c.u8(2) & 0x3f, subpage: c.u8(3), alloc: c.u16(7).into(),
    })),
    row(&[op::READ_DISC_INFORMATION, 0x07, 0, 0, 0, 0, 0, F, F, 0], Cdrom, Read, true, |c| {
        Ok(Command::ReadDiscInformation { kind: c.u8(1) & 0x07, alloc: c.u16(7).into() })
    }),
    row(&[op::MODE_SELECT_10, 0x11, 0, 0, 0, 0, 0, F, F, 0], Units, Write, false, |c| {
        mode_select(c, ModeForm::Ten, c.u16(7).into())
    }),
    row(&[op::RESERVE_10, 0, 0, 0, 0, 0, 0, 0, 0, 0], Units, Own, false, |_| Ok(Command::Reserve)),
    row(&[op::RELEASE_10, 0, 0, 0, 0, 0, 0, 0, 0, 0], Units, Own, false, |_| Ok(Command::Release)),
    row(&[op::MODE_SENSE_10, 0x18, F, F, 0, 0, 0, F, F, 0], Units, Read, false, |c| {
        Ok(mode_sense(c, ModeForm::Ten, c.u16(7).into()))
    }),
    reserve_in(0x00), reserve_in(0x01), reserve_in(0x02), reserve_in(0x03),
    reserve_out(0x00), reserve_out(0x01), reserve_out(0x02), reserve_out(0x03),
    reserve_out(0x04), reserve_out(0x05), reserve_out(0x06), reserve_out(0x07),
    row(&[op::READ_16, 0x18, F, F, F, F, F, F, F, F, F, F, F, F, 0x1f, 0], Disk, Read, true, |c| {
        Ok(Command::Read { extent: extent16(c), fua: c.bit(1, 0x08) })
    }),
    row(&[op::COMPARE_AND_WRITE, 0x18, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0x1f, 0], Disk, Write, true, |c| {
        let extent = Extent { lba: c.u64(2), blocks: c.u8(13).into() };
        Ok(Command::CompareAndWrite { extent, fua: c.bit(1, 0x08) })
    }),
    row(&[op::WRITE_16, 0x18, F, F, F, F, F, F, F, F, F, F, F, F, 0x1f, 0], Disk, Write, true, |c| {
        Ok(Command::Write { extent: extent16(c), fua: c.bit(1, 0x08) })
    }),
    row(&[op::ORWRITE_16, 0x18, F, F, F, F, F, F, F, F, F, F, F, F, 0x1f, 0], Disk, Write, true, |c| {
        Ok(Command::OrWrite { extent: extent16(c), fua: c.bit(1, 0x08) })
    }),
    row(&[op::WRITE_AND_VERIFY_16, 0x16, F, F, F, F, F, F, F, F, F, F, F, F, 0x1f, 0], Disk, Write, true, |c| {
        write_and_verify(c, extent16(c))
    }),
    row(&[op::VERIFY_16, 0x16, F, F, F, F, F, F, F, F, F, F, F, F, 0x1f, 0], Disk, Read, true, |c| verify(c, extent16(c))),
    row(&[op::PRE_FETCH_16, 0x02, F, F, F, F, F, F, F, F, F, F, F, F, 0x1f, 0], Disk, Read, true, |c| {
        Ok(Command::PreFetch { extent: extent16(c) })
    }),
    row(&[op::SYNCHRONIZE_CACHE_16, 0x06, F, F, F, F, F, F, F, F, F, F, F, F, 0x1f, 0], Disk, Write, true, |c| {
        Ok(Command::Synchronize { extent: extent16(c) })
    }),
    row(&[op::WRITE_SAME_16, 0x09, F, F, F, F, F, F, F, F, F, F, F, F, 0x1f, 0], Disk, Write, true, |c| {
        Ok(Command::WriteSame { extent: extent16(c), unmap: c.bit(1, 0x08), no_data: c.bit(1, 0x01) })
    }),
    act(0x10, row(&[op::SERVICE_ACTION_IN_16, 0, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0], Disk, Shared, true, |c| {
        Ok(Command::ReadCapacity16 { alloc: c.u32(10) })
    })),
    act(0x12, row(&[op::SERVICE_ACTION_IN_16, 0, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0], Disk, Read, true, |c| {
        Ok(Command::GetLbaStatus { lba: c.u64(2), alloc: c.u32(10) })
    })),
    row(&[op::REPORT_LUNS, 0, F, 0, 0, 0, F, F, F, F, 0, 0], All, Always, false, |c| {
        Ok(Command::ReportLuns { select: c.u8(2), alloc: c.u32(6) })
    }),
    act(0x0c, row(&[op::MAINTENANCE_IN, 0, 0x87, F, F, F, F, F, F, F, 0, 0], Units, Read, false, report_opcodes)),
    act(0x0d, row(&[op::MAINTENANCE_IN, 0, 0x80, 0, 0, 0, F, F, F, F, 0, 0], Units, Read, false, |c| {
        Ok(Command::ReportTaskFunctions { extended: c.bit(2, 0x80), alloc: c.u32(6) })
    })),
    row(&[op::READ_12, 0x18, F, F, F, F, F, F, F, F, 0x1f, 0], Units, Read, true, |c| {
        Ok(Command::Read { extent: extent12(c), fua: c.bit(1, 0x08) })
    }),
    row(&[op::WRITE_12, 0x18, F, F, F, F, F, F, F, F, 0x1f, 0], Disk, Write, true, |c| {
        Ok(Command::Write { extent: extent12(c), fua: c.bit(1, 0x08) })
    }),
    row(&[op::WRITE_AND_VERIFY_12, 0x16, F, F, F, F, F, F, F, F, 0x1f, 0], Disk, Write, true, |c| write_and_verify(c, extent12(c))),
    row(&[op::VERIFY_12, 0x16, F, F, F, F, F, F, F, F, 0x1f, 0], Disk, Read, true, |c| verify(c, extent12(c))),
    row(&[op::READ_DEFECT_DATA_12, 0x1f, F, F, F, F, F, F, F, F, 0, 0], Disk, Read, true, |c| {
        Ok(Command::ReadDefectData { twelve: true, lists: c.u8(1), alloc: c.u32(6) })
    }),
];

const fn reserve_in(action: u8) -> Entry {
    act(
        action,
        row(
            &[op::PERSISTENT_RESERVE_IN, 0, 0, 0, 0, 0, 0, F, F, 0],
            Units,
            Shared,
            false,
            |c| {
                Ok(Command::ReserveIn {
                    action: c.action(),
                    alloc: c.u16(7).into(),
                })
            },
        ),
    )
}

const fn reserve_out(action: u8) -> Entry {
    act(
        action,
        row(
            &[op::PERSISTENT_RESERVE_OUT, 0, F, 0, 0, F, F, F, F, 0],
            Units,
            Own,
            false,
            |c| {
                let (scope, kind) = (c.u8(2) >> 4, c.u8(2) & 0x0f);
                Ok(Command::ReserveOut {
                    action: c.action(),
                    scope,
                    kind,
                    length: c.u32(5),
                })
            },
        ),
    )
}

fn extent6(c: &Cdb) -> Extent {
    let lba = u64::from(c.u32(0) & 0x001f_ffff);
    // A transfer length of zero means 256 blocks (SBC-3 §5.9).
    let blocks = if c.u8(4) == 0 { 256 } else { c.u8(4).into() };
    Extent { lba, blocks }
}

fn extent10(c: &Cdb) -> Extent {
    Extent {
        lba: c.u32(2).into(),
        blocks: c.u16(7).into(),
    }
}

fn extent12(c: &Cdb) -> Extent {
    Extent {
        lba: c.u32(2).into(),
        blocks: c.u32(6),
    }
}

fn extent16(c: &Cdb) -> Extent {
    Extent {
        lba: c.u64(2),
        blocks: c.u32(10),
    }
}

fn check(c: &Cdb) -> Result<Check, Sense> {
    match c.u8(1) & 0x06 {
        0x00 => Ok(Check::Medium),
        0x02 => Ok(Check::Bytes),
        0x06 => Ok(Check::OneBlock),
        _ => Err(Sense::cdb_field(1, Some(2))),
    }
}

fn verify(c: &Cdb, extent: Extent) -> Result<Command, Sense> {
    Ok(Command::Verify {
        extent,
        check: check(c)?,
    })
}

fn write_and_verify(c: &Cdb, extent: Extent) -> Result<Command, Sense> {
    match check(c)? {
        // One block compared with many makes sense for VERIFY only (SBC-3 §5.46).
        Check::OneBlock => Err(Sense::cdb_field(1, Some(2))),
        check => Ok(Command::WriteAndVerify { extent, check }),
    }
}

fn inquiry(c: &Cdb) -> Result<Command, Sense> {
    let page = c.bit(1, 0x01).then(|| c.u8(2));
    if page.is_none() && c.u8(2) != 0 {
        return Err(Sense::cdb_field(2, None));
    }
    Ok(Command::Inquiry {
        page,
        alloc: c.u16(3).into(),
    })
}

fn mode_sense(c: &Cdb, form: ModeForm, alloc: u32) -> Command {
    Command::ModeSense {
        form,
        long_lba: c.bit(1, 0x10),
        no_blocks: c.bit(1, 0x08),
        control: c.u8(2) >> 6,
        page: c.u8(2) & 0x3f,
        subpage: c.u8(3),
        alloc,
    }
}

fn mode_select(c: &Cdb, form: ModeForm, length: u32) -> Result<Command, Sense> {
    // Pages are in the standard format, and there is nowhere to save them.
    match (c.bit(1, 0x10), c.bit(1, 0x01)) {
        (_, true) => Err(Sense::cdb_field(1, Some(0))),
        (false, _) if length != 0 => Err(Sense::cdb_field(1, Some(4))),
        _ => Ok(Command::ModeSelect { form, length }),
    }
}

fn send_diagnostic(c: &Cdb) -> Result<Command, Sense> {
    let (code, self_test, length) = (c.u8(1) >> 5, c.bit(1, 0x04), c.u16(3));
    // A self-test code and the default self-test exclude one another (SPC-4 table 293).
    if self_test && code != 0 {
        return Err(Sense::cdb_field(1, Some(7)));
    }
    Ok(Command::SendDiagnostic {
        self_test: self_test || code != 0,
        length: length.into(),
    })
}

fn report_opcodes(c: &Cdb) -> Result<Command, Sense> {
    let (opcode, action) = (c.u8(3), c.u16(4));
    let what = match c.u8(2) & 0x07 {
        0 => Reporting::All,
        1 => Reporting::Opcode(opcode),
        2 => Reporting::Action(opcode, action),
        3 => Reporting::Either(opcode, action),
        _ => return Err(Sense::cdb_field(2, Some(2))),
    };
    Ok(Command::ReportOpcodes {
        timeouts: c.bit(2, 0x80),
        what,
        alloc: c.u32(6),
    })
}
