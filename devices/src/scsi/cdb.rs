//! Command descriptor blocks, as bytes and as typed [`Command`]s (SPC-4 §4.2.5).
//!
//! Types only: nothing here knows a disk, a reservation or a medium. Which bytes make which command is in `table`.

use super::wire;

/// Longest CDB the request header can carry here; variable-length CDBs are not used.
pub(crate) const MAX_CDB: usize = 32;

/// The CDB of one request, copied out of guest memory and zero-filled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cdb([u8; MAX_CDB]);

impl Cdb {
    /// Takes what the driver sent, at most [`MAX_CDB`] bytes of it.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut cdb = [0; MAX_CDB];
        for (to, from) in cdb.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self(cdb)
    }

    pub(crate) fn u8(&self, at: usize) -> u8 {
        wire::u8_at(&self.0, at)
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        wire::u16_at(&self.0, at)
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        wire::u32_at(&self.0, at)
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        wire::u64_at(&self.0, at)
    }

    /// Whether any of `mask`'s bits is set in byte `at`.
    pub(crate) fn bit(&self, at: usize, mask: u8) -> bool {
        self.u8(at) & mask != 0
    }

    /// The first 16 bytes, which hold all of it.
    pub(crate) fn head(&self) -> u128 {
        u128::from_le_bytes(self.0.first_chunk().copied().unwrap_or_default())
    }

    pub(crate) fn opcode(&self) -> u8 {
        self.u8(0)
    }

    /// The service action, where the opcode has one.
    pub(crate) fn action(&self) -> u8 {
        self.u8(1) & 0x1f
    }
}

/// Which command set a logical unit answers, and with what options: the table's rows are filtered by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) kind: Kind,
    /// Blocks can be deallocated: UNMAP and the UNMAP bit of WRITE SAME exist.
    pub(crate) thin: bool,
}

/// The peripheral device types served (SPC-4 table 142).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Disk,
    Cdrom,
    /// The REPORT LUNS well-known logical unit.
    ReportLuns,
}

/// A run of blocks as the CDB gives it; not yet checked against the capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) lba: u64,
    pub(crate) blocks: u32,
}

/// Six- and ten-byte MODE commands differ in their headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModeForm {
    Six,
    Ten,
}

/// What VERIFY compares the medium with (BYTCHK, SBC-3 §5.34).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// Only that the blocks can be read.
    Medium,
    /// Every block with its own block of data-out.
    Bytes,
    /// Every block with the one block of data-out.
    OneBlock,
}

/// What REPORT SUPPORTED OPERATION CODES is asked (SPC-4 table 280).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reporting {
    All,
    Opcode(u8),
    Action(u8, u16),
    /// The opcode with the action if it has actions, without if it has not.
    Either(u8, u16),
}

/// One command, every field in its own type; allocation lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    TestUnitReady,
    RequestSense {
        descriptor: bool,
        alloc: u32,
    },
    Inquiry {
        page: Option<u8>,
        alloc: u32,
    },
    ReportLuns {
        select: u8,
        alloc: u32,
    },
    ReadCapacity10,
    ReadCapacity16 {
        alloc: u32,
    },
    GetLbaStatus {
        lba: u64,
        alloc: u32,
    },
    ModeSense {
        form: ModeForm,
        long_lba: bool,
        no_blocks: bool,
        control: u8,
        page: u8,
        subpage: u8,
        alloc: u32,
    },
    ModeSelect {
        form: ModeForm,
        length: u32,
    },
    LogSense {
        page: u8,
        subpage: u8,
        alloc: u32,
    },
    Read {
        extent: Extent,
        fua: bool,
    },
    Write {
        extent: Extent,
        fua: bool,
    },
    WriteAndVerify {
        extent: Extent,
        check: Check,
    },
    Verify {
        extent: Extent,
        check: Check,
    },
    PreFetch {
        extent: Extent,
    },
    Synchronize {
        extent: Extent,
    },
    Unmap {
        length: u32,
    },
    WriteSame {
        extent: Extent,
        unmap: bool,
        no_data: bool,
    },
    CompareAndWrite {
        extent: Extent,
        fua: bool,
    },
    OrWrite {
        extent: Extent,
        fua: bool,
    },
    ReadDefectData {
        twelve: bool,
        lists: u8,
        alloc: u32,
    },
    ReportOpcodes {
        timeouts: bool,
        what: Reporting,
        alloc: u32,
    },
    ReportTaskFunctions {
        extended: bool,
        alloc: u32,
    },
    ReserveIn {
        action: u8,
        alloc: u32,
    },
    ReserveOut {
        action: u8,
        scope: u8,
        kind: u8,
        length: u32,
    },
    Reserve,
    Release,
    StartStop {
        power: u8,
        no_flush: bool,
        load_eject: bool,
        start: bool,
    },
    PreventAllow {
        prevent: bool,
    },
    SendDiagnostic {
        self_test: bool,
        length: u32,
    },
    ReadToc {
        msf: bool,
        format: u8,
        track: u8,
        alloc: u32,
    },
    GetConfiguration {
        selection: u8,
        start: u16,
        alloc: u32,
    },
    GetEventStatus {
        polled: bool,
        classes: u8,
        alloc: u32,
    },
    ReadDiscInformation {
        kind: u8,
        alloc: u32,
    },
}

impl Command {
    /// Bytes of data-out the CDB announces, for a logical unit with blocks of `block` bytes.
    pub(crate) fn data_out(&self, block: u32) -> u64 {
        let blocks = |count: u32| u64::from(count).saturating_mul(u64::from(block));
        match *self {
            Self::Write { extent, .. } | Self::OrWrite { extent, .. } => blocks(extent.blocks),
            Self::WriteAndVerify { extent, .. } => blocks(extent.blocks),
            Self::Verify {
                extent,
                check: Check::Bytes,
            } => blocks(extent.blocks),
            Self::Verify {
                extent,
                check: Check::OneBlock,
            } => blocks(extent.blocks.min(1)),
            Self::WriteSame { no_data: false, .. } => u64::from(block),
            Self::CompareAndWrite { extent, .. } => blocks(extent.blocks).saturating_mul(2),
            Self::Unmap { length }
            | Self::ModeSelect { length, .. }
            | Self::ReserveOut { length, .. }
            | Self::SendDiagnostic { length, .. } => u64::from(length),
            _ => 0,
        }
    }

    /// Bytes of data-in the CDB announces where that is fixed by the CDB; parameter data is as long as it is.
    pub(crate) fn data_in(&self, block: u32) -> u64 {
        match *self {
            Self::Read { extent, .. } => u64::from(extent.blocks).saturating_mul(u64::from(block)),
            _ => 0,
        }
    }
}
