//! A controller's middle: where its threads find the units and each other.
//!
//! The map of units is replaced as a whole and each thread keeps the version it last saw, so looking a unit up takes
//! no lock. Threads talk by mailboxes: an eventfd and a list. A [`Sweep`] is one question or order to several of
//! them that ends when all have answered: that is what task management, PREEMPT AND ABORT and removal are built of.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use rustix::event::EventfdFlags;

use super::address::Place;
use super::events::Events;
use super::opened::Opened;
use super::slot::Slots;
use super::unit::{Nexus, lock};
use crate::events::{EventSink, NO_EVENTS};

/// The units of a controller.
#[derive(Debug, Default, Clone)]
pub(crate) struct Map {
    units: BTreeMap<Place, Arc<Nexus>>,
    /// Units a target, for a quick "no such target".
    targets: BTreeMap<u8, Vec<u16>>,
}

impl Map {
    pub(crate) fn get(&self, place: Place) -> Option<&Arc<Nexus>> {
        self.units.get(&place)
    }

    /// Logical unit numbers of a target; `None` if there is no such target.
    pub(crate) fn luns(&self, target: u8) -> Option<&[u16]> {
        self.targets.get(&target).map(Vec::as_slice)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Nexus>> {
        self.units.values()
    }

    pub(crate) fn named(&self, id: &str) -> Option<&Arc<Nexus>> {
        self.iter().find(|nexus| nexus.id == id)
    }

    pub(crate) fn insert(&mut self, nexus: Arc<Nexus>) {
        self.units.insert(nexus.place, nexus);
        self.count();
    }

    pub(crate) fn remove(&mut self, place: Place) -> Option<Arc<Nexus>> {
        let removed = self.units.remove(&place);
        self.count();
        removed
    }

    fn count(&mut self) {
        self.targets.clear();
        for place in self.units.keys() {
            self.targets
                .entry(place.target)
                .or_default()
                .push(place.lun);
        }
    }
}

/// What the parts of a controller share.
pub(crate) struct Hub {
    pub(crate) opened: Arc<Opened>,
    map: Mutex<Arc<Map>>,
    version: AtomicU64,
    pub(crate) slots: Arc<Slots>,
    /// The running request threads.
    crew: Mutex<Vec<Arc<Mailbox>>>,
    pub(crate) events: Events,
    /// Where the operator's events go; those above are the driver's.
    observer: OnceLock<EventSink>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("config", &self.opened.config)
            .finish_non_exhaustive()
    }
}

impl Hub {
    pub(crate) fn new(opened: &Arc<Opened>) -> Arc<Self> {
        Arc::new(Self {
            opened: Arc::clone(opened),
            map: Mutex::new(Arc::default()),
            version: AtomicU64::new(1),
            slots: Arc::default(),
            crew: Mutex::default(),
            events: Events::default(),
            observer: OnceLock::new(),
        })
    }

    /// Only the first sink counts.
    pub(crate) fn report_to(&self, sink: EventSink) {
        let _ = self.observer.set(sink);
    }

    pub(crate) fn observer(&self) -> &EventSink {
        self.observer.get().unwrap_or(&NO_EVENTS)
    }

    pub(crate) fn map(&self) -> Arc<Map> {
        Arc::clone(&lock(&self.map))
    }

    /// Changes with every change of the map.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Replaces the map by a changed copy.
    pub(crate) fn change<T>(&self, work: impl FnOnce(&mut Map) -> T) -> T {
        let mut map = lock(&self.map);
        let mut next = Map::clone(&map);
        let result = work(&mut next);
        *map = Arc::new(next);
        self.version.fetch_add(1, Ordering::AcqRel);
        result
    }

    /// A request thread starts: from now on it gets messages.
    pub(crate) fn enlist(self: &Arc<Self>) -> io::Result<Enlistment> {
        let mailbox = Mailbox::new()?;
        lock(&self.crew).push(Arc::clone(&mailbox));
        Ok(Enlistment {
            hub: Arc::clone(self),
            mailbox,
        })
    }

    fn crew(&self) -> Vec<Arc<Mailbox>> {
        lock(&self.crew).clone()
    }
}

/// A request thread among those of its controller. Dropping it takes the thread out: it gets no more messages, and
/// those that it has not handled are answered.
pub(crate) struct Enlistment {
    hub: Arc<Hub>,
    mailbox: Arc<Mailbox>,
}

impl Enlistment {
    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// The thread stops. Returns the messages that it has not handled yet.
    pub(crate) fn end(&self) -> Vec<Mail> {
        lock(&self.hub.crew).retain(|other| !Arc::ptr_eq(other, &self.mailbox));
        self.mailbox.close()
    }
}

impl Drop for Enlistment {
    fn drop(&mut self) {
        self.end();
    }
}

/// A message to a thread.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A range lock was given back.
    Retry,
    /// Do what the sweep says to the commands that match, and drop the reply when it is done.
    Sweep(Filter, Reply),
    /// A sweep this thread started has ended, or there are events to send.
    Look,
}

/// Which commands, or which unit.
#[derive(Debug, Clone)]
pub(crate) enum Filter {
    /// The command with this identifier on this path.
    Task(Arc<Nexus>, u64),
    /// All commands on this path.
    Nexus(Arc<Nexus>),
}

impl Filter {
    pub(crate) fn nexus(&self) -> &Arc<Nexus> {
        match self {
            Self::Task(nexus, _) | Self::Nexus(nexus) => nexus,
        }
    }

    pub(crate) fn into_nexus(self) -> Arc<Nexus> {
        match self {
            Self::Task(nexus, _) | Self::Nexus(nexus) => nexus,
        }
    }

    pub(crate) fn matches(&self, nexus: &Arc<Nexus>, id: u64) -> bool {
        match self {
            Self::Task(own, task) => Arc::ptr_eq(own, nexus) && *task == id,
            Self::Nexus(own) => Arc::ptr_eq(own, nexus),
        }
    }
}

/// What a sweep does to commands that match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Ends them with this response.
    End(u8),
    /// Only looks whether there are any.
    Query,
    /// Waits for them, then lets go of the unit.
    Detach,
}

/// One order to all request threads.
#[derive(Debug)]
pub(crate) struct Sweep {
    pub(crate) order: Order,
    /// Replies that are due: of threads that have not looked yet, and for commands found and not ended yet.
    left: AtomicUsize,
    found: AtomicBool,
    waiter: Waiter,
}

/// Who wants to know that a sweep has ended.
#[derive(Debug)]
pub(crate) enum Waiter {
    Mailbox(Arc<Mailbox>),
    Thread(Mutex<bool>, Condvar),
}

impl Waiter {
    pub(crate) fn thread() -> Self {
        Self::Thread(Mutex::new(false), Condvar::new())
    }
}

impl Sweep {
    /// Sends the order, with each filter to the threads of the filter's controller.
    pub(crate) fn start(order: Order, filters: Vec<Filter>, waiter: Waiter) -> Arc<Self> {
        let sweep = Arc::new(Self {
            order,
            left: AtomicUsize::new(0),
            found: AtomicBool::new(false),
            waiter,
        });
        // It has not ended before every order has been sent.
        let _sending = Reply::new(&sweep);
        for filter in filters {
            let Some(hub) = filter.nexus().hub.upgrade() else {
                continue;
            };
            for mailbox in hub.crew() {
                mailbox.post(Mail::Sweep(filter.clone(), Reply::new(&sweep)));
            }
        }
        sweep
    }

    /// The last reply came.
    fn end(&self) {
        match &self.waiter {
            Waiter::Mailbox(mailbox) => {
                mailbox.post(Mail::Look);
            }
            Waiter::Thread(done, signal) => {
                *lock(done) = true;
                signal.notify_all();
            }
        }
    }

    pub(crate) fn note_found(&self) {
        self.found.store(true, Ordering::Release);
    }

    pub(crate) fn found(&self) -> bool {
        self.found.load(Ordering::Acquire)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }

    /// Waits on the calling thread; false if it took longer than `limit`.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let Waiter::Thread(done, signal) = &self.waiter else {
            return self.is_done();
        };
        let result = signal.wait_timeout_while(lock(done), limit, |done| !*done);
        result.map_or_else(|poisoned| *poisoned.into_inner().0, |(done, _)| *done)
    }
}

/// A reply that a [`Sweep`] waits for. Dropping it replies.
#[derive(Debug)]
pub(crate) struct Reply(Arc<Sweep>);

impl Reply {
    fn new(sweep: &Arc<Sweep>) -> Self {
        sweep.left.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(sweep))
    }

    /// What the reply is to.
    pub(crate) fn sweep(&self) -> &Sweep {
        &self.0
    }

    /// One more reply to the same sweep.
    pub(crate) fn another(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.0.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.end();
        }
    }
}

/// A thread's mailbox.
#[derive(Debug)]
pub(crate) struct Mailbox {
    event: OwnedFd,
    /// `None` once the thread has stopped.
    mail: Mutex<Option<Vec<Mail>>>,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let event = rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Arc::new(Self {
            event,
            mail: Mutex::new(Some(Vec::new())),
        }))
    }

    /// Delivers a message. It is dropped if nobody reads this any more.
    pub(crate) fn post(&self, mail: Mail) {
        if let Some(list) = lock(&self.mail).as_mut() {
            list.push(mail);
            // The counter can't overflow in the life of a machine, so this can't fail.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Everything that came since the last look.
    pub(crate) fn collect(&self) -> Vec<Mail> {
        lock(&self.mail)
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    fn close(&self) -> Vec<Mail> {
        lock(&self.mail).take().unwrap_or_default()
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
