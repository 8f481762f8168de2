//! Parse: what a chain asks of a block device, judged before anything is done. Section 5.2.6 of the specification.
//!
//! The header and the ranges of a discard are copied out of guest memory once; nothing is read again.

use splitring_virtio::spec::blk::{
    ID_BYTES, RANGE_F_UNMAP, Range, RequestHeader, SECTOR_SIZE, request, status,
};

use splitring_virtio::device::chain::Reader;

use crate::device::DescriptorChain;
use crate::disk::metrics::RequestKind;

/// Most ranges in a discard or write-zeroes, as offered.
pub(super) const MAX_RANGES: u64 = 16;
/// Bytes of the header of every request.
pub(super) const HEADER: u64 = 16;
/// Bytes of a range.
const RANGE: u64 = 16;

/// What requests are judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes.
    pub(super) capacity: u64,
    pub(super) read_only: bool,
    /// Most pieces of memory the data of a request may be in: as many as were offered, and the borders of memory
    /// regions that may cut through them.
    pub(super) pieces: usize,
    /// Most bytes of one discarded range; `None` if discards were not negotiated.
    pub(super) discard: Option<u64>,
    /// Most bytes of one zeroed range; `None` if zeroing was not negotiated.
    pub(super) zeroes: Option<u64>,
}

/// What to do with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Read into the writable part but its last byte.
    Read { offset: u64, len: u64 },
    /// Write the readable part behind the header.
    Write { offset: u64, len: u64 },
    /// Make writes stable.
    Flush,
    /// Free or zero the pieces.
    Ranges(RequestKind),
    /// Say who we are.
    GetId,
    /// Answer with this status; nothing is done.
    Refuse(u8),
}

/// One range to free or to zero, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) may_unmap: bool,
}

/// A chain without a byte for its status. No answer can reach the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request has no room for its status")]
pub(super) struct NoStatus;

const IOERR: Verdict = Verdict::Refuse(status::IOERR);
const UNSUPP: Verdict = Verdict::Refuse(status::UNSUPP);

/// Judges a chain. The ranges of a discard or write-zeroes replace what is in `pieces`.
pub(super) fn parse(
    chain: &DescriptorChain,
    limits: &Limits,
    pieces: &mut Vec<Piece>,
) -> Result<Verdict, NoStatus> {
    pieces.clear();
    let room = chain.writable_len().checked_sub(1).ok_or(NoStatus)?;
    let mut reader = chain.reader();
    let Ok(header) = reader.read_obj::<RequestHeader>() else {
        return Ok(IOERR);
    };
    let offset = header.sector.get().checked_mul(SECTOR_SIZE);
    Ok(match header.kind.get() {
        request::IN => match place(offset, room, limits) {
            Some(offset) if pieces_to_fill(chain) <= limits.pieces => {
                Verdict::Read { offset, len: room }
            }
            _ => IOERR,
        },
        request::OUT if limits.read_only => IOERR,
        request::OUT => match place(offset, reader.remaining(), limits) {
            Some(offset) if pieces_to_store(chain, reader) <= limits.pieces => Verdict::Write {
                offset,
                len: reader.remaining(),
            },
            _ => IOERR,
        },
        request::FLUSH => Verdict::Flush,
        request::GET_ID if room < u64::try_from(ID_BYTES).unwrap_or(u64::MAX) => IOERR,
        request::GET_ID => Verdict::GetId,
        request::DISCARD => match limits.discard {
            None => UNSUPP,
            Some(max) => ranges(reader, limits, max, 0, pieces)
                .map_or_else(Verdict::Refuse, |()| Verdict::Ranges(RequestKind::Discard)),
        },
        request::WRITE_ZEROES => match limits.zeroes {
            None => UNSUPP,
            Some(max) => {
                let judged = ranges(reader, limits, max, RANGE_F_UNMAP, pieces);
                judged.map_or_else(Verdict::Refuse, |()| {
                    Verdict::Ranges(RequestKind::WriteZeroes)
                })
            }
        },
        _ => UNSUPP,
    })
}

/// The byte a transfer starts at, if it is whole sectors of the disk.
fn place(offset: Option<u64>, len: u64, limits: &Limits) -> Option<u64> {
    let offset = offset?;
    let inside = offset.checked_add(len)? <= limits.capacity;
    (inside && len.is_multiple_of(SECTOR_SIZE)).then_some(offset)
}

/// Segments for the data of a read: all that are writable, unless the last is for nothing but the status.
fn pieces_to_fill(chain: &DescriptorChain) -> usize {
    let segments = chain.writable();
    let status_alone = segments.last().is_some_and(|last| last.len() == 1);
    segments.len().saturating_sub(usize::from(status_alone))
}

/// Segments with the data of a write, which `reader` is at the start of.
fn pieces_to_store(chain: &DescriptorChain, reader: Reader<'_>) -> usize {
    match chain.readable() {
        // As most are: counting the pieces takes longer.
        [_] => 1,
        [header, data @ ..] if u64::try_from(header.len()) == Ok(HEADER) => data.len(),
        _ => reader.segments().count(),
    }
}

/// Copies and judges the ranges of a discard or write-zeroes. One bad range refuses them all, with a status.
fn ranges(
    mut reader: Reader<'_>,
    limits: &Limits,
    max: u64,
    flags: u32,
    pieces: &mut Vec<Piece>,
) -> Result<(), u8> {
    let payload = reader.remaining();
    if limits.read_only
        || !payload.is_multiple_of(RANGE)
        || payload > RANGE.saturating_mul(MAX_RANGES)
    {
        return Err(status::IOERR);
    }
    while let Ok(range) = reader.read_obj::<Range>() {
        if range.flags.get() & !flags != 0 {
            return Err(status::UNSUPP);
        }
        let len = u64::from(range.num_sectors.get()).saturating_mul(SECTOR_SIZE);
        let offset = place(range.sector.get().checked_mul(SECTOR_SIZE), len, limits);
        let offset = offset.filter(|_| len <= max).ok_or(status::IOERR)?;
        let may_unmap = range.flags.get() & RANGE_F_UNMAP != 0;
        pieces.push(Piece {
            offset,
            len,
            may_unmap,
        });
    }
    Ok(())
}
