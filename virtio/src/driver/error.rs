//! What can go wrong with a queue: a buffer that it refuses, a device that breaks it, a reset that is not proven.

use crate::mem::dma::MapError;

/// Why a buffer was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There are not enough free slots now. Publish, and pop what the device has used.
    #[error("the queue has not enough free slots")]
    Full,
    /// It has no segment.
    #[error("the buffer has no segment")]
    Empty,
    /// It has more segments than the queue can ever hold in one buffer.
    #[error("the buffer has more segments than the queue takes")]
    TooLong,
    /// The queue is out of use.
    #[error("the queue is broken: {0}")]
    Broken(Broken),
    /// A part of it could not be added.
    #[error(transparent)]
    Add(#[from] AddError),
}

/// Why a list could not be added. The buffer can only be abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// More segments or lists than `start_buf` was told of.
    #[error("more segments or lists than were announced")]
    OverReserved,
    /// A segment without bytes.
    #[error("a segment has no byte")]
    EmptySegment,
    /// A list is shorter than the caller says, or a range outside its memory.
    #[error("a list or a piece of memory is shorter than asked for")]
    TooShort,
    /// More than 2^32 bytes in the buffer, or 2^32 or more in a segment or the writable part.
    #[error("more bytes than one buffer can have")]
    TooLong,
    /// The device can't be shown the memory.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// A buffer that was not accepted, and its token.
#[derive(Debug, thiserror::Error)]
#[error("buffer refused: {why}")]
pub struct Refused<T> {
    /// What would have gone in.
    pub token: T,
    /// Why it did not.
    pub why: Refusal,
}

/// What a device did that no device may do. The queue is out of use until it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A used entry names a slot the queue does not have.
    #[error("the device used slot {0}, which the queue does not have")]
    NoSuchSlot(u32),
    /// A used entry names no buffer in flight: never made available, or completed twice.
    #[error("the device used slot {0}, where no buffer is in flight")]
    NotInFlight(u16),
    /// A used entry claims more bytes than the buffer has room for.
    #[error("the device claims {claimed} bytes in the {writable} of slot {slot}")]
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
        /// Entries it claims.
        moved: u16,
        /// Buffers it could have used.
        in_flight: u16,
    },
}

/// The proof is of another device, or of a reset before the queue was set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reset is not one that ended this queue")]
pub struct NotProven;
