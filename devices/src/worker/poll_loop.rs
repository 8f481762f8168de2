//! The worker's looks at rings between events and sleep. See `polled` for whose.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use super::event_loop::{Entry, Loop, NO_SLOT};
use super::polled::{Look, Task};
use super::running::Next;
use crate::device::Cause;

/// How long descriptors may go unlooked at while rings keep the worker busy.
const ROUND: Duration = Duration::from_micros(50);

impl Loop {
    /// Looks at the rings until the window is over, or descriptors or tasks that have more to do
    /// want their turn.
    pub(super) fn poll(&mut self, halted: &mut Vec<(u16, RawFd)>) {
        if self.polled.tasks.is_empty() {
            return;
        }
        let start = Instant::now();
        let mut now = start;
        while !self.polled.tasks.is_empty() {
            if !self.has_ready() {
                self.polled.relax();
            }
            let look = self.look(now, halted);
            if self.has_ready() {
                return;
            }
            now = Instant::now();
            if self.polled.is_over(now, look) {
                return self.end_window();
            }
            if now.saturating_duration_since(start) >= ROUND {
                return;
            }
        }
    }

    /// One look at each task, and a pass of those that have work or an interrupt that is due.
    fn look(&mut self, now: Instant, halted: &mut Vec<(u16, RawFd)>) -> Look {
        let mut look = Look::default();
        let mut index = 0_usize;
        while let Some(&Task { slot, deadline }) = self.polled.tasks.get(index) {
            index = index.saturating_add(1);
            let Some(Some(Entry::Task(running))) = self.slots.get_mut(usize::from(slot)) else {
                continue;
            };
            let work = running.has_work();
            if work {
                self.polled.found();
            } else if deadline.is_none_or(|deadline| now < deadline) {
                continue;
            }
            look.work |= work;
            look.due |= !work;
            let next = running.pass(Cause::Resume, self.polled.is_on());
            if matches!(next, Next::Idle | Next::Halted) {
                // The one behind it takes its place.
                index = index.saturating_sub(1);
            }
            if next == Next::Halted {
                halted.extend(running.descriptors().map(|fd| (slot, fd)));
            }
            self.after(slot, next);
            if work {
                self.polled.did();
            }
        }
        look
    }

    /// Asks for kicks again, before the worker sleeps. Not of tasks that have answered all they got
    /// and whose interrupt is delayed: those are looked at when it is due.
    fn end_window(&mut self) {
        let mut index = 0_usize;
        while let Some(&Task { slot, deadline }) = self.polled.tasks.get(index) {
            let Some(Some(Entry::Task(running))) = self.slots.get_mut(usize::from(slot)) else {
                self.polled.remove(slot);
                continue;
            };
            let silent = deadline.is_some() && !running.in_flight();
            let more = match silent {
                true => running.has_work(),
                false => running.rearm() == Next::Again,
            };
            if more {
                self.push_ready(slot);
            }
            match deadline {
                Some(_) => index = index.saturating_add(1),
                None => self.polled.remove(slot),
            }
        }
        if let Some(deadline) = self.polled.end_window() {
            self.timers.set(NO_SLOT, 0, Some(deadline));
        }
    }

    /// Raises the interrupts that are delayed, and leaves kicks off until the tasks run again and
    /// look at everything.
    pub(super) fn stop_polling(&mut self) {
        for task in std::mem::take(&mut self.polled.tasks) {
            if let Some(Some(Entry::Task(running))) = self.slots.get_mut(usize::from(task.slot)) {
                // Whoever breaks here stays in place: its first pass after resuming finds it broken
                // again.
                let _ = running.flush();
            }
        }
    }
}
