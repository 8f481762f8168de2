//! The worker's thread: waits for events, runs the tasks they belong to, and those that asked to go on.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use event_manager::{EventManager, Events, SubscriberId, SubscriberOps};

use super::calls::Calls;
use super::drain;
use super::error::{Failure, OnFailure};
use super::event_loop::{CALLS, Loop, TIMERS, apply_changes, unwatch_fd};
use super::watches::KICK_EVENTS;

pub(super) struct Reporter {
    pub(super) worker: String,
    pub(super) on_failure: OnFailure,
}

impl Reporter {
    fn panic(&self, payload: &(dyn Any + Send)) {
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        let worker = self.worker.clone();
        (self.on_failure)(Failure::Panic { worker, message });
    }
}

/// The thread. A panic in a handler, or in dropping it, is reported and goes no further.
pub(super) fn serve(
    mut manager: EventManager<Loop>,
    subscriber: SubscriberId,
    calls: Calls<Loop>,
    reporter: &Reporter,
) {
    let ended = catch_unwind(AssertUnwindSafe(|| turn(&mut manager, subscriber, &calls)));
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(message)) => (reporter.on_failure)(Failure::Loop {
            worker: reporter.worker.clone(),
            message,
        }),
        Err(payload) => reporter.panic(payload.as_ref()),
    }
    let dropped = catch_unwind(AssertUnwindSafe(move || {
        if let Ok(state) = manager.subscriber_mut(subscriber) {
            state.stop_all();
        }
        drop(manager);
        // Those that came too late may hold a handler.
        drop(calls);
    }));
    if let Err(payload) = dropped {
        reporter.panic(payload.as_ref());
    }
}

/// Adds the loop's one subscriber, which listens for `calls` and for its timers.
pub(super) fn add_loop(
    manager: &mut EventManager<Loop>,
    state: Loop,
    calls: &Calls<Loop>,
) -> io::Result<SubscriberId> {
    let timers = Events::with_data_raw(state.timers.descriptor(), TIMERS, KICK_EVENTS);
    let wake = Events::with_data_raw(calls.wake(), CALLS, KICK_EVENTS);
    let subscriber = manager.add_subscriber(state);
    let mut events = manager.event_ops(subscriber).map_err(other)?;
    events.add(wake).map_err(other)?;
    events.add(timers).map_err(other)?;
    Ok(subscriber)
}

fn other(error: event_manager::Error) -> io::Error {
    io::Error::other(error.to_string())
}

fn turn(
    manager: &mut EventManager<Loop>,
    subscriber: SubscriberId,
    calls: &Calls<Loop>,
) -> Result<(), String> {
    let mut wait = -1;
    loop {
        manager
            .run_with_timeout(wait)
            .map_err(|error| error.to_string())?;
        let state = loop_state(manager, subscriber)?;
        let called = std::mem::take(&mut state.called);
        if state.has_changes() {
            apply_changes(manager, subscriber).map_err(|error| error.to_string())?;
        }
        if called {
            calls.run(manager);
        }
        let state = loop_state(manager, subscriber)?;
        if state.quit {
            return Ok(());
        }
        // Only what was ready before this round: a task that asks for more waits for the others' events.
        let round = state.ready.len();
        let mut halted = state.run_ready(round);
        state.poll(&mut halted);
        let pausing = state.is_pausing();
        for (slot, fd) in halted {
            let mut events = manager
                .event_ops(subscriber)
                .map_err(|error| error.to_string())?;
            unwatch_fd(&mut events, fd, slot);
        }
        if pausing {
            drain::step(manager, subscriber).map_err(|error| error.to_string())?;
        }
        if loop_state(manager, subscriber)?.has_changes() {
            apply_changes(manager, subscriber).map_err(|error| error.to_string())?;
        }
        let state = loop_state(manager, subscriber)?;
        let armed = state.timers.arm(Instant::now());
        armed.map_err(|error| format!("cannot set its timer: {error}"))?;
        wait = state.wait();
        if wait != 0 {
            state.polled.sleeps();
        }
    }
}

fn loop_state(
    manager: &mut EventManager<Loop>,
    subscriber: SubscriberId,
) -> Result<&mut Loop, String> {
    manager
        .subscriber_mut(subscriber)
        .map_err(|error| error.to_string())
}
