//! The event queue: buffers the device fills on its own account (section 5.6.6.3).

use alloc::vec::Vec;

use super::Lun;
use crate::driver::piecewise::{Refusal, Refused};
use crate::driver::queue::{Broken, NotProven, Queue};
use crate::mem::dma::{DmaBytes, DmaMap, Identity};
use crate::mem::reset::ResetProof;
use crate::spec::scsi::{Event, event};

/// What happened on the device's own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedEvent {
    /// `event::…`, without the bit that says events were missed.
    pub event: u32,
    /// To which unit, if it names one.
    pub lun: Option<Lun>,
    /// Why: `event::RESET_…` or a sense code.
    pub reason: u32,
    /// Others were lost before it.
    pub missed: bool,
}

/// Bytes of frame memory for each event buffer.
pub const EVENT_FRAME_LEN: usize = 64;

/// An event buffer in flight: what the queue holds for it.
#[derive(Debug)]
pub struct PendingEvent(DmaBytes);

/// The driver of the event queue.
pub struct EventQueue<M: DmaMap = Identity> {
    queue: Queue<PendingEvent, M>,
    idle: Vec<DmaBytes>,
}

impl<M: DmaMap> EventQueue<M> {
    /// Drives `queue`, with `frames` divided into event buffers ([`EVENT_FRAME_LEN`] bytes each),
    /// which go to the device with [`refill`](Self::refill).
    pub fn new(queue: Queue<PendingEvent, M>, frames: DmaBytes) -> Self {
        let slots = usize::from(queue.areas().size);
        Self {
            queue,
            idle: frames.divide(EVENT_FRAME_LEN).take(slots).collect(),
        }
    }

    /// Hands every idle buffer in. They go out with [`publish`](Self::publish).
    ///
    /// # Errors
    /// The queue took only some; the others stay idle.
    pub fn refill(&mut self) -> Result<(), Refusal> {
        while let Some(mut frame) = self.idle.pop() {
            frame.put(0, &Event::default());
            let posted = self
                .queue
                .start_buf(PendingEvent(frame), 1, 1)
                .and_then(|buffer| {
                    let mut buffer = buffer.writable();
                    let _ = buffer.add_bytes(|pending| &pending.0, 0..size_of::<Event>());
                    buffer.end_buf()
                });
            if let Err(Refused { token, why }) = posted {
                self.idle.push(token.0);
                return Err(why);
            }
        }
        Ok(())
    }

    /// Takes one event.
    ///
    /// # Errors
    /// The device broke the queue; it has to be reset.
    pub fn poll(&mut self) -> Result<Option<ReceivedEvent>, Broken> {
        let Some(completion) = self.queue.pop()? else {
            return Ok(None);
        };
        let mut frame = completion.token.0;
        let happened: Event = frame.get(0).unwrap_or_default();
        self.idle.push(frame);
        Ok(Some(ReceivedEvent {
            event: happened.event.get() & !event::MISSED,
            lun: Lun::from_bytes(happened.lun),
            reason: happened.reason.get(),
            missed: happened.event.get() & event::MISSED != 0,
        }))
    }

    /// Takes every buffer back after a reset; the device has to be told of the queue anew.
    ///
    /// # Errors
    /// The proof is not of this device or not later than the queue.
    pub fn reclaim(&mut self, proof: &ResetProof) -> Result<(), NotProven> {
        let idle = &mut self.idle;
        self.queue.reclaim(proof, |pending| idle.push(pending.0))
    }

    queue_methods!();
}
