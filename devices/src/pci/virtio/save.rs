//! The state of a virtio function whose device stands still, and a newly built function that goes
//! on from it.
//!
//! It composes the layers' states, each with a version of its own; see [`crate::saved`].

use serde::{Deserialize, Serialize};
use splitring_virtio::device::queue::{InFlight, QueueState};
use splitring_virtio::device::transport::TransportState;

use super::{RunningDevice, State, VirtioPci};
use crate::device::Broken;
use crate::interrupt::InterruptSink;
use crate::pci::config::ConfigState;
use crate::pci::interrupts::InterruptState;
use crate::pci::msix::MsixState;
use crate::saved::{Layer, StateError, Versioned};
use crate::worker::WorkerError;

/// All of a function.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FunctionState {
    /// The kind of device (VIRTIO 1.2 §5).
    device_type: u16,
    /// The device was told of DRIVER_OK: it may be that it was not, as long as it may not master
    /// the bus.
    started: bool,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    config_space: Versioned,
    msix: Versioned,
    interrupts: Versioned,
    transport: Versioned,
    device: Versioned,
}

impl Layer for FunctionState {
    const NAME: &'static str = "virtio function";
    const VERSION: u32 = 1;
}

/// Status, features and queues.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TransportRecord {
    status: u8,
    accepted: u64,
    queues: Vec<Versioned>,
}

impl Layer for TransportRecord {
    const NAME: &'static str = "virtio transport";
    const VERSION: u32 = 1;
}

/// One queue.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueRecord {
    size: u16,
    ready: bool,
    desc: u64,
    avail: u64,
    used: u64,
    next_avail: u16,
    next_used: u16,
    published: u16,
    undecided: bool,
    broken: bool,
    /// Requests taken from the ring that had not begun: position in its sequence, and head.
    taken: Vec<(u16, u16)>,
}

impl Layer for QueueRecord {
    const NAME: &'static str = "virtqueue";
    const VERSION: u32 = 1;
}

impl From<QueueState> for QueueRecord {
    fn from(state: QueueState) -> Self {
        let taken = state.in_flight.iter().map(|one| (one.position, one.head));
        Self {
            taken: taken.collect(),
            size: state.size,
            ready: state.ready,
            desc: state.desc,
            avail: state.avail,
            used: state.used,
            next_avail: state.next_avail,
            next_used: state.next_used,
            published: state.published,
            undecided: state.undecided,
            broken: state.broken,
        }
    }
}

impl From<QueueRecord> for QueueState {
    fn from(record: QueueRecord) -> Self {
        let taken = record.taken.into_iter();
        Self {
            in_flight: taken
                .map(|(position, head)| InFlight { position, head })
                .collect(),
            size: record.size,
            ready: record.ready,
            desc: record.desc,
            avail: record.avail,
            used: record.used,
            next_avail: record.next_avail,
            next_used: record.next_used,
            published: record.published,
            undecided: record.undecided,
            broken: record.broken,
        }
    }
}

impl TransportRecord {
    fn new(state: TransportState) -> Result<Self, StateError> {
        let queues = state.queues.into_iter();
        Ok(Self {
            status: state.status,
            accepted: state.accepted,
            queues: queues
                .map(|queue| Versioned::new(&QueueRecord::from(queue)))
                .collect::<Result<_, _>>()?,
        })
    }

    fn into_state(self) -> Result<TransportState, StateError> {
        let queues = self.queues.iter();
        Ok(TransportState {
            status: self.status,
            accepted: self.accepted,
            queues: queues
                .map(|queue| queue.read::<QueueRecord>().map(QueueState::from))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The device could not be started from its state.
impl From<Broken> for StateError {
    fn from(broken: Broken) -> Self {
        StateError::refused::<FunctionState>(broken)
    }
}

impl VirtioPci {
    /// Returns the state of the function and of its device, whose workers are paused
    /// ([`crate::worker::pause_all`]). The rings themselves are guest memory, which is marked dirty
    /// where tracking is on.
    ///
    /// # Errors
    /// A worker runs, requests have begun and wait for something else than the host (they end soon
    /// after the pause), or the device has no state that could be saved.
    pub fn save(&self) -> Result<Versioned, StateError> {
        let state = self.state();
        if self.device.hands_over() {
            // Where its rings are, only their other server knows.
            let device = self.device.id().to_owned();
            return Err(StateError::Unsupported { device });
        }
        let mut transport = state.transport.save();
        // A device that needs a reset does nothing before it.
        if !self.interrupts.is_broken() {
            for (index, queue) in self.live_queues(&state)? {
                if let Some(place) = transport.queues.get_mut(usize::from(index)) {
                    *place = queue;
                }
            }
        }
        Versioned::new(&FunctionState {
            device_type: self.device.kind().type_id,
            started: state.running.is_some(),
            device_feature_select: state.device_feature_select,
            driver_feature_select: state.driver_feature_select,
            queue_select: state.queue_select,
            config_space: Versioned::new(&self.config.save())?,
            msix: Versioned::new(&self.interrupts.msix.save())?,
            interrupts: Versioned::new(&self.interrupts.save())?,
            transport: Versioned::new(&TransportRecord::new(transport)?)?,
            device: self.device.save()?,
        })
    }

    fn live_queues(&self, state: &State) -> Result<Vec<(u16, QueueState)>, StateError> {
        let mut queues = Vec::new();
        for (worker, id) in state.running.iter().flat_map(|running| &running.tasks) {
            let saved = worker.save(*id);
            queues.extend(saved.map_err(|error: WorkerError| StateError::Busy {
                device: self.device.id().to_owned(),
                problem: error.to_string(),
            })?);
        }
        Ok(queues)
    }

    /// Takes over what [`VirtioPci::save`] returned, on a function that was just built in the same
    /// slot, with the same memory contents, from a device of the same configuration. Its queues go
    /// on with the driver's rings, at once or when their workers are resumed.
    /// [`PciRoot::follow`](crate::pci::root::PciRoot::follow) has to be called afterwards, so that
    /// its BAR answers.
    ///
    /// # Errors
    /// The state is damaged, or of a function or device that is not like this one. The device is
    /// then as after a reset, and the function to be dropped.
    pub fn restore(&self, saved: &Versioned) -> Result<(), StateError> {
        let function: FunctionState = saved.read()?;
        let config: ConfigState = function.config_space.read()?;
        let msix: MsixState = function.msix.read()?;
        let interrupts: InterruptState = function.interrupts.read()?;
        let transport = function.transport.read::<TransportRecord>()?.into_state()?;
        let mut guard = self.state();
        let state = &mut *guard;
        self.accepts(state, &function)?;
        self.config.check(&config)?;
        self.interrupts.msix.check(&msix)?;
        self.interrupts.check(&interrupts)?;
        let restored = state.transport.restore(transport);
        restored.map_err(StateError::refused::<TransportRecord>)?;

        self.config.restore(&config);
        self.interrupts.msix.restore(&msix);
        self.interrupts.restore(&interrupts);
        state.device_feature_select = function.device_feature_select;
        state.driver_feature_select = function.driver_feature_select;
        state.queue_select = function.queue_select;
        state.bus_master = self.config.bus_master();
        self.interrupts.set_bus_master(state.bus_master);
        if let Err(error) = self.revive(state, &function) {
            self.reset(state);
            return Err(error);
        }
        // What was pending is sent now.
        let mut control = [0; 2];
        self.config
            .read(self.msix_at.saturating_add(2), &mut control);
        let msix = &self.interrupts.msix;
        msix.set_control(u16::from_le_bytes(control));
        msix.set_bus_master(state.bus_master);
        if state.transport.driver_ok() {
            self.connect_line(state);
        }
        Ok(())
    }

    /// Whether the function is new and of the right kind.
    fn accepts(&self, state: &State, function: &FunctionState) -> Result<(), StateError> {
        let refused = |problem: String| Err(StateError::refused::<FunctionState>(problem));
        let (was, is) = (function.device_type, self.device.kind().type_id);
        if was != is {
            let problem = format!("it is of a device of type {was}, this is of type {is}");
            return refused(problem);
        }
        if state.running.is_some() || state.transport.status() != 0 {
            return refused(format!("{} is in use already", self.device.id()));
        }
        Ok(())
    }

    /// Starts the device again if it had been started, and gives it its own state.
    fn revive(&self, state: &mut State, function: &FunctionState) -> Result<(), StateError> {
        let driver_ok = state.transport.driver_ok();
        if function.started && !driver_ok {
            let problem = "the device runs without a driver";
            return Err(StateError::refused::<FunctionState>(problem));
        }
        if driver_ok {
            self.interrupts.set_driver_ok();
        }
        if function.started && !self.interrupts.is_broken() {
            return self.run_after(state, || self.device.restore(&function.device));
        }
        // A device that needs a reset has nothing running, nor has one that waits for the bus.
        state.running = function.started.then(RunningDevice::default);
        state.deferred = driver_ok && !function.started;
        self.device.restore(&function.device)
    }
}
