//! What runs on a worker: a queue pair, and the control queue.

use std::sync::Arc;

use splitring_virtio::spec::net::ctrl;

use super::buffers::wire_len;
use super::control::{Command, MAX_ANSWER, MAX_COMMAND};
use super::features::guest_offloads;
use super::flood::Flood;
use super::gate::Gate;
use super::metrics::PairMetrics;
use super::port::{FramePort, NetBackend};
use super::receive::{Receiver, Side};
use super::state::State;
use super::transmit::Transmitter;
use crate::device::{
    Broken, Cause, DescriptorChain, Interest, Outcome, QueueHandler, QueueSet, Source,
};
use crate::interrupt::ConfigNotifier;
use crate::log;

/// The port has frames, or room.
const PORT: u32 = 0;
/// Timers: a limit lets frames through again, in either direction.
const RECEIVE_GATE: u32 = 1;
const TRANSMIT_GATE: u32 = 2;

/// One queue pair. A queue the driver did not enable is not in its set and stays untouched.
pub(super) struct PairHandler {
    pub(super) state: Arc<State>,
    pub(super) port: Box<dyn FramePort>,
    /// Queue numbers.
    pub(super) receive: u16,
    pub(super) transmit: u16,
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
    pub(super) metrics: Arc<PairMetrics>,
    pub(super) flood: Flood,
    pub(super) receive_gate: Option<Gate>,
    pub(super) transmit_gate: Option<Gate>,
}

impl PairHandler {
    fn flush(&mut self) {
        if let Err(error) = self.port.flush() {
            self.metrics.sent.fail_one();
            log::warn!(
                self.state.throttle,
                device = self.state.id,
                %error,
                "cannot send the rest of a frame"
            );
        }
    }

    fn receive(&mut self, queues: &mut QueueSet<'_>) -> Result<Outcome, Broken> {
        let Some(queue) = queues.get(self.receive) else {
            return Ok(Outcome::Idle);
        };
        let mut side = Side {
            port: self.port.as_mut(),
            state: &self.state,
            counters: &self.metrics.received,
            gate: self.receive_gate.as_mut(),
        };
        let done = self.receiver.run(queue, &mut side);
        done.map_err(|fault| Broken::new(self.receive, fault))
    }

    fn transmit(&mut self, queues: &mut QueueSet<'_>) -> Result<Outcome, Broken> {
        let Some(queue) = queues.get(self.transmit) else {
            return Ok(Outcome::Idle);
        };
        let mut side = Side {
            port: self.port.as_mut(),
            state: &self.state,
            counters: &self.metrics.sent,
            gate: self.transmit_gate.as_mut(),
        };
        let done = self.transmitter.run(queue, &mut side);
        done.map_err(|fault| Broken::new(self.transmit, fault))
    }
}

impl QueueHandler for PairHandler {
    fn sources(&self) -> Vec<Source<'_>> {
        let port = Source {
            interest: Interest::Both,
            ..Source::edge(self.port.fd(), PORT)
        };
        vec![port]
    }

    fn run(&mut self, queues: &mut QueueSet<'_>, cause: Cause) -> Result<Outcome, Broken> {
        let (receive, transmit) = match cause {
            // Asked for only when the ring was emptied, so frames may be waiting.
            Cause::Kick(queue) if queue == self.receive => (true, false),
            Cause::Kick(_) | Cause::Timer(TRANSMIT_GATE) => (false, true),
            Cause::Timer(_) => (true, false),
            Cause::Source(_) => {
                self.flush();
                (true, self.transmitter.blocked())
            }
            Cause::Resume => (true, true),
        };
        let sent = if transmit {
            self.transmit(queues)?
        } else {
            Outcome::Idle
        };
        let received = if receive {
            self.receive(queues)?
        } else {
            Outcome::Idle
        };
        for (gate, token) in [
            (&mut self.receive_gate, RECEIVE_GATE),
            (&mut self.transmit_gate, TRANSMIT_GATE),
        ] {
            if let Some(at) = gate.as_mut().and_then(Gate::opens) {
                queues.registry().set_timer(token, at);
            }
        }
        let (frames, bytes) = self.metrics.moved();
        self.flood.pass(frames, bytes);
        let more = sent == Outcome::More || received == Outcome::More;
        Ok(if more { Outcome::More } else { Outcome::Idle })
    }

    fn flooded(&self) -> bool {
        self.flood.is_on()
    }

    fn stop(&mut self, _: &mut QueueSet<'_>) {
        self.receiver.abandon(&self.metrics.received);
        self.transmitter.abandon(&self.metrics.sent);
    }
}

/// The control queue.
pub(super) struct ControlHandler {
    pub(super) state: Arc<State>,
    pub(super) backend: Arc<dyn NetBackend>,
    pub(super) queue: u16,
    pub(super) features: u64,
    /// Queue pairs the driver may ask for.
    pub(super) max_pairs: u16,
    pub(super) config: ConfigNotifier,
}

impl ControlHandler {
    /// Carries a command out; `false` is answered with `ERR`.
    fn apply(&self, command: Command) -> bool {
        match command {
            Command::Rx(mode, on) => self.state.change_filter(|filter| mode.set(filter, on)),
            // It is in the configuration space before the command is answered (5.1.6.5.2.1).
            Command::Address(mac) => self
                .config
                .change(|| self.state.change_filter(|filter| filter.mac = mac)),
            Command::Tables { unicast, multicast } => {
                self.state
                    .change_filter(|filter| filter.set_tables(&unicast, &multicast));
            }
            Command::Vlan { id, wanted } => {
                return self
                    .state
                    .change_filter(|filter| filter.set_vlan(id, wanted));
            }
            Command::AnnounceAck => self.state.set_announcing(false),
            Command::Pairs(pairs) => {
                let done =
                    (1..=self.max_pairs).contains(&pairs) && self.backend.set_pairs(pairs).is_ok();
                if done {
                    self.state.note_pairs(pairs);
                }
                return done;
            }
            Command::GuestOffloads(wanted) => {
                let offloads = guest_offloads(wanted);
                let done = self.backend.set_guest_offloads(offloads).is_ok();
                if done {
                    self.state.note_guest_offloads(wanted);
                }
                return done;
            }
        }
        true
    }

    /// Reads, does and answers one command; `None` if there is no byte for the answer.
    fn serve(&self, chain: &mut DescriptorChain) -> Option<u32> {
        let mut reader = chain.reader();
        let len = usize::try_from(reader.remaining())
            .ok()
            .filter(|len| *len <= MAX_COMMAND);
        let command = len.and_then(|len| {
            let mut bytes = vec![0; len];
            reader.read_exact(&mut bytes).ok()?;
            Command::parse(&bytes, self.features)
        });
        let answer_at = chain
            .writable_len()
            .checked_sub(wire_len(size_of::<u8>()))?;
        let mut writer = chain.writer();
        if answer_at >= MAX_ANSWER {
            // No command has an answer like that. Its last byte says so; what is in front of it is not written.
            writer.skip(answer_at).ok()?;
            writer.write_all(&[ctrl::ERR]).ok()?;
            return Some(0);
        }
        let ack = if command.is_some_and(|command| self.apply(command)) {
            ctrl::OK
        } else {
            ctrl::ERR
        };
        // Bytes in front of the answer belong to it as far as the length is concerned: they become zero.
        writer.write_zeroes(answer_at).ok()?;
        writer.write_all(&[ack]).ok()?;
        u32::try_from(writer.written()).ok()
    }
}

impl QueueHandler for ControlHandler {
    fn run(&mut self, queues: &mut QueueSet<'_>, _: Cause) -> Result<Outcome, Broken> {
        let Some(queue) = queues.get(self.queue) else {
            return Ok(Outcome::Idle);
        };
        // One ring's worth a pass: the driver waits for each answer.
        for _ in 0..queue.size() {
            let Some(mut chain) = queue.pop().map_err(|e| Broken::new(self.queue, e))? else {
                return Ok(Outcome::Idle);
            };
            let Some(written) = self.serve(&mut chain) else {
                return Err(Broken::new(
                    self.queue,
                    "a control command without a byte for its answer",
                ));
            };
            queue.complete(chain, written);
        }
        Ok(Outcome::More)
    }

    fn stop(&mut self, _: &mut QueueSet<'_>) {}
}
