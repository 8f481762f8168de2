//! A device without a chapter: as many queues as wanted, and a handler that shows what the worker does with it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use crate::device::{
    Broken, Cause, DescriptorChain, DeviceKind, FeatureRule, Outcome, QueueHandler, QueueSet,
    ReadyQueue, SharedRegion, Start, StartError, Task, VirtioDevice, read_window,
};
use crate::interrupt::ConfigNotifier;

/// What the handler does with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Completes it at once, with the length of its writable part.
    Answer,
    /// Holds it until it is stopped.
    Hold,
    /// Panics.
    Panic,
    /// Refuses to start.
    Refuse,
}

/// What happened.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) starts: AtomicUsize,
    pub(crate) resets: AtomicUsize,
    pub(crate) runs: AtomicUsize,
    pub(crate) stops: AtomicUsize,
    pub(crate) features: AtomicU64,
    /// The thread that last ran each queue.
    pub(crate) threads: Mutex<HashMap<u16, ThreadId>>,
    /// Chains held.
    pub(crate) held: AtomicUsize,
}

/// See the module.
pub(crate) struct Probe {
    pub(crate) sizes: Vec<u16>,
    /// So many queues are one task.
    pub(crate) together: u16,
    pub(crate) manner: Manner,
    pub(crate) features: u64,
    pub(crate) rules: Vec<FeatureRule>,
    pub(crate) config: Arc<Mutex<Vec<u8>>>,
    pub(crate) record: Arc<Record>,
    pub(crate) notifier: Mutex<Option<ConfigNotifier>>,
    pub(crate) shared: Vec<SharedRegion>,
    /// Where the regions of shared memory went, by their identifiers.
    pub(crate) moves: Mutex<Vec<(u8, Option<u64>)>>,
}

impl Probe {
    pub(crate) fn new(sizes: &[u16], manner: Manner) -> Self {
        Self {
            sizes: sizes.to_vec(),
            together: 1,
            manner,
            features: 0,
            rules: Vec::new(),
            config: Arc::new(Mutex::new((1..=8).collect())),
            record: Arc::default(),
            notifier: Mutex::new(None),
            shared: Vec::new(),
            moves: Mutex::default(),
        }
    }

    /// Changes the configuration space as a running device does.
    pub(crate) fn change_config(&self, value: u8) {
        let notifier = self.notifier.lock().unwrap().clone().unwrap();
        notifier.change(|| self.config.lock().unwrap().fill(value));
    }
}

impl VirtioDevice for Probe {
    fn id(&self) -> &str {
        "probe0"
    }
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            type_id: splitring_virtio::spec::id::ENTROPY,
            pci_class: 0xff_0000,
        }
    }
    fn features(&self) -> u64 {
        self.features
    }
    fn feature_rules(&self) -> &[FeatureRule] {
        &self.rules
    }
    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }
    fn task_number(&self, queue: u16) -> u16 {
        queue / self.together
    }
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_window(&self.config.lock().unwrap(), offset, data);
    }
    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut config = self.config.lock().unwrap();
        let place = config.get_mut(offset..).unwrap_or_default();
        place
            .iter_mut()
            .zip(data)
            .for_each(|(to, from)| *to = *from);
    }
    fn shared_memory(&self) -> &[SharedRegion] {
        &self.shared
    }
    fn shared_memory_moved(&self, id: u8, address: Option<u64>) {
        self.moves.lock().unwrap().push((id, address));
    }
    fn start(&self, start: Start) -> Result<Vec<Task>, StartError> {
        if self.manner == Manner::Refuse {
            return Err(StartError::new("no backend"));
        }
        self.record.starts.fetch_add(1, Ordering::SeqCst);
        self.record.features.store(start.features, Ordering::SeqCst);
        *self.notifier.lock().unwrap() = Some(start.config);
        let same =
            |a: &ReadyQueue, b: &ReadyQueue| self.task_number(a.index) == self.task_number(b.index);
        let task = |queues: &[ReadyQueue]| Task {
            queues: queues.iter().map(|queue| queue.index).collect(),
            handler: Box::new(Handler::new(self.manner, Arc::clone(&self.record))),
        };
        Ok(start.queues.chunk_by(same).map(task).collect())
    }
    fn reset(&self) {
        self.record.resets.fetch_add(1, Ordering::SeqCst);
    }
}

pub(crate) struct Handler {
    manner: Manner,
    record: Arc<Record>,
    held: HashMap<u16, Vec<DescriptorChain>>,
}

impl Handler {
    pub(crate) fn new(manner: Manner, record: Arc<Record>) -> Self {
        let held = HashMap::new();
        Self {
            manner,
            record,
            held,
        }
    }
}

impl QueueHandler for Handler {
    fn run(&mut self, queues: &mut QueueSet<'_>, _cause: Cause) -> Result<Outcome, Broken> {
        self.record.runs.fetch_add(1, Ordering::SeqCst);
        for (index, queue) in queues.iter() {
            let thread = std::thread::current().id();
            self.record.threads.lock().unwrap().insert(index, thread);
            while let Some(chain) = queue.pop().map_err(|error| Broken::new(index, error))? {
                match self.manner {
                    Manner::Hold => {
                        self.held.entry(index).or_default().push(chain);
                        self.record.held.fetch_add(1, Ordering::SeqCst);
                    }
                    Manner::Panic => panic!("the probe was told to panic"),
                    Manner::Answer | Manner::Refuse => {
                        let len = u32::try_from(chain.writable_len()).unwrap();
                        queue.complete(chain, len);
                    }
                }
            }
        }
        Ok(Outcome::Idle)
    }

    fn stop(&mut self, queues: &mut QueueSet<'_>) {
        self.record.stops.fetch_add(1, Ordering::SeqCst);
        for (index, chains) in self.held.drain() {
            for chain in chains {
                queues.get(index).unwrap().complete(chain, 0);
            }
        }
    }
}
