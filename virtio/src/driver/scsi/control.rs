//! The control queue: task management and asynchronous notification (section 5.6.6.2).

use alloc::vec::Vec;

use super::Lun;
use crate::driver::piecewise::Refusal;
use crate::driver::queue::{Broken, NotProven, Queue};
use crate::mem::dma::{DmaBytes, DmaMap, Identity};
use crate::mem::reset::ResetProof;
use crate::spec::scsi::{
    AsyncNotification, AsyncNotificationResponse, TaskManagement, control, response,
};

/// A task-management function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskFunction {
    /// Abort the task with this identifier.
    Abort(u64),
    /// Abort the tasks of this initiator.
    AbortSet,
    /// Clear auto contingent allegiance.
    ClearAca,
    /// Abort the tasks of all initiators.
    ClearSet,
    /// Reset the I_T nexus.
    NexusReset,
    /// Reset the unit.
    UnitReset,
    /// Query whether the task with this identifier exists.
    Query(u64),
    /// Query whether any task exists.
    QuerySet,
}

impl TaskFunction {
    const fn subtype(self) -> u32 {
        match self {
            Self::Abort(_) => control::ABORT_TASK,
            Self::AbortSet => control::ABORT_TASK_SET,
            Self::ClearAca => control::CLEAR_ACA,
            Self::ClearSet => control::CLEAR_TASK_SET,
            Self::NexusReset => control::I_T_NEXUS_RESET,
            Self::UnitReset => control::LOGICAL_UNIT_RESET,
            Self::Query(_) => control::QUERY_TASK,
            Self::QuerySet => control::QUERY_TASK_SET,
        }
    }

    const fn id(self) -> u64 {
        match self {
            Self::Abort(id) | Self::Query(id) => id,
            _ => 0,
        }
    }
}

/// Offset of the response in a frame.
const ANSWER_AT: usize = 32;
/// Bytes of frame memory per control request in flight.
pub const CONTROL_FRAME_LEN: usize = 64;

/// A control request in flight: the queue's token.
#[derive(Debug)]
pub struct PendingControl {
    frame: DmaBytes,
    tag: u64,
    request: usize,
    answer: usize,
}

/// A completed control request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletedControl {
    /// The tag given at submission.
    pub tag: u64,
    /// `response::…`.
    pub response: u8,
    /// Events that will be reported, for an asynchronous notification request.
    pub events: u32,
}

/// The driver of the control queue.
pub struct ControlQueue<M: DmaMap = Identity> {
    queue: Queue<PendingControl, M>,
    frames: Vec<DmaBytes>,
}

impl<M: DmaMap> ControlQueue<M> {
    /// Creates a driver of `queue`, with `frames` divided among requests ([`CONTROL_FRAME_LEN`]
    /// bytes each).
    pub fn new(queue: Queue<PendingControl, M>, frames: DmaBytes) -> Self {
        let slots = usize::from(queue.areas().size);
        Self {
            queue,
            frames: frames.divide(CONTROL_FRAME_LEN).take(slots).collect(),
        }
    }

    /// Submits a task management function for a logical unit.
    ///
    /// # Errors
    /// The queue refused it.
    pub fn task(&mut self, tag: u64, lun: Lun, task: TaskFunction) -> Result<(), Refusal> {
        let request = TaskManagement {
            kind: control::TMF.into(),
            subtype: task.subtype().into(),
            lun: lun.bytes(),
            id: task.id().into(),
        };
        let mut frame = self.frames.pop().ok_or(Refusal::Full)?;
        frame.put(0, &request);
        frame.put(ANSWER_AT, &response::FAILURE);
        self.submit(frame, tag, size_of::<TaskManagement>(), 1)
    }

    /// Queries which of these asynchronous events a logical unit supports, and, if `subscribe`,
    /// subscribes to them.
    ///
    /// # Errors
    /// The queue refused it.
    pub fn events(
        &mut self,
        tag: u64,
        lun: Lun,
        events: u32,
        subscribe: bool,
    ) -> Result<(), Refusal> {
        let kind = if subscribe {
            control::AN_SUBSCRIBE
        } else {
            control::AN_QUERY
        };
        let request = AsyncNotification {
            kind: kind.into(),
            lun: lun.bytes(),
            event_requested: events.into(),
        };
        let blank = AsyncNotificationResponse {
            event_actual: 0.into(),
            response: response::FAILURE,
        };
        let mut frame = self.frames.pop().ok_or(Refusal::Full)?;
        frame.put(0, &request);
        frame.put(ANSWER_AT, &blank);
        self.submit(frame, tag, size_of_val(&request), size_of_val(&blank))
    }

    fn submit(
        &mut self,
        frame: DmaBytes,
        tag: u64,
        request: usize,
        answer: usize,
    ) -> Result<(), Refusal> {
        let pending = PendingControl {
            frame,
            tag,
            request,
            answer,
        };
        let sent = self.queue.start_buf(pending, 2, 2).and_then(|mut buffer| {
            let _ = buffer.add_all(|it, parts| parts.bytes(&it.frame, 0..it.request));
            let mut buffer = buffer.writable();
            let _ = buffer.add_all(|it, parts| {
                parts.bytes(&it.frame, ANSWER_AT..ANSWER_AT.saturating_add(it.answer))
            });
            buffer.end_buf()
        });
        sent.map(drop).map_err(|refused| {
            self.frames.push(refused.token.frame);
            refused.why
        })
    }

    /// Returns one completed request, or `Ok(None)` if there is none.
    ///
    /// # Errors
    /// The device broke the queue; it has to be reset.
    pub fn poll(&mut self) -> Result<Option<CompletedControl>, Broken> {
        let Some(completion) = self.queue.pop()? else {
            return Ok(None);
        };
        let PendingControl {
            mut frame,
            tag,
            answer,
            ..
        } = completion.token;
        let done = if answer == size_of::<AsyncNotificationResponse>() {
            let answer: AsyncNotificationResponse = frame.get(ANSWER_AT).unwrap_or_default();
            CompletedControl {
                tag,
                response: answer.response,
                events: answer.event_actual.get(),
            }
        } else {
            CompletedControl {
                tag,
                response: frame.get(ANSWER_AT).unwrap_or(response::FAILURE),
                events: 0,
            }
        };
        self.frames.push(frame);
        Ok(Some(done))
    }

    /// Discards every request in flight after a reset. The device has to be given the queue's
    /// addresses again.
    ///
    /// # Errors
    /// The proof is of another device or not later than the queue.
    pub fn reclaim(&mut self, proof: &ResetProof) -> Result<(), NotProven> {
        let frames = &mut self.frames;
        self.queue
            .reclaim(proof, |pending| frames.push(pending.frame))
    }

    queue_methods!();
}
