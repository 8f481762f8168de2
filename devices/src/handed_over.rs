//! The handler of queues that are served outside this process.
//!
//! It gives the rings to a [`RingServer`] while the device may run, and takes them back with the entry they have got
//! to when it may not: at a pause, a reset, the end, or when the function loses bus mastering. A worker runs it like
//! any other handler, with no queue of its own. It knows neither vhost nor what the queues are for.

use std::fmt;
use std::os::fd::AsFd;

use crate::device::{Broken, Cause, Outcome, QueueHandler, QueueSet, Source};
use crate::rings::HandedQueue;

/// Something outside this process that can serve a task's rings.
pub trait RingServer: Send {
    /// Whether it is to serve now: asked before each start, and after each event of its sources.
    fn wanted(&self) -> bool {
        true
    }

    /// Serves `queues` from the entries on that [`HandedQueue::ring`] says. On an error none of them is served.
    ///
    /// # Errors
    /// What the other side refused; the device needs a reset.
    fn start(&mut self, queues: &[HandedQueue]) -> Result<(), Broken>;

    /// Stops serving and waits for what is in flight. Says for each queue how far it has got
    /// ([`HandedQueue::take_back`]). When it returns nothing writes guest memory for these queues, whatever it returns.
    ///
    /// # Errors
    /// How far a queue has got is not known; the device needs a reset.
    fn stop(&mut self, queues: &mut [HandedQueue]) -> Result<(), Broken>;

    /// What it waits for in this process, with tokens below 2¹⁶; edge-triggered.
    fn sources(&self) -> Vec<Source<'_>> {
        Vec::new()
    }

    /// The source `token` is ready.
    ///
    /// # Errors
    /// The other side failed; the device needs a reset.
    fn event(&mut self, token: u32) -> Result<(), Broken> {
        let _ = token;
        Ok(())
    }
}

/// Tokens of the calls, behind those of the server.
const CALLS: u32 = 1 << 16;

/// Queues and who serves them. Dropping it takes them back.
pub struct HandedOver<S: RingServer> {
    server: S,
    queues: Vec<HandedQueue>,
    serving: bool,
    /// It was not known where a queue had got to.
    lost: Option<Broken>,
}

impl<S: RingServer> fmt::Debug for HandedOver<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandedOver")
            .field("queues", &self.queues)
            .field("serving", &self.serving)
            .finish_non_exhaustive()
    }
}

impl<S: RingServer> HandedOver<S> {
    /// Has `server` serve `queues` from the first run on.
    pub fn new(server: S, queues: Vec<HandedQueue>) -> Self {
        Self {
            server,
            queues,
            serving: false,
            lost: None,
        }
    }

    /// The queues; [`HandedQueue::ring`] is up to date while they are not served.
    pub fn queues(&self) -> &[HandedQueue] {
        &self.queues
    }

    fn follow(&mut self) -> Result<(), Broken> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        match (self.server.wanted(), self.serving) {
            (true, false) => {
                self.server.start(&self.queues)?;
                self.serving = true;
            }
            (false, true) => self.take_back(),
            (true, true) | (false, false) => {}
        }
        self.lost.clone().map_or(Ok(()), Err)
    }

    fn take_back(&mut self) {
        if std::mem::take(&mut self.serving) {
            self.lost = self.server.stop(&mut self.queues).err();
        }
    }
}

impl<S: RingServer> QueueHandler for HandedOver<S> {
    fn sources(&self) -> Vec<Source<'_>> {
        let calls = (CALLS..).zip(&self.queues);
        let calls = calls.map(|(token, queue)| Source::edge(queue.as_fd(), token));
        self.server.sources().into_iter().chain(calls).collect()
    }

    fn run(&mut self, _: &mut QueueSet<'_>, cause: Cause) -> Result<Outcome, Broken> {
        if let Cause::Source(token) = cause {
            let call = token.checked_sub(CALLS);
            if let Some(queue) = call.and_then(|at| self.queues.get(usize::try_from(at).ok()?)) {
                queue.forward();
                return Ok(Outcome::Idle);
            }
            self.server.event(token)?;
        } else {
            // Signals that came while nobody listened.
            self.queues.iter().for_each(HandedQueue::forward);
        }
        self.follow()?;
        Ok(Outcome::Idle)
    }

    fn quiesce(&mut self, _: &mut QueueSet<'_>) -> usize {
        self.take_back();
        0
    }

    fn halted(&mut self, _: &mut QueueSet<'_>) {
        self.take_back();
    }

    fn stop(&mut self, _: &mut QueueSet<'_>) {
        self.take_back();
    }
}

impl<S: RingServer> Drop for HandedOver<S> {
    fn drop(&mut self) {
        self.take_back();
    }
}

#[cfg(test)]
mod tests;
