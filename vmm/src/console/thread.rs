//! The console's thread: waits for targets, clients, room in the UART and commands, and moves
//! bytes.

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::shared::ConsoleShared;
use super::target::{ConsoleTarget, Pass};
use crate::kick;

/// Serves `target` until the console is closed.
pub(super) fn run(shared: &ConsoleShared, target: Box<dyn ConsoleTarget>) {
    kick::block_other_signals();
    #[cfg(test)]
    shared.tid.store(
        rustix::thread::gettid().as_raw_nonzero().get(),
        Ordering::SeqCst,
    );
    let registered = shared.kicks.register_thread();
    if catch_unwind(AssertUnwindSafe(|| serve(shared, target))).is_err() {
        let _in_span = shared.span.get().map(tracing::Span::enter);
        tracing::error!("serial console: its thread has failed; output is dropped from now on");
    }
    // Output is no longer taken, so nothing may wait for it.
    shared.output.close();
    drop(registered);
}

fn serve(shared: &ConsoleShared, mut target: Box<dyn ConsoleTarget>) {
    let mut wrote = false;
    while !shared.closing.load(Ordering::Acquire) {
        let step = shared.output.next_step(wrote);
        let _in_span = shared.span.get().map(tracing::Span::enter);
        let pass = Pass {
            output: &shared.output,
            input: &shared.input,
            write: step.write,
        };
        let waiting = shared.input.offer();
        let pause = target.prepare(pass);
        let timeout = shortest(step.timeout, pause);
        let ready = wait(shared, &*target, waiting, timeout);
        wrote = target.serve(pass, &ready);
    }
}

fn shortest(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Blocks until something is ready; returns the events of the target's descriptors. `input`: queued
/// input waits for room in the UART.
fn wait(
    shared: &ConsoleShared,
    target: &dyn ConsoleTarget,
    input: bool,
    timeout: Option<Duration>,
) -> Vec<PollFlags> {
    let room = shared.input.port_room().filter(|_| input);
    let wake = shared.wake.fd();
    let room = room.as_ref().map(AsFd::as_fd);
    let events = wake.into_iter().chain(room);
    let mut fds: Vec<_> = events
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    let own = fds.len();
    target.add_fds(&mut fds);
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    if poll(&mut fds, timeout.as_ref()).is_err() {
        // A kick, or out of memory: the next call asks again what is ready.
        for fd in &mut fds {
            fd.clear_revents();
        }
    }
    if fds.first().is_some_and(|fd| !fd.revents().is_empty()) {
        shared.wake.clear();
    }
    fds.iter().skip(own).map(PollFd::revents).collect()
}
