//! The request threads of a controller, and the messages to them.
//!
//! Threads talk by mailboxes: an eventfd and a list. A [`Sweep`] is one question or order to several of them that ends
//! when all have answered: that is what task management, PREEMPT AND ABORT and removal are built of. Knows no unit: a
//! path to one is a [`Slot`] here.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustix::event::EventfdFlags;

use super::slot::Slot;
use super::sync::lock;

/// The running request threads of one controller.
#[derive(Debug, Default)]
pub(crate) struct Workers(Mutex<Vec<Arc<Mailbox>>>);

impl Workers {
    /// A request thread starts: from now on it gets messages.
    pub(crate) fn enlist(self: &Arc<Self>) -> io::Result<Enlistment> {
        let mailbox = Mailbox::new()?;
        lock(&self.0).push(Arc::clone(&mailbox));
        Ok(Enlistment {
            workers: Arc::clone(self),
            mailbox,
        })
    }

    fn mailboxes(&self) -> Vec<Arc<Mailbox>> {
        lock(&self.0).clone()
    }
}

/// A request thread among those of its controller. Dropping it takes the thread out: it gets no more messages, and
/// those that it has not handled are answered.
pub(crate) struct Enlistment {
    workers: Arc<Workers>,
    mailbox: Arc<Mailbox>,
}

impl Enlistment {
    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// The thread stops. Returns the messages that it has not handled yet.
    pub(crate) fn end(&self) -> Vec<Mail> {
        lock(&self.workers.0).retain(|other| !Arc::ptr_eq(other, &self.mailbox));
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

/// Which commands of a thread: a path to a unit is known by its slot, which no two paths share.
#[derive(Debug, Clone)]
pub(crate) enum Filter {
    /// The command with this identifier on this path.
    Task(Arc<Slot>, u64),
    /// All commands on this path.
    Path(Arc<Slot>),
}

impl Filter {
    pub(crate) fn into_slot(self) -> Arc<Slot> {
        match self {
            Self::Task(slot, _) | Self::Path(slot) => slot,
        }
    }

    pub(crate) fn matches(&self, slot: &Arc<Slot>, id: u64) -> bool {
        match self {
            Self::Task(own, task) => Arc::ptr_eq(own, slot) && *task == id,
            Self::Path(own) => Arc::ptr_eq(own, slot),
        }
    }
}

/// Commands, and the threads that may have them.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) workers: Arc<Workers>,
    pub(crate) filter: Filter,
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
    /// Sends the order about each target to the target's threads.
    pub(crate) fn start(order: Order, targets: Vec<Target>, waiter: Waiter) -> Arc<Self> {
        let sweep = Arc::new(Self {
            order,
            left: AtomicUsize::new(0),
            found: AtomicBool::new(false),
            waiter,
        });
        // It has not ended before every order has been sent.
        let _sending = Reply::new(&sweep);
        for Target { workers, filter } in targets {
            for mailbox in workers.mailboxes() {
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
