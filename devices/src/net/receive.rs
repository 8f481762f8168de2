//! From a port into the receive queue (section 5.1.6.3).
//!
//! Whether the guest gets a frame is decided before any of its buffers is touched: with the link down, frames are read
//! into the port's own memory and dropped. Where the driver's filter is on, a frame is read there, too, judged, and then
//! copied; the second copy has its source in the processor's cache. Where the guest wants every frame, it goes from the
//! kernel straight into guest buffers: as many as the last frames needed. What a longer one has left stays with the port
//! until it has been copied into more buffers.
//!
//! When the ring has too few buffers, nothing more is read: the frame waits here, and those behind it in the host, until
//! the driver's kick.

use std::collections::VecDeque;

use splitring_virtio::device::queue::ChainError;
use splitring_virtio::mem::Segment;
use splitring_virtio::spec::net::{HEADER_SIZE, feature};

use super::buffers::{self, wire_len};
use super::filter::Filter;
use super::gate::Gate;
use super::header::MAX_FRAME;
use super::metrics::{Counters, Drop};
use super::port::FramePort;
use super::state::State;
use crate::device::{DescriptorChain, Outcome, Queue};
use crate::log;

/// Frames of one pass.
const BUDGET: u32 = 128;
/// Header and frame together; what is still longer has been cut.
const LONGEST: u64 = MAX_FRAME + HEADER_SIZE as u64;
/// Offset in the header.
const NUM_BUFFERS_AT: u64 = 10;

/// Why receiving has to end until the reset.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveFault {
    #[error(transparent)]
    DescriptorChain(#[from] ChainError),
    #[error("a receive buffer of {0} bytes can't hold even the header")]
    BufferTooSmall(u64),
}

/// What a pass of either direction works with, beside its queue.
pub(super) struct Side<'a> {
    pub(super) port: &'a mut dyn FramePort,
    pub(super) state: &'a State,
    pub(super) counters: &'a Counters,
    pub(super) gate: Option<&'a mut Gate>,
}

/// One pair's receiving side.
pub(super) struct Receiver {
    mergeable: bool,
    checksums: bool,
    /// Buffers taken and not used yet, in ring order.
    held: VecDeque<DescriptorChain>,
    /// Bytes they hold.
    room: u64,
    /// Their segments, one after the other.
    segments: Vec<Segment>,
    /// How many buffers a frame is expected to need.
    window: usize,
    /// Segments the last frame was read into, and their bytes; the rest of it is in the port.
    offered: (usize, u64),
    /// The length of a frame that waits for more buffers.
    unfinished: Option<u64>,
    filter: Filter,
    filter_generation: u32,
    /// Frames may wait while buffers are lacking.
    pub(super) starved: bool,
}

impl Receiver {
    pub(super) fn new(features: u64, state: &State) -> Self {
        let (filter_generation, filter) = state.filter();
        Self {
            mergeable: features & feature::MRG_RXBUF != 0,
            checksums: features & feature::GUEST_CSUM != 0,
            held: VecDeque::new(),
            room: 0,
            segments: Vec::new(),
            window: 1,
            offered: (0, 0),
            unfinished: None,
            filter,
            filter_generation,
            starved: false,
        }
    }

    /// Delivers what waits at the port, as far as buffers, limits and budget go.
    pub(super) fn run(
        &mut self,
        queue: &mut Queue,
        side: &mut Side<'_>,
    ) -> Result<Outcome, ReceiveFault> {
        self.starved = false;
        for _ in 0..BUDGET {
            if !side.state.link_up() {
                match self.drop_next(side) {
                    true => continue,
                    false => return Ok(Outcome::Idle),
                }
            }
            let len = match self.unfinished.take() {
                Some(len) => len,
                None => {
                    let Some(len) = self.read(queue, side)? else {
                        return Ok(Outcome::Idle);
                    };
                    if let Err(why) = self.judge(len, side) {
                        side.counters.drop_one(why);
                        continue;
                    }
                    len
                }
            };
            if !self.place(queue, side, len)? {
                self.unfinished = Some(len);
                self.starve(side);
                return Ok(Outcome::Idle);
            }
        }
        Ok(Outcome::More)
    }

    /// Drops the next frame, since the link is down; `false` if there is none.
    fn drop_next(&mut self, side: &mut Side<'_>) -> bool {
        let waited = self.unfinished.take().is_some();
        let dropped = waited || receive(side, &[]).is_some();
        if dropped {
            side.counters.drop_one(Drop::LinkDown);
        }
        dropped
    }

    /// Reads the next frame that the guest gets, as far as it fits into the buffers expected to be needed; its length.
    fn read(
        &mut self,
        queue: &mut Queue,
        side: &mut Side<'_>,
    ) -> Result<Option<u64>, ReceiveFault> {
        if side.gate.as_mut().is_some_and(|gate| !gate.open()) {
            return Ok(None);
        }
        self.renew_filter(side.state);
        // Read beside guest memory if it may have to be dropped.
        let window = match self.filter.wants_everything() {
            true => self.window,
            false => 0,
        };
        while self.held.len() < window.max(1) && self.hold_one(queue)? {}
        if self.held.is_empty() {
            self.starve(side);
            return Ok(None);
        }
        let wanted = self.held.iter().take(window);
        let count = wanted
            .map(|chain| chain.writable().len())
            .fold(0, usize::saturating_add)
            .min(buffers::MAX_SEGMENTS);
        let into = self.segments.get(..count).unwrap_or_default();
        let bytes = u64::try_from(buffers::total(into)).unwrap_or(u64::MAX);
        self.offered = (count, bytes);
        Ok(receive(side, into))
    }

    fn starve(&mut self, side: &Side<'_>) {
        self.starved = true;
        side.counters.wait_once();
    }

    /// Takes one more buffer; `false` if the ring has none.
    fn hold_one(&mut self, queue: &mut Queue) -> Result<bool, ReceiveFault> {
        let Some(chain) = queue.pop()? else {
            return Ok(false);
        };
        let len = chain.writable_len();
        if len < wire_len(HEADER_SIZE) {
            // Dropping the chain latches the queue broken, as it is to be.
            return Err(ReceiveFault::BufferTooSmall(len));
        }
        self.room = self.room.saturating_add(len);
        self.segments.extend_from_slice(chain.writable());
        self.held.push_back(chain);
        Ok(true)
    }

    /// Finds room for a frame of `len` bytes, header included, and completes it or drops it; `false` if it has to wait
    /// for buffers.
    fn place(
        &mut self,
        queue: &mut Queue,
        side: &mut Side<'_>,
        len: u64,
    ) -> Result<bool, ReceiveFault> {
        if self.mergeable {
            while self.room < len {
                if !self.hold_one(queue)? {
                    if self.held.len() < usize::from(queue.size()) {
                        return Ok(false);
                    }
                    break;
                }
            }
        }
        let fits = if self.mergeable {
            self.room
        } else {
            self.held.front().map_or(0, DescriptorChain::writable_len)
        };
        if len > fits {
            side.counters.drop_one(Drop::TooLong);
            return Ok(true);
        }
        if len > self.offered.1 {
            let beyond = self.segments.get(self.offered.0..).unwrap_or_default();
            buffers::copy_in(&[side.port.rest()], beyond);
        }
        self.deliver(queue, side, len);
        Ok(true)
    }

    /// Whether the guest gets a frame that was just read.
    fn judge(&self, len: u64, side: &Side<'_>) -> Result<(), Drop> {
        if len <= wire_len(HEADER_SIZE) {
            return Err(Drop::Malformed);
        }
        if len > LONGEST {
            return Err(Drop::TooLong);
        }
        // With a filter, all of it is in the port.
        let wanted = self.filter.wants_everything() || {
            let frame = side.port.rest().get(HEADER_SIZE..).unwrap_or_default();
            self.filter.wants(frame)
        };
        if wanted { Ok(()) } else { Err(Drop::Filtered) }
    }

    /// Completes the buffers a frame of `len` bytes went into.
    fn deliver(&mut self, queue: &mut Queue, side: &Side<'_>, len: u64) {
        let frame = len.saturating_sub(wire_len(HEADER_SIZE));
        side.counters.deliver(frame);
        if let Some(gate) = &side.gate {
            gate.charge(frame);
        }
        let count = self.buffers_for(len);
        let (mut left, mut used) = (len, 0_usize);
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
            used = used.saturating_add(chain.writable().len());
            queue.complete(chain, u32::try_from(part).unwrap_or(u32::MAX));
        }
        self.segments.drain(..used.min(self.segments.len()));
        self.expect(usize::from(count));
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

    /// Learns from a frame that needed `count` buffers: grows at once, since the rest is copied, and shrinks slowly.
    fn expect(&mut self, count: usize) {
        let surplus = self.window.saturating_sub(count);
        self.window = self.window.saturating_sub(surplus.div_ceil(4)).max(count);
    }

    /// Sets the fields of the header in front of a frame that are the device's, not the host's.
    fn finish_header(&self, chain: &mut DescriptorChain, count: u16) {
        let mut writer = chain.writer();
        // The header was read into these bytes, so there is room; a failure leaves what the host wrote.
        if !self.checksums {
            let _ = writer.write_all(&[0]);
        }
        let _ = writer.skip(NUM_BUFFERS_AT.saturating_sub(writer.written()));
        let _ = writer.write_all(&count.to_le_bytes());
    }

    fn renew_filter(&mut self, state: &State) {
        if state.filter_generation() != self.filter_generation {
            (self.filter_generation, self.filter) = state.filter();
        }
    }

    /// Gives the buffers back, unused, to a driver that resets the device.
    pub(super) fn abandon(&mut self, counters: &Counters) {
        if self.unfinished.take().is_some() {
            counters.drop_one(Drop::LinkDown);
        }
        self.segments.clear();
        self.held.drain(..).for_each(DescriptorChain::abandon);
        self.room = 0;
    }
}

/// Has the port store the next frame; its length. One that can't be read is none.
fn receive(side: &mut Side<'_>, into: &[Segment]) -> Option<u64> {
    let into = buffers::GuestBuffers::new(into);
    side.port.receive(into).unwrap_or_else(|error| {
        side.counters.fail_one();
        log::warn!(
            side.state.throttle,
            device = side.state.id,
            %error,
            "cannot receive frames; waiting for the interface to come back"
        );
        None
    })
}
