//! A blocking thread: for what the host has blocking calls for only, so that it holds up nobody but its own kind.

mod queue;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

pub(super) use queue::BlockingQueue;

/// The thread, as seen by the queue it works for. It ends with the queue, or after the job it is at.
pub(super) struct BlockingThread<J, R> {
    jobs: Sender<J>,
    results: Receiver<R>,
    under_way: usize,
    given_up: Arc<AtomicBool>,
}

impl<J: Send + 'static, R: Send + 'static> BlockingThread<J, R> {
    /// Jobs are done by `work`, one after the other; it is told whether they were given up meanwhile, and then has no
    /// more to do than to say so. Each result is announced on `event`.
    pub(super) fn start(
        event: Arc<OwnedFd>,
        mut work: impl FnMut(J, bool) -> R + Send + 'static,
    ) -> io::Result<Self> {
        let (jobs, orders) = channel();
        let (answer, results) = channel();
        let given_up = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&given_up);
        thread::Builder::new()
            .name("disk-blocking".into())
            .spawn(move || {
                for job in orders {
                    if answer
                        .send(work(job, told.load(Ordering::Acquire)))
                        .is_err()
                    {
                        return;
                    }
                    // Full only after 2^64 signals.
                    let _ = rustix::io::write(&event, &1_u64.to_ne_bytes());
                }
            })?;
        Ok(Self {
            jobs,
            results,
            under_way: 0,
            given_up,
        })
    }

    /// Gives the thread a job, or it back if there is no thread any more.
    pub(super) fn give(&mut self, job: J) -> Result<(), J> {
        self.jobs.send(job).map_err(|refused| refused.0)?;
        self.under_way = self.under_way.saturating_add(1);
        Ok(())
    }

    /// A result, if there is one.
    pub(super) fn take(&mut self) -> Option<R> {
        let result = self.results.try_recv().ok()?;
        self.under_way = self.under_way.saturating_sub(1);
        Some(result)
    }

    /// A result, which is waited for.
    pub(super) fn wait(&mut self, limit: Duration) -> Option<R> {
        let result = self.results.recv_timeout(limit).ok()?;
        self.under_way = self.under_way.saturating_sub(1);
        Some(result)
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
