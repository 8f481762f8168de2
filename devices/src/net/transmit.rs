//! From the transmit queue to a port (section 5.1.6.2).
//!
//! A packet goes from guest buffers straight to the kernel, behind a header that was copied and judged.

use std::io;

use splitring_virtio::device::queue::ChainError;
use splitring_virtio::mem::Segment;
use splitring_virtio::spec::net::Header;

use super::buffers::GuestBuffers;
use super::filter::Mac;
use super::header;
use super::metrics::{Counters, Drop};
use super::port::{MOST_TAKEN, Refusal};
use super::receive::Side;
use crate::device::{DescriptorChain, Outcome, Queue};
use crate::log;

/// Packets of one pass.
const BUDGET: u32 = 128;

/// One pair's sending side.
pub(super) struct Transmitter {
    features: u64,
    /// Packets must come from this address.
    only_from: Option<Mac>,
    /// Taken from the ring while the port had no room.
    pending: Option<DescriptorChain>,
    /// Reused from packet to packet.
    segments: Vec<Segment>,
    /// What the port has taken and may not have sent yet, with the frames' lengths. Empty between two passes.
    taken: Vec<(DescriptorChain, u64)>,
    refused: Vec<Refusal>,
}

/// What became of a packet.
enum Sent {
    /// The port has it: so many bytes.
    Taken(u64),
    Dropped,
    /// It has to wait.
    NoRoom,
}

impl Transmitter {
    pub(super) fn new(features: u64, only_from: Option<Mac>) -> Self {
        Self {
            features,
            only_from,
            pending: None,
            segments: Vec::new(),
            taken: Vec::with_capacity(MOST_TAKEN),
            refused: Vec::new(),
        }
    }

    /// Whether a packet waits for room at the port.
    pub(super) fn blocked(&self) -> bool {
        self.pending.is_some()
    }

    /// Sends what the ring holds, as far as room, limits and budget go.
    pub(super) fn run(
        &mut self,
        queue: &mut Queue,
        side: &mut Side<'_>,
    ) -> Result<Outcome, ChainError> {
        let done = self.take(queue, side);
        self.commit(queue, side);
        done
    }

    fn take(&mut self, queue: &mut Queue, side: &mut Side<'_>) -> Result<Outcome, ChainError> {
        for _ in 0..BUDGET {
            if side.gate.as_mut().is_some_and(|gate| !gate.open()) {
                return Ok(Outcome::Idle);
            }
            let chain = match self.pending.take() {
                Some(chain) => chain,
                None => match queue.pop()? {
                    Some(chain) => chain,
                    None => return Ok(Outcome::Idle),
                },
            };
            match self.send(&chain, side) {
                Sent::Taken(frame) => self.taken.push((chain, frame)),
                Sent::Dropped => queue.complete(chain, 0),
                Sent::NoRoom => {
                    self.pending = Some(chain);
                    side.counters.wait_once();
                    return Ok(Outcome::Idle);
                }
            }
            if self.taken.len() >= MOST_TAKEN {
                self.commit(queue, side);
            }
        }
        Ok(Outcome::More)
    }

    /// Has the port send what it took, and completes that.
    fn commit(&mut self, queue: &mut Queue, side: &mut Side<'_>) {
        side.port.commit(&mut self.refused);
        for (number, (chain, frame)) in self.taken.drain(..).enumerate() {
            if !self.refused.iter().any(|refusal| refusal.number == number) {
                side.counters.deliver(frame);
            }
            queue.complete(chain, 0);
        }
        for Refusal { error, .. } in self.refused.drain(..) {
            refuse(side, &error);
        }
    }

    /// Judges one packet and gives it to the port.
    fn send(&mut self, chain: &DescriptorChain, side: &mut Side<'_>) -> Sent {
        let judged = if side.state.link_up() {
            self.judge(chain)
        } else {
            Err(Drop::LinkDown)
        };
        let (header, frame) = match judged {
            Ok(judged) => judged,
            Err(why) => {
                side.counters.drop_one(why);
                return Sent::Dropped;
            }
        };
        let bytes = GuestBuffers::new(&self.segments);
        match side.port.send(&header, bytes) {
            Ok(true) => {
                if let Some(gate) = &side.gate {
                    gate.charge(frame);
                }
                Sent::Taken(frame)
            }
            Ok(false) => Sent::NoRoom,
            Err(error) => {
                refuse(side, &error);
                Sent::Dropped
            }
        }
    }

    /// The header to send and the frame's length, with its segments in `self.segments`.
    fn judge(&mut self, chain: &DescriptorChain) -> Result<(Header, u64), Drop> {
        let mut reader = chain.reader();
        let header: Header = reader.read_obj().map_err(|_| Drop::Malformed)?;
        let frame = reader.remaining();
        let header = header::judge(header, frame, self.features)?;
        if let Some(own) = self.only_from {
            let mut addresses = [0; 12];
            let mut peek = reader;
            peek.read_exact(&mut addresses)
                .map_err(|_| Drop::Malformed)?;
            if !addresses.ends_with(&own) {
                return Err(Drop::ForeignAddress);
            }
        }
        self.segments.clear();
        self.segments.extend(reader.segments());
        Ok((header, frame))
    }

    /// Gives a waiting packet back to a driver that resets the device.
    pub(super) fn abandon(&mut self, counters: &Counters) {
        if let Some(chain) = self.pending.take() {
            counters.drop_one(Drop::LinkDown);
            chain.abandon();
        }
    }
}

fn refuse(side: &Side<'_>, error: &io::Error) {
    side.counters.fail_one();
    log::debug!(side.state.throttle, device = side.state.id, %error, "the host refused a frame");
}
