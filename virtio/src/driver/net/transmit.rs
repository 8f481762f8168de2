//! Transmitting: a header and a recycled list of data (section 5.1.6.2).

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{FRAME_LEN, NetSubmitError};
use crate::driver::piecewise::{Refusal, Refused};
use crate::driver::queue::{Broken, NotProven, Queue};
use crate::mem::dma::{DmaBuf, DmaBytes, DmaMap, Identity};
use crate::mem::reset::ResetProof;
use crate::scatterlist::ScatterList;
use crate::spec::net::{HEADER_SIZE, Header};

/// A packet in flight: the queue's token.
#[derive(Debug)]
pub struct PendingTransmit<B: DmaBuf = DmaBytes>(Box<TransmitSlot<B>>);

#[derive(Debug)]
struct TransmitSlot<B: DmaBuf> {
    frame: DmaBytes,
    /// Recycled from packet to packet.
    data: ScatterList<B>,
    pieces: usize,
    tag: u64,
}

/// The driver of a transmit queue.
pub struct Transmitter<B: DmaBuf = DmaBytes, M: DmaMap = Identity> {
    queue: Queue<PendingTransmit<B>, M>,
    spare: Vec<PendingTransmit<B>>,
}

impl<B: DmaBuf, M: DmaMap> Transmitter<B, M> {
    /// Creates a driver of `queue`, with `frames` divided among the headers of packets
    /// ([`FRAME_LEN`] bytes each), which have up to `pieces` memory buffers.
    pub fn new(queue: Queue<PendingTransmit<B>, M>, frames: DmaBytes, pieces: usize) -> Self {
        let pending = |frame| {
            PendingTransmit(Box::new(TransmitSlot {
                frame,
                data: ScatterList::new(pieces),
                pieces: 0,
                tag: 0,
            }))
        };
        let slots = usize::from(queue.areas().size);
        Self {
            queue,
            spare: frames.divide(FRAME_LEN).take(slots).map(pending).collect(),
        }
    }

    /// Sends a packet: its header, and its memory buffers as a list of their own.
    ///
    /// # Errors
    /// See [`NetSubmitError`]; passes the memory buffers to `back`.
    #[inline]
    pub fn send(
        &mut self,
        tag: u64,
        header: &Header,
        pieces: impl IntoIterator<Item = B>,
        mut back: impl FnMut(B),
    ) -> Result<(), NetSubmitError> {
        let mut pieces = pieces.into_iter();
        let Some(mut pending) = self.spare.pop() else {
            pieces.for_each(back);
            return Err(NetSubmitError::Queue(Refusal::Full));
        };
        let slot = &mut *pending.0;
        slot.tag = tag;
        slot.frame.put(0, header);
        let sent = match slot.data.fill(&mut pieces) {
            Err(piece) => {
                back(piece);
                Err((pending, NetSubmitError::TooManyPieces))
            }
            Ok(filled) => {
                slot.pieces = filled;
                self.submit(pending)
            }
        };
        sent.map_err(|(mut pending, why)| {
            pending.0.empty(&mut back);
            self.spare.push(pending);
            pieces.for_each(back);
            why
        })
    }

    #[inline]
    fn submit(
        &mut self,
        pending: PendingTransmit<B>,
    ) -> Result<(), (PendingTransmit<B>, NetSubmitError)> {
        let count = pending.0.pieces.saturating_add(1);
        let sent = self
            .queue
            .start_buf(pending, count, 2)
            .and_then(|mut buffer| {
                let _ = buffer.add_all(|pending, parts| {
                    parts.bytes(&pending.0.frame, 0..HEADER_SIZE)?;
                    parts.sg(&pending.0.data, pending.0.pieces).map(drop)
                });
                buffer.end_buf()
            });
        match sent {
            Ok(_) => Ok(()),
            Err(Refused { token, why }) => Err((token, NetSubmitError::Queue(why))),
        }
    }

    /// Returns the tag of one packet that the device has used, or `Ok(None)`; passes its memory
    /// buffers to `back`.
    ///
    /// # Errors
    /// The device broke the queue; it has to be reset.
    #[inline]
    pub fn reap(&mut self, back: impl FnMut(B)) -> Result<Option<u64>, Broken> {
        let Some(completion) = self.queue.pop()? else {
            return Ok(None);
        };
        let mut pending = completion.token;
        let tag = pending.0.tag;
        pending.0.empty(back);
        self.spare.push(pending);
        Ok(Some(tag))
    }

    /// Passes the memory buffers of every packet in flight, sent or not, to `back` after a reset.
    /// The device has to be given the queue's addresses again.
    ///
    /// # Errors
    /// The proof is of another device or not later than the queue.
    pub fn reclaim(
        &mut self,
        proof: &ResetProof,
        mut back: impl FnMut(B),
    ) -> Result<(), NotProven> {
        let spare = &mut self.spare;
        self.queue.reclaim(proof, |mut pending| {
            pending.0.empty(&mut back);
            spare.push(pending);
        })
    }

    queue_methods!();
}

impl<B: DmaBuf> TransmitSlot<B> {
    /// Removes the memory buffers and the end marker, so that the list can hold a longer packet.
    #[inline]
    fn empty(&mut self, back: impl FnMut(B)) {
        self.data.clear(back);
        if let Some(last) = self.pieces.checked_sub(1) {
            self.data.unmark_end(last);
        }
        self.pieces = 0;
    }
}
