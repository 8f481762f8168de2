//! The control queue: one command at a time (section 5.1.6.5).

use crate::driver::piecewise::Refusal;
use crate::driver::queue::{Broken, NotProven, Queue};
use crate::mem::dma::{DmaBytes, DmaMap, Identity};
use crate::mem::reset::ResetProof;
use crate::spec::net::{CtrlHeader, ctrl};

/// Bytes of the acknowledgement, which follows command and data in the frame.
const ACK_LEN: usize = 1;

/// A command in flight: the queue's token.
#[derive(Debug)]
pub struct PendingNetControl {
    frame: DmaBytes,
    len: usize,
}

/// The result of a control command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// The command succeeded.
    Ok,
    /// The command was refused, or is not supported.
    Refused,
}

/// The driver of the control queue: one command at a time.
pub struct NetControl<M: DmaMap = Identity> {
    queue: Queue<PendingNetControl, M>,
    frame: Option<DmaBytes>,
}

impl<M: DmaMap> NetControl<M> {
    /// Creates a driver of `queue`; `frame` is the memory for a command, its data and the
    /// acknowledgement.
    pub const fn new(queue: Queue<PendingNetControl, M>, frame: DmaBytes) -> Self {
        Self {
            queue,
            frame: Some(frame),
        }
    }

    /// Submits a command with its data, to be exposed with [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`Refusal::Full`] while a command is in flight, [`Refusal::TooLong`] for data that don't fit
    /// into the frame.
    pub fn command(&mut self, class: u8, command: u8, data: &[u8]) -> Result<(), Refusal> {
        let mut frame = self.frame.take().ok_or(Refusal::Full)?;
        let head = size_of::<CtrlHeader>();
        let len = head.saturating_add(data.len());
        let fits = frame.put(0, &CtrlHeader { class, command })
            && frame.put(head, data)
            && frame.put(len, &ctrl::ERR);
        if !fits {
            self.frame = Some(frame);
            return Err(Refusal::TooLong);
        }
        let pending = PendingNetControl { frame, len };
        let sent = self.queue.start_buf(pending, 2, 2).and_then(|mut buffer| {
            let _ = buffer.add_all(|it, parts| parts.bytes(&it.frame, 0..it.len));
            let mut buffer = buffer.writable();
            let _ = buffer.add_all(|it, parts| {
                parts.bytes(&it.frame, it.len..it.len.saturating_add(ACK_LEN))
            });
            buffer.end_buf()
        });
        sent.map(drop).map_err(|refused| {
            self.frame = Some(refused.token.frame);
            refused.why
        })
    }

    /// Returns the acknowledgement, or `Ok(None)` while the command is in flight.
    ///
    /// # Errors
    /// The device broke the queue; it has to be reset.
    pub fn poll(&mut self) -> Result<Option<Ack>, Broken> {
        let Some(completion) = self.queue.pop()? else {
            return Ok(None);
        };
        let PendingNetControl { mut frame, len } = completion.token;
        let ack = match frame.get::<u8>(len) {
            Some(ctrl::OK) => Ack::Ok,
            _ => Ack::Refused,
        };
        self.frame = Some(frame);
        Ok(Some(ack))
    }

    /// Discards the command in flight after a reset. The device has to be given the queue's
    /// addresses again.
    ///
    /// # Errors
    /// The proof is of another device or not later than the queue.
    pub fn reclaim(&mut self, proof: &ResetProof) -> Result<(), NotProven> {
        let frame = &mut self.frame;
        self.queue
            .reclaim(proof, |pending| *frame = Some(pending.frame))
    }

    queue_methods!();
}
