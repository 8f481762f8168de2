//! Drivers for the queues of virtio-net: receive, transmit and control (section 5.1).
//!
//! Receiving has the three ways of section 5.1.6.3: *small*, a header of the driver's and a buffer
//! for a packet; *big*, a header and a list of buffers for the largest packet; *mergeable*, where a
//! packet fills as many buffers as it needs. Transmitting keeps header and data in lists of their
//! own, as the RFC had it (patch 6): the data's list is recycled, so its end marker is removed when
//! the packet is done.
//!
//! Each queue is a driver of its own and knows no transport; queue pairs are several of each.

mod control;
mod receive;
mod transmit;

pub use control::{Ack, NetControl, PendingNetControl};
pub use receive::{
    BIG_LEN, Packet, PendingReceive, ReceiveError, ReceiveMode, Receiver, SMALL_LEN,
};
pub use transmit::{PendingTransmit, Transmitter};

use super::piecewise::Refusal;

/// Bytes of frame memory for each buffer in flight, receiving or transmitting.
pub const FRAME_LEN: usize = 64;

/// Why a buffer or packet was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetSubmitError {
    /// The queue did not take it; if it is full, publish and poll.
    #[error(transparent)]
    Queue(#[from] Refusal),
    /// A receive buffer smaller than [`ReceiveMode::least`], or whose first piece has no room for a
    /// header where it goes there.
    #[error("the receive buffer is too small")]
    TooSmall,
    /// More pieces than the transmitter's lists hold.
    #[error("the packet has too many pieces")]
    TooManyPieces,
}

#[cfg(test)]
mod tests;
