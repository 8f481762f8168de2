//! Do and answer: one request queue of a block device on its worker's thread, between a ring and a disk queue.
//!
//! A pass takes what the driver made available, hands it to the disk in one batch and answers what is done already,
//! which is most of it when the page cache or memory has the data. Requests in flight are known by a tag of our own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use splitring_virtio::spec::blk::{ID_BYTES, status};

use super::request::{HEADER, Limits, NoStatus, Piece, Verdict, parse};
use super::shared::Shared;
use crate::device::{
    Broken, Cause, DescriptorChain, Outcome, Queue, QueueHandler, QueueSet, SHOW_AFTER, Source,
};
use crate::disk::metrics::{self, RequestKind};
use crate::disk::{Completion, Data, DiskOp, DiskQueue, IoFault};
use crate::events::NO_EVENTS;

/// Timer: a rate limit lets the next request through.
const LIMIT: u32 = 0;

/// What the driver negotiated about caching (section 5.2.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CacheMode {
    /// It can't flush, so every write is stable when it is answered.
    Writethrough,
    /// It flushes.
    Writeback,
    /// It switches between the two in the configuration space.
    Switched,
}

pub(super) struct BlkQueue {
    index: u16,
    shared: Arc<Shared>,
    disk: Box<dyn DiskQueue>,
    limits: Limits,
    cache: CacheMode,
    /// Requests in flight; a tag is a place in here.
    requests: Vec<Request>,
    free: Vec<u16>,
    /// Taken from the ring while the disk had no room or a rate limit held it back.
    held: Option<DescriptorChain>,
    /// When the disk is to be asked again, if a rate limit holds a request back.
    ready_at: Option<Instant>,
    /// Completions under way; kept for its room.
    done: Vec<Completion>,
}

/// A request in flight.
struct Request {
    chain: Option<DescriptorChain>,
    kind: RequestKind,
    /// Bytes it moves, frees or zeroes.
    bytes: u64,
    /// When it was taken, in [`metrics::now`]'s nanoseconds.
    started: u64,
    fua: bool,
    /// What a discard or write-zeroes still has to do, last first.
    pieces: Vec<Piece>,
}

impl BlkQueue {
    pub(super) fn new(
        index: u16,
        size: u16,
        shared: Arc<Shared>,
        disk: Box<dyn DiskQueue>,
        limits: Limits,
        cache: CacheMode,
    ) -> Self {
        Self {
            index,
            shared,
            disk,
            limits,
            cache,
            requests: (0..size).map(|_| Request::idle()).collect(),
            free: (0..size).rev().collect(),
            held: None,
            ready_at: None,
            done: Vec::with_capacity(usize::from(size)),
        }
    }

    /// Takes what is available and hands it to the disk as far as that has room. Whether there was any.
    fn take(&mut self, queue: &mut Queue) -> Result<bool, Broken> {
        let (mut now, mut begun) = (None, 0_u32);
        loop {
            let chain = match self.held.take() {
                Some(chain) => chain,
                None => match queue
                    .pop()
                    .map_err(|error| Broken::new(self.index, error))?
                {
                    Some(chain) => chain,
                    None => break,
                },
            };
            // Held rather than left in the ring: a ring that was popped empty would be announced again at once.
            if !self.disk.ready() {
                self.held = Some(chain);
                self.ready_at = self.disk.ready_at();
                break;
            }
            let Some(tag) = self.free.pop() else {
                self.held = Some(chain);
                break;
            };
            let now = *now.get_or_insert_with(metrics::now);
            self.begin(queue, tag, chain, now)?;
            begun = begun.wrapping_add(1);
            if begun.is_multiple_of(SHOW_AFTER) && self.reap(queue, DiskQueue::completed) {
                queue.publish_used();
            }
        }
        Ok(begun > 0)
    }

    /// Puts one request into flight under a free tag, or answers it.
    fn begin(
        &mut self,
        queue: &mut Queue,
        tag: u16,
        mut chain: DescriptorChain,
        now: u64,
    ) -> Result<(), Broken> {
        match self.start(tag, &mut chain, now) {
            Ok(None) => {
                if let Some(request) = self.requests.get_mut(usize::from(tag)) {
                    request.chain = Some(chain);
                }
                return Ok(());
            }
            Ok(Some((status, written))) => {
                if status != status::OK {
                    self.refused();
                }
                answer(queue, chain, status, written);
            }
            Err(no_status) => {
                queue.complete(chain, 0);
                self.free.push(tag);
                return Err(Broken::new(self.index, no_status));
            }
        }
        self.free.push(tag);
        Ok(())
    }

    #[cold]
    fn refused(&self) {
        if let Some(metrics) = self.shared.metrics.queue(self.index) {
            metrics.refuse();
        }
    }

    /// Judges a request and submits what it asks for. `Some` if it is answered with that status instead, and so many
    /// bytes from the front written.
    fn start(
        &mut self,
        tag: u16,
        chain: &mut DescriptorChain,
        now: u64,
    ) -> Result<Option<(u8, u64)>, NoStatus> {
        let Some(request) = self.requests.get_mut(usize::from(tag)) else {
            return Ok(Some((status::IOERR, 0)));
        };
        self.limits.capacity = self.shared.capacity.load(Ordering::Acquire);
        let verdict = parse(chain, &self.limits, &mut request.pieces)?;
        request.started = now;
        request.fua = match self.cache {
            CacheMode::Writethrough => true,
            CacheMode::Writeback => false,
            CacheMode::Switched => !self.shared.writeback.load(Ordering::Relaxed),
        };
        let op = match verdict {
            Verdict::Refuse(status) => return Ok(Some((status, 0))),
            Verdict::GetId => return Ok(Some(identify(chain, &self.shared.serial))),
            Verdict::Flush => {
                (request.kind, request.bytes) = (RequestKind::Flush, 0);
                Some(DiskOp::Flush)
            }
            Verdict::Read { offset, len } => {
                (request.kind, request.bytes) = (RequestKind::Read, len);
                let data = chain.writable_range(0, len).ok().map(Data::Guest);
                data.map(|data| DiskOp::Read { offset, data })
            }
            Verdict::Write { offset, len } => {
                (request.kind, request.bytes) = (RequestKind::Write, len);
                let data = chain.readable_range(HEADER, len).ok().map(Data::Guest);
                data.map(|data| DiskOp::Write {
                    offset,
                    data,
                    fua: request.fua,
                })
            }
            Verdict::Ranges(kind) => {
                request.kind = kind;
                request.bytes = request
                    .pieces
                    .iter()
                    .map(|piece| piece.len)
                    .fold(0, u64::saturating_add);
                request.pieces.reverse();
                match request.next_piece() {
                    None => return Ok(Some((status::OK, 0))),
                    some => some,
                }
            }
        };
        let submitted = op.is_some_and(|op| self.disk.submit(u64::from(tag), op).is_ok());
        Ok((!submitted).then_some((status::IOERR, 0)))
    }

    /// Answers what is done, as `ask` finds it. Whether there was any.
    fn reap(
        &mut self,
        queue: &mut Queue,
        ask: fn(&mut (dyn DiskQueue + 'static), &mut Vec<Completion>),
    ) -> bool {
        let mut done = std::mem::take(&mut self.done);
        ask(self.disk.as_mut(), &mut done);
        let any = !done.is_empty();
        if any {
            let now = metrics::now();
            for completion in done.drain(..) {
                self.end(queue, &completion, now);
            }
        }
        self.done = done;
        any
    }

    /// Answers one request, unless it has more to do.
    fn end(&mut self, queue: &mut Queue, completion: &Completion, now: u64) {
        let Ok(tag) = u16::try_from(completion.tag) else {
            return;
        };
        let Some(request) = self.requests.get_mut(usize::from(tag)) else {
            return;
        };
        let mut result = completion.result;
        if result.is_ok()
            && let Some(op) = request.next_piece()
        {
            match self.disk.submit(completion.tag, op) {
                Ok(()) => return,
                // Not reached: a request that ended left its room.
                Err(_) => result = Err(IoFault::Cancelled),
            }
        }
        let Some(chain) = request.chain.take() else {
            return;
        };
        self.free.push(tag);
        let outcome = result.map(|_| request.bytes).map_err(|_| ());
        if let Some(metrics) = self.shared.metrics.queue(self.index) {
            metrics.record(request.kind, now.saturating_sub(request.started), outcome);
        }
        match result {
            Ok(_) => answer_ok(queue, chain, request.kind),
            Err(fault) => {
                let shared = &self.shared;
                let events = shared.events.get().unwrap_or(&NO_EVENTS);
                shared
                    .faults
                    .report(&shared.id, request.kind, fault, events);
                answer(queue, chain, status::IOERR, 0);
            }
        }
    }
}

impl Request {
    fn idle() -> Self {
        Self {
            chain: None,
            kind: RequestKind::Read,
            bytes: 0,
            started: 0,
            fua: false,
            pieces: Vec::new(),
        }
    }

    /// The next range of a discard or write-zeroes.
    fn next_piece(&mut self) -> Option<DiskOp<'static>> {
        let Piece {
            offset,
            len,
            may_unmap,
        } = self.pieces.pop()?;
        let fua = self.fua;
        Some(match self.kind {
            RequestKind::Discard => DiskOp::Discard { offset, len, fua },
            _ => DiskOp::WriteZeroes {
                offset,
                len,
                may_unmap,
                fua,
            },
        })
    }
}

/// Completes a chain that ended well. A read has filled all but the status; anything else has written the status alone,
/// and what of a writable part is in front of it is as the driver left it (section 2.7.8.2).
fn answer_ok(queue: &mut Queue, chain: DescriptorChain, kind: RequestKind) {
    let written = match kind {
        RequestKind::Read => chain.writable_len(),
        _ => 0,
    };
    answer(queue, chain, status::OK, written);
}

/// Writes the status into the last writable byte and completes the chain with the first `written` bytes written, or
/// with the status if that is all there is.
fn answer(queue: &mut Queue, mut chain: DescriptorChain, status: u8, written: u64) {
    let room = chain.writable_len().saturating_sub(1);
    let mut writer = chain.writer();
    // `parse` found the byte, so neither fails.
    let placed = writer.skip(room).and_then(|()| writer.write_all(&[status]));
    let written = if room == 0 && placed.is_ok() {
        1
    } else {
        written
    };
    queue.complete(chain, u32::try_from(written).unwrap_or(u32::MAX));
}

/// Writes the identification, which is 20 bytes however large the buffer is (section 5.2.6); the status to answer with,
/// and the bytes written from the front.
fn identify(chain: &mut DescriptorChain, serial: &[u8; ID_BYTES]) -> (u8, u64) {
    let mut writer = chain.writer();
    if writer.write_all(serial).is_err() {
        return (status::IOERR, 0);
    }
    let status_follows = writer.remaining() == 1;
    let written = writer.written();
    (
        status::OK,
        written.saturating_add(u64::from(status_follows)),
    )
}

impl QueueHandler for BlkQueue {
    fn sources(&self) -> Vec<Source<'_>> {
        self.disk
            .events()
            .into_iter()
            .map(|fd| Source::edge(fd, 0))
            .collect()
    }

    fn run(&mut self, queues: &mut QueueSet<'_>, _cause: Cause) -> Result<Outcome, Broken> {
        let Some(queue) = queues.get(self.index) else {
            return Ok(Outcome::Idle);
        };
        loop {
            let taken = self.take(queue);
            self.disk.commit();
            let answered = self.reap(queue, DiskQueue::completions);
            // What was answered may have brought the driver to add more; the worker's grant bounds this.
            if !taken? && !answered {
                break;
            }
        }
        if let Some(at) = self.ready_at.take() {
            queues.registry().set_timer(LIMIT, at);
        }
        Ok(Outcome::Idle)
    }

    fn poll(&mut self) -> Option<bool> {
        Some(self.disk.has_completions())
    }

    fn quiesce(&mut self, queues: &mut QueueSet<'_>) -> usize {
        if let Some(queue) = queues.get(self.index) {
            self.disk.commit();
            // A discard of several ranges goes on with the next one, which is to be handed over as well.
            while self.reap(queue, DiskQueue::completions) {
                self.disk.commit();
            }
        }
        self.requests.len().saturating_sub(self.free.len())
    }

    fn stop(&mut self, queues: &mut QueueSet<'_>) {
        let Some(queue) = queues.get(self.index) else {
            return;
        };
        let mut done = std::mem::take(&mut self.done);
        self.disk.drain(&mut done);
        let now = metrics::now();
        for completion in &mut done {
            let tag = usize::try_from(completion.tag).unwrap_or(usize::MAX);
            if let Some(request) = self.requests.get_mut(tag)
                && !request.pieces.is_empty()
            {
                // The rest of its ranges is not going to be done.
                request.pieces.clear();
                completion.result = completion.result.and(Err(IoFault::Cancelled));
            }
            self.end(queue, completion, now);
        }
        if let Some(chain) = self.held.take() {
            answer(queue, chain, status::IOERR, 0);
        }
    }
}
