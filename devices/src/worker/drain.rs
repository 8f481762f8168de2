//! The loop's side of a pause: tasks finish what is in flight and are parked one by one; a resume runs them all again.

use std::os::fd::RawFd;

use event_manager::SubscriberId;

use super::error::WorkerError;
use super::event_loop::{Entry, Loop, Ops, Phase, events_of, loop_of, unwatch_fd};
use super::pause::{Drain, Unfinished};

impl Loop {
    /// Whether there is anything to do about a pause.
    pub(super) fn is_pausing(&self) -> bool {
        !self.asked.is_empty() || matches!(self.phase, Phase::Draining(_))
    }

    /// Takes up the pauses that were asked for. False if there is nothing to drain.
    fn begin(&mut self) -> bool {
        let asked = std::mem::take(&mut self.asked);
        match &mut self.phase {
            Phase::Running if asked.is_empty() => return false,
            Phase::Running => {
                self.phase = Phase::Draining(asked);
                self.stop_polling();
            }
            Phase::Draining(drains) => {
                drains.retain(Drain::is_wanted);
                if drains.is_empty() {
                    // A drain was given up, so the tasks are to run once before the next one.
                    self.asked = asked;
                } else {
                    drains.extend(asked);
                }
            }
            Phase::Paused => {
                for drain in asked {
                    // Whether this asker still waits makes no difference to who paused first.
                    drain.paused();
                }
                return false;
            }
        }
        true
    }

    /// One step of every task that is not parked yet. Those to be parked now, with what is to be watched no more, and
    /// those that have requests in flight.
    fn quiesce(&mut self) -> (Vec<(u16, Vec<RawFd>)>, Vec<Unfinished>) {
        let (mut parked, mut unfinished) = (Vec::new(), Vec::<Unfinished>::new());
        let done = std::mem::take(&mut self.parked);
        for (slot, entry) in self.entries().filter(|(slot, _)| !done.contains(slot)) {
            let (device, in_flight) = match entry {
                Entry::Watch(_) => (String::new(), 0),
                Entry::Task(running) => (running.label.clone(), running.quiesce()),
            };
            if in_flight == 0 {
                parked.push((slot, entry.descriptors()));
                continue;
            }
            // A device has a task for each queue.
            match unfinished.iter_mut().find(|one| one.device == device) {
                Some(one) => one.in_flight = one.in_flight.saturating_add(in_flight),
                None => unfinished.push(Unfinished { device, in_flight }),
            }
        }
        let slots: Vec<u16> = self.entries().map(|(slot, _)| slot).collect();
        slots.into_iter().for_each(|slot| self.note_changes(slot));
        self.parked = done;
        self.parked.extend(parked.iter().map(|(slot, _)| *slot));
        (parked, unfinished)
    }
}

/// A step towards the pauses that were asked for, to be taken after the tasks that were ready have had their turn.
pub(super) fn step(ops: &mut Ops<'_>, subscriber: SubscriberId) -> Result<(), WorkerError> {
    let state = loop_of(ops, subscriber)?;
    if !state.begin() {
        return Ok(());
    }
    let mut drains = match &mut state.phase {
        Phase::Draining(drains) => std::mem::take(drains),
        Phase::Running | Phase::Paused => Vec::new(),
    };
    if drains.is_empty() {
        return run_again(ops, subscriber);
    }
    let (parked, unfinished) = state.quiesce();
    for (slot, descriptors) in parked {
        let mut events = events_of(ops, subscriber)?;
        for fd in descriptors {
            unwatch_fd(&mut events, fd, slot);
        }
    }
    let state = loop_of(ops, subscriber)?;
    if !unfinished.is_empty() {
        drains.retain(|drain| drain.report(&unfinished));
        if !drains.is_empty() {
            state.phase = Phase::Draining(drains);
            return Ok(());
        }
    } else {
        let mut wanted = false;
        for drain in drains {
            wanted |= drain.paused();
        }
        if wanted {
            state.phase = Phase::Paused;
            return Ok(());
        }
    }
    // Nobody waits for the pause any more.
    run_again(ops, subscriber)
}

/// Ends the pause, or the way to it; see [`Worker::resume`](super::Worker::resume).
pub(super) fn resume(ops: &mut Ops<'_>, subscriber: SubscriberId) -> Result<(), WorkerError> {
    let state = loop_of(ops, subscriber)?;
    state.asked.drain(..).for_each(Drain::resumed);
    match std::mem::replace(&mut state.phase, Phase::Running) {
        Phase::Running => return Ok(()),
        Phase::Paused => {}
        Phase::Draining(drains) => drains.into_iter().for_each(Drain::resumed),
    }
    run_again(ops, subscriber)
}

/// Watches everything that was watched before, and has every task look at everything once.
fn run_again(ops: &mut Ops<'_>, subscriber: SubscriberId) -> Result<(), WorkerError> {
    let state = loop_of(ops, subscriber)?;
    state.phase = Phase::Running;
    state.timers.repeat();
    let mut result = Ok(());
    for slot in state.live_slots() {
        let state = loop_of(ops, subscriber)?;
        let parked = state.parked.contains(&slot);
        let Some(entry) = state.take(slot) else {
            continue;
        };
        if parked {
            // What fails for one task must not keep the others from running.
            result = result.and(entry.watch(slot, &mut events_of(ops, subscriber)?));
        }
        loop_of(ops, subscriber)?.put(slot, Some(entry));
    }
    result
}
