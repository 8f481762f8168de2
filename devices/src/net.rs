//! The network card (section 5.1): mergeable buffers, several queue pairs, offloads, control queue.
//!
//! It knows its queues and configuration space; where frames go is a [`NetBackend`]'s business.

mod backend;
mod buffers;
mod config;
mod control;
mod features;
mod filter;
mod flood;
mod gate;
mod handle;
mod header;
mod kernel_pair;
mod metrics;
pub mod passt;
pub mod port;
mod receive;
mod saved;
mod state;
pub mod tap;
mod tasks;
mod transmit;
pub mod vhost;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use splitring_virtio::spec::id;
use splitring_virtio::spec::net::{Config, feature, status};
use zerocopy::IntoBytes;

pub use backend::{NetError, from_fds, open};
pub use buffers::GuestBuffers;
pub use config::{Hidden, MAX_PAIRS, MTU_RANGE, MacAddress, NET_KEYS, NetConfig, NetConfigError};
pub use filter::Mac;
pub use handle::NetHandle;
pub use metrics::{DirectionTotals, DropTotals, NetMetrics, NetTotals};
pub use port::{FramePort, MOST_TAKEN, NetBackend, Offloads, Refusal};

use crate::debug::opaque_debug;
use crate::device::{DeviceKind, FeatureRule, Start, StartError, Task, VirtioDevice, read_window};
use crate::events::{DeviceEvent, EventSink, NO_EVENTS};
use crate::handed_over::HandedOver;
use crate::interrupt::ConfigNotifier;
use crate::limits::Limits;
use crate::log;
use crate::saved::{StateError, Versioned};
use control::GUEST_OFFLOADS;
use features::{OFFLOADS, RULES, guest_offloads, with_dependents};
use filter::Filter;
use flood::Flood;
use gate::Gate;
use kernel_pair::PairServer;
use receive::Receiver;
use saved::NetState;
use state::State;
use tasks::{ControlHandler, PairHandler};
use transmit::Transmitter;

/// An Ethernet controller.
const KIND: DeviceKind = DeviceKind {
    type_id: id::NET,
    pci_class: 0x02_0000,
};

/// Descriptors of the control queue.
const CONTROL_QUEUE_SIZE: u16 = 64;
/// Speed reported, in Mbit/s; a guess that nothing depends on but bonding and monitoring tools.
const SPEED: u32 = 10_000;
const FULL_DUPLEX: u8 = 1;

/// A network card.
pub struct Net {
    /// Its address after a reset.
    mac: Mac,
    mtu: Option<u16>,
    only_from: Option<Mac>,
    offloads: bool,
    pairs: u16,
    queue_sizes: Vec<u16>,
    backend: Arc<dyn NetBackend>,
    state: Arc<State>,
    /// By direction, shared by all pairs; none if the keys ask for none.
    limits: Option<[Arc<Limits>; 2]>,
    mask: u64,
    /// While the driver runs the card.
    notifier: Mutex<Option<ConfigNotifier>>,
    events: OnceLock<EventSink>,
}

opaque_debug! { Net |it| { id: it.state.id, pairs: it.pairs } }

impl Net {
    /// A card called `id` with address `mac` where the configuration names none. `config` has been validated.
    #[must_use]
    pub fn new(
        id: &str,
        mac: MacAddress,
        config: &NetConfig,
        backend: Arc<dyn NetBackend>,
    ) -> Self {
        let lacking = backend.vhost().map_or(0, |(vhost, _)| vhost.lacking());
        let MacAddress(mac) = config.mac.unwrap_or(mac);
        let pairs = config.pairs().min(backend.max_pairs()).max(1);
        let mut queue_sizes = vec![config.queue_len(); usize::from(pairs).saturating_mul(2)];
        queue_sizes.push(CONTROL_QUEUE_SIZE);
        Self {
            mac,
            mtu: config.mtu,
            only_from: config.mac_filter.then_some(mac),
            offloads: config.offloads.unwrap_or(true),
            pairs,
            queue_sizes,
            backend,
            state: Arc::new(State::new(id, mac, pairs)),
            limits: limits(config),
            mask: !with_dependents(config.hidden_features() | lacking),
            notifier: Mutex::new(None),
            events: OnceLock::new(),
        }
    }

    /// Sends the card's events to `sink` from now on. Only the first call counts.
    pub fn report_to(&self, sink: EventSink) {
        // Refused where there is one already.
        let _ = self.events.set(sink);
    }

    /// Takes the link up or down; the guest is told, and frames are dropped while it is down. Where vhost-net moves the
    /// frames, it stands still while the link is down: what the guest sends stays in its queues until the link is up.
    pub fn set_link(&self, up: bool) {
        let mut changed = false;
        self.change_status(|state| changed = state.set_link(up));
        if changed {
            if let Some((vhost, _)) = self.backend.vhost() {
                vhost.link_changed();
            }
            let events = self.events.get().unwrap_or(&NO_EVENTS);
            events.send(|| DeviceEvent::LinkChanged {
                device: self.state.id.clone(),
                up,
            });
        }
    }

    /// Asks the driver to announce the guest to the network: after a pause, switches have forgotten where it is. A driver
    /// that can't is not asked.
    pub fn announce(&self) {
        if self.state.can_announce() {
            self.change_status(|state| state.set_announcing(true));
        }
    }

    /// What has been counted so far.
    pub fn metrics(&self) -> &NetMetrics {
        &self.state.metrics
    }

    fn change_status(&self, change: impl FnOnce(&State)) {
        let notifier = self
            .notifier
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match notifier {
            Some(notifier) => notifier.change(|| change(&self.state)),
            None => change(&self.state),
        }
    }

    fn config(&self) -> Config {
        let up = if self.state.link_up() {
            status::LINK_UP
        } else {
            0
        };
        let announce = if self.state.announcing() {
            status::ANNOUNCE
        } else {
            0
        };
        Config {
            mac: self.state.mac(),
            status: (up | announce).into(),
            max_virtqueue_pairs: self.pairs.into(),
            mtu: self.mtu.unwrap_or(0).into(),
            speed: SPEED.into(),
            duplex: FULL_DUPLEX,
        }
    }

    /// The task of queue pair `pair`, if the driver enabled any of its queues: the kernel's, or one of ours.
    fn data_task(&self, start: &mut Start, pair: u16) -> Result<Option<Task>, StartError> {
        let Some((vhost, queues)) = self.backend.vhost() else {
            return self.pair_task(start, pair);
        };
        let receive = pair.saturating_mul(2);
        let both = [receive, receive.saturating_add(1)];
        let rings: Vec<_> = both
            .iter()
            .filter_map(|index| start.rings.take(*index))
            .collect();
        if rings.is_empty() {
            return Ok(None);
        }
        let parts = vhost.pair(pair).zip(queues.get(usize::from(pair)));
        let (kernel, tap) = parts.ok_or_else(|| {
            StartError::new(format_args!("{}: no queue pair {pair}", self.state.id))
        })?;
        let server = PairServer {
            kernel,
            tap: Arc::clone(tap),
            ram: start.ram.clone(),
            features: start.features,
            metrics: self.state.metrics.pair(pair),
            stale: !self.state.link_up(),
            state: Arc::clone(&self.state),
        };
        Ok(Some(Task {
            queues: rings.iter().map(|ring| ring.ring().index).collect(),
            handler: Box::new(HandedOver::new(server, rings)),
        }))
    }

    /// The task of queue pair `pair`, if the driver enabled any of its queues.
    fn pair_task(&self, start: &Start, pair: u16) -> Result<Option<Task>, StartError> {
        let receive = pair.saturating_mul(2);
        let transmit = receive.saturating_add(1);
        let ready = start.queues.iter().map(|queue| queue.index);
        let queues: Vec<u16> = ready
            .filter(|index| *index == receive || *index == transmit)
            .collect();
        if queues.is_empty() {
            return Ok(None);
        }
        let port = self.backend.open_port(pair);
        let port = port.map_err(|e| {
            StartError::new(format_args!("{}: queue pair {pair}: {e}", self.state.id))
        })?;
        let limits = self.limits.clone();
        let [receive_gate, transmit_gate] = limits.map_or([None, None], |limits| {
            limits.map(|one| Some(Gate::new(one)))
        });
        let handler = Box::new(PairHandler {
            state: Arc::clone(&self.state),
            port,
            receive,
            transmit,
            receiver: Receiver::new(start.features, &self.state),
            transmitter: Transmitter::new(start.features, self.only_from),
            metrics: self.state.metrics.pair(pair),
            flood: Flood::default(),
            receive_gate,
            transmit_gate,
        });
        Ok(Some(Task { queues, handler }))
    }

    fn control_task(&self, start: &Start, max_pairs: u16) -> Option<Task> {
        let queue = max_pairs.saturating_mul(2);
        let offered = start.features & feature::CTRL_VQ != 0;
        if !offered || !start.queues.iter().any(|ready| ready.index == queue) {
            return None;
        }
        let handler = Box::new(ControlHandler {
            state: Arc::clone(&self.state),
            backend: Arc::clone(&self.backend),
            queue,
            features: start.features,
            max_pairs,
            config: start.config.clone(),
        });
        Some(Task {
            queues: vec![queue],
            handler,
        })
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> &str {
        &self.state.id
    }

    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        let mut features = feature::MAC
            | feature::STATUS
            | feature::MRG_RXBUF
            | feature::CTRL_VQ
            | feature::CTRL_MAC_ADDR
            | feature::GUEST_ANNOUNCE
            | feature::SPEED_DUPLEX;
        // The kernel does not filter for the driver.
        if self.backend.vhost().is_none() {
            features |= feature::CTRL_RX | feature::CTRL_RX_EXTRA | feature::CTRL_VLAN;
        }
        if self.pairs > 1 {
            features |= feature::MQ;
        }
        if self.mtu.is_some() {
            features |= feature::MTU;
        }
        let offloads = if self.offloads {
            self.backend.offloads()
        } else {
            Offloads::empty()
        };
        if !offloads.is_empty() {
            features |= feature::CTRL_GUEST_OFFLOADS;
        }
        OFFLOADS
            .iter()
            .filter(|row| offloads.contains(row.0))
            .fold(features, |all, row| all | row.1 | row.2)
    }

    fn mask(&self) -> u64 {
        self.mask
    }

    fn feature_rules(&self) -> &[FeatureRule] {
        RULES
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// A pair of queues is one task, and the control queue another.
    fn task_number(&self, queue: u16) -> u16 {
        queue / 2
    }

    fn hands_over(&self) -> bool {
        self.backend.vhost().is_some()
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_window(self.config().as_bytes(), offset, data);
    }

    fn start(&self, mut start: Start) -> Result<Vec<Task>, StartError> {
        let features = start.features;
        let has = |feature| features & feature != 0;
        self.state.change_filter(|filter| {
            *filter = Filter::new(self.mac, has(feature::CTRL_RX), has(feature::CTRL_VLAN));
        });
        let failed = |what: &str, e: std::io::Error| {
            StartError::new(format_args!("{}: cannot {what}: {e}", self.state.id))
        };
        let wanted = start.features & GUEST_OFFLOADS;
        self.backend
            .set_guest_offloads(guest_offloads(wanted))
            .map_err(|e| failed("set the offloads", e))?;
        self.state.note_guest_offloads(wanted);
        // Until the driver asks for more (section 5.1.6.5.5).
        self.backend
            .set_pairs(1)
            .map_err(|e| failed("use one queue pair", e))?;
        self.state.note_pairs(1);
        *self.notifier.lock().unwrap_or_else(PoisonError::into_inner) = Some(start.config.clone());
        self.state.set_features(start.features);
        let pairs = if has(feature::MQ) { self.pairs } else { 1 };
        let mut tasks = Vec::with_capacity(usize::from(pairs).saturating_add(1));
        for pair in 0..pairs {
            tasks.extend(self.data_task(&mut start, pair)?);
        }
        tasks.extend(self.control_task(&start, pairs));
        Ok(tasks)
    }

    fn reset(&self) {
        *self.notifier.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.state.set_features(0);
        self.state.set_announcing(false);
        self.state.note_guest_offloads(0);
        self.state.note_pairs(1);
        // The driver may have changed it.
        self.state.change_filter(|filter| filter.mac = self.mac);
        // The host would go on preparing frames for a driver that is gone.
        let plain = self.backend.set_guest_offloads(Offloads::empty());
        if let Err(error) = plain.and_then(|()| self.backend.set_pairs(1)) {
            let throttle = &self.state.throttle;
            log::warn!(throttle, device = self.state.id, %error, "cannot reset the interface");
        }
    }

    fn save(&self) -> Result<Versioned, StateError> {
        Versioned::new(&NetState::of(&self.state, self.mtu))
    }

    fn restore(&self, state: &Versioned) -> Result<(), StateError> {
        let state: NetState = state.read()?;
        let filter = state.check(&self.state, self.mtu, self.pairs)?;
        let failed = |what: &str, e: std::io::Error| {
            StateError::refused::<NetState>(format_args!("cannot {what}: {e}"))
        };
        self.backend
            .set_guest_offloads(guest_offloads(state.guest_offloads))
            .map_err(|e| failed("set the offloads", e))?;
        self.backend
            .set_pairs(state.pairs)
            .map_err(|e| failed("use as many queue pairs", e))?;
        self.state.change_filter(|current| *current = filter);
        state.apply(&self.state);
        Ok(())
    }
}

/// The limits that the keys ask for: one for each direction.
fn limits(config: &NetConfig) -> Option<[Arc<Limits>; 2]> {
    let bytes = config.bandwidth.map(|bytes| bytes.0);
    let limited = config.packets.is_some() || bytes.is_some();
    limited.then(|| [(); 2].map(|()| Arc::new(Limits::new(config.packets, bytes))))
}

#[cfg(test)]
mod tests;
