//! A blocking thread: for what the host has blocking calls for only, so that it holds up nobody but
//! its own kind.

mod queue;

use std::any::Any;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use crate::signals::block_file_size_signal;
use crate::threads::inherited;
pub(super) use queue::BlockingQueue;

/// The thread, as seen by the queue it works for. It ends with the queue, or after the job it is
/// at.
///
/// A panic on it is a bug in this program, and what it was at may be left in any state. It ends the
/// thread; its jobs are gone, and the queue passes the panic on to its own thread, whose failure
/// ends the machine.
pub(super) struct BlockingThread<J, R> {
    jobs: Sender<J>,
    results: Receiver<thread::Result<R>>,
    under_way: usize,
    given_up: Arc<AtomicBool>,
    ended: bool,
    /// What it panicked with, unless that was passed on.
    panic: Option<Box<dyn Any + Send>>,
}

impl<J: Send + 'static, R: Send + 'static> BlockingThread<J, R> {
    /// Jobs are done by `work`, one after the other; it is told whether they were given up
    /// meanwhile, and then has no more to do than to say so. Each result is announced on `event`.
    pub(super) fn start(
        event: Arc<OwnedFd>,
        mut work: impl FnMut(J, bool) -> R + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, orders) = channel();
        let (answer, results) = channel();
        let given_up = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&given_up);
        let span = tracing::Span::current();
        thread::Builder::new()
            .name("disk-blocking".into())
            .spawn(inherited(move || {
                block_file_size_signal();
                let _in_span = span.entered();
                for job in orders {
                    let given_up = told.load(Ordering::Acquire);
                    // Nothing of what it was at is used again.
                    let result = catch_unwind(AssertUnwindSafe(|| work(job, given_up)));
                    let panicked = result.is_err();
                    let refused = answer.send(result).is_err();
                    // Full only after 2^64 signals.
                    let _ = rustix::io::write(&event, &1_u64.to_ne_bytes());
                    if panicked || refused {
                        return;
                    }
                }
            }))?;
        Ok(Self {
            jobs,
            results,
            under_way: 0,
            given_up,
            ended: false,
            panic: None,
        })
    }

    /// Gives the thread a job, or it back if there is no thread any more.
    pub(super) fn give(&mut self, job: J) -> Result<(), J> {
        if self.ended {
            return Err(job);
        }
        self.jobs.send(job).map_err(|refused| refused.0)?;
        self.under_way = self.under_way.saturating_add(1);
        Ok(())
    }

    /// A result, if there is one.
    pub(super) fn take(&mut self) -> Option<R> {
        match self.results.try_recv() {
            Ok(result) => self.received(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => self.gone(None),
        }
    }

    /// A result, which is waited for.
    pub(super) fn wait(&mut self, limit: Duration) -> Option<R> {
        match self.results.recv_timeout(limit) {
            Ok(result) => self.received(result),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => self.gone(None),
        }
    }

    fn received(&mut self, result: thread::Result<R>) -> Option<R> {
        match result {
            Ok(result) => {
                self.under_way = self.under_way.saturating_sub(1);
                Some(result)
            }
            Err(panic) => self.gone(Some(panic)),
        }
    }

    fn gone(&mut self, panic: Option<Box<dyn Any + Send>>) -> Option<R> {
        self.under_way = 0;
        self.ended = true;
        self.panic = panic.or(self.panic.take());
        None
    }

    /// Whether the thread has ended: the jobs it had are gone, and nobody touches their memory any
    /// more.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Goes on with the thread's panic on this one, once.
    pub(super) fn pass_on_panic(&mut self) {
        if let Some(panic) = self.panic.take() {
            resume_unwind(panic);
        }
    }

    /// Jobs given and results not taken.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// Whether jobs that were not begun are given up from now on.
    pub(super) fn give_up(&self, yes: bool) {
        self.given_up.store(yes, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
