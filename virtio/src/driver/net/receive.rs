//! Receiving: buffers are added for the device, which fills them with packets (section 5.1.6.3).

use alloc::boxed::Box;
use alloc::vec::Vec;

use zerocopy::FromBytes;

use super::{FRAME_LEN, NetSubmitError};
use crate::driver::piecewise::{AddError, Parts, Refusal, Refused};
use crate::driver::queue::{Broken, NotProven, Queue};
use crate::mem::dma::{DmaBuf, DmaBufMut, DmaBytes, DmaMap, Identity};
use crate::mem::reset::ResetProof;
use crate::scatterlist::ScatterList;
use crate::spec::net::{HEADER_SIZE, Header, feature};

/// Minimum payload of a receive buffer without large packets: an Ethernet frame with a VLAN tag.
pub const SMALL_LEN: u64 = 1514 + 4;
/// Minimum payload of a receive buffer with large packets: 64 KiB of IP and an Ethernet header.
pub const BIG_LEN: u64 = 65536 + 14;

/// The receive mode.
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
    /// Returns the mode that the negotiated features require.
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

    /// Returns the minimum size of a receive buffer in bytes.
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

/// Why a packet can't be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The device broke the queue; it has to be reset.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The packet is shorter than its header. Its buffer is idle again.
    #[error("a packet of {0} bytes is shorter than its header")]
    Short(u32),
    /// The packet claims to fill no buffer, or more than the device has. Its buffer is idle again.
    #[error("a packet claims to fill {0} buffers")]
    Buffers(u16),
}

/// A receive buffer in flight: the queue's token.
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
/// Buffers are added with [`add`](Self::add), filled by the device, read in
/// [`receive`](Self::receive) and then idle until [`refill`](Self::refill) adds them again.
pub struct Receiver<B: DmaBufMut = DmaBytes, M: DmaMap = Identity> {
    queue: Queue<PendingReceive<B>, M>,
    mode: ReceiveMode,
    frames: Vec<DmaBytes>,
    /// The buffers of the packet that is being received, in order.
    packet: Vec<PendingReceive<B>>,
    /// Its header, and the number of buffers that it claims to fill.
    header: Header,
    expected: usize,
    idle: Vec<PendingReceive<B>>,
}

impl<B: DmaBufMut, M: DmaMap> Receiver<B, M> {
    /// Creates a driver of `queue`. `frames` is the memory for the headers, [`FRAME_LEN`] bytes per
    /// buffer; mergeable buffers need none.
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

    /// Returns the receive mode.
    pub const fn mode(&self) -> ReceiveMode {
        self.mode
    }

    /// Adds a buffer. Part of the set-up: allocates.
    ///
    /// # Errors
    /// See [`NetSubmitError`]; returns the buffer.
    pub fn add(&mut self, data: ScatterList<B>) -> Result<(), (ScatterList<B>, NetSubmitError)> {
        let first = data.iter().next().map_or(0, |piece| piece.region().len());
        let headless = self.mode == ReceiveMode::Mergeable && first < HEADER_SIZE;
        if data.bytes() < self.mode.least() || headless {
            return Err((data, NetSubmitError::TooSmall));
        }
        let frame = match self.mode {
            ReceiveMode::Mergeable => None,
            _ => match self.frames.pop() {
                Some(frame) => Some(frame),
                None => return Err((data, NetSubmitError::Queue(Refusal::Full))),
            },
        };
        let pending = PendingReceive(Box::new(ReceiveSlot {
            frame,
            data,
            written: 0,
        }));
        self.post(pending).map_err(|(pending, why)| {
            self.frames.extend(pending.0.frame);
            (pending.0.data, NetSubmitError::Queue(why))
        })
    }

    fn post(&mut self, pending: PendingReceive<B>) -> Result<(), (PendingReceive<B>, Refusal)> {
        let header = usize::from(pending.0.frame.is_some());
        let count = pending.0.data.segments().saturating_add(header);
        let lists = header.saturating_add(1);
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

    /// Adds every idle buffer again, to be exposed with [`publish`](Self::publish).
    ///
    /// # Errors
    /// The queue accepted only some buffers; the others stay idle.
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

    /// Returns the next complete packet, or `Ok(None)` if there is none yet.
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
        // This buffer, and those that the device still has.
        let most = self.queue.in_flight().saturating_add(1);
        if buffers == 0 || buffers > most {
            return Err(ReceiveError::Buffers(buffers));
        }
        self.expected = usize::from(buffers);
        Ok(())
    }

    /// Makes every buffer idle after a reset. [`refill`](Self::refill) adds them again once the
    /// device has been given the queue's addresses.
    ///
    /// # Errors
    /// The proof is of another device or not later than the queue.
    pub fn reclaim(&mut self, proof: &ResetProof) -> Result<(), NotProven> {
        let idle = &mut self.idle;
        self.queue.reclaim(proof, |pending| idle.push(pending))?;
        self.idle.append(&mut self.packet);
        self.expected = 0;
        Ok(())
    }

    queue_methods!();
}

impl<B: DmaBufMut> ReceiveSlot<B> {
    #[inline]
    fn writable<'t>(&'t self, parts: &mut Parts<'_, '_, 't, impl DmaMap>) -> Result<(), AddError> {
        if let Some(frame) = &self.frame {
            parts.bytes(frame, 0..HEADER_SIZE)?;
        }
        parts.sg(&self.data, usize::MAX).map(drop)
    }

    /// Reads the header from the frame, or from the start of the buffer itself.
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

/// A received packet. Dropping it makes its buffers idle.
pub struct Packet<'r, B: DmaBufMut = DmaBytes> {
    header: Header,
    mode: ReceiveMode,
    parts: &'r mut Vec<PendingReceive<B>>,
    idle: &'r mut Vec<PendingReceive<B>>,
}

impl<B: DmaBufMut> Packet<'_, B> {
    /// Returns its header.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the number of buffers that it fills.
    pub const fn buffers(&self) -> usize {
        self.parts.len()
    }

    /// Returns the number of bytes behind the header.
    pub fn len(&self) -> u64 {
        let written = self
            .parts
            .iter()
            .map(|part| u64::from(part.0.written))
            .sum::<u64>();
        written.saturating_sub(HEADER_LEN)
    }

    /// Returns whether there are no bytes behind the header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Passes the bytes behind the header to `each`, one slice per memory buffer.
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

    /// Copies the bytes behind the header, as far as they fit; returns how many.
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
