//! A guest that sends one command and checks the response, and disks to send them to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use splitring_devices::disk::Disk;
use splitring_devices::disk::config::{Aio, DiskConfig};
use splitring_devices::disk::{RawDisk, SECTOR};
use splitring_devices::scsi::{Scsi, ScsiConfig, ScsiError, ScsiHandle, UnitConfig};
use splitring_virtio::driver::scsi::{
    CONTROL_FRAME_LEN, Command, ControlQueue, EVENT_FRAME_LEN, EventQueue, FEATURES, FRAME_LEN,
    Lun, ReceivedEvent, RequestQueue, TaskFunction,
};
use splitring_virtio::driver::{DeviceId, DmaBytes, Identity, IndirectPolicy, Queue, QueueOptions};
use splitring_virtio::scatterlist::ScatterList;
use splitring_virtio::spec::feature::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use splitring_virtio::spec::scsi::Config;
use tempfile::NamedTempFile;

use crate::machine::TestMachine;

/// The first unit of the first target.
pub const LUN: Lun = Lun { target: 0, unit: 0 };

/// Time limit of a command.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The response to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The response code (5.6.6.1.1 of the virtio specification).
    pub response: u8,
    /// The SCSI status.
    pub status: u8,
    /// Sense key, additional sense code and qualifier, from either format.
    pub sense: Option<[u8; 3]>,
    /// The sense data as it arrived.
    pub raw_sense: Vec<u8>,
    /// Bytes of the buffers that were not transferred.
    pub residual: u32,
    /// The data-in buffer, as far as it was filled.
    pub data: Vec<u8>,
}

impl Answer {
    /// Returns whether the command succeeded.
    pub fn good(&self) -> bool {
        self.response == 0 && self.status == 0
    }

    /// Returns the response of a command that must succeed.
    #[track_caller]
    pub fn expect_good(self) -> Self {
        assert!(self.good(), "{self:x?}");
        self
    }

    /// Asserts that the command failed with this sense key, code and qualifier.
    #[track_caller]
    pub fn expect_sense(&self, key: u8, code: u8, qualifier: u8) {
        let seen = (self.response, self.status, self.sense);
        assert_eq!(seen, (0, 2, Some([key, code, qualifier])), "{self:x?}");
        assert!(self.data.is_empty());
    }

    /// Asserts that the command failed with a reservation conflict.
    #[track_caller]
    pub fn expect_conflict(&self) {
        assert_eq!((self.response, self.status), (0, 0x18), "{self:x?}");
    }
}

/// A driver on a machine.
pub struct ScsiGuest {
    /// The machine with the controller.
    pub machine: TestMachine,
    /// The request queues.
    pub requests: Vec<RequestQueue>,
    /// The control queue.
    pub control: ControlQueue,
    /// The event queue.
    pub events: EventQueue,
    /// Adds and removes units.
    pub handle: ScsiHandle,
    done: BTreeMap<u64, Answer>,
    next: u64,
    /// How data is split into segments.
    pub parts: Vec<usize>,
}

/// Configuration of the driver's queues.
#[derive(Debug, Clone, Copy)]
pub struct QueueSetup {
    /// Descriptors of each queue.
    pub size: u16,
    /// Feature bits that the driver may accept.
    pub mask: u64,
    /// When buffers are indirect.
    pub policy: IndirectPolicy,
}

impl Default for QueueSetup {
    fn default() -> Self {
        Self {
            size: 64,
            mask: u64::MAX,
            policy: IndirectPolicy::Auto,
        }
    }
}

impl ScsiGuest {
    /// Returns a guest with the default configuration.
    pub fn new(device: Scsi) -> Self {
        Self::with(device, QueueSetup::default())
    }

    /// Returns a guest with this configuration.
    pub fn with(device: Scsi, setup: QueueSetup) -> Self {
        let handle = device.handle();
        let mut machine = TestMachine::new(device);
        let features =
            (machine.device.features() | EVENT_IDX | INDIRECT_DESC) & setup.mask | VERSION_1;
        let id = DeviceId::new();
        let config: Config = machine.config();
        let options = |size: u16| {
            QueueOptions::new(size, features)
                .tables(size)
                .policy(setup.policy)
        };
        let ring = |machine: &mut TestMachine, size| machine.bytes(options(size).memory_len(), 64);
        let small = 16;

        let memory = ring(&mut machine, small);
        let queue = Queue::new(options(small), memory, Identity, &id).expect("a queue");
        let control = ControlQueue::new(queue, machine.bytes(CONTROL_FRAME_LEN * 16, 64));
        let memory = ring(&mut machine, small);
        let queue = Queue::new(options(small), memory, Identity, &id).expect("a queue");
        let mut events = EventQueue::new(queue, machine.bytes(EVENT_FRAME_LEN * 8, 64));

        let mut requests = Vec::new();
        for _ in 0..config.num_queues.get() {
            let memory = ring(&mut machine, setup.size);
            let queue = Queue::new(options(setup.size), memory, Identity, &id).expect("a queue");
            let frames = machine.bytes(FRAME_LEN * usize::from(setup.size), 64);
            requests.push(RequestQueue::new(queue, frames, &config));
        }
        let mut areas = vec![control.areas(), events.areas()];
        areas.extend(requests.iter().map(RequestQueue::areas));
        machine.start(
            features & (FEATURES | EVENT_IDX | INDIRECT_DESC | VERSION_1),
            &areas,
        );
        events.refill().expect("room");
        let _ = events.publish();
        Self {
            machine,
            requests,
            control,
            events,
            handle,
            done: BTreeMap::new(),
            next: 1,
            parts: Vec::new(),
        }
    }

    /// Returns a guest whose units have already reported their power-on.
    pub fn settled(device: Scsi) -> Self {
        let mut guest = Self::new(device);
        guest.settle();
        guest
    }

    /// Consumes all pending unit attentions.
    pub fn settle(&mut self) {
        for unit in self.handle.units() {
            let lun = Lun {
                target: unit.target,
                unit: unit.lun,
            };
            for _ in 0..16 {
                if self.send(lun, &[0; 6], &[], 0).good() {
                    break;
                }
            }
        }
    }

    fn list(&mut self, len: usize, fill: impl Fn(usize) -> u8) -> ScatterList<DmaBytes> {
        let mut buffers = Vec::new();
        let (mut at, mut turn) = (0, 0);
        while at < len {
            let part = self
                .parts
                .get(turn % self.parts.len().max(1))
                .copied()
                .unwrap_or(len);
            let part = part.clamp(1, len - at);
            let mut bytes = self.machine.lend(part);
            for (offset, byte) in bytes.bytes_mut().iter_mut().enumerate() {
                *byte = fill(at + offset);
            }
            buffers.push(bytes);
            at += part;
            turn += 1;
        }
        ScatterList::from_buffers(buffers)
    }

    /// Submits a command on request queue `queue`; returns its identifier.
    pub fn submit(&mut self, queue: usize, lun: Lun, cdb: &[u8], out: &[u8], room: usize) -> u64 {
        let mut command = Command::new(lun, cdb);
        if !out.is_empty() {
            command = command.data_out(self.list(out.len(), |at| out[at]));
        }
        if room > 0 {
            // Not zero, so that bytes that the device did not write are noticed.
            command = command.data_in(self.list(room, |_| 0x5a));
        }
        let id = self.next;
        self.next += 1;
        self.requests[queue]
            .submit(id, command)
            .map_err(|(_, why)| why)
            .expect("submitted");
        let _ = self.requests[queue].publish();
        id
    }

    /// Runs one pass of the device and keeps the responses.
    pub fn turn(&mut self) {
        self.machine.run();
        for requests in &mut self.requests {
            while let Some(mut done) = requests.poll().expect("a whole queue") {
                let mut data = Vec::new();
                done.command
                    .data_in
                    .for_each_mut(|buffer| data.extend_from_slice(buffer.bytes()));
                let response = &done.response;
                let filled = data.len().saturating_sub(response.residual as usize);
                if response.good() {
                    assert!(
                        data[filled..].iter().all(|byte| *byte == 0x5a),
                        "wrote beyond its residual"
                    );
                    data.truncate(filled);
                } else {
                    data.clear();
                }
                let raw = response.sense().to_vec();
                let answer = Answer {
                    response: response.response,
                    status: response.status,
                    sense: code(&raw),
                    raw_sense: raw,
                    residual: response.residual,
                    data,
                };
                self.done.insert(done.id, answer);
            }
        }
    }

    /// Returns the response to a command, if it has arrived.
    pub fn answer(&mut self, id: u64) -> Option<Answer> {
        self.done.remove(&id)
    }

    /// Runs the device until a command has completed.
    pub fn wait(&mut self, id: u64) -> Answer {
        let start = Instant::now();
        while start.elapsed() < TIMEOUT {
            if let Some(answer) = self.answer(id) {
                return answer;
            }
            self.turn();
        }
        panic!("command {id} does not complete");
    }

    /// Sends a command with `out` and a buffer of `room` bytes, and waits.
    pub fn send(&mut self, lun: Lun, cdb: &[u8], out: &[u8], room: usize) -> Answer {
        let id = self.submit(0, lun, cdb, out, room);
        let answer = self.wait(id);
        if self
            .requests
            .iter()
            .all(|requests| requests.in_flight() == 0)
        {
            self.machine.collect();
        }
        answer
    }

    /// Sends a command to the first unit.
    pub fn to(&mut self, cdb: &[u8], out: &[u8], room: usize) -> Answer {
        self.send(LUN, cdb, out, room)
    }

    /// Sends a task management function and returns its response.
    pub fn manage(&mut self, lun: Lun, task: TaskFunction) -> u8 {
        self.control.task(1, lun, task).expect("room");
        let _ = self.control.publish();
        self.concluded().expect("answered")
    }

    /// Returns the response to the control request in flight, after as many passes as necessary.
    pub fn concluded(&mut self) -> Option<u8> {
        for _ in 0..1000 {
            self.turn();
            if let Some(done) = self.control.poll().expect("a whole queue") {
                return Some(done.response);
            }
        }
        None
    }

    /// Removes a unit. Removal waits for the device's threads; this thread takes the part of one.
    pub fn remove(&mut self, id: &str) -> Result<(), ScsiError> {
        let (handle, id) = (self.handle.clone(), id.to_owned());
        let remover = std::thread::spawn(move || handle.remove(&id));
        while !remover.is_finished() {
            self.turn();
        }
        remover.join().expect("no panic")
    }

    /// Returns the next event.
    pub fn event(&mut self) -> Option<ReceivedEvent> {
        self.turn();
        let event = self.events.poll().expect("a whole queue");
        self.events.refill().expect("room");
        let _ = self.events.publish();
        event
    }
}

/// Returns sense key, code and qualifier of sense data in either format.
fn code(sense: &[u8]) -> Option<[u8; 3]> {
    match *sense {
        [
            0x70 | 0xf0,
            _,
            key,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            code,
            qualifier,
            ..,
        ] => Some([key & 0xf, code, qualifier]),
        [0x72, key, code, qualifier, ..] => Some([key & 0xf, code, qualifier]),
        _ => None,
    }
}

/// How an image is opened.
#[derive(Debug, Clone, Copy)]
pub struct ScsiImage {
    /// Size in bytes.
    pub bytes: u64,
    /// Logical block size in bytes.
    pub block: u32,
    /// Opened for reading only.
    pub readonly: bool,
    /// Discards are passed on.
    pub discard: bool,
    /// How the host's file is accessed.
    pub aio: Aio,
    /// Other machines may use the image, too.
    pub share: bool,
}

impl Default for ScsiImage {
    fn default() -> Self {
        Self {
            bytes: 4 << 20,
            block: 512,
            readonly: false,
            discard: true,
            aio: Aio::IoUring,
            share: false,
        }
    }
}

impl ScsiImage {
    /// Creates a sparse file of this size.
    pub fn file(&self) -> NamedTempFile {
        let file = NamedTempFile::new().expect("a file");
        file.as_file().set_len(self.bytes).expect("its size");
        file
    }

    /// Opens a file as a disk without dedicated streams.
    pub fn open(&self, file: &NamedTempFile) -> Arc<dyn Disk> {
        let config = DiskConfig::new(file.path())
            .readonly(self.readonly)
            .discard(self.discard)
            .block_size(self.block.max(u32::try_from(SECTOR).expect("small")))
            .aio(self.aio)
            .share(self.share);
        Arc::new(RawDisk::open(&config, 0, 1).expect("opened"))
    }
}

/// Returns a controller with one disk, and its image.
pub fn one(image: ScsiImage, unit: UnitConfig) -> (NamedTempFile, Scsi) {
    let file = image.file();
    let disk = image.open(&file);
    let scsi = Scsi::new(&ScsiConfig::new("scsi0"), vec![(unit, disk)]).expect("a controller");
    (file, scsi)
}
