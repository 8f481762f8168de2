//! The block backend contract, shared by virtio-blk and virtio-scsi.
//!
//! A [`Disk`] is an opened image; a [`DiskQueue`] is one stream of requests to it, used by one thread. Offsets and
//! lengths are bytes. Nothing here knows virtio rings, SCSI or PCI: front ends hand over segments of guest memory
//! (or buffers of their own) and a tag, and get the tag back with a result.
//!
//! What every implementation keeps:
//! - a request is answered exactly once, in any order; writes are visible to reads submitted after their completion;
//! - a `Flush`, and a write with `fua`, complete when everything they cover survives a power cut. `Flush` covers the
//!   writes that completed before it was submitted;
//! - a result is `Ok(bytes)` only if all bytes asked for were transferred; short transfers are retried, then reported;
//! - guest memory is not touched after the completion of its request, nor after [`DiskQueue::drain`] returned.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use splitring_virtio::mem::Segment;

use super::error::{DiskError, IoFault};
use super::geometry::{Extent, Geometry, ImageId};
use super::handle::Member;
use crate::ram::Ram;

/// An opened image.
pub trait Disk: Send + Sync {
    /// Its present size, blocks and abilities. Only the capacity changes while the disk is open.
    fn geometry(&self) -> Geometry;

    /// Opens stream number `index` (from 0) for up to `depth` requests in flight into and out of `ram`.
    ///
    /// Rings and descriptors behind it are made when the disk is opened; this takes them and dropping the queue
    /// gives them back, so it may be called again after a device reset. It opens no path.
    fn open_queue(&self, ram: Ram, index: u16, depth: u16)
    -> Result<Box<dyn DiskQueue>, DiskError>;

    /// Looks at the host's file or device again and returns the geometry with its new capacity.
    fn rescan(&self) -> Result<Geometry, DiskError> {
        Ok(self.geometry())
    }

    /// Whether the host has storage behind `offset`, and up to where. Everything has, if that is not known.
    fn extent(&self, offset: u64) -> Result<Extent, IoFault> {
        let end = self.geometry().capacity;
        if offset < end {
            Ok(Extent { mapped: true, end })
        } else {
            Err(IoFault::OutOfRange)
        }
    }

    /// What tells its image from others, however often and by whatever path it is opened.
    fn identity(&self) -> Option<ImageId> {
        None
    }

    // How this crate's own disks share a ring.
    /// What a [`RingShare`] takes to serve this disk beside others; `None` if it has to have queues of its own.
    #[doc(hidden)]
    fn member(&self) -> Option<Member> {
        None
    }
}

/// One stream of requests to a disk, owned by one thread. Dropping it drains it.
///
/// Some requests are carried out on a blocking thread. If that one panics, which is a bug in this
/// program, its requests fail with [`IoFault::Stuck`], and [`completions`](Self::completions) or
/// [`drain`](Self::drain) go on with the panic on the caller's thread. A worker reports it, and the
/// machine ends.
pub trait DiskQueue: Send {
    /// Whether one more request may be submitted now. If not, because `depth` requests are in flight or a rate limit is
    /// reached, one of [`events`](Self::events) becomes readable when this may have changed, or
    /// [`ready_at`](Self::ready_at) says when to ask again.
    fn ready(&mut self) -> bool;

    /// When [`ready`](Self::ready), which was `false`, is to be asked again although no event becomes readable; `None`
    /// if one does. The worker's timers serve a rate limit so, without a descriptor of its own.
    fn ready_at(&self) -> Option<Instant> {
        None
    }

    /// Takes a request. `tag` is the caller's and comes back with the completion.
    ///
    /// Rate limits are charged here and looked at by [`ready`](Self::ready) only, so that one request larger than a
    /// limit's burst still goes through. Fails with [`Full`] when `depth` requests are in flight, with no effect.
    fn submit(&mut self, tag: u64, op: DiskOp<'_>) -> Result<(), Full>;

    /// Hands everything submitted since the last call to the host, once for the whole batch.
    fn commit(&mut self);

    /// Appends what has completed to `out`, and re-arms the events. To be called after each
    /// [`commit`](Self::commit), since much completes at once, and when an event was readable.
    fn completions(&mut self, out: &mut Vec<Completion>);

    /// Appends what has completed already, without asking the host for more.
    fn completed(&mut self, _out: &mut Vec<Completion>) {}

    /// Whether completions wait, told without a system call. Where that can't be told it is `false`, and
    /// [`events`](Self::events) tell.
    fn has_completions(&mut self) -> bool {
        false
    }

    /// Descriptors that become readable when completions wait or [`ready`](Self::ready) may have turned true. They
    /// are to be watched edge-triggered: nobody reads them. None at all means that everything completes within
    /// `commit`.
    fn events(&self) -> Vec<BorrowedFd<'_>>;

    /// Requests submitted and not yet returned by [`completions`](Self::completions).
    fn in_flight(&self) -> usize;

    /// Asks the host to let go of request `tag`. It completes all the same, and once: with [`IoFault::Cancelled`], then
    /// perhaps with a part of its effect, or as if nobody had asked if the host has it done already or can't let go.
    /// Its memory is in use until then. Does nothing where requests are done when they are submitted.
    fn cancel(&mut self, _tag: u64) {}

    /// Cancels what can be cancelled and waits for the rest, for a bounded time; what is still with the host after
    /// that is reported as [`IoFault::Stuck`], and the guest memory it may write is kept mapped for good. The
    /// completions are appended to `out`. Afterwards nothing is in flight.
    fn drain(&mut self, out: &mut Vec<Completion>);
}

/// A request. A disk answers one that it does not know with [`IoFault::Unsupported`]. Ranges are
/// not necessarily multiples of a block: a front end checks what its guest may ask for, and ranges
/// past the end fail with [`IoFault::OutOfRange`] without any effect.
#[derive(Debug)]
#[non_exhaustive]
pub enum DiskOp<'a> {
    /// Fills `data` from `offset` on.
    Read {
        /// First byte on the disk.
        offset: u64,
        /// Where to; its length is the length of the transfer.
        data: Data<'a>,
    },
    /// Stores `data` at `offset`.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// Where from; its length is the length of the transfer.
        data: Data<'a>,
        /// Completes only when the data is stable.
        fua: bool,
    },
    /// Makes all completed writes, discards and zeroes stable.
    Flush,
    /// Tells the host that the range is not needed any more. Reads of it return zeroes where
    /// [`Geometry::discard_zeroes`] says so and are undefined elsewhere. Where the host can't
    /// discard it is no error. Never writes to the range instead.
    Discard {
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Completes only when its effect is stable.
        fua: bool,
    },
    /// Makes the range read as zeroes.
    WriteZeroes {
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Whether the range may be deallocated.
        may_unmap: bool,
        /// Completes only when its effect is stable.
        fua: bool,
    },
}

/// The memory of a transfer.
#[derive(Debug)]
#[non_exhaustive]
pub enum Data<'a> {
    /// Guest memory, in this order, of the `Ram` the queue was opened with; anything else fails with
    /// [`IoFault::BadMemory`]. The list itself is copied; the memory is used until the completion. It is not marked
    /// dirty here: completing the chain it belongs to does that.
    Guest(&'a [Segment]),
    /// A buffer of the front end's, which comes back in [`Completion::buffer`].
    Host(Vec<u8>),
}

/// The answer to one request.
#[derive(Debug)]
#[non_exhaustive]
pub struct Completion {
    /// The caller's tag.
    pub tag: u64,
    /// Bytes transferred (0 for requests without data), which are all that were asked for; or why not.
    pub result: Result<u64, IoFault>,
    /// The buffer of [`Data::Host`].
    pub buffer: Option<Vec<u8>>,
}

impl Completion {
    /// The answer to the request `tag`, which had no buffer of the front end's.
    #[must_use]
    pub fn new(tag: u64, result: Result<u64, IoFault>) -> Self {
        Self {
            tag,
            result,
            buffer: None,
        }
    }

    /// Gives back the buffer of [`Data::Host`].
    #[must_use]
    pub fn with_buffer(mut self, buffer: Option<Vec<u8>>) -> Self {
        self.buffer = buffer;
        self
    }
}

/// As many requests are in flight as the queue was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the disk queue is full")]
pub struct Full;
