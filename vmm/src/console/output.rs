//! The guest's output before it reaches a console's target: a bounded buffer with one position per
//! reader.
//!
//! The UART pushes and returns at once; the console's thread takes. This module knows neither.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::wake::WakeEvent;
use crate::config::SerialPolicy;

/// The amount of unread output at which a guest has to wait, or output is dropped.
pub(super) const LIMIT: usize = 64 << 10;
/// A guest that waits continues below this, so that it is woken once per half a buffer and not once
/// per write.
const LOW: usize = LIMIT / 2;
/// Room above the limit for output after interrupted waits: each interruption lets a vCPU execute
/// one more instruction.
const SLACK: usize = LIMIT;
/// The most that is written to a target in one call.
pub(super) const CHUNK: usize = 4096;
/// How long output is gathered after everything was written. A guest that prints byte by byte then
/// costs one wake-up per millisecond instead of one per byte. The first byte after a pause is
/// written at once.
const GATHER: Duration = Duration::from_millis(1);

/// A reader of the output: a target, or one client of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReaderId(u64);

#[derive(Debug)]
struct OutputReader {
    id: ReaderId,
    /// Position of the first byte that it has not read.
    at: u64,
    /// Position at which it was added. Earlier bytes are history, for which no guest waits.
    since: u64,
}

impl OutputReader {
    /// Returns how many bytes printed since it was added it has not read.
    fn backlog(&self, end: u64) -> u64 {
        end - self.at.max(self.since)
    }
}

/// What the console's thread is doing, which decides what wakes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ThreadState {
    /// Sleeps until there is output.
    Idle,
    /// Sleeps until the gathering time is over or half the buffer is full.
    Gathering,
    /// Looks at the buffer before it sleeps.
    Busy,
}

#[derive(Debug)]
struct OutputState {
    /// The last bytes, up to `end`.
    ring: VecDeque<u8>,
    /// Number of bytes ever pushed.
    end: u64,
    readers: Vec<OutputReader>,
    next: u64,
    /// How many of the last bytes are kept for future readers.
    history: usize,
    policy: SerialPolicy,
    thread: ThreadState,
    gather_until: Option<Instant>,
    /// Calls of `finish` in progress: no output is gathered meanwhile.
    finishing: usize,
    /// Bytes taken by readers, as a measure of progress.
    taken: u64,
    dropped: u64,
    /// The thread has ended.
    closed: bool,
}

/// A bounded output buffer with one position per reader; see the module.
#[derive(Debug)]
pub(super) struct Output {
    state: Mutex<OutputState>,
    /// Signalled when there is room again, everything was taken, or a wait was interrupted.
    changed: Condvar,
    /// A copy of `OutputState::waits`, for the fast path.
    full: AtomicBool,
    interruptions: AtomicU64,
    wake: Arc<WakeEvent>,
}

/// What the thread does next about output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutputStep {
    /// Whether to write unread output.
    pub(super) write: bool,
    /// The longest time to sleep.
    pub(super) timeout: Option<Duration>,
}

impl Output {
    /// Returns an empty buffer without readers, that wakes its thread by `wake` and keeps `history`
    /// bytes.
    pub(super) fn new(wake: Arc<WakeEvent>, history: usize, policy: SerialPolicy) -> Self {
        let state = OutputState {
            ring: VecDeque::new(),
            end: 0,
            readers: Vec::new(),
            next: 0,
            history,
            policy,
            thread: ThreadState::Busy,
            gather_until: None,
            finishing: 0,
            taken: 0,
            dropped: 0,
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            full: AtomicBool::new(false),
            interruptions: AtomicU64::new(0),
            wake,
        }
    }

    fn state(&self) -> MutexGuard<'_, OutputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts output. Never waits for a target.
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut state = self.state();
        if state.closed {
            state.dropped += bytes.len() as u64;
            return;
        }
        state.ring.extend(bytes);
        state.end += bytes.len() as u64;
        state.trim();
        let wake = match state.thread {
            ThreadState::Idle => state.unread() > 0,
            ThreadState::Gathering => state.unread() >= LOW,
            ThreadState::Busy => false,
        };
        if wake {
            state.thread = ThreadState::Busy;
        }
        self.update(&state);
        drop(state);
        if wake {
            self.wake.signal();
        }
    }

    /// Updates whether writers have to wait, and wakes them when they no longer have to.
    fn update(&self, state: &OutputState) {
        let full = state.waits(self.full.load(Ordering::Relaxed));
        if self.full.swap(full, Ordering::Relaxed) && !full {
            self.changed.notify_all();
        }
    }

    /// Changes what happens when the buffer is full.
    pub(super) fn set_policy(&self, policy: SerialPolicy) {
        let mut state = self.state();
        state.policy = policy;
        state.trim();
        self.update(&state);
    }

    /// Returns the number of interruptions so far.
    pub(super) fn interruptions(&self) -> u64 {
        self.interruptions.load(Ordering::Acquire)
    }

    /// Interrupts every wait, including one that starts with an older count of interruptions.
    pub(super) fn interrupt(&self) {
        let _state = self.state();
        self.interruptions.fetch_add(1, Ordering::Release);
        self.changed.notify_all();
    }

    /// Blocks while the buffer is full and the count of interruptions is `seen`; returns the count.
    pub(super) fn wait_for_room(&self, seen: u64) -> u64 {
        if self.full.load(Ordering::Relaxed) {
            let mut state = self.state();
            while self.full.load(Ordering::Relaxed) && self.interruptions() == seen {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
        self.interruptions()
    }

    /// Blocks until the readers have read everything, there was no progress for `grace`, or `limit`
    /// is over. Returns how many bytes are left.
    pub(super) fn finish(&self, grace: Duration, limit: Duration) -> u64 {
        let mut state = self.state();
        state.finishing += 1;
        self.wake.signal();
        let start = Instant::now();
        let mut progress = (state.taken, start);
        while state.unread() > 0 && !state.closed {
            let left = grace
                .saturating_sub(progress.1.elapsed())
                .min(limit.saturating_sub(start.elapsed()));
            if left.is_zero() {
                break;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if state.taken != progress.0 {
                progress = (state.taken, Instant::now());
            }
        }
        state.finishing -= 1;
        state.unread() as u64
    }

    /// Returns whether a writer has to wait.
    #[cfg(test)]
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Returns the number of readers.
    #[cfg(test)]
    pub(super) fn readers(&self) -> usize {
        self.state().readers.len()
    }

    /// Returns the number of dropped bytes; a byte that several readers missed counts for each.
    pub(super) fn dropped(&self) -> u64 {
        self.state().dropped
    }

    /// Drops all remaining and all future output, because the thread has ended.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let readers = std::mem::take(&mut state.readers);
        state.dropped += readers
            .iter()
            .map(|reader| state.end - reader.at)
            .max()
            .unwrap_or(0);
        self.update(&state);
        self.changed.notify_all();
    }

    /// Blocks until `close` is called, at most for `timeout`; returns whether it was called.
    pub(super) fn wait_closed(&self, timeout: Duration) -> bool {
        let state = self.state();
        let waited = self
            .changed
            .wait_timeout_while(state, timeout, |state| !state.closed);
        waited.unwrap_or_else(PoisonError::into_inner).0.closed
    }

    /// Adds a reader, which reads the history first.
    pub(super) fn add_reader(&self) -> ReaderId {
        let mut state = self.state();
        let id = ReaderId(state.next);
        state.next += 1;
        let at = state.end - state.history.min(state.ring.len()) as u64;
        let since = state.end;
        state.readers.push(OutputReader { id, at, since });
        self.update(&state);
        id
    }

    /// Removes a reader. What it has not read is not counted as dropped.
    pub(super) fn remove_reader(&self, id: ReaderId) {
        let mut state = self.state();
        state.readers.retain(|reader| reader.id != id);
        state.trim();
        self.update(&state);
        self.changed.notify_all();
    }

    /// Returns whether the reader has unread output.
    pub(super) fn has_unread(&self, id: ReaderId) -> bool {
        let state = self.state();
        state.reader(id).is_some_and(|reader| reader.at < state.end)
    }

    /// Copies the next bytes for a reader; returns their position and number.
    pub(super) fn peek(&self, id: ReaderId, chunk: &mut [u8; CHUNK]) -> (u64, usize) {
        let state = self.state();
        let Some(at) = state.reader(id).map(|reader| reader.at) else {
            return (0, 0);
        };
        let skip = usize::try_from(at - state.start()).unwrap_or(usize::MAX);
        let bytes = state.ring.iter().skip(skip).take(CHUNK);
        let len = bytes.len();
        for (to, from) in chunk.iter_mut().zip(bytes) {
            *to = *from;
        }
        (at, len)
    }

    /// Records that a reader has read `len` bytes from position `at` on.
    pub(super) fn advance(&self, id: ReaderId, at: u64, len: usize) {
        let mut state = self.state();
        let until = at + len as u64;
        let Some(reader) = state.readers.iter_mut().find(|reader| reader.id == id) else {
            return;
        };
        // Bytes that were counted as dropped while they were being written.
        let early = reader.at.min(until).saturating_sub(at);
        reader.at = reader.at.max(until);
        state.dropped -= early;
        state.taken += len as u64;
        state.trim();
        self.update(&state);
        if state.finishing > 0 {
            self.changed.notify_all();
        }
    }

    /// Drops a reader's unread output, because its target fails. Returns the number of bytes.
    pub(super) fn discard(&self, id: ReaderId) -> u64 {
        let mut state = self.state();
        let end = state.end;
        let Some(reader) = state.readers.iter_mut().find(|reader| reader.id == id) else {
            return 0;
        };
        let lost = end - reader.at;
        reader.at = end;
        state.dropped += lost;
        state.trim();
        self.update(&state);
        self.changed.notify_all();
        lost
    }

    /// Decides what the thread does before it sleeps. `wrote`: it has just written.
    pub(super) fn next_step(&self, wrote: bool) -> OutputStep {
        let mut state = self.state();
        let now = Instant::now();
        if wrote && state.unread() == 0 {
            state.gather_until = Some(now + GATHER);
        }
        let left = state
            .gather_until
            .map(|until| until.saturating_duration_since(now))
            .filter(|left| !left.is_zero());
        let unread = state.unread();
        let (thread, step) = match left {
            Some(left) if unread < LOW && state.finishing == 0 && !state.closed => {
                let timeout = Some(left);
                (
                    ThreadState::Gathering,
                    OutputStep {
                        write: false,
                        timeout,
                    },
                )
            }
            _ => {
                // If every reader has unread output, the thread polls all of them. Otherwise output
                // for another reader has to wake it.
                let all = state.readers.iter().all(|reader| reader.at < state.end);
                let thread = if unread > 0 && all {
                    ThreadState::Busy
                } else {
                    ThreadState::Idle
                };
                let timeout = None;
                (
                    thread,
                    OutputStep {
                        write: unread > 0,
                        timeout,
                    },
                )
            }
        };
        if left.is_none() {
            state.gather_until = None;
        }
        state.thread = thread;
        step
    }
}

impl OutputState {
    /// Returns the position of the oldest byte in the ring.
    fn start(&self) -> u64 {
        self.end - self.ring.len() as u64
    }

    fn reader(&self, id: ReaderId) -> Option<&OutputReader> {
        self.readers.iter().find(|reader| reader.id == id)
    }

    /// Returns how many bytes the slowest reader has not read.
    fn unread(&self) -> usize {
        let slowest = self.readers.iter().map(|reader| reader.at).min();
        let unread = self.end - slowest.unwrap_or(self.end);
        usize::try_from(unread).unwrap_or(usize::MAX)
    }

    /// Returns the largest backlog of all readers.
    fn backlog(&self) -> u64 {
        let backlogs = self.readers.iter().map(|reader| reader.backlog(self.end));
        backlogs.max().unwrap_or(0)
    }

    /// Returns whether a writer has to wait; `already`: whether it had to before (hysteresis).
    fn waits(&self, already: bool) -> bool {
        let from = if already { LOW } else { LIMIT };
        !self.closed && self.policy == SerialPolicy::Wait && self.backlog() >= from as u64
    }

    /// Moves readers that are too far behind, and drops bytes that are neither unread nor history.
    fn trim(&mut self) {
        let most = match self.policy {
            SerialPolicy::Wait => LIMIT + SLACK,
            SerialPolicy::Drop => LIMIT,
        };
        for reader in &mut self.readers {
            if reader.backlog(self.end) > most as u64 {
                let at = self.end - most as u64;
                self.dropped += at - reader.at;
                reader.at = at;
            }
        }
        let keep = self.unread().max(self.history);
        let surplus = self.ring.len().saturating_sub(keep);
        self.ring.drain(..surplus);
    }
}
