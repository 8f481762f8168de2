//! Common to the tests of all devices: timeouts, data patterns, timed loops and report lines.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use splitring_virtio::driver::DmaBytes;
use splitring_virtio::scatterlist::ScatterList;

use crate::interrupts;
use crate::machine::{Options, ticks};
use crate::report::Report;

/// Time limit for one request.
const TIMEOUT_MILLIS: u64 = 10_000;

/// Minimum number of polls before a timeout: they take some tenths of a second.
const MIN_POLLS: u64 = 10_000_000;

/// Idle time before and after a timed loop, so that the host can read its counters between the
/// lines.
const PAUSE_MILLIS: u64 = 20;

/// The timeout in ticks of the time stamp counter; set once, before any device is used.
static TIMEOUT_TICKS: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(u64::MAX);

/// How a driver waits for the device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Polls the used ring.
    Poll,
    /// Sleeps until the interrupt arrives.
    Interrupt,
}

impl Wait {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Poll => "",
            Self::Interrupt => " interrupts",
        }
    }

    /// Waits after the device had nothing to do. `ask` requests an interrupt and returns whether
    /// there is something meanwhile.
    pub(crate) fn sleep(self, ask: impl FnOnce() -> bool) {
        if self == Self::Interrupt {
            let seen = interrupts::count();
            if !ask() {
                interrupts::wait(seen);
            }
        }
    }
}

/// Why a test did not pass.
pub(crate) enum TestError {
    /// What failed.
    Failed(String),
    /// Why the test can't run on this machine.
    Skipped(&'static str),
}

impl TestError {
    pub(crate) fn new(why: &str) -> Self {
        Self::Failed(why.into())
    }

    pub(crate) fn text(why: impl fmt::Display) -> Self {
        Self::Failed(format!("{why}"))
    }
}

/// Returns zeroed memory for a device, aligned to its own size, at most to a page.
pub(crate) fn bytes(len: usize) -> Result<DmaBytes, TestError> {
    let align = len.next_power_of_two().clamp(64, 4096);
    DmaBytes::zeroed(len, align)
        .map(DmaBytes::leak)
        .ok_or(TestError::new("the guest's memory is used up"))
}

/// Polls until `ask` returns something. The timeout needs both the time and a number of polls, so
/// that a host that was suspended is not mistaken for a device that does not answer.
pub(crate) fn poll_until<T>(
    mut ask: impl FnMut() -> Result<Option<T>, TestError>,
) -> Result<T, TestError> {
    let limit = TIMEOUT_TICKS.load(core::sync::atomic::Ordering::Relaxed);
    let start = ticks();
    let mut asked = 0u64;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        asked += 1;
        if asked > MIN_POLLS && ticks().wrapping_sub(start) > limit {
            return Err(TestError::new("no answer within 10 seconds"));
        }
        core::hint::spin_loop();
    }
}

/// A recognisable data pattern; number 0 is all zeroes.
#[derive(Clone, Copy)]
pub(crate) struct Pattern(pub(crate) u64);

impl Pattern {
    pub(crate) fn byte(self, at: usize) -> u8 {
        let mixed = (at as u64 / 7 + 1).wrapping_mul(self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        (mixed >> 32) as u8
    }

    pub(crate) fn fill(self, to: &mut [u8], from: usize) {
        for (at, byte) in to.iter_mut().enumerate() {
            *byte = self.byte(from + at);
        }
    }

    fn pieces(self, sizes: &[usize], from: usize) -> Result<(Vec<DmaBytes>, usize), TestError> {
        let mut at = from;
        let mut pieces = Vec::with_capacity(sizes.len());
        for size in sizes {
            let mut piece = bytes(*size)?;
            self.fill(piece.bytes_mut(), at);
            at += size;
            pieces.push(piece);
        }
        Ok((pieces, at))
    }

    /// Returns one list with pieces of these sizes.
    pub(crate) fn list(self, sizes: &[usize]) -> Result<ScatterList, TestError> {
        Ok(ScatterList::from_buffers(self.pieces(sizes, 0)?.0))
    }

    /// Returns lists with pieces of these sizes, each chained to the next.
    pub(crate) fn chain(self, lists: &[&[usize]]) -> Result<ScatterList, TestError> {
        let mut at = 0;
        let mut made = Vec::with_capacity(lists.len());
        for sizes in lists {
            let (pieces, end) = self.pieces(sizes, at)?;
            at = end;
            // One more entry for the link.
            let mut list = ScatterList::new(pieces.len() + 1);
            list.fill(pieces)
                .map_err(|_| TestError::new("a list is too small for its pieces"))?;
            made.push(list);
        }
        let mut rest: Option<ScatterList> = None;
        while let Some(mut list) = made.pop() {
            if let Some(next) = rest.take() {
                list.unmark_end(list.capacity() - 2);
                list.chain(next)
                    .map_err(|_| TestError::new("lists do not chain"))?;
            }
            rest = Some(list);
        }
        rest.ok_or(TestError::new("no list"))
    }

    /// Checks that a list has the pattern.
    pub(crate) fn check(self, mut list: ScatterList) -> Result<(), TestError> {
        let mut at = 0;
        let mut wrong = None;
        list.for_each_mut(|piece| {
            for byte in piece.bytes() {
                if *byte != self.byte(at) && wrong.is_none() {
                    wrong = Some(at);
                }
                at += 1;
            }
        });
        match wrong {
            Some(at) => Err(TestError::Failed(format!(
                "byte {at} of pattern {} is wrong",
                self.0
            ))),
            None => Ok(()),
        }
    }
}

/// The state of a timed loop: counts operations and says when to stop.
pub(crate) struct Load {
    end: u64,
    count: u64,
    state: u64,
}

impl Load {
    /// Returns whether there is time left.
    pub(crate) fn has_time_left(&self) -> bool {
        ticks() < self.end
    }

    /// Counts one completed operation.
    pub(crate) fn count(&mut self) {
        self.count += 1;
    }

    /// Returns a pseudo-random number (xorshift), for the address of the next operation.
    pub(crate) fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}

/// Runs tests and reports the result of each.
pub(crate) struct Suite<'a> {
    report: &'a mut Report,
    options: Options,
}

impl<'a> Suite<'a> {
    pub(crate) fn new(report: &'a mut Report, options: Options) -> Self {
        let limit = options.tsc_khz.saturating_mul(TIMEOUT_MILLIS);
        TIMEOUT_TICKS.store(limit, core::sync::atomic::Ordering::Relaxed);
        Self { report, options }
    }

    /// Returns the ways in which timed loops can wait on this machine.
    pub(crate) fn waits(&self) -> &'static [Wait] {
        if self.options.interrupts {
            &[Wait::Poll, Wait::Interrupt]
        } else {
            &[Wait::Poll]
        }
    }

    /// Runs one test and reports `test NAME ok`, `test NAME skipped: why` or `test NAME failed:
    /// why`.
    pub(crate) fn test(
        &mut self,
        name: fmt::Arguments<'_>,
        work: impl FnOnce() -> Result<(), TestError>,
    ) {
        if !self.options.only_timed {
            self.verdict(name, work());
        }
    }

    fn verdict(&mut self, name: fmt::Arguments<'_>, result: Result<(), TestError>) {
        match result {
            Ok(()) => self.report.line(format_args!("test {name} ok")),
            Err(TestError::Skipped(why)) => {
                self.report.line(format_args!("test {name} skipped: {why}"))
            }
            Err(TestError::Failed(why)) => {
                self.report.line(format_args!("test {name} failed: {why}"))
            }
        }
    }

    fn pause(&self) {
        let end = ticks().saturating_add(self.options.tsc_khz.saturating_mul(PAUSE_MILLIS));
        while ticks() < end {
            core::hint::spin_loop();
        }
    }

    /// Runs one timed loop. Reports `begin NAME`, then `time NAME OPERATIONS NANOSECONDS`, or its
    /// failure like a test's.
    pub(crate) fn time(
        &mut self,
        name: fmt::Arguments<'_>,
        work: impl FnOnce(&mut Load) -> Result<(), TestError>,
    ) {
        self.report.line(format_args!("begin {name}"));
        self.pause();
        let start = ticks();
        let length = self.options.tsc_khz.saturating_mul(self.options.millis);
        let mut load = Load {
            end: start.saturating_add(length),
            count: 0,
            state: start | 1,
        };
        match work(&mut load) {
            Ok(()) => {
                let took = u128::from(ticks().wrapping_sub(start));
                let nanoseconds = took * 1_000_000 / u128::from(self.options.tsc_khz.max(1));
                let count = load.count;
                self.report
                    .line(format_args!("time {name} {count} {nanoseconds}"));
                self.pause();
            }
            Err(fault) => self.verdict(name, Err(fault)),
        }
    }

    /// Reports a device that could not be initialised.
    pub(crate) fn device(&mut self, name: &str, result: Result<(), TestError>) {
        if let Err(fault) = result {
            self.verdict(format_args!("{name} set-up"), Err(fault));
        }
    }
}
