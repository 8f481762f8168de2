//! The event queue: buffers that the device fills when an event occurs (section 5.6.6.3).

use alloc::vec::Vec;

use super::Lun;
use crate::driver::piecewise::{Refusal, Refused};
use crate::driver::queue::{Broken, NotProven, Queue};
use crate::mem::dma::{DmaBytes, DmaMap, Identity};
use crate::mem::reset::ResetProof;
use crate::spec::scsi::{Event, event};

/// An event reported by the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedEvent {
    /// `event::…`, without the bit for missed events.
    pub event: u32,
    /// The logical unit, if the event names one.
    pub lun: Option<Lun>,
    /// The reason: `event::RESET_…` or a sense code.
    pub reason: u32,
    /// Whether earlier events were lost.
    pub missed: bool,
}

/// Bytes of frame memory per event buffer.
pub const EVENT_FRAME_LEN: usize = 64;

/// An event buffer in flight: the queue's token.
#[derive(Debug)]
pub struct PendingEvent(DmaBytes);

/// The driver of the event queue.
pub struct EventQueue<M: DmaMap = Identity> {
    queue: Queue<PendingEvent, M>,
    idle: Vec<DmaBytes>,
}

impl<M: DmaMap> EventQueue<M> {
    /// Creates a driver of `queue`, with `frames` divided into event buffers ([`EVENT_FRAME_LEN`]
    /// bytes each), which [`refill`](Self::refill) adds to the queue.
    pub fn new(queue: Queue<PendingEvent, M>, frames: DmaBytes) -> Self {
        let slots = usize::from(queue.areas().size);
        Self {
            queue,
            idle: frames.divide(EVENT_FRAME_LEN).take(slots).collect(),
        }
    }

    /// Adds every idle buffer, to be exposed with [`publish`](Self::publish).
    ///
    /// # Errors
    /// The queue accepted only some buffers; the others stay idle.
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

    /// Returns one event, or `Ok(None)` if there is none.
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

    /// Makes every buffer idle after a reset. The device has to be given the queue's addresses
    /// again.
    ///
    /// # Errors
    /// The proof is of another device or not later than the queue.
    pub fn reclaim(&mut self, proof: &ResetProof) -> Result<(), NotProven> {
        let idle = &mut self.idle;
        self.queue.reclaim(proof, |pending| idle.push(pending.0))
    }

    queue_methods!();
}
