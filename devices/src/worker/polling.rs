//! Whether a worker looks at the rings by itself for a while before it asks to be told and sleeps, and whether it owes
//! the interrupt for what it answered meanwhile.
//!
//! A kick costs the guest an exit and the worker a wake-up; a driver that adds its next buffer within microseconds
//! gets neither while the worker still looks. An interrupt costs the guest an exit, and what it was doing; a driver
//! that has several requests under way is better told of them at once. Both pay only sometimes, and how soon the driver
//! would have come can't be seen from a sleep, which includes the wake-up. So both are habits: kept as long as they
//! find work, given up when they don't, and tried now and then, ever more rarely. An idle guest costs nothing, and one
//! that waits for each request by itself is told at once.

use std::time::{Duration, Instant};

use super::habit::Habit;
use super::processor::Processor;

/// How long descriptors may go unlooked at while rings keep the worker busy.
const ROUND: Duration = Duration::from_micros(50);

/// Bursts in a row that end with their first request before interrupts are owed no more: a driver may be held up.
const PATIENCE: u32 = 2;

/// An interrupt is owed for no longer than this many windows, whatever comes in.
const OWED_WINDOWS: u32 = 8;

pub(super) struct Polling {
    /// How long a window lasts from the last work on.
    pub(super) window: Duration,
    processor: Processor,
    /// Whether there are windows; an occasion is a sleep.
    windows: Habit,
    /// Whether work was found in one since the last sleep.
    found: bool,
    /// Whether interrupts are owed; an occasion is a burst of requests.
    debts: Habit,
    /// Tasks that owe one, since when the first does, and whether more work was found since; and whether that was so
    /// since the last sleep.
    owing: Vec<u16>,
    owed: Option<Instant>,
    more: bool,
    burst: bool,
    /// What answering took since interrupts were raised last.
    busy: Duration,
    /// The usual pause between two requests of a burst, once there was one.
    pause: Option<Duration>,
    /// When there was work last.
    last: Instant,
    /// Tasks whose rings are looked at, with their kicks off.
    slots: Vec<u16>,
}

/// What to do after a look that began a round at some time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Look again.
    Look,
    /// Pay what is owed first: the burst is over.
    Settle,
    /// The same, though the burst goes on: it took too long.
    Overdue,
    /// Look at descriptors first.
    Events,
    /// The window is over.
    Sleep,
}

impl Polling {
    /// With windows of this length.
    pub(super) fn new(window: Duration, processor: Processor) -> Self {
        Self {
            window,
            processor,
            windows: Habit::new(0),
            found: false,
            debts: Habit::new(PATIENCE),
            owing: Vec::new(),
            owed: None,
            more: false,
            burst: false,
            busy: Duration::ZERO,
            pause: None,
            last: Instant::now(),
            slots: Vec::new(),
        }
    }

    /// Whether a task that ran out of work is to be looked at.
    pub(super) fn is_on(&self) -> bool {
        self.windows.on && !self.window.is_zero()
    }

    /// Whether it may owe the interrupt meanwhile.
    pub(super) fn may_owe(&self) -> bool {
        match self.processor {
            Processor::Own => self.debts.on,
            Processor::Shared => self.windows.on,
        }
    }

    /// Whether what is owed took longer to answer than eight round trips of a thread, beside which one interrupt more
    /// costs little.
    pub(super) fn is_slow(&self) -> bool {
        self.busy >= self.window
    }

    /// Between two looks.
    pub(super) fn rest(&self) {
        self.processor.rest();
    }

    pub(super) fn add(&mut self, slot: u16) {
        if !self.slots.contains(&slot) {
            self.slots.push(slot);
        }
    }

    /// As [`add`](Self::add), for a task that owes an interrupt since now.
    pub(super) fn owe(&mut self, slot: u16) {
        self.add(slot);
        if !self.owing.contains(&slot) {
            self.owing.push(slot);
        }
        if self.owed.is_none() {
            self.owed = Some(Instant::now());
        }
    }

    /// A task raised what it owed, if it did.
    pub(super) fn paid(&mut self, slot: u16) {
        self.owing.retain(|&other| other != slot);
        if self.owing.is_empty() {
            self.settled();
        }
    }

    pub(super) fn remove(&mut self, slot: u16) {
        self.slots.retain(|&other| other != slot);
        self.paid(slot);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The task in place `index`.
    pub(super) fn get(&self, index: usize) -> Option<u16> {
        self.slots.get(index).copied()
    }

    /// Ends the window: the tasks that have to ask for kicks again.
    pub(super) fn close(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.slots)
    }

    /// A look that began at `look` finds work.
    pub(super) fn finds(&mut self, look: Instant) {
        if self.owed.is_some() {
            let pause = look.saturating_duration_since(self.last);
            let usual = self.pause.unwrap_or(pause);
            // An eighth of the way to the new one.
            self.pause = usual.saturating_mul(7).saturating_add(pause).checked_div(8);
            (self.more, self.burst) = (true, true);
        } else if !self.debts.on {
            self.debts.missed();
        }
        self.found = true;
    }

    /// What a look that began at `look` found is done at `now`.
    pub(super) fn did(&mut self, look: Instant, now: Instant) {
        self.busy = self
            .busy
            .saturating_add(now.saturating_duration_since(look));
        self.last = now;
    }

    /// The worker slept and has work at `now`.
    pub(super) fn woke(&mut self, now: Instant) {
        let pause = now.saturating_duration_since(self.last);
        let paid = match self.processor {
            Processor::Own => self.found || pause <= self.window,
            Processor::Shared => self.burst,
        };
        self.windows.over(paid);
        if !self.debts.on {
            self.debts.missed();
        }
        (self.found, self.burst) = (false, false);
        self.last = now;
    }

    /// The interrupts owed were raised.
    pub(super) fn settled(&mut self) {
        self.owing.clear();
        self.busy = Duration::ZERO;
        if self.owed.take().is_some() {
            self.debts.over(self.more);
            self.more = false;
        }
    }

    /// How to go on at `now` in a round that began at `start`.
    pub(super) fn turn(&self, start: Instant, now: Instant) -> Turn {
        let quiet = now.saturating_duration_since(self.last);
        let most = self.window.saturating_mul(OWED_WINDOWS);
        let age = self.owed.map(|since| now.saturating_duration_since(since));
        if age.is_some() && quiet >= self.processor.quiet_end(self.pause, self.window) {
            Turn::Settle
        } else if age.is_some_and(|age| age >= most) {
            Turn::Overdue
        } else if quiet >= self.window {
            Turn::Sleep
        } else if now.saturating_duration_since(start) >= ROUND {
            Turn::Events
        } else {
            Turn::Look
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::habit::TRY_AFTER;

    const WINDOW: Duration = Duration::from_micros(32);

    fn micros(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    fn polling(window: Duration) -> Polling {
        Polling::new(window, Processor::Own)
    }

    /// A look at `look` finds what is done at `now`.
    fn answer(polling: &mut Polling, look: Instant, now: Instant) {
        polling.finds(look);
        polling.did(look, now);
    }

    /// Sleeps for `pause` after finding work in a window or not; whether the next one is looked at.
    fn sleep(polling: &mut Polling, found: bool, pause: u64) -> bool {
        if found {
            let last = polling.last;
            answer(polling, last, last);
        }
        polling.woke(polling.last + micros(pause));
        polling.is_on()
    }

    #[test]
    fn windows_go_on_while_work_is_found_and_end_when_it_is_not() {
        let mut polling = polling(WINDOW);
        assert!(sleep(&mut polling, false, 20), "it would have paid");
        assert!(sleep(&mut polling, true, 5000), "it did pay");
        assert!(!sleep(&mut polling, false, 5000));
        assert!(!sleep(&mut polling, false, 5000));
    }

    #[test]
    fn a_window_is_tried_now_and_then_and_ever_more_rarely() {
        let mut polling = polling(WINDOW);
        let mut tried = Vec::new();
        for sleeps in 0..200 {
            if sleep(&mut polling, false, 45) {
                tried.push(sleeps);
            }
        }
        assert_eq!(tried, [7, 24, 57, 122]);
        assert!(sleep(&mut polling, true, 45), "and kept when it finds work");
    }

    #[test]
    fn there_is_no_window_where_none_is_wanted() {
        let mut polling = polling(Duration::ZERO);
        assert!((0..1000).all(|pause| !sleep(&mut polling, true, pause)));
    }

    #[test]
    fn a_round_ends_with_the_window_or_for_the_descriptors() {
        let mut polling = polling(WINDOW);
        let start = polling.last;
        assert_eq!(polling.turn(start, start + micros(31)), Turn::Look);
        assert_eq!(polling.turn(start, start + micros(32)), Turn::Sleep);
        answer(&mut polling, start, start + micros(40));
        assert_eq!(polling.turn(start, start + micros(49)), Turn::Look);
        assert_eq!(polling.turn(start, start + micros(50)), Turn::Events);
    }

    /// A burst of requests `pauses` microseconds apart, answered with an interrupt owed if it may be; when that is
    /// due, in microseconds after the last.
    fn burst(polling: &mut Polling, pauses: &[u64]) -> Option<u64> {
        if !polling.may_owe() {
            let last = polling.last;
            answer(polling, last, last);
            return None;
        }
        polling.owed = Some(polling.last);
        for &pause in pauses {
            let next = polling.last + micros(pause);
            answer(polling, next, next + micros(20));
        }
        let due = (0..=32).find(|quiet| {
            let now = polling.last + micros(*quiet);
            polling.turn(now, now) == Turn::Settle
        });
        polling.settled();
        due
    }

    #[test]
    fn an_interrupt_is_owed_while_more_keeps_coming_and_not_when_nothing_does() {
        let mut polling = polling(WINDOW);
        for _ in 0..TRY_AFTER {
            assert_eq!(burst(&mut polling, &[]), None, "not before it is tried");
        }
        assert_eq!(burst(&mut polling, &[3, 3, 3]), Some(24), "eight pauses");
        assert_eq!(burst(&mut polling, &[3]), Some(24));
        for _ in 0..=PATIENCE {
            assert_eq!(burst(&mut polling, &[]), Some(24), "nothing more came");
        }
        for _ in 0..2 * TRY_AFTER {
            assert_eq!(burst(&mut polling, &[]), None);
        }
        assert_eq!(burst(&mut polling, &[]), Some(24), "tried again");
    }

    #[test]
    fn with_one_processor_only_bursts_keep_windows() {
        let mut polling = Polling::new(WINDOW, Processor::Shared);
        let tries = |polling: &mut Polling| (0..100).filter(|_| sleep(polling, true, 5)).count();
        assert!(tries(&mut polling) < 10, "requests by themselves");
        while !sleep(&mut polling, false, 5000) {}
        for _ in 0..100 {
            assert!(burst(&mut polling, &[5, 5]).is_some());
            assert!(sleep(&mut polling, false, 5000));
        }
    }

    #[test]
    fn answers_are_slow_once_they_took_a_window_together() {
        let mut polling = polling(WINDOW);
        let mut after = |micro| {
            let look = polling.last + micros(100);
            answer(&mut polling, look, look + micros(micro));
            polling.is_slow()
        };
        assert!(!after(16));
        assert!(!after(15));
        assert!(after(1));
        polling.settled();
        assert!(!polling.is_slow());
    }

    #[test]
    fn an_interrupt_is_not_owed_for_long_whatever_comes() {
        let mut polling = polling(WINDOW);
        let since = polling.last;
        polling.owed = Some(since);
        let mut now = since;
        while polling.turn(now, now) != Turn::Overdue {
            now += micros(1);
            answer(&mut polling, now, now);
        }
        assert_eq!(now, since + micros(8 * 32));
    }
}
