//! What a virtio device is to the rest of the machine: one chapter of the specification.
//!
//! A device has a configuration side ([`VirtioDevice`], shared, called from vCPU threads) and, while the driver
//! runs it, a data side ([`QueueHandler`], owned by one worker). Neither knows PCI, KVM or threads.

use std::fmt;

use splitring_virtio::device::queue::ActiveQueue;
use thiserror::Error;

use crate::debug::opaque_debug;
use crate::interrupt::ConfigNotifier;
use crate::ram::Ram;
use crate::rings::Rings;
use crate::saved::{StateError, Versioned};

pub use crate::fault::Broken;
pub use crate::sources::{Interest, Registry, Source, Trigger};

/// A running queue over the machine's memory.
pub type Queue = ActiveQueue<Ram>;

/// One request of a [`Queue`].
pub type DescriptorChain = splitring_virtio::device::chain::DescriptorChain<Ram>;

/// What a device is to its driver, and to whoever lists the bus: the same for all devices of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceKind {
    /// The device type number (VIRTIO 1.2 §5), from `splitring_virtio::spec::id`.
    pub type_id: u16,
    /// PCI class, subclass and programming interface, as three bytes of one number.
    pub pci_class: u32,
}

/// The configuration side of a device. Methods are called from vCPU threads, one at a time but for
/// [`VirtioDevice::read_config`], and must not block for long.
pub trait VirtioDevice: Send + Sync {
    /// The operator's name for it, unique in the machine.
    fn id(&self) -> &str;

    /// Which chapter of VIRTIO 1.2 §5 it implements, and how it shows on a PCI bus.
    fn kind(&self) -> DeviceKind;

    /// The feature bits it offers beyond those of the ring and the transport, which are added by them.
    fn features(&self) -> u64;

    /// What may be offered at all, the ring's and the transport's features included: for tests that leave some out.
    fn mask(&self) -> u64 {
        u64::MAX
    }

    /// Features that are nothing without others (the "feature bit requirements" of its chapter).
    fn feature_rules(&self) -> &[FeatureRule] {
        &[]
    }

    /// The largest size of each queue, a power of two; their number is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// Which task queue `queue` belongs to, counted over all queues the device has. Tasks with the same number are run
    /// by the same worker whatever other queues the driver enables, in this machine and in the next one with the same
    /// workers: a backend may be bound to the thread that used it first.
    fn task_number(&self, queue: u16) -> u16 {
        queue
    }

    /// Whether a start may take queues out of [`Start::rings`], to have them served outside this process.
    fn hands_over(&self) -> bool {
        false
    }

    /// Reads the device configuration space. Bytes past its end are to be left as they are (zero).
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// The driver writes the device configuration space. Read-only and absent fields ignore it.
    fn write_config(&self, _offset: usize, _data: &[u8]) {}

    /// The regions of memory that it shares with its driver (VIRTIO 1.2 §2.10), at most three.
    fn shared_memory(&self) -> &[SharedRegion] {
        &[]
    }

    /// The guest sees region `id` at the guest-physical address `address` from now on, or nowhere.
    fn shared_memory_moved(&self, _id: u8, _address: Option<u64>) {}

    /// The driver is ready (DRIVER_OK): says which handler serves which queues. Called again after a reset.
    ///
    /// A queue that is served outside this process is taken out of [`Start::rings`] and kept by the handler of the task
    /// that lists its number: [`HandedOver`](crate::handed_over::HandedOver), or one that follows the same rules.
    fn start(&self, start: Start) -> Result<Vec<Task>, StartError>;

    /// The driver reset the device; its tasks have been stopped and dropped.
    fn reset(&self) {}

    /// What of the device's own state the driver may rely on: all that a reset does not leave as it
    /// is after [`VirtioDevice::start`] with the same features. Called when nothing of it runs.
    ///
    /// # Errors
    /// It can't be saved.
    fn save(&self) -> Result<Versioned, StateError> {
        let device = self.id().to_owned();
        Err(StateError::Unsupported { device })
    }

    /// Takes over what [`VirtioDevice::save`] wrote down: of a device that had been started, after
    /// `start` and before any of its tasks runs. It is reset after an error.
    ///
    /// # Errors
    /// The state is damaged, or of a device that is not like this one.
    fn restore(&self, _state: &Versioned) -> Result<(), StateError> {
        let device = self.id().to_owned();
        Err(StateError::Unsupported { device })
    }
}

/// A region of memory that a device shares with its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedRegion {
    /// What tells it apart from the device's other ones.
    pub id: u8,
    /// Its bytes, a multiple of 4096.
    pub len: u64,
}

/// What a driver gets that reads `data.len()` bytes at `offset` of the configuration space `config`.
pub(crate) fn read_window(config: &[u8], offset: usize, data: &mut [u8]) {
    let bytes = config.get(offset..).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(bytes) {
        *to = *from;
    }
}

/// `feature` may be negotiated only together with at least one of `needs_any`. Both are bit masks.
pub use splitring_virtio::device::transport::FeatureRule;

/// What a device learns when the driver is ready.
pub struct Start {
    /// The negotiated features.
    pub features: u64,
    /// The machine's memory.
    pub ram: Ram,
    /// The queues the driver enabled, in ascending order.
    pub queues: Vec<ReadyQueue>,
    /// Announces changes of the configuration space, until the next reset.
    pub config: ConfigNotifier,
    /// The same queues, for those that are to be served outside this process.
    pub rings: Rings,
}

opaque_debug! { Start |it| { features: it.features, queues: it.queues } }

/// A queue the driver enabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadyQueue {
    /// Its number.
    pub index: u16,
    /// The size the driver chose.
    pub size: u16,
}

/// Work for one worker: some queues and who serves them. A queue belongs to at most one task.
pub struct Task {
    /// Queue numbers. Those the driver didn't enable must not be in it. Those that the device has taken out of
    /// [`Start::rings`] name the worker; the handler has them already.
    pub queues: Vec<u16>,
    /// Who serves them.
    pub handler: Box<dyn QueueHandler>,
}

opaque_debug! { Task |it| { queues: it.queues } }

/// The data side of a device. It runs on one worker's thread and takes no lock between kick and interrupt.
pub trait QueueHandler: Send {
    /// The backend's descriptors to wait for from the start. Asked once, before the first [`QueueHandler::run`]; a
    /// [`Registry`] changes them later.
    fn sources(&self) -> Vec<Source<'_>> {
        Vec::new()
    }

    /// Does what can be done now. Completed chains are published and interrupts raised by the worker
    /// afterwards, once per pass. The worker limits how many chains a pass gets from each queue and runs the
    /// handler again after other events if there may be more, so popping until `None` is right. A queue popped
    /// until it was empty is notified again at the next buffer; one left with buffers is not, and the handler
    /// must be waiting for a source or a timer, or return [`Outcome::More`].
    fn run(&mut self, queues: &mut QueueSet<'_>, cause: Cause) -> Result<Outcome, Broken>;

    /// Whether the backend has something for the next run, told without a system call. `None` if
    /// only its sources can tell. A worker that is about to sleep looks at the rings and here for
    /// some microseconds first, with kicks off, and leaves alone the tasks that say `None`, whose
    /// sources it would keep waiting meanwhile. Interrupts are coalesced only for tasks that can be
    /// looked at.
    fn poll(&mut self) -> Option<bool> {
        None
    }

    /// Whether so much small work comes in that its worker does well to take more of it at a time, though later.
    fn flooded(&self) -> bool {
        false
    }

    /// One step towards a pause: completes what the backend is done with, begins nothing, and returns how many
    /// requests the backend still has, which may write guest memory. Called again until that is zero, whatever the
    /// sources say; then, and not before, nothing of the task writes guest memory. [`QueueHandler::run`] follows
    /// with [`Cause::Resume`] when the pause is over or given up.
    ///
    /// Nothing is cancelled. The worker grants no chains meanwhile, so `pop` finds none. A chain that was taken and
    /// not handed to the backend (it waits for room, a rate limit or another request) is kept as it is. A request
    /// of several steps goes on with the next one, unless that would have to wait likewise.
    ///
    /// The default is right for handlers whose backend has nothing once `run` has returned.
    fn quiesce(&mut self, _queues: &mut QueueSet<'_>) -> usize {
        0
    }

    /// Whether all chains that it holds can be begun anew from the ring, by another handler:
    /// nothing of them has had an effect. Asked when the backend has nothing, before the queues are
    /// saved.
    fn can_be_saved(&self) -> bool {
        true
    }

    /// The device needs a reset, and this handler does not run before it. Called once, when the worker finds out; a
    /// handler that others wait for, outside the guest, lets go here of what they wait for. [`QueueHandler::stop`]
    /// follows at the reset.
    fn halted(&mut self, _queues: &mut QueueSet<'_>) {}

    /// Cancels and waits, in bounded time, for everything in flight, and completes the chains it holds. Called
    /// once, at reset or when the machine ends. After it returns nobody writes guest memory for this handler.
    fn stop(&mut self, queues: &mut QueueSet<'_>);
}

/// Why a handler runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The driver made buffers available in this queue, or may have.
    Kick(u16),
    /// A source is ready, or may be; its token.
    Source(u32),
    /// A timer went off; its token. It is not set any more.
    Timer(u32),
    /// The first run, the first after a pause, or the continuation of [`Outcome::More`]: look at everything.
    Resume,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing left to do until a kick, a source or a timer.
    Idle,
    /// There is more to do: run again after the worker's other events.
    More,
}

/// After how many requests of a batch those that are done already are shown to the driver (`ActiveQueue::show`): what
/// it does about them it can do while the rest is done.
pub(crate) const SHOW_AFTER: u32 = 8;

/// One of a task's queues.
pub struct TaskQueue {
    /// Its number.
    pub index: u16,
    /// The ring.
    pub queue: Queue,
}

opaque_debug! { TaskQueue |it| { index: it.index } }

/// What a handler is lent for one call: the queues of its task, and what the task waits for.
pub struct QueueSet<'a> {
    queues: &'a mut [TaskQueue],
    registry: &'a mut Registry,
}

opaque_debug! { QueueSet<'_> |it| { queues: it.queues } }

impl<'a> QueueSet<'a> {
    /// Lends `queues`; what the handler wants changed of what it waits for is to be found in `registry` afterwards.
    pub fn new(queues: &'a mut [TaskQueue], registry: &'a mut Registry) -> Self {
        Self { queues, registry }
    }

    /// Queue `index`, if it belongs to this task.
    pub fn get(&mut self, index: u16) -> Option<&mut Queue> {
        self.queues
            .iter_mut()
            .find(|slot| slot.index == index)
            .map(|slot| &mut slot.queue)
    }

    /// All of them with their numbers.
    pub fn iter(&mut self) -> impl Iterator<Item = (u16, &mut Queue)> {
        self.queues
            .iter_mut()
            .map(|slot| (slot.index, &mut slot.queue))
    }

    /// Where descriptors and timers are added and removed.
    pub fn registry(&mut self) -> &mut Registry {
        self.registry
    }
}

/// The device could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct StartError(String);

impl StartError {
    /// `reason` says what failed, with its object.
    pub fn new(reason: impl fmt::Display) -> Self {
        Self(reason.to_string())
    }
}
