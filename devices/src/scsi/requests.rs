//! A request queue: commands in, answers out.
//!
//! One of these per request queue, each on its worker's thread. Commands at work are kept under tags of their own,
//! so nothing the driver does to its ring or its identifiers can mix them up. Other threads reach them by mail only.

mod orders;
mod reply;
mod reservations;
mod task;

use std::collections::VecDeque;
use std::sync::Arc;

use splitring_virtio::spec::scsi::response;

use super::address::{self, Address, Place};
use super::admit;
use super::backend::Backend;
use super::cdb::Command;
use super::exec::{self, Next};
use super::hub::{Hub, Map};
use super::job::{Done, Job, Step};
use super::luns;
use super::request::{Answer, Request, Sizes};
use super::sense::{Sense, Status, attention};
use super::slot::Slot;
use super::unit::Nexus;
use super::workers::{Enlistment, Mail, Reply};
use crate::device::{
    Broken, Cause, DescriptorChain, Outcome, Queue, QueueHandler, QueueSet, SHOW_AFTER, Source,
};
use crate::disk::{Completion, metrics};
use crate::ram::Ram;
use reply::{parameter_list, refuse, reply};
use task::{Task, Work};

/// Token of the mailbox.
const MAIL: u32 = 0;
/// Rounds of completions that lead to new requests in one pass, before it is the turn of others.
const ROUNDS: usize = 64;

/// The handler of one request queue.
///
/// Whatever it has registered with others is a guard among its fields: one that is dropped without having been stopped
/// leaves nothing behind. They are dropped in this order: the disks give back all they have before the commands go,
/// and whoever waits for those gets an answer afterwards.
pub(crate) struct Requests {
    backend: Backend,
    tasks: Vec<Option<Task>>,
    /// Units to let go of when they have nothing in flight here.
    detaching: Vec<(Arc<Slot>, Reply)>,
    /// Messages that have come, each with how many chains are taken by the time it is handled at the latest.
    inbox: VecDeque<(u64, Mail)>,
    enlistment: Enlistment,
    /// Chains taken so far.
    taken: u64,
    hub: Arc<Hub>,
    index: u16,
    /// Number among the request queues.
    ring: u16,
    sizes: Sizes,
    /// The present, read once a batch.
    now: u64,
    map: Arc<Map>,
    version: u64,
    free: Vec<usize>,
    completions: Vec<Completion>,
    tags: Vec<u64>,
}

impl Requests {
    /// The handler of virtqueue `index`, which is request queue number `ring` from 0 on.
    pub(crate) fn new(
        hub: &Arc<Hub>,
        index: u16,
        ring: u16,
        size: u16,
        ram: Ram,
        sizes: Sizes,
    ) -> std::io::Result<Self> {
        Ok(Self {
            backend: Backend::new(hub, ram, ring, size),
            tasks: Vec::new(),
            detaching: Vec::new(),
            inbox: VecDeque::new(),
            enlistment: hub.workers.enlist()?,
            taken: 0,
            hub: Arc::clone(hub),
            index,
            ring,
            sizes,
            now: metrics::now(),
            map: Arc::default(),
            version: 0,
            free: Vec::new(),
            completions: Vec::new(),
            tags: Vec::new(),
        })
    }

    fn refresh(&mut self) {
        let version = self.hub.version();
        if version != self.version {
            // Read before the map: a change in between is noticed next time.
            self.version = version;
            self.map = self.hub.map();
        }
    }

    /// A new command.
    fn take(&mut self, queue: &mut Queue, chain: DescriptorChain) -> Result<(), Broken> {
        let request = match Request::parse(chain, self.sizes) {
            Ok(request) => request,
            Err((chain, short)) => {
                queue.complete(chain, 0);
                return Err(Broken::new(self.index, short));
            }
        };
        if request.data_in_len() > 0 && request.data_out_len() > 0 {
            refuse(queue, request, response::FAILURE);
            return Ok(());
        }
        match address::parse(&request.lun) {
            None => refuse(queue, request, response::BAD_TARGET),
            Some(Address::ReportLuns(target)) => self.well_known(queue, request, target),
            Some(Address::Unit(place)) => self.unit(queue, request, place),
        }
        Ok(())
    }

    fn unit(&mut self, queue: &mut Queue, request: Request, place: Place) {
        if let Some(nexus) = self.map.get(place) {
            let nexus = Arc::clone(nexus);
            return self.command(queue, request, nexus);
        }
        match self.luns(place.target) {
            None => refuse(queue, request, response::BAD_TARGET),
            Some(luns) => {
                let result = luns::absent(&request.cdb, &luns);
                reply(queue, request, result, 0, false);
            }
        }
    }

    /// What REPORT LUNS of a target lists.
    fn luns(&self, target: u8) -> Option<Vec<[u8; 8]>> {
        let luns = self.map.luns(target)?;
        Some(
            luns.iter()
                .map(|lun| Place { target, lun: *lun }.to_lun())
                .collect(),
        )
    }

    /// The well-known unit of a target, or of the controller, which lists full addresses.
    fn well_known(&self, queue: &mut Queue, request: Request, target: Option<u8>) {
        let luns = match target {
            Some(target) => self.luns(target),
            None => Some(
                self.map
                    .iter()
                    .map(|nexus| nexus.place.to_virtio())
                    .collect(),
            ),
        };
        match luns {
            None => refuse(queue, request, response::BAD_TARGET),
            Some(luns) => {
                let result = luns::well_known(&request.cdb, &luns);
                reply(queue, request, result, 0, false);
            }
        }
    }

    fn command(&mut self, queue: &mut Queue, request: Request, nexus: Arc<Nexus>) {
        let descriptors = nexus.unit.descriptor_sense();
        let command = match admit::admit(&nexus, &request.cdb) {
            Ok(command) => command,
            Err(status) => return reply(queue, request, Err(status), 0, descriptors),
        };
        let block = nexus.facts.block;
        let (out, into) = (command.data_out(block), command.data_in(block));
        // A block to repeat, or old and new data to swap: with less or more of it the command was not meant so.
        let exact = matches!(
            command,
            Command::WriteSame { .. } | Command::CompareAndWrite { .. }
        );
        if exact && request.data_out_len() != out {
            let status = Sense::INVALID_FIELD_IN_CDB.into();
            return reply(queue, request, Err(status), 0, descriptors);
        }
        if out > request.data_out_len() || into > request.data_in_len() {
            return refuse(queue, request, response::OVERRUN);
        }
        if let Command::ReportLuns { select, .. } = command {
            nexus.settle(attention::LUNS_CHANGED);
            let luns = self.luns(nexus.place.target).unwrap_or_default();
            let result = luns::report_luns(select, &luns).map(|data| exec::cut(&command, data));
            return reply(queue, request, result.map_err(Status::from), 0, descriptors);
        }
        let list = parameter_list(&command, &request, out);
        match exec::run(&nexus, &command, &list) {
            Next::Answer(result) => reply(queue, request, result, out, descriptors),
            Next::Job(job) => {
                let tag = self.keep(request, nexus, Work::Locked(job), out);
                self.begin(queue, tag);
            }
            Next::Reserve(change) => {
                let tag = self.keep(request, nexus, Work::Reserving(change), out);
                self.reserve(queue, tag);
            }
        }
    }

    /// Enters a command that is not answered at once; `used` is how much of its data-out it takes.
    fn keep(&mut self, request: Request, nexus: Arc<Nexus>, work: Work, used: u64) -> usize {
        let task = Task {
            request,
            nexus,
            work,
            used,
            held: None,
            end: None,
            replies: Vec::new(),
            started: self.now,
            begun: false,
        };
        match self.free.pop() {
            Some(tag) => {
                if let Some(place) = self.tasks.get_mut(tag) {
                    *place = Some(task);
                }
                tag
            }
            None => {
                self.tasks.push(Some(task));
                self.tasks.len().saturating_sub(1)
            }
        }
    }

    /// Begins a job, unless another has locked its range.
    fn begin(&mut self, queue: &mut Queue, tag: usize) {
        let Some(Some(task)) = self.tasks.get_mut(tag) else {
            return;
        };
        let Work::Locked(job) = &mut task.work else {
            return;
        };
        if let Some((from, to)) = job.exclusive().filter(|(from, to)| from < to) {
            task.held = task
                .nexus
                .unit
                .locks
                .take(from, to, self.enlistment.mailbox());
            if task.held.is_none() {
                return;
            }
        }
        let step = job.begin(&task.request);
        task.work.hand_over();
        self.advance(queue, tag, step);
    }

    /// Does what a job wants next.
    fn advance(&mut self, queue: &mut Queue, tag: usize, step: Step) {
        let op = match step {
            Step::Done(status) => return self.finish(queue, tag, status),
            Step::Op(op) => op,
        };
        let Some(Some(task)) = self.tasks.get_mut(tag) else {
            return;
        };
        let wide = u64::try_from(tag).unwrap_or(u64::MAX);
        if self.backend.admits(&task.nexus, wide) {
            task.begun = true;
            self.backend
                .submit(&task.nexus, wide, op, &mut task.request);
        } else {
            task.work.queue(op);
        }
    }

    /// Answers a command and forgets it.
    fn finish(&mut self, queue: &mut Queue, tag: usize, status: Status) {
        let Some(task) = self.tasks.get_mut(tag).and_then(Option::take) else {
            return;
        };
        self.free.push(tag);
        let descriptors = task.nexus.unit.descriptor_sense();
        let answer = match (task.end, status, &task.work) {
            (Some(code), ..) => Answer::Response(code),
            (None, Status::Good, Work::Disk(job)) => Answer::Filled(job.data_in()),
            (None, status, _) => Answer::Status(status, &[]),
        };
        if let (Work::Disk(job), Some(counters)) = (&task.work, task.nexus.metrics.queue(self.ring))
        {
            let good = task.end.is_none() && matches!(status, Status::Good);
            let bytes = task.used.saturating_add(job.data_in());
            let outcome = if good { Ok(bytes) } else { Err(()) };
            let time = self.now.saturating_sub(task.started);
            counters.record(job.kind(), time, outcome);
        }
        let used = if matches!(status, Status::Good) {
            task.used
        } else {
            0
        };
        task.request.complete(queue, &answer, used, descriptors);
        drop((task.nexus, task.held, task.replies));
        if !self.detaching.is_empty() {
            self.detach();
        }
    }

    /// What came of one request to a disk.
    fn completed(&mut self, queue: &mut Queue, completion: Completion) {
        let Ok(tag) = usize::try_from(completion.tag) else {
            return;
        };
        let Some(Some(task)) = self.tasks.get_mut(tag) else {
            return;
        };
        let Work::Disk(job) = &mut task.work else {
            return;
        };
        report(&self.hub, &task.nexus, job, &completion);
        let step = match task.end {
            Some(_) => Step::Done(Status::Good),
            None => job.resume(
                Done {
                    result: completion.result,
                    buffer: completion.buffer,
                },
                &task.request,
            ),
        };
        self.advance(queue, tag, step);
    }

    /// Gives the disks what was collected and handles what they are done with; false if there was nothing.
    fn exchange(&mut self, queue: &mut Queue) -> bool {
        self.tags.clear();
        self.backend.runnable(&mut self.tags);
        for tag in std::mem::take(&mut self.tags) {
            self.resume_queued(queue, tag);
        }
        self.settle(queue, Backend::exchange)
    }

    /// Handles what `ask` finds completed; false if there was nothing.
    fn settle(&mut self, queue: &mut Queue, ask: fn(&mut Backend, &mut Vec<Completion>)) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        ask(&mut self.backend, &mut completions);
        let any = !completions.is_empty();
        if any {
            self.now = metrics::now();
        }
        for completion in completions.drain(..) {
            self.completed(queue, completion);
        }
        self.completions = completions;
        any
    }

    fn resume_queued(&mut self, queue: &mut Queue, tag: u64) {
        let Ok(tag) = usize::try_from(tag) else {
            return;
        };
        let Some(Some(task)) = self.tasks.get_mut(tag) else {
            return;
        };
        if let Some(op) = task.work.hand_over() {
            self.advance(queue, tag, Step::Op(op));
        }
    }

    /// Takes what is available.
    fn take_all(&mut self, queue: &mut Queue) -> Result<(), Broken> {
        let mut taken = 0_u32;
        while let Some(chain) = queue
            .pop()
            .map_err(|error| Broken::new(self.index, error))?
        {
            self.taken = self.taken.saturating_add(1);
            self.take(queue, chain)?;
            taken = taken.wrapping_add(1);
            if taken.is_multiple_of(SHOW_AFTER) && self.settle(queue, Backend::completed) {
                queue.publish_used();
            }
        }
        Ok(())
    }

    fn pass(&mut self, queue: &mut Queue, cause: Cause) -> Result<Outcome, Broken> {
        self.refresh();
        self.now = metrics::now();
        if matches!(cause, Cause::Source(MAIL) | Cause::Resume) {
            self.collect_messages(queue.size());
        }
        match cause {
            Cause::Source(token) | Cause::Timer(token) => self.backend.touch(token),
            Cause::Resume => self.backend.touch_all(),
            Cause::Kick(_) => {}
        }
        for _ in 0..ROUNDS {
            self.take_all(queue)?;
            self.read_messages(queue);
            if !self.exchange(queue) {
                return Ok(Outcome::Idle);
            }
        }
        Ok(Outcome::More)
    }
}

/// Tells the operator what the host failed to do for a command.
fn report(hub: &Hub, nexus: &Nexus, job: &Job, completion: &Completion) {
    if let Err(fault) = completion.result {
        let events = hub.observer();
        nexus.faults.report(&nexus.id, job.kind(), fault, events);
    }
}

impl QueueHandler for Requests {
    fn sources(&self) -> Vec<Source<'_>> {
        use std::os::fd::AsFd;
        let mut sources = self.backend.sources();
        sources.push(Source::edge(self.enlistment.mailbox().as_fd(), MAIL));
        sources
    }

    fn run(&mut self, queues: &mut QueueSet<'_>, cause: Cause) -> Result<Outcome, Broken> {
        let Some(queue) = queues.get(self.index) else {
            return Ok(Outcome::Idle);
        };
        let outcome = self.pass(queue, cause);
        self.backend.register(queues.registry());
        outcome
    }

    fn poll(&mut self) -> Option<bool> {
        Some(self.backend.has_completions())
    }

    fn quiesce(&mut self, queues: &mut QueueSet<'_>) -> usize {
        if let Some(queue) = queues.get(self.index) {
            self.backend.touch_all();
            for _ in 0..ROUNDS {
                if !self.settle(queue, Backend::exchange) {
                    break;
                }
            }
        }
        // Mail is read after the pause, for orders change nothing about what the disks have. What waits for a lock, a
        // rate limit or other commands goes on waiting.
        let with_disk = |task: &&Task| matches!(task.work, Work::Disk(_));
        self.tasks.iter().flatten().filter(with_disk).count()
    }

    fn can_be_saved(&self) -> bool {
        let mut tasks = self.tasks.iter().flatten();
        tasks.all(|task| match task.work {
            Work::Locked(_) | Work::Reserving(_) => true,
            // Between two of its steps it has had an effect.
            Work::Queued(..) => !task.begun,
            Work::Disk(_) | Work::Saving(_) | Work::Aborting(_) => false,
        })
    }

    /// The operator may want a disk, and other machines an answer about commands to a disk that they have, too.
    fn halted(&mut self, queues: &mut QueueSet<'_>) {
        self.stop(queues);
    }

    fn stop(&mut self, queues: &mut QueueSet<'_>) {
        let Some(queue) = queues.get(self.index) else {
            return;
        };
        // It has the disks, too, and no command is taken any more.
        (self.map, self.version) = (Arc::default(), 0);
        let inbox = self.inbox.drain(..).map(|(_, mail)| mail);
        let mail: Vec<_> = inbox.chain(self.enlistment.mailbox().collect()).collect();
        for mail in mail {
            self.mail(queue, mail);
        }
        let mut completions = Vec::new();
        self.backend.drain(&mut completions);
        for completion in completions {
            let Ok(tag) = usize::try_from(completion.tag) else {
                continue;
            };
            let Some(Some(task)) = self.tasks.get_mut(tag) else {
                continue;
            };
            let Work::Disk(job) = &mut task.work else {
                continue;
            };
            report(&self.hub, &task.nexus, job, &completion);
            let done = Done {
                result: completion.result,
                buffer: completion.buffer,
            };
            match job.resume(done, &task.request) {
                Step::Done(status) => self.finish(queue, tag, status),
                // A job of several steps ends between two of them.
                Step::Op(_) => {}
            }
        }
        for tag in self.tags_where(|_| true) {
            if let Some(Some(task)) = self.tasks.get_mut(tag) {
                task.end = Some(response::RESET);
            }
            self.finish(queue, tag, Status::Good);
        }
        // Only now, when it has no disk open any more: whoever removes a disk waits for the threads
        // that are enlisted, and from here on nobody tells this one what is removed.
        for mail in self.enlistment.end() {
            self.mail(queue, mail);
        }
        self.detach();
    }
}
