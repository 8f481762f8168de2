//! Drivers for the queues of virtio-scsi: requests, control and events (section 5.6).
//!
//! A command's data lists are added to the queue unchanged, between the request and the response,
//! and returned with it: nothing is copied, and nothing is locked, because the queue is `&mut`
//! (patch 7 of the RFC removed a copy under a lock). Request and response are in frames, for which
//! the caller supplies memory.
//!
//! There is one driver per queue, which knows no transport.

mod control;
mod events;

pub use control::{
    CONTROL_FRAME_LEN, CompletedControl, ControlQueue, PendingControl, TaskFunction,
};
pub use events::{EVENT_FRAME_LEN, EventQueue, PendingEvent, ReceivedEvent};

use alloc::boxed::Box;
use alloc::vec::Vec;

use zerocopy::FromZeros;

use super::piecewise::{AddError, Parts, Refusal, Refused};
use super::queue::{Broken, NotProven, Queue};
use crate::mem::dma::{DmaBuf, DmaBytes, DmaMap, Identity};
use crate::mem::reset::ResetProof;
use crate::scatterlist::ScatterList;
use crate::spec::scsi::{
    Config, DEFAULT_CDB_SIZE, DEFAULT_SENSE_SIZE, RequestHeader, ResponseHeader, feature, response,
    task_attr,
};

/// Features that this driver supports.
pub const FEATURES: u64 = feature::INOUT | feature::HOTPLUG | feature::CHANGE;

/// Maximum number of bytes of a command descriptor block (CDB).
pub const CDB_MAX: usize = 32;
/// Maximum number of bytes of sense data.
pub const SENSE_MAX: usize = 96;

/// The sizes after reset are those of this driver; it does not change them.
const _: () = assert!(CDB_MAX == DEFAULT_CDB_SIZE as usize);
const _: () = assert!(SENSE_MAX == DEFAULT_SENSE_SIZE as usize);

const REQUEST_LEN: usize = size_of::<RequestHeader>() + CDB_MAX;
const RESPONSE_AT: usize = 64;
const SENSE_AT: usize = RESPONSE_AT + size_of::<ResponseHeader>();
const RESPONSE_LEN: usize = size_of::<ResponseHeader>() + SENSE_MAX;
const _: () = assert!(REQUEST_LEN <= RESPONSE_AT);

/// Bytes of frame memory per command in flight.
pub const FRAME_LEN: usize = (RESPONSE_AT + RESPONSE_LEN).next_multiple_of(64);

/// The address of a logical unit in the single-level format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lun {
    /// Target.
    pub target: u8,
    /// Unit, below 16384.
    pub unit: u16,
}

impl Lun {
    /// Returns the address as written in requests (section 5.6.6.1).
    pub const fn bytes(self) -> [u8; 8] {
        let [high, low] = self.unit.to_be_bytes();
        [1, self.target, high & 0x3f | 0x40, low, 0, 0, 0, 0]
    }

    /// Reads an address, as found in events. Returns `None` for another format.
    pub const fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        match bytes {
            [1, target, high, low, 0, 0, 0, 0] if high & 0x80 == 0 => Some(Self {
                target,
                unit: u16::from_be_bytes([high & 0x3f, low]),
            }),
            _ => None,
        }
    }
}

/// Task attribute of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attribute {
    /// Executed in any order.
    #[default]
    Simple,
    /// Executed after all earlier commands.
    Ordered,
    /// Executed before all other commands.
    Head,
    /// Under auto contingent allegiance.
    Aca,
}

impl Attribute {
    const fn code(self) -> u8 {
        match self {
            Self::Simple => task_attr::SIMPLE,
            Self::Ordered => task_attr::ORDERED,
            Self::Head => task_attr::HEAD,
            Self::Aca => task_attr::ACA,
        }
    }
}

/// A SCSI command with its data.
#[derive(Debug)]
pub struct Command<B: DmaBuf = DmaBytes> {
    /// The logical unit.
    pub lun: Lun,
    /// The command descriptor block, padded with zeroes.
    pub cdb: [u8; CDB_MAX],
    /// The task attribute.
    pub attribute: Attribute,
    /// Data for the device; without entries if there is none.
    pub data_out: ScatterList<B>,
    /// Memory for data from the device; without entries if there is none.
    pub data_in: ScatterList<B>,
}

impl<B: DmaBuf> Command<B> {
    /// Creates a command without data. `cdb` is truncated to 32 bytes.
    pub fn new(lun: Lun, cdb: &[u8]) -> Self {
        let mut block = [0; CDB_MAX];
        for (to, from) in block.iter_mut().zip(cdb) {
            *to = *from;
        }
        Self {
            lun,
            cdb: block,
            attribute: Attribute::Simple,
            data_out: ScatterList::default(),
            data_in: ScatterList::default(),
        }
    }

    /// Sets the data for the device.
    pub fn data_out(mut self, list: ScatterList<B>) -> Self {
        self.data_out = list;
        self
    }

    /// Sets the memory for data from the device.
    pub fn data_in(mut self, list: ScatterList<B>) -> Self {
        self.data_in = list;
        self
    }
}

/// The device's response.
#[derive(Clone, Debug)]
pub struct Response {
    /// `response::…`: whether the command reached a SCSI status.
    pub response: u8,
    /// SCSI status, if `response` is OK.
    pub status: u8,
    /// Status qualifier.
    pub qualifier: u16,
    /// Bytes not transferred.
    pub residual: u32,
    sense: [u8; SENSE_MAX],
    sense_len: usize,
}

impl Response {
    /// Returns the sense data.
    pub fn sense(&self) -> &[u8] {
        self.sense.get(..self.sense_len).unwrap_or(&[])
    }

    /// Returns sense key, additional sense code and qualifier of fixed-format sense data, if there
    /// is any.
    pub fn sense_code(&self) -> Option<[u8; 3]> {
        match self.sense() {
            [
                0x70 | 0x71 | 0xf0 | 0xf1,
                _,
                key,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                code,
                qualifier,
                ..,
            ] => Some([key & 0xf, *code, *qualifier]),
            _ => None,
        }
    }

    /// Returns whether the command succeeded.
    pub const fn good(&self) -> bool {
        self.response == response::OK && self.status == 0
    }
}

/// A completed command.
#[derive(Debug)]
pub struct CompletedCommand<B: DmaBuf = DmaBytes> {
    /// Its task identifier.
    pub id: u64,
    /// The command, with its memory.
    pub command: Command<B>,
    /// The device's response.
    pub response: Response,
}

/// A command in flight: the queue's token.
#[derive(Debug)]
pub struct PendingCommand<B: DmaBuf = DmaBytes>(Box<CommandSlot<B>>);

#[derive(Debug)]
struct CommandSlot<B: DmaBuf> {
    frame: DmaBytes,
    id: u64,
    command: Command<B>,
}

/// The driver of a request queue.
pub struct RequestQueue<B: DmaBuf = DmaBytes, M: DmaMap = Identity> {
    queue: Queue<PendingCommand<B>, M>,
    spare: Vec<PendingCommand<B>>,
    seg_max: usize,
}

impl<B: DmaBuf, M: DmaMap> RequestQueue<B, M> {
    /// Creates a driver of `queue`, with `frames` divided among commands ([`FRAME_LEN`] bytes
    /// each); `config` is the device's configuration. The number of frames limits the commands in
    /// flight.
    pub fn new(queue: Queue<PendingCommand<B>, M>, frames: DmaBytes, config: &Config) -> Self {
        let nobody = Lun { target: 0, unit: 0 };
        let pending = |frame| {
            PendingCommand(Box::new(CommandSlot {
                frame,
                id: 0,
                command: Command::new(nobody, &[]),
            }))
        };
        let slots = usize::from(queue.areas().size);
        Self {
            queue,
            spare: frames.divide(FRAME_LEN).take(slots).map(pending).collect(),
            seg_max: usize::try_from(config.seg_max.get()).unwrap_or(usize::MAX),
        }
    }

    /// Submits a command with the task identifier `id`, which should be unique, to be exposed with
    /// [`publish`](Self::publish).
    ///
    /// # Errors
    /// The queue refused it, or it has more segments than the device accepts. Returns the command.
    #[inline]
    pub fn submit(&mut self, id: u64, command: Command<B>) -> Result<(), (Command<B>, Refusal)> {
        let segments = command.data_out.segments();
        let segments = segments.saturating_add(command.data_in.segments());
        if segments > self.seg_max {
            return Err((command, Refusal::TooLong));
        }
        let Some(mut pending) = self.spare.pop() else {
            return Err((command, Refusal::Full));
        };
        pending.0.prepare(id, command);
        let count = segments.saturating_add(2);
        let sent = self
            .queue
            .start_buf(pending, count, 4)
            .and_then(|mut buffer| {
                let _ = buffer.add_all(|pending, parts| pending.0.readable(parts));
                let mut buffer = buffer.writable();
                let _ = buffer.add_all(|pending, parts| pending.0.writable(parts));
                buffer.end_buf()
            });
        match sent {
            Ok(_) => Ok(()),
            Err(Refused { token, why }) => Err((self.put_back(token).command, why)),
        }
    }

    /// Returns one completed command, or `Ok(None)` if there is none.
    ///
    /// # Errors
    /// The device broke the queue; it has to be reset.
    #[inline]
    pub fn poll(&mut self) -> Result<Option<CompletedCommand<B>>, Broken> {
        let Some(completion) = self.queue.pop()? else {
            return Ok(None);
        };
        Ok(Some(self.put_back(completion.token)))
    }

    /// Reads the response and frees the frame.
    #[inline]
    fn put_back(&mut self, mut pending: PendingCommand<B>) -> CompletedCommand<B> {
        let slot = &mut *pending.0;
        let nobody = Command::new(slot.command.lun, &[]);
        let done = CompletedCommand {
            id: slot.id,
            response: slot.response(),
            command: core::mem::replace(&mut slot.command, nobody),
        };
        self.spare.push(pending);
        done
    }

    /// Passes every command in flight to `each` after a reset, with the response that its frame
    /// has. The device has to be given the queue's addresses again.
    ///
    /// # Errors
    /// The proof is of another device or not later than the queue.
    pub fn reclaim(
        &mut self,
        proof: &ResetProof,
        mut each: impl FnMut(CompletedCommand<B>),
    ) -> Result<(), NotProven> {
        for pending in self.queue.take_back(proof)? {
            each(self.put_back(pending));
        }
        Ok(())
    }

    queue_methods!();
}

impl<B: DmaBuf> CommandSlot<B> {
    #[inline]
    fn prepare(&mut self, id: u64, command: Command<B>) {
        let header = RequestHeader {
            lun: command.lun.bytes(),
            id: id.into(),
            task_attr: command.attribute.code(),
            prio: 0,
            crn: 0,
        };
        self.frame.put(0, &header);
        self.frame.put(size_of::<RequestHeader>(), &command.cdb);
        // If the device writes nothing, this must not look like success.
        let blank = ResponseHeader {
            response: response::FAILURE,
            ..ResponseHeader::new_zeroed()
        };
        self.frame.put(RESPONSE_AT, &blank);
        self.id = id;
        self.command = command;
    }

    #[inline]
    fn readable<'t>(&'t self, parts: &mut Parts<'_, '_, 't, impl DmaMap>) -> Result<(), AddError> {
        parts.bytes(&self.frame, 0..REQUEST_LEN)?;
        parts.sg(&self.command.data_out, usize::MAX).map(drop)
    }

    #[inline]
    fn writable<'t>(&'t self, parts: &mut Parts<'_, '_, 't, impl DmaMap>) -> Result<(), AddError> {
        parts.bytes(&self.frame, RESPONSE_AT..RESPONSE_AT + RESPONSE_LEN)?;
        parts.sg(&self.command.data_in, usize::MAX).map(drop)
    }

    #[inline]
    fn response(&mut self) -> Response {
        let header: ResponseHeader = self.frame.get(RESPONSE_AT).unwrap_or_default();
        let sense_len = usize::try_from(header.sense_len.get()).unwrap_or(SENSE_MAX);
        Response {
            response: header.response,
            status: header.status,
            qualifier: header.status_qualifier.get(),
            residual: header.residual.get(),
            sense: self.frame.get(SENSE_AT).unwrap_or([0; SENSE_MAX]),
            sense_len: sense_len.min(SENSE_MAX),
        }
    }
}

#[cfg(test)]
mod tests;
