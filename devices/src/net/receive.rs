//! From a port into the receive queue (section 5.1.6.3).
//!
//! A frame goes from the kernel straight into guest buffers. So buffers for the longest frame are
//! taken from the ring before one is read; those a frame does not need wait for the next one. When
//! the ring can't give enough, nothing is read: the frames wait in the host until the driver's kick.

use std::collections::VecDeque;

use splitring_virtio::device::queue::ChainError;
use splitring_virtio::mem::Segment;
use splitring_virtio::spec::net::{HEADER_SIZE, feature};

use super::filter::{Filter, LOOKED_AT};
use super::header::MAX_FRAME;
use super::port::FramePort;
use super::state::{Counters, State};
use super::{buffers, wire_len};
use crate::device::{Chain, Outcome, Queue};

/// Frames of one pass.
const BUDGET: u32 = 128;
/// Longest frame read where the guest takes no segmentation offload: a jumbo frame.
const LONGEST_PLAIN: u64 = 9216;
/// Offsets in the header.
const NUM_BUFFERS_AT: u64 = 10;

/// Offloads under which a frame can be as long as an IP packet can be.
const LONG_FRAMES: u64 = feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_UFO
    | feature::GUEST_USO4
    | feature::GUEST_USO6;

/// Why receiving has to end until the reset.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveFault {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("a receive buffer of {0} bytes can't hold even the header")]
    BufferTooSmall(u64),
}

/// One pair's receiving side.
pub(super) struct Receiver {
    mergeable: bool,
    checksums: bool,
    /// Bytes that must be ready before a frame is read, header included.
    longest: u64,
    /// Buffers taken and not used yet, in ring order.
    held: VecDeque<Chain>,
    /// Bytes they hold.
    room: u64,
    /// The buffers as the port takes them; empty when to be made anew.
    segments: Vec<Segment>,
    filter: Filter,
    filter_generation: u32,
    /// Frames may wait in the host while buffers are lacking.
    pub(super) starved: bool,
}

impl Receiver {
    pub(super) fn new(features: u64, mtu: u16, state: &State) -> Self {
        let frame = if features & LONG_FRAMES == 0 {
            LONGEST_PLAIN.max(u64::from(mtu))
        } else {
            MAX_FRAME
        };
        let (filter_generation, filter) = state.filter();
        Self {
            mergeable: features & feature::MRG_RXBUF != 0,
            checksums: features & feature::GUEST_CSUM != 0,
            longest: frame.saturating_add(wire_len(HEADER_SIZE)),
            held: VecDeque::new(),
            room: 0,
            segments: Vec::new(),
            filter,
            filter_generation,
            starved: false,
        }
    }

    /// Delivers what waits at the port, as far as buffers and budget go.
    pub(super) fn run(
        &mut self,
        queue: &mut Queue,
        port: &mut dyn FramePort,
        state: &State,
    ) -> Result<Outcome, ReceiveFault> {
        let counters = &state.metrics.received;
        for _ in 0..BUDGET {
            self.starved = !self.fill(queue)?;
            if self.starved {
                return Ok(Outcome::Idle);
            }
            if self.segments.is_empty() {
                self.segments
                    .extend(self.held.iter().flat_map(|chain| chain.writable()));
            }
            match port.receive(&self.segments) {
                Ok(Some(len)) => self.deliver(queue, len, state),
                Ok(None) => return Ok(Outcome::Idle),
                Err(error) => {
                    counters.fail_one();
                    tracing::warn!(%error, "cannot receive frames; waiting for the interface to come back");
                    return Ok(Outcome::Idle);
                }
            }
        }
        Ok(Outcome::More)
    }

    /// Takes buffers until the longest frame fits; `false` if the ring has too few.
    fn fill(&mut self, queue: &mut Queue) -> Result<bool, ReceiveFault> {
        while if self.mergeable {
            self.room < self.longest
        } else {
            self.held.is_empty()
        } {
            let Some(chain) = queue.pop()? else {
                // A driver whose whole ring is smaller than a frame still gets the frames that fit.
                return Ok(!self.held.is_empty() && self.held.len() >= usize::from(queue.size()));
            };
            let len = chain.writable_len();
            if len < wire_len(HEADER_SIZE) {
                // Dropping the chain latches the queue broken, as it is to be.
                return Err(ReceiveFault::BufferTooSmall(len));
            }
            self.room = self.room.saturating_add(len);
            self.segments.clear();
            self.held.push_back(chain);
        }
        Ok(true)
    }

    /// Completes the buffers a frame of `len` bytes, header included, went into; or leaves them for the next.
    fn deliver(&mut self, queue: &mut Queue, len: u64, state: &State) {
        let counters: &Counters = &state.metrics.received;
        let fits = if self.mergeable {
            self.room
        } else {
            self.held.front().map_or(0, Chain::writable_len)
        };
        if len > fits || len < wire_len(HEADER_SIZE) || !state.link_up() || !self.wanted(state) {
            counters.drop_one();
            return;
        }
        counters.delivered(len.saturating_sub(wire_len(HEADER_SIZE)));
        let count = self.buffers_for(len);
        let mut left = len;
        for index in 0..count {
            let Some(mut chain) = self.held.pop_front() else {
                break;
            };
            if index == 0 {
                self.finish_header(&mut chain, count);
            }
            let part = left.min(chain.writable_len());
            left = left.saturating_sub(part);
            self.room = self.room.saturating_sub(chain.writable_len());
            queue.complete(chain, u32::try_from(part).unwrap_or(u32::MAX));
        }
        self.segments.clear();
    }

    fn buffers_for(&self, len: u64) -> u16 {
        let mut left = len;
        let needed = self.held.iter().take_while(|chain| {
            let more = left > 0;
            left = left.saturating_sub(chain.writable_len());
            more
        });
        u16::try_from(needed.count()).unwrap_or(u16::MAX)
    }

    /// Sets the fields of the header in front of a frame that are the device's, not the host's.
    fn finish_header(&self, chain: &mut Chain, count: u16) {
        let mut writer = chain.writer();
        // The header was read into these bytes, so there is room; a failure leaves what the host wrote.
        if !self.checksums {
            let _ = writer.write_all(&[0]);
        }
        let _ = writer.skip(NUM_BUFFERS_AT.saturating_sub(writer.written()));
        let _ = writer.write_all(&count.to_le_bytes());
    }

    /// Whether the frame just read passes the filter.
    fn wanted(&mut self, state: &State) -> bool {
        if state.filter_generation() != self.filter_generation {
            (self.filter_generation, self.filter) = state.filter();
        }
        if self.filter.wants_everything() {
            return true;
        }
        let mut start = [0; HEADER_SIZE + LOOKED_AT];
        buffers::copy_out(&self.segments, &mut start);
        start
            .get(HEADER_SIZE..)
            .is_some_and(|frame| self.filter.wants(frame))
    }

    /// Gives the buffers back, unused, to a driver that resets the device.
    pub(super) fn abandon(&mut self) {
        self.segments.clear();
        self.held.drain(..).for_each(Chain::abandon);
        self.room = 0;
    }
}
