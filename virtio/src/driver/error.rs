//! Errors of a queue: a refused buffer, a device that breaks the queue, a reset that is not proven.

use crate::mem::dma::MapError;

/// Why a buffer was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There are not enough free slots now. Publish, and pop used buffers.
    #[error("the queue has not enough free slots")]
    Full,
    /// The buffer has no segment.
    #[error("the buffer has no segment")]
    Empty,
    /// The buffer has more segments than the queue can ever hold in one buffer.
    #[error("the buffer has more segments than the queue takes")]
    TooLong,
    /// The queue is broken.
    #[error("the queue is broken: {0}")]
    Broken(Broken),
    /// A part of the buffer could not be added.
    #[error(transparent)]
    Add(#[from] AddError),
}

/// Why a list could not be added. The buffer can only be aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// There are more segments or lists than announced to `start_buf`.
    #[error("more segments or lists than were announced")]
    OverReserved,
    /// A segment has no bytes.
    #[error("a segment has no bytes")]
    EmptySegment,
    /// A list is shorter than requested, or a range is outside its memory.
    #[error("a list or a memory buffer is shorter than requested")]
    TooShort,
    /// More than 2^32 bytes in the buffer, or 2^32 or more in a segment or the writable part.
    #[error("more bytes than one buffer can have")]
    TooLong,
    /// The device can't access the memory.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// A refused buffer's token, and why it was refused.
#[derive(Debug, thiserror::Error)]
#[error("buffer refused: {why}")]
pub struct Refused<T> {
    /// The token.
    pub token: T,
    /// The cause.
    pub why: Refusal,
}

/// A violation of the protocol by the device. The queue is out of use until it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A used entry names a slot that the queue does not have.
    #[error("the device used slot {0}, which the queue does not have")]
    NoSuchSlot(u32),
    /// A used entry names no buffer in flight: never made available, or used twice.
    #[error("the device used slot {0}, where no buffer is in flight")]
    NotInFlight(u16),
    /// A used entry claims more bytes than the buffer has room for.
    #[error("the device claims {claimed} bytes written to the {writable} of slot {slot}")]
    TooLong {
        /// Head of the buffer.
        slot: u16,
        /// Bytes claimed.
        claimed: u32,
        /// Bytes that may be written.
        writable: u32,
    },
    /// The used index is further ahead than there are buffers in flight.
    #[error("the device moved its index by {moved} with {in_flight} buffers in flight")]
    IndexJump {
        /// Number of claimed used entries.
        moved: u16,
        /// Number of buffers in flight.
        in_flight: u16,
    },
}

/// The proof is of another device, or of a reset before the queue was set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reset is not one that ended this queue")]
pub struct NotProven;
