//! Drivers for the queues of virtio-net: receive, transmit and control (section 5.1).
//!
//! There are three receive modes (section 5.1.6.3): *small*, a header of the driver's and a buffer
//! for one packet; *big*, a header and a list of buffers for the largest packet; *mergeable*, where
//! a packet fills as many buffers as it needs. On transmission header and data are separate lists,
//! as in the RFC (patch 6): the data's list is recycled, so its end marker is removed when the
//! packet is done.
//!
//! There is one driver per queue, which knows no transport; queue pairs have one driver per queue.

mod control;
mod receive;
mod transmit;

pub use control::{Ack, NetControl, PendingNetControl};
pub use receive::{
    BIG_LEN, Packet, PendingReceive, ReceiveError, ReceiveMode, Receiver, SMALL_LEN,
};
pub use transmit::{PendingTransmit, Transmitter};

use super::piecewise::Refusal;

/// Bytes of frame memory per buffer in flight, for receiving or transmitting.
pub const FRAME_LEN: usize = 64;

/// Why a buffer or packet was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetSubmitError {
    /// The queue refused it. If it is full, publish and poll.
    #[error(transparent)]
    Queue(#[from] Refusal),
    /// A receive buffer is smaller than [`ReceiveMode::least`], or its first memory buffer has no
    /// room for the header that belongs there.
    #[error("the receive buffer is too small")]
    TooSmall,
    /// The packet has more memory buffers than the transmitter's lists hold.
    #[error("the packet has too many segments")]
    TooManyPieces,
}

#[cfg(test)]
mod tests;
