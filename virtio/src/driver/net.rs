//! Drivers for the queues of virtio-net: receive, transmit and control (section 5.1).
//!
//! Receiving has the three ways of section 5.1.6.3: *small*, a header of the driver's and a buffer
//! for a packet; *big*, a header and a list of buffers for the largest packet; *mergeable*, where a
//! packet fills as many buffers as it needs. Transmitting keeps header and data in lists of their
//! own, as the RFC had it (patch 6): the data's list is recycled, so its end marker is removed when
//! the packet is done.
//!
//! Each queue is a driver of its own and knows no transport; queue pairs are several of each.

use alloc::boxed::Box;
use alloc::vec::Vec;

use zerocopy::FromBytes;

use super::piecewise::{AddError, Parts, Refusal, Refused};
use super::queue::{Broken, Kick, NotProven, Queue, QueueAreas};
use crate::mem::dma::{DmaBuf, DmaBufMut, DmaBytes, DmaMap, Identity};
use crate::mem::reset::ResetProof;
use crate::scatterlist::ScatterList;
use crate::spec::net::{CtrlHeader, HEADER_SIZE, Header, ctrl, feature};

/// Bytes of frame memory for each buffer in flight, receiving or transmitting.
pub const FRAME_LEN: usize = 64;

/// Least payload of a receive buffer without large packets: an Ethernet frame with a VLAN tag.
pub const SMALL_LEN: u64 = 1514 + 4;
/// Least payload of a receive buffer with large packets: 64 KiB of IP and an Ethernet header.
pub const BIG_LEN: u64 = 65536 + 14;

/// How packets are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveMode {
    /// A header and room for one ordinary packet.
    Small,
    /// A header and room for the largest packet.
    Big,
    /// Packets fill several buffers; the header is in the first.
    Mergeable,
}

impl ReceiveMode {
    /// What the negotiated features ask for.
    pub const fn new(features: u64) -> Self {
        const LARGE: u64 = feature::GUEST_TSO4
            | feature::GUEST_TSO6
            | feature::GUEST_ECN
            | feature::GUEST_UFO
            | feature::GUEST_USO4
            | feature::GUEST_USO6;
        if features & feature::MRG_RXBUF != 0 {
            Self::Mergeable
        } else if features & LARGE != 0 {
            Self::Big
        } else {
            Self::Small
        }
    }

    /// Least bytes a receive buffer has to have.
    pub const fn least(self) -> u64 {
        match self {
            Self::Small => SMALL_LEN,
            Self::Big => BIG_LEN,
            Self::Mergeable => HEADER_LEN,
        }
    }
}

const HEADER_LEN: u64 = 12;
const _: () = assert!(HEADER_SIZE == 12);

/// Why a buffer or packet was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
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

/// What can be wrong with a packet that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The device broke the queue; it has to be reset.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// Shorter than its header. Its buffer is idle again.
    #[error("a packet of {0} bytes is shorter than its header")]
    Short(u32),
    /// It says it fills no buffer, or more than the device has. Its buffer is idle again.
    #[error("a packet says it fills {0} buffers")]
    Buffers(u16),
}

/// A receive buffer in flight: what the queue holds for it.
#[derive(Debug)]
pub struct PendingReceive<B: DmaBuf = DmaBytes>(Box<ReceiveSlot<B>>);

#[derive(Debug)]
struct ReceiveSlot<B: DmaBuf> {
    frame: Option<DmaBytes>,
    data: ScatterList<B>,
    written: u32,
}

/// The driver of a receive queue.
///
/// Buffers are handed in with [`add`](Self::add), filled by the device, read in
/// [`receive`](Self::receive) and then idle until [`refill`](Self::refill) hands them in again.
pub struct Receiver<B: DmaBufMut = DmaBytes, M: DmaMap = Identity> {
    queue: Queue<PendingReceive<B>, M>,
    mode: ReceiveMode,
    frames: Vec<DmaBytes>,
    /// The buffers of the packet that is coming in, in order.
    packet: Vec<PendingReceive<B>>,
    /// Its header and how many buffers it says it fills.
    header: Header,
    expected: usize,
    idle: Vec<PendingReceive<B>>,
}

impl<B: DmaBufMut, M: DmaMap> Receiver<B, M> {
    /// Drives `queue`. `frames` holds the headers, [`FRAME_LEN`] bytes for each buffer; mergeable
    /// buffers need none.
    pub fn new(queue: Queue<PendingReceive<B>, M>, frames: DmaBytes, mode: ReceiveMode) -> Self {
        let slots = usize::from(queue.areas().size);
        Self {
            queue,
            mode,
            frames: frames.divide(FRAME_LEN).take(slots).collect(),
            packet: Vec::with_capacity(slots),
            header: Header::default(),
            expected: 0,
            idle: Vec::with_capacity(slots),
        }
    }

    /// How packets are received.
    pub const fn mode(&self) -> ReceiveMode {
        self.mode
    }

    /// Adds a buffer; this is set-up and allocates.
    ///
    /// # Errors
    /// See [`Invalid`]; the buffer comes back.
    pub fn add(&mut self, data: ScatterList<B>) -> Result<(), (ScatterList<B>, Invalid)> {
        let first = data.iter().next().map_or(0, |piece| piece.region().len());
        let headless = self.mode == ReceiveMode::Mergeable && first < HEADER_SIZE;
        if data.bytes() < self.mode.least() || headless {
            return Err((data, Invalid::TooSmall));
        }
        let frame = match self.mode {
            ReceiveMode::Mergeable => None,
            _ => match self.frames.pop() {
                Some(frame) => Some(frame),
                None => return Err((data, Invalid::Queue(Refusal::Full))),
            },
        };
        let pending = PendingReceive(Box::new(ReceiveSlot {
            frame,
            data,
            written: 0,
        }));
        self.post(pending).map_err(|(pending, why)| {
            self.frames.extend(pending.0.frame);
            (pending.0.data, Invalid::Queue(why))
        })
    }

    fn post(&mut self, pending: PendingReceive<B>) -> Result<(), (PendingReceive<B>, Refusal)> {
        let segments = pending.0.data.segments();
        let lists = 1usize.saturating_add(usize::from(pending.0.frame.is_some()));
        let count = segments.saturating_add(1);
        let posted = self
            .queue
            .start_buf(pending, count, lists)
            .and_then(|buffer| {
                let mut buffer = buffer.writable();
                let _ = buffer.add_all(|pending, parts| pending.0.writable(parts));
                buffer.end_buf()
            });
        match posted {
            Ok(_) => Ok(()),
            Err(Refused { token, why }) => Err((token, why)),
        }
    }

    /// Hands every idle buffer in again. They go out with [`publish`](Self::publish).
    ///
    /// # Errors
    /// The queue took only some; the others stay idle.
    #[inline]
    pub fn refill(&mut self) -> Result<(), Refusal> {
        while let Some(pending) = self.idle.pop() {
            if let Err((pending, why)) = self.post(pending) {
                self.idle.push(pending);
                return Err(why);
            }
        }
        Ok(())
    }

    /// Takes the next whole packet. `Ok(None)` if there is none, or if only a part of it has come.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    #[inline]
    pub fn receive(&mut self) -> Result<Option<Packet<'_, B>>, ReceiveError> {
        loop {
            if self.packet.len() >= self.expected.max(1) {
                let header = self.header;
                self.expected = 0;
                let mode = self.mode;
                return Ok(Some(Packet {
                    header,
                    mode,
                    parts: &mut self.packet,
                    idle: &mut self.idle,
                }));
            }
            let Some(completion) = self.queue.pop()? else {
                return Ok(None);
            };
            let mut pending = completion.token;
            pending.0.written = completion.written;
            if self.packet.is_empty()
                && let Err(error) = self.begin(&mut pending)
            {
                self.idle.push(pending);
                return Err(error);
            }
            self.packet.push(pending);
        }
    }

    /// Reads the header of a packet's first buffer.
    #[inline]
    fn begin(&mut self, pending: &mut PendingReceive<B>) -> Result<(), ReceiveError> {
        let slot = &mut *pending.0;
        if u64::from(slot.written) < HEADER_LEN {
            return Err(ReceiveError::Short(slot.written));
        }
        self.header = slot.header();
        let buffers = match self.mode {
            ReceiveMode::Mergeable => self.header.num_buffers.get(),
            _ => 1,
        };
        // This buffer, and those the device still has.
        let most = self.queue.in_flight().saturating_add(1);
        if buffers == 0 || buffers > most {
            return Err(ReceiveError::Buffers(buffers));
        }
        self.expected = usize::from(buffers);
        Ok(())
    }

    /// Shows the device what was handed in; see [`Queue::publish`].
    #[inline]
    pub fn publish(&mut self) -> Kick {
        self.queue.publish()
    }

    /// Takes every buffer back after a reset: they are idle, and go to the device again with
    /// [`refill`](Self::refill) once it has been told of the queue anew.
    ///
    /// # Errors
    /// The proof is not of this device or not later than the queue.
    pub fn reclaim(&mut self, proof: &ResetProof) -> Result<(), NotProven> {
        let idle = &mut self.idle;
        self.queue.reclaim(proof, |pending| idle.push(pending))?;
        self.idle.append(&mut self.packet);
        self.expected = 0;
        Ok(())
    }

    /// What to tell the device about the queue.
    pub fn areas(&self) -> QueueAreas {
        self.queue.areas()
    }

    /// Buffers the device has.
    pub const fn in_flight(&self) -> u16 {
        self.queue.in_flight()
    }

    /// See [`Queue::enable_interrupts`].
    #[must_use]
    pub fn enable_interrupts(&mut self) -> bool {
        self.queue.enable_interrupts()
    }

    /// See [`Queue::disable_interrupts`].
    pub fn disable_interrupts(&mut self) {
        self.queue.disable_interrupts();
    }
}

impl<B: DmaBufMut> ReceiveSlot<B> {
    #[inline]
    fn writable<'t>(&'t self, parts: &mut Parts<'_, '_, 't, impl DmaMap>) -> Result<(), AddError> {
        if let Some(frame) = &self.frame {
            parts.bytes(frame, 0..HEADER_SIZE)?;
        }
        parts.sg(&self.data, usize::MAX).map(drop)
    }

    /// The header, from the frame or from the start of the buffer itself.
    #[inline]
    fn header(&mut self) -> Header {
        let mut header = Header::default();
        match &mut self.frame {
            Some(frame) => header = frame.get(0).unwrap_or_default(),
            None => {
                let mut first = true;
                self.data.for_each_mut(|piece| {
                    if core::mem::take(&mut first) {
                        let read = Header::read_from_prefix(piece.bytes_mut());
                        header = read.map(|(header, _)| header).unwrap_or_default();
                    }
                });
            }
        }
        header
    }
}

/// A packet that came. When it is dropped, its buffers are idle.
pub struct Packet<'r, B: DmaBufMut = DmaBytes> {
    header: Header,
    mode: ReceiveMode,
    parts: &'r mut Vec<PendingReceive<B>>,
    idle: &'r mut Vec<PendingReceive<B>>,
}

impl<B: DmaBufMut> Packet<'_, B> {
    /// Its header.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Buffers it fills.
    pub const fn buffers(&self) -> usize {
        self.parts.len()
    }

    /// Bytes behind the header.
    pub fn len(&self) -> u64 {
        let written = self
            .parts
            .iter()
            .map(|part| u64::from(part.0.written))
            .sum::<u64>();
        written.saturating_sub(HEADER_LEN)
    }

    /// Whether there is nothing behind the header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes behind the header, piece by piece.
    #[inline]
    pub fn for_each(&mut self, mut each: impl FnMut(&mut [u8])) {
        let merged = self.mode == ReceiveMode::Mergeable;
        let mut header = HEADER_SIZE;
        for part in self.parts.iter_mut() {
            let slot = &mut *part.0;
            let mut left = usize::try_from(slot.written).unwrap_or(usize::MAX);
            // The header is in the first buffer, or in a frame of its own.
            let mut skip = core::mem::take(&mut header);
            if !merged {
                left = left.saturating_sub(core::mem::take(&mut skip));
            }
            slot.data.for_each_mut(|piece| {
                let bytes = piece.bytes_mut();
                let here = left.min(bytes.len());
                left = left.wrapping_sub(here);
                let start = skip.min(here);
                skip = skip.wrapping_sub(start);
                match bytes.get_mut(start..here) {
                    Some(payload) if !payload.is_empty() => each(payload),
                    _ => {}
                }
            });
        }
    }

    /// Copies the bytes behind the header, as far as they fit; answers how many.
    pub fn copy_to(&mut self, out: &mut [u8]) -> usize {
        let mut filled = 0usize;
        self.for_each(|piece| {
            let Some(rest) = out.get_mut(filled..) else {
                return;
            };
            for (to, from) in rest.iter_mut().zip(piece) {
                *to = *from;
                filled = filled.wrapping_add(1);
            }
        });
        filled
    }
}

impl<B: DmaBufMut> Drop for Packet<'_, B> {
    fn drop(&mut self) {
        self.idle.append(self.parts);
    }
}

/// A packet on its way out: what the queue holds for it.
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
    /// Drives `queue`, with `frames` divided among the headers of packets ([`FRAME_LEN`] bytes
    /// each) of up to `pieces` pieces.
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

    /// Sends a packet: its header, and its pieces as a list of their own.
    ///
    /// # Errors
    /// See [`Invalid`]; `back` gets the pieces.
    #[inline]
    pub fn send(
        &mut self,
        tag: u64,
        header: &Header,
        pieces: impl IntoIterator<Item = B>,
        mut back: impl FnMut(B),
    ) -> Result<(), Invalid> {
        let mut pieces = pieces.into_iter();
        let Some(mut pending) = self.spare.pop() else {
            pieces.for_each(back);
            return Err(Invalid::Queue(Refusal::Full));
        };
        let slot = &mut *pending.0;
        slot.tag = tag;
        slot.frame.put(0, header);
        let sent = match slot.data.fill(&mut pieces) {
            Err(piece) => {
                back(piece);
                Err((pending, Invalid::TooManyPieces))
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
    fn submit(&mut self, pending: PendingTransmit<B>) -> Result<(), (PendingTransmit<B>, Invalid)> {
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
            Err(Refused { token, why }) => Err((token, Invalid::Queue(why))),
        }
    }

    /// Shows the device what was sent; see [`Queue::publish`].
    #[inline]
    pub fn publish(&mut self) -> Kick {
        self.queue.publish()
    }

    /// Takes back one packet the device is done with: answers its tag; `back` gets the pieces.
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

    /// Takes every packet back after a reset, sent or not; then the device has to be told of the
    /// queue anew.
    ///
    /// # Errors
    /// The proof is not of this device or not later than the queue.
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

    /// What to tell the device about the queue.
    pub fn areas(&self) -> QueueAreas {
        self.queue.areas()
    }

    /// Packets in flight.
    pub const fn in_flight(&self) -> u16 {
        self.queue.in_flight()
    }

    /// See [`Queue::enable_interrupts`].
    #[must_use]
    pub fn enable_interrupts(&mut self) -> bool {
        self.queue.enable_interrupts()
    }

    /// See [`Queue::disable_interrupts`].
    pub fn disable_interrupts(&mut self) {
        self.queue.disable_interrupts();
    }
}

impl<B: DmaBuf> TransmitSlot<B> {
    /// Takes the pieces out and makes the list fit for a longer packet again.
    #[inline]
    fn empty(&mut self, back: impl FnMut(B)) {
        self.data.clear(back);
        if let Some(last) = self.pieces.checked_sub(1) {
            self.data.unmark_end(last);
        }
        self.pieces = 0;
    }
}

/// Offsets in the control queue's frame: command and data, then the acknowledgement.
const ACK_LEN: usize = 1;

/// A command in flight: what the queue holds for it.
#[derive(Debug)]
pub struct PendingControl {
    frame: DmaBytes,
    len: usize,
}

/// What became of a control command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// Done.
    Ok,
    /// Refused, or not understood.
    Refused,
}

/// The driver of the control queue: one command at a time.
pub struct Control<M: DmaMap = Identity> {
    queue: Queue<PendingControl, M>,
    frame: Option<DmaBytes>,
}

impl<M: DmaMap> Control<M> {
    /// Drives `queue`; `frame` holds a command, its data and the acknowledgement.
    pub const fn new(queue: Queue<PendingControl, M>, frame: DmaBytes) -> Self {
        Self {
            queue,
            frame: Some(frame),
        }
    }

    /// Submits a command with its data. It goes out with [`publish`](Self::publish).
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
        let pending = PendingControl { frame, len };
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

    /// Shows the device the command; see [`Queue::publish`].
    pub fn publish(&mut self) -> Kick {
        self.queue.publish()
    }

    /// The acknowledgement, once it has come.
    ///
    /// # Errors
    /// The device broke the queue; it has to be reset.
    pub fn poll(&mut self) -> Result<Option<Ack>, Broken> {
        let Some(completion) = self.queue.pop()? else {
            return Ok(None);
        };
        let PendingControl { mut frame, len } = completion.token;
        let ack = match frame.get::<u8>(len) {
            Some(ctrl::OK) => Ack::Ok,
            _ => Ack::Refused,
        };
        self.frame = Some(frame);
        Ok(Some(ack))
    }

    /// Forgets the command in flight after a reset; the device has to be told of the queue anew.
    ///
    /// # Errors
    /// The proof is not of this device or not later than the queue.
    pub fn reclaim(&mut self, proof: &ResetProof) -> Result<(), NotProven> {
        let frame = &mut self.frame;
        self.queue
            .reclaim(proof, |pending| *frame = Some(pending.frame))
    }

    /// What to tell the device about the queue.
    pub fn areas(&self) -> QueueAreas {
        self.queue.areas()
    }

    /// See [`Queue::enable_interrupts`].
    #[must_use]
    pub fn enable_interrupts(&mut self) -> bool {
        self.queue.enable_interrupts()
    }

    /// See [`Queue::disable_interrupts`].
    pub fn disable_interrupts(&mut self) {
        self.queue.disable_interrupts();
    }
}
