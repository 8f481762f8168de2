//! A driver for virtio-blk: one request queue of a device (section 5.2).
//!
//! It has the two paths of the RFC (patches 2 to 4). On the bio path the segments of one bio are
//! added unchanged, between the header and the status. On the request path a request is composed of
//! several bios of adjacent sectors, list after list, or of a payload of ranges, or has no data.
//! Header, status and payload are in frames, for which the caller supplies memory.
//!
//! A device with several queues has one driver per queue. The driver knows no transport: submitted
//! requests are exposed with [`publish`](Blk::publish).

mod request;

pub use request::{Bio, Info, Merged, RangeLimits, Transfer, Work};

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::piecewise::{AddError, Builder, Parts, Readable, Refusal, Refused};
use super::queue::{Broken, NotProven, Queue};
use crate::mem::dma::{DmaBuf, DmaBytes, DmaMap, Identity};
use crate::mem::reset::ResetProof;
use crate::spec::blk::{ID_BYTES, Range, RequestHeader, feature, request as kind, status};

/// Features that this driver supports.
pub const FEATURES: u64 = feature::SIZE_MAX
    | feature::SEG_MAX
    | feature::RO
    | feature::BLK_SIZE
    | feature::FLUSH
    | feature::TOPOLOGY
    | feature::CONFIG_WCE
    | feature::MQ
    | feature::DISCARD
    | feature::WRITE_ZEROES;

/// Offsets in a frame: the status byte behind the header, and a payload of ranges or the
/// identification string.
const STATUS_AT: usize = size_of::<RequestHeader>();
const PAYLOAD_AT: usize = 32;
const LINE: usize = 64;
/// The value of the status byte until the device writes it.
const NOT_WRITTEN: u8 = 0xff;

/// Why a request was not submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlkSubmitError {
    /// The queue refused it. If it is full, publish and poll.
    #[error(transparent)]
    Queue(#[from] Refusal),
    /// It writes to a read-only device.
    #[error("the device is read-only")]
    ReadOnly,
    /// The device does not offer this kind of request, or not with that many or that large ranges.
    #[error("the device does not offer this request")]
    NotOffered,
    /// It is not of whole sectors, or exceeds the end of the device.
    #[error("the request is not of whole sectors inside the device")]
    OutOfRange,
    /// It has more segments than the device accepts, or larger ones.
    #[error("the request has more or larger segments than the device accepts")]
    Segments,
}

/// A request that was not submitted.
#[derive(Debug)]
pub struct NotSubmitted<B: DmaBuf = DmaBytes> {
    /// The request.
    pub work: Work<B>,
    /// The cause.
    pub why: BlkSubmitError,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// An I/O error of the device, or an invalid request.
    #[error("the device reports an I/O error")]
    Io,
    /// The device does not support the request.
    #[error("the device does not support the request")]
    Unsupported,
    /// The device wrote an unknown status, or none.
    #[error("the device reports the unknown status {0}")]
    Status(u8),
}

/// A completed request.
#[derive(Debug)]
pub struct CompletedRequest<B: DmaBuf = DmaBytes> {
    /// The tag given at submission.
    pub tag: u64,
    /// The request, with its memory.
    pub work: Work<B>,
    /// The result.
    pub result: Result<(), RequestError>,
    /// The identification string, after a successful `GetId`.
    pub id: Option<[u8; ID_BYTES]>,
}

/// A request in flight: the queue's token.
#[derive(Debug)]
pub struct PendingRequest<B: DmaBuf = DmaBytes>(Box<RequestSlot<B>>);

#[derive(Debug)]
struct RequestSlot<B: DmaBuf> {
    frame: DmaBytes,
    payload: usize,
    work: Work<B>,
    tag: u64,
}

/// One request queue of a block device.
pub struct Blk<B: DmaBuf = DmaBytes, M: DmaMap = Identity> {
    queue: Queue<PendingRequest<B>, M>,
    spare: Vec<PendingRequest<B>>,
    info: Info,
    ranges: usize,
}

impl<B: DmaBuf, M: DmaMap> Blk<B, M> {
    /// Returns the bytes of frame memory per request in flight, for up to `ranges` discard or
    /// write-zeroes ranges.
    pub const fn frame_len(ranges: usize) -> usize {
        // Two ranges are large enough for the identification string as well.
        let ranges = if ranges < 2 { 2 } else { ranges };
        PAYLOAD_AT
            .saturating_add(ranges.saturating_mul(size_of::<Range>()))
            .next_multiple_of(LINE)
    }

    /// Creates a driver of `queue`, with `frames` divided among requests of up to `ranges` ranges;
    /// `info` is what the device offers. The number of frames limits the requests in flight.
    pub fn new(
        queue: Queue<PendingRequest<B>, M>,
        frames: DmaBytes,
        ranges: usize,
        info: Info,
    ) -> Self {
        let pending = |frame| {
            PendingRequest(Box::new(RequestSlot {
                frame,
                payload: 0,
                work: Work::Flush,
                tag: 0,
            }))
        };
        let slots = usize::from(queue.areas().size);
        let frames = frames.divide(Self::frame_len(ranges));
        Self {
            spare: frames.take(slots).map(pending).collect(),
            queue,
            info,
            ranges,
        }
    }

    /// Returns what the device offers.
    pub const fn info(&self) -> &Info {
        &self.info
    }

    /// Updates what the device offers, after a configuration change.
    pub const fn set_info(&mut self, info: Info) {
        self.info = info;
    }

    /// Submits the segments of one bio unchanged (the bio path).
    ///
    /// # Errors
    /// See [`BlkSubmitError`]; returns the bio.
    #[inline]
    pub fn bio(&mut self, tag: u64, bio: Bio<B>) -> Result<(), NotSubmitted<B>> {
        let sector = bio.sector;
        match self.check_bios(core::slice::from_ref(&bio)) {
            Ok(segments) => self.submit(tag, sector, segments, &[], Work::Bio(bio)),
            Err(why) => Err(NotSubmitted {
                work: Work::Bio(bio),
                why,
            }),
        }
    }

    /// Submits adjacent bios as one request (the request path).
    ///
    /// # Errors
    /// See [`BlkSubmitError`]; returns the bios.
    pub fn merged(&mut self, tag: u64, merged: Merged<B>) -> Result<(), NotSubmitted<B>> {
        let sector = merged.bios.first().map_or(0, |bio| bio.sector);
        match self.check_bios(&merged.bios) {
            Ok(segments) => self.submit(tag, sector, segments, &[], Work::Merged(merged)),
            Err(why) => Err(NotSubmitted {
                work: Work::Merged(merged),
                why,
            }),
        }
    }

    /// Submits a flush: when it completes, all completed writes are stable.
    ///
    /// # Errors
    /// See [`BlkSubmitError`].
    pub fn flush(&mut self, tag: u64) -> Result<(), NotSubmitted<B>> {
        self.plain(tag, Work::Flush, self.info.flush)
    }

    /// Requests the identification string.
    ///
    /// # Errors
    /// See [`BlkSubmitError`].
    pub fn get_id(&mut self, tag: u64) -> Result<(), NotSubmitted<B>> {
        self.plain(tag, Work::GetId, true)
    }

    /// Discards these ranges, whose contents are no longer needed.
    ///
    /// # Errors
    /// See [`BlkSubmitError`].
    pub fn discard(&mut self, tag: u64, ranges: &[Range]) -> Result<(), NotSubmitted<B>> {
        self.with_ranges(tag, ranges, Work::Discard, self.info.discard)
    }

    /// Zeroes these ranges.
    ///
    /// # Errors
    /// See [`BlkSubmitError`].
    pub fn write_zeroes(&mut self, tag: u64, ranges: &[Range]) -> Result<(), NotSubmitted<B>> {
        self.with_ranges(tag, ranges, Work::WriteZeroes, self.info.write_zeroes)
    }

    fn plain(&mut self, tag: u64, work: Work<B>, offered: bool) -> Result<(), NotSubmitted<B>> {
        match offered {
            true => self.submit(tag, 0, 0, &[], work),
            false => Err(NotSubmitted {
                work,
                why: BlkSubmitError::NotOffered,
            }),
        }
    }

    fn with_ranges(
        &mut self,
        tag: u64,
        ranges: &[Range],
        work: Work<B>,
        limits: Option<RangeLimits>,
    ) -> Result<(), NotSubmitted<B>> {
        match self.check_ranges(ranges, limits) {
            Ok(()) => self.submit(tag, 0, 0, ranges, work),
            Err(why) => Err(NotSubmitted { work, why }),
        }
    }

    /// Checks bios against the device's limits; returns the number of their segments.
    #[inline]
    fn check_bios(&self, bios: &[Bio<B>]) -> Result<usize, BlkSubmitError> {
        let mut segments = 0usize;
        for bio in bios {
            if bio.transfer == Transfer::Write && self.info.read_only {
                return Err(BlkSubmitError::ReadOnly);
            }
            let end = bio.end().ok_or(BlkSubmitError::OutOfRange)?;
            if end > self.info.capacity {
                return Err(BlkSubmitError::OutOfRange);
            }
            for buffer in &bio.data {
                segments = segments.saturating_add(1);
                let max = usize::try_from(self.info.size_max).unwrap_or(usize::MAX);
                if buffer.region().len() > max {
                    return Err(BlkSubmitError::Segments);
                }
            }
        }
        let most = usize::try_from(self.info.seg_max).unwrap_or(usize::MAX);
        if segments > most {
            return Err(BlkSubmitError::Segments);
        }
        Ok(segments)
    }

    fn check_ranges(
        &self,
        ranges: &[Range],
        limits: Option<RangeLimits>,
    ) -> Result<(), BlkSubmitError> {
        let limits = limits.ok_or(BlkSubmitError::NotOffered)?;
        if self.info.read_only {
            return Err(BlkSubmitError::ReadOnly);
        }
        let most = usize::try_from(limits.ranges).unwrap_or(usize::MAX);
        if ranges.len() > most.min(self.ranges) {
            return Err(BlkSubmitError::NotOffered);
        }
        for range in ranges {
            let sectors = range.num_sectors.get();
            let end = range.sector.get().checked_add(u64::from(sectors));
            if end.is_none_or(|end| end > self.info.capacity) {
                return Err(BlkSubmitError::OutOfRange);
            }
            if sectors > limits.sectors {
                return Err(BlkSubmitError::NotOffered);
            }
        }
        Ok(())
    }

    #[inline]
    fn submit(
        &mut self,
        tag: u64,
        sector: u64,
        segments: usize,
        ranges: &[Range],
        work: Work<B>,
    ) -> Result<(), NotSubmitted<B>> {
        let Some(mut pending) = self.spare.pop() else {
            let why = BlkSubmitError::Queue(Refusal::Full);
            return Err(NotSubmitted { work, why });
        };
        pending.0.prepare(tag, sector, ranges, work);
        // Header, data or payload, and status; each bio's data is a list.
        let payload = usize::from(pending.0.payload != 0);
        let count = segments.saturating_add(payload).saturating_add(2);
        let lists = pending.0.work.bios().len().saturating_add(3);
        let started = self.queue.start_buf(pending, count, lists);
        match started.and_then(PendingRequest::fill) {
            Ok(()) => Ok(()),
            Err(Refused { token, why }) => {
                let mut pending = token;
                let work = core::mem::replace(&mut pending.0.work, Work::Flush);
                self.spare.push(pending);
                let why = BlkSubmitError::Queue(why);
                Err(NotSubmitted { work, why })
            }
        }
    }

    /// Returns one completed request, or `Ok(None)` if there is none.
    ///
    /// # Errors
    /// The device broke the queue; it has to be reset.
    #[inline]
    pub fn poll(&mut self) -> Result<Option<CompletedRequest<B>>, Broken> {
        let Some(completion) = self.queue.pop()? else {
            return Ok(None);
        };
        Ok(Some(self.finish(completion.token)))
    }

    #[inline]
    fn finish(&mut self, mut pending: PendingRequest<B>) -> CompletedRequest<B> {
        let slot = &mut *pending.0;
        let result = match slot.frame.get::<u8>(STATUS_AT) {
            Some(status::OK) => Ok(()),
            Some(status::IOERR) => Err(RequestError::Io),
            Some(status::UNSUPP) => Err(RequestError::Unsupported),
            other => Err(RequestError::Status(other.unwrap_or(NOT_WRITTEN))),
        };
        let work = core::mem::replace(&mut slot.work, Work::Flush);
        let id = match (&work, result) {
            (Work::GetId, Ok(())) => slot.frame.get(PAYLOAD_AT),
            _ => None,
        };
        let done = CompletedRequest {
            tag: slot.tag,
            work,
            result,
            id,
        };
        self.spare.push(pending);
        done
    }

    /// Passes every request in flight to `each` after a reset, with the status that its frame has.
    /// The device has to be given the queue's addresses again.
    ///
    /// # Errors
    /// The proof is of another device or not later than the queue.
    pub fn reclaim(
        &mut self,
        proof: &ResetProof,
        mut each: impl FnMut(CompletedRequest<B>),
    ) -> Result<(), NotProven> {
        for pending in self.queue.take_back(proof)? {
            each(self.finish(pending));
        }
        Ok(())
    }

    queue_methods!();
}

impl<B: DmaBuf> RequestSlot<B> {
    #[inline]
    fn prepare(&mut self, tag: u64, sector: u64, ranges: &[Range], work: Work<B>) {
        let header = RequestHeader {
            kind: work.kind().into(),
            reserved: 0.into(),
            sector: sector.into(),
        };
        self.frame.put(0, &header);
        self.frame.put(STATUS_AT, &NOT_WRITTEN);
        self.payload = match work {
            Work::GetId => ID_BYTES,
            _ => size_of_val(ranges),
        };
        if !ranges.is_empty() {
            self.frame.put(PAYLOAD_AT, ranges);
        }
        self.tag = tag;
        self.work = work;
    }

    /// Adds the header, then the data to write or the ranges.
    #[inline]
    fn readable<'t>(&'t self, parts: &mut Parts<'_, '_, 't, impl DmaMap>) -> Result<(), AddError> {
        parts.bytes(&self.frame, 0..STATUS_AT)?;
        match self.work.kind() {
            kind::OUT => self.data(parts),
            kind::DISCARD | kind::WRITE_ZEROES => self.payload(parts),
            _ => Ok(()),
        }
    }

    /// Adds the memory for data to read, then the status, always the last byte.
    #[inline]
    fn writable<'t>(&'t self, parts: &mut Parts<'_, '_, 't, impl DmaMap>) -> Result<(), AddError> {
        match self.work.kind() {
            kind::IN => self.data(parts)?,
            kind::GET_ID => self.payload(parts)?,
            _ => {}
        }
        parts.bytes(&self.frame, STATUS_AT..STATUS_AT.wrapping_add(1))
    }

    #[inline]
    fn data<'t>(&'t self, parts: &mut Parts<'_, '_, 't, impl DmaMap>) -> Result<(), AddError> {
        for bio in self.work.bios() {
            parts.sg(&bio.data, usize::MAX)?;
        }
        Ok(())
    }

    fn payload<'t>(&'t self, parts: &mut Parts<'_, '_, 't, impl DmaMap>) -> Result<(), AddError> {
        parts.bytes(
            &self.frame,
            PAYLOAD_AT..PAYLOAD_AT.saturating_add(self.payload),
        )
    }
}

impl<B: DmaBuf> PendingRequest<B> {
    /// Adds everything to the buffer. If adding fails, `end_buf` returns the error.
    #[inline]
    fn fill<M: DmaMap>(mut buffer: Builder<'_, Self, M, Readable>) -> Result<(), Refused<Self>> {
        let _ = buffer.add_all(|pending, parts| pending.0.readable(parts));
        let mut buffer = buffer.writable();
        let _ = buffer.add_all(|pending, parts| pending.0.writable(parts));
        buffer.end_buf().map(drop)
    }
}

#[cfg(test)]
mod tests;
