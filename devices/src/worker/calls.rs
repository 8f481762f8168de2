//! Calls into a worker's loop from other threads: a channel of closures, and an eventfd that wakes the loop.
//!
//! event-manager's remote endpoint does the same, but its eventfd is inherited by child processes.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use event_manager::SubscriberOps;
use vmm_sys_util::eventfd::EventFd;

use crate::eventfd::eventfd;

/// What a call works on: a loop whose subscribers are `S`.
pub(super) type Ops<'a, S> = dyn SubscriberOps<Subscriber = S> + 'a;

type Call<S> = Box<dyn FnOnce(&mut Ops<'_, S>) + Send>;

/// The end for other threads.
pub(super) struct Caller<S> {
    sender: Sender<Call<S>>,
    wake: EventFd,
}

/// The loop's end.
pub(super) struct Calls<S> {
    receiver: Receiver<Call<S>>,
    wake: EventFd,
}

/// The loop has ended.
#[derive(Debug)]
pub(super) struct Ended;

pub(super) fn calls<S>() -> io::Result<(Caller<S>, Calls<S>)> {
    let (sender, receiver) = channel();
    let wake = eventfd()?;
    let calls = Calls {
        receiver,
        wake: wake.try_clone()?,
    };
    Ok((Caller { sender, wake }, calls))
}

impl<S> Caller<S> {
    /// Has the loop run `call` soon. If the loop ends first, `call` is dropped.
    pub(super) fn fire(
        &self,
        call: impl FnOnce(&mut Ops<'_, S>) + Send + 'static,
    ) -> Result<(), Ended> {
        self.sender.send(Box::new(call)).map_err(|_| Ended)?;
        // An eventfd at its limit is signalled already.
        let _ = self.wake.write(1);
        Ok(())
    }
}

impl<S> Calls<S> {
    /// What to wait for, edge-triggered: each call is a signal of its own, so it is never read.
    pub(super) fn wake(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Runs every call that has come in.
    pub(super) fn run(&self, ops: &mut Ops<'_, S>) {
        for call in self.receiver.try_iter() {
            call(ops);
        }
    }
}
