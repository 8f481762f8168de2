//! Disks for tests: one in memory that loses what was not flushed when its power is cut, one that fails, delays
//! and reorders the requests to another, and one whose blocking calls take as long as the test wants.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::blocking::BlockingQueue;
use super::immediate::ImmediateQueue;
use super::immediate::Perform;
use super::transfer::{MemoryAccess, Transfer};
use super::{Completion, Disk, DiskError, DiskOp, DiskQueue, Full, Geometry, IoFault, RangeLimits};
use crate::debug::opaque_debug;
use crate::ram::Ram;

/// A disk in memory: a medium and a volatile cache in front of it.
#[derive(Debug)]
pub struct MemoryDisk {
    state: Mutex<State>,
    geometry: Geometry,
}

#[derive(Debug)]
struct State {
    /// What was flushed.
    medium: Vec<u8>,
    /// What reads return.
    cache: Vec<u8>,
    /// Writes since the last flush, in order.
    recent: Vec<Recent>,
}

#[derive(Debug)]
struct Recent {
    offset: usize,
    data: Vec<u8>,
    /// It was to be stable by itself.
    stable: bool,
}

impl MemoryDisk {
    /// A zeroed disk of `len` bytes, a multiple of 512.
    #[must_use]
    pub fn new(len: u64) -> Arc<Self> {
        Self::with_geometry(Geometry {
            capacity: len,
            logical_block: 512,
            physical_block: 4096,
            alignment_offset: 0,
            min_io: 4096,
            opt_io: 0,
            memory_alignment: 1,
            read_only: false,
            write_cache: true,
            discard: Some(RangeLimits {
                granularity: 4096,
                max: 1 << 30,
            }),
            discard_zeroes: true,
            zeroes_unmap: true,
            zeroes: RangeLimits {
                granularity: 512,
                max: 1 << 24,
            },
        })
    }

    /// A zeroed disk that is as this says.
    #[must_use]
    pub fn with_geometry(geometry: Geometry) -> Arc<Self> {
        let bytes = vec![0; usize::try_from(geometry.capacity).unwrap_or(0)];
        let state = State {
            medium: bytes.clone(),
            cache: bytes,
            recent: Vec::new(),
        };
        Arc::new(Self {
            state: Mutex::new(state),
            geometry,
        })
    }

    /// What reads return now.
    #[must_use]
    pub fn contents(&self) -> Vec<u8> {
        self.state().cache.clone()
    }

    /// The power fails and comes back: of the writes that were not made stable, those survive whose number, counted
    /// since the last flush, `survives` accepts.
    pub fn cut_power(&self, mut survives: impl FnMut(usize) -> bool) {
        let mut state = self.state();
        let recent = std::mem::take(&mut state.recent);
        for (number, write) in recent.into_iter().enumerate() {
            if write.stable || survives(number) {
                store(&mut state.medium, write.offset, &write.data);
            }
        }
        state.cache = state.medium.clone();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn range(&self, offset: u64, len: u64, writes: bool) -> Result<(usize, usize), IoFault> {
        if writes && self.geometry.read_only {
            return Err(IoFault::ReadOnly);
        }
        let inside = offset
            .checked_add(len)
            .is_some_and(|end| end <= self.geometry.capacity);
        let range = usize::try_from(offset).ok().zip(usize::try_from(len).ok());
        range.filter(|_| inside).ok_or(IoFault::OutOfRange)
    }
}

impl State {
    fn write(&mut self, offset: usize, data: Vec<u8>, stable: bool) {
        store(&mut self.cache, offset, &data);
        // Behind writes that may still be lost it has to wait for its turn.
        if stable && self.recent.is_empty() {
            store(&mut self.medium, offset, &data);
            return;
        }
        self.recent.push(Recent {
            offset,
            data,
            stable,
        });
    }

    fn flush(&mut self) {
        for write in self.recent.drain(..) {
            store(&mut self.medium, write.offset, &write.data);
        }
    }
}

fn store(bytes: &mut [u8], offset: usize, data: &[u8]) {
    let end = offset.saturating_add(data.len());
    if let Some(place) = bytes.get_mut(offset..end) {
        place.copy_from_slice(data);
    }
}

impl Disk for Arc<MemoryDisk> {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn open_queue(&self, ram: Ram, _: u16, depth: u16) -> Result<Box<dyn DiskQueue>, DiskError> {
        Ok(ImmediateQueue::open(MemoryStream::new(self, ram), depth))
    }
}

impl MemoryStream {
    fn new(disk: &Arc<MemoryDisk>, ram: Ram) -> Self {
        Self {
            disk: Arc::clone(disk),
            access: MemoryAccess::new(ram),
            transfer: Transfer::default(),
        }
    }
}

struct MemoryStream {
    disk: Arc<MemoryDisk>,
    access: MemoryAccess,
    transfer: Transfer,
}

impl Perform for MemoryStream {
    fn perform(&mut self, op: DiskOp<'_>) -> Result<u64, IoFault> {
        let disk = &*self.disk;
        let through = !disk.geometry.write_cache;
        match op {
            DiskOp::Read { offset, data } => {
                self.transfer.load(data, &self.access)?;
                let (start, len) = disk.range(offset, self.transfer.len(), false)?;
                let state = disk.state();
                let bytes = state.cache.get(start..).and_then(|rest| rest.get(..len));
                self.transfer.fill_from(bytes.unwrap_or_default());
                Ok(self.transfer.len())
            }
            DiskOp::Write { offset, data, fua } => {
                self.transfer.load(data, &self.access)?;
                let (start, len) = disk.range(offset, self.transfer.len(), true)?;
                let mut bytes = vec![0; len];
                self.transfer.copy_into(&mut bytes);
                disk.state().write(start, bytes, fua || through);
                Ok(self.transfer.len())
            }
            DiskOp::Flush => {
                disk.state().flush();
                Ok(0)
            }
            DiskOp::Discard { offset, len, fua }
            | DiskOp::WriteZeroes {
                offset, len, fua, ..
            } => {
                let (start, len) = disk.range(offset, len, true)?;
                disk.state().write(start, vec![0; len], fua || through);
                Ok(0)
            }
        }
    }

    fn release(&mut self) -> Option<Vec<u8>> {
        self.transfer.clear()
    }
}

/// A [`MemoryDisk`] behind blocking calls, as a plain image on a slow medium: each request waits on the blocking thread of
/// its queue until the test lets one more through.
pub struct GatedDisk {
    inner: Arc<MemoryDisk>,
    gate: Arc<Gate>,
}

opaque_debug! { GatedDisk |it| { inner: it.inner.geometry } }

/// How many requests may still pass, and who waits for that.
#[derive(Default)]
struct Gate(Mutex<usize>, Condvar);

impl GatedDisk {
    /// Requests to `inner`, none of which passes yet.
    #[must_use]
    pub fn new(inner: Arc<MemoryDisk>) -> Self {
        Self {
            inner,
            gate: Arc::default(),
        }
    }

    /// Lets `requests` more requests through.
    pub fn pass(&self, requests: usize) {
        let mut left = self.gate.0.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.saturating_add(requests);
        self.gate.1.notify_all();
    }
}

impl Disk for GatedDisk {
    fn geometry(&self) -> Geometry {
        self.inner.geometry
    }

    fn open_queue(&self, ram: Ram, _: u16, depth: u16) -> Result<Box<dyn DiskQueue>, DiskError> {
        let stream = GatedStream {
            inner: MemoryStream::new(&self.inner, ram),
            gate: Arc::clone(&self.gate),
        };
        let queue = BlockingQueue::start(stream, depth).map_err(|source| DiskError::Host {
            operation: "start a thread for",
            path: "a test's disk".into(),
            source,
        })?;
        Ok(Box::new(queue))
    }
}

struct GatedStream {
    inner: MemoryStream,
    gate: Arc<Gate>,
}

impl Perform for GatedStream {
    fn perform(&mut self, op: DiskOp<'_>) -> Result<u64, IoFault> {
        let Gate(left, changed) = &*self.gate;
        let left = left.lock().unwrap_or_else(PoisonError::into_inner);
        let left = changed.wait_while(left, |left| *left == 0);
        let mut left = left.unwrap_or_else(PoisonError::into_inner);
        *left = left.saturating_sub(1);
        drop(left);
        self.inner.perform(op)
    }

    fn release(&mut self) -> Option<Vec<u8>> {
        self.inner.release()
    }
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is carried out.
    Pass,
    /// It fails with this, without an effect.
    Fail(IoFault),
    /// It is carried out, but its completion comes only after the queue was asked for completions this many times
    /// more; so requests overtake one another.
    Delay(u32),
    /// The host keeps it, without an effect, until it is cancelled or drained.
    Hang,
}

/// Gives each request its fate.
type Rule = Box<dyn FnMut(Seen) -> Fate + Send>;

/// A request as a [`FaultyDisk`] saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Offset.
    Read(u64),
    /// Offset and whether it was to be stable.
    Write(u64, bool),
    /// A flush.
    Flush,
    /// Offset and length.
    Discard(u64, u64),
    /// Offset, length and whether it may unmap.
    WriteZeroes(u64, u64, bool),
}

impl Seen {
    fn of(op: &DiskOp<'_>) -> Self {
        match *op {
            DiskOp::Read { offset, .. } => Self::Read(offset),
            DiskOp::Write { offset, fua, .. } => Self::Write(offset, fua),
            DiskOp::Flush => Self::Flush,
            DiskOp::Discard { offset, len, .. } => Self::Discard(offset, len),
            DiskOp::WriteZeroes {
                offset,
                len,
                may_unmap,
                ..
            } => Self::WriteZeroes(offset, len, may_unmap),
        }
    }
}

/// A disk whose requests meet planned fates on their way to another disk, and are written down.
pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    script: Arc<Mutex<Script>>,
}

opaque_debug! { FaultyDisk |it| { inner: it.inner.geometry() } }

#[derive(Default)]
struct Script {
    fates: VecDeque<Fate>,
    /// What requests meet for which nothing is planned.
    rule: Option<Rule>,
    log: Vec<Seen>,
    careless: bool,
}

impl Script {
    /// Writes a request down and says what is to become of it.
    fn meet(&mut self, seen: Seen) -> Fate {
        // A guest that runs for long is not written down without end.
        const LOGGED: usize = 4096;
        if self.log.len() < LOGGED {
            self.log.push(seen);
        }
        let ruled = |rule: &mut Option<Rule>| rule.as_mut().map(|rule| rule(seen));
        let fate = self.fates.pop_front().or_else(|| ruled(&mut self.rule));
        fate.unwrap_or(Fate::Pass)
    }
}

impl FaultyDisk {
    /// Requests to `inner`, all passing until something else is planned.
    #[must_use]
    pub fn new(inner: Arc<dyn Disk>) -> Self {
        Self {
            inner,
            script: Arc::default(),
        }
    }

    /// The next requests meet these fates, one each.
    pub fn plan(&self, fates: impl IntoIterator<Item = Fate>) {
        lock(&self.script).fates.extend(fates);
    }

    /// From now on requests without a plan meet what `rule` says.
    pub fn rule(&self, rule: impl FnMut(Seen) -> Fate + Send + 'static) {
        lock(&self.script).rule = Some(Box::new(rule));
    }

    /// From now on flushes are answered without being carried out and nothing is made stable by itself: what a device
    /// without its fdatasync does. Tests of durability must notice.
    pub fn forget_stability(&self) {
        lock(&self.script).careless = true;
    }

    /// The requests seen since the last call.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut lock(&self.script).log)
    }
}

fn lock(script: &Mutex<Script>) -> MutexGuard<'_, Script> {
    script.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disk for FaultyDisk {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn open_queue(
        &self,
        ram: Ram,
        index: u16,
        depth: u16,
    ) -> Result<Box<dyn DiskQueue>, DiskError> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        Ok(Box::new(FaultyQueue {
            inner: self.inner.open_queue(ram, index, depth)?,
            script: Arc::clone(&self.script),
            wake: wake.map_err(|error| DiskError::Host {
                operation: "make an event for",
                path: "a test's disk".into(),
                source: error.into(),
            })?,
            delays: Vec::new(),
            held: Vec::new(),
            hung: Vec::new(),
            answered: Vec::new(),
        }))
    }

    fn rescan(&self) -> Result<Geometry, DiskError> {
        self.inner.rescan()
    }
}

struct FaultyQueue {
    inner: Box<dyn DiskQueue>,
    script: Arc<Mutex<Script>>,
    /// Signalled while something is held, so that the worker asks again.
    wake: OwnedFd,
    /// Tags under way whose completions will be held, and for how long.
    delays: Vec<(u64, u32)>,
    held: Vec<(u32, Completion)>,
    hung: Vec<u64>,
    answered: Vec<Completion>,
}

impl FaultyQueue {
    fn fail(&mut self, tag: u64, fault: IoFault) {
        self.answered.push(Completion {
            tag,
            result: Err(fault),
            buffer: None,
        });
    }
}

impl DiskQueue for FaultyQueue {
    fn ready(&mut self) -> bool {
        self.inner.ready()
    }

    fn ready_at(&self) -> Option<std::time::Instant> {
        self.inner.ready_at()
    }

    fn submit(&mut self, tag: u64, op: DiskOp<'_>) -> Result<(), Full> {
        let (fate, careless) = {
            let mut script = lock(&self.script);
            (script.meet(Seen::of(&op)), script.careless)
        };
        let op = match op {
            DiskOp::Flush if careless => {
                let (result, buffer) = (Ok(0), None);
                self.answered.push(Completion {
                    tag,
                    result,
                    buffer,
                });
                return Ok(());
            }
            DiskOp::Write { offset, data, fua } => DiskOp::Write {
                offset,
                data,
                fua: fua && !careless,
            },
            other => other,
        };
        match fate {
            Fate::Pass => self.inner.submit(tag, op),
            Fate::Delay(turns) => {
                self.delays.push((tag, turns));
                self.inner.submit(tag, op)
            }
            Fate::Hang => {
                self.hung.push(tag);
                Ok(())
            }
            Fate::Fail(fault) => {
                self.fail(tag, fault);
                Ok(())
            }
        }
    }

    fn commit(&mut self) {
        self.inner.commit();
    }

    fn completions(&mut self, out: &mut Vec<Completion>) {
        let mut fresh = Vec::new();
        self.inner.completions(&mut fresh);
        for (turns, completion) in std::mem::take(&mut self.held) {
            match turns.checked_sub(1) {
                Some(turns) => self.held.push((turns, completion)),
                None => out.push(completion),
            }
        }
        for completion in fresh {
            match self
                .delays
                .iter()
                .position(|(tag, _)| *tag == completion.tag)
            {
                Some(place) => {
                    let (_, turns) = self.delays.swap_remove(place);
                    self.held.push((turns, completion));
                }
                None => out.push(completion),
            }
        }
        out.append(&mut self.answered);
        if !self.held.is_empty() {
            // Full only after 2^64 signals.
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        let mut events = self.inner.events();
        events.push(self.wake.as_fd());
        events
    }

    fn in_flight(&self) -> usize {
        self.inner
            .in_flight()
            .saturating_add(self.held.len())
            .saturating_add(self.hung.len())
            .saturating_add(self.answered.len())
    }

    fn cancel(&mut self, tag: u64) {
        match self.hung.iter().position(|hung| *hung == tag) {
            Some(place) => {
                self.hung.swap_remove(place);
                self.fail(tag, IoFault::Cancelled);
            }
            None => self.inner.cancel(tag),
        }
    }

    fn drain(&mut self, out: &mut Vec<Completion>) {
        self.inner.drain(out);
        self.delays.clear();
        for tag in std::mem::take(&mut self.hung) {
            self.fail(tag, IoFault::Cancelled);
        }
        out.extend(self.held.drain(..).map(|(_, completion)| completion));
        out.append(&mut self.answered);
    }
}
