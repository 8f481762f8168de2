//! From the transmit queue to a port (section 5.1.6.2).
//!
//! A packet goes from guest buffers straight to the kernel, behind a header that was copied and judged.

use splitring_virtio::device::queue::ChainError;
use splitring_virtio::mem::Segment;
use splitring_virtio::spec::net::Header;

use super::filter::Mac;
use super::header;
use super::metrics::{Counters, Drop};
use super::receive::Side;
use crate::device::{Chain, Outcome, Queue};

/// Packets of one pass.
const BUDGET: u32 = 128;

/// One pair's sending side.
pub(super) struct Transmitter {
    features: u64,
    /// Packets must come from this address.
    only_from: Option<Mac>,
    /// Taken from the ring while the port had no room.
    pending: Option<Chain>,
    /// Reused from packet to packet.
    segments: Vec<Segment>,
}

impl Transmitter {
    pub(super) fn new(features: u64, only_from: Option<Mac>) -> Self {
        Self {
            features,
            only_from,
            pending: None,
            segments: Vec::new(),
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
        for _ in 0..BUDGET {
            if side.gate.is_some_and(|gate| !gate.open()) {
                return Ok(Outcome::Idle);
            }
            let chain = match self.pending.take() {
                Some(chain) => chain,
                None => match queue.pop()? {
                    Some(chain) => chain,
                    None => return Ok(Outcome::Idle),
                },
            };
            if !self.send(&chain, side) {
                self.pending = Some(chain);
                side.counters.wait_once();
                return Ok(Outcome::Idle);
            }
            queue.complete(chain, 0);
        }
        Ok(Outcome::More)
    }

    /// Sends or drops one packet; `false` if it has to wait.
    fn send(&mut self, chain: &Chain, side: &mut Side<'_>) -> bool {
        let judged = if side.state.link_up() {
            self.judge(chain)
        } else {
            Err(Drop::LinkDown)
        };
        let (header, frame) = match judged {
            Ok(judged) => judged,
            Err(why) => {
                side.counters.drop_one(why);
                return true;
            }
        };
        match side.port.send(&header, &self.segments) {
            Ok(true) => {
                side.counters.deliver(frame);
                if let Some(gate) = side.gate {
                    gate.charge(frame);
                }
            }
            Ok(false) => return false,
            Err(error) => {
                side.counters.fail_one();
                tracing::debug!(%error, "the host refused a frame");
            }
        }
        true
    }

    /// The header to send and the frame's length, with its segments in `self.segments`.
    fn judge(&mut self, chain: &Chain) -> Result<(Header, u64), Drop> {
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
