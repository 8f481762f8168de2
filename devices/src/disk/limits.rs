//! Rate limits: requests and bytes a second, shared by all queues of a disk.
//!
//! Each limit is one number, the time at which everything admitted so far would be paid for (the generic cell rate
//! algorithm); a request is admitted while that lies less than a burst ahead. Queues update it without a lock and wait
//! for it by a timer. It works around any disk and knows nothing of what is behind.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::metrics::now;
use super::{
    Completion, Data, Disk, DiskError, DiskOp, DiskQueue, Extent, Full, Geometry, ImageId, IoFault,
};
use crate::ram::Ram;

const SECOND: u64 = 1_000_000_000;
/// How far ahead a limit may be spent: a tenth of a second's worth comes through at once after a pause.
const BURST: u64 = SECOND / 10;

/// A disk with limits in front of it.
pub struct LimitedDisk {
    inner: Arc<dyn Disk>,
    limits: Arc<Limits>,
}

#[derive(Debug)]
struct Limits {
    requests: Option<Rate>,
    bytes: Option<Rate>,
}

/// One limit.
#[derive(Debug)]
struct Rate {
    /// Units a second, at least 1.
    rate: u64,
    /// When all that was admitted is paid for, in nanoseconds of [`now`].
    paid: AtomicU64,
}

impl Rate {
    fn new(rate: u64) -> Self {
        Self {
            rate: rate.max(1),
            paid: AtomicU64::new(0),
        }
    }

    /// Nanoseconds from `now` until something is admitted; 0 is at once.
    fn wait(&self, now: u64) -> u64 {
        self.paid
            .load(Ordering::Relaxed)
            .saturating_sub(now.saturating_add(BURST))
    }

    fn charge(&self, now: u64, units: u64) {
        let cost = u128::from(units)
            .saturating_mul(u128::from(SECOND))
            .checked_div(u128::from(self.rate));
        let cost = u64::try_from(cost.unwrap_or(0)).unwrap_or(u64::MAX);
        // Always some value to store, so it can't fail.
        let _ = self
            .paid
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| {
                Some(paid.max(now).saturating_add(cost))
            });
    }
}

impl Limits {
    fn wait(&self, now: u64) -> u64 {
        let wait = |rate: &Option<Rate>| rate.as_ref().map_or(0, |rate| rate.wait(now));
        wait(&self.requests).max(wait(&self.bytes))
    }

    fn charge(&self, now: u64, bytes: u64) {
        if let Some(rate) = &self.requests {
            rate.charge(now, 1);
        }
        if let Some(rate) = &self.bytes {
            rate.charge(now, bytes);
        }
    }
}

impl LimitedDisk {
    /// `inner` with at most `requests` and `bytes` a second; `None` is no limit.
    #[must_use]
    pub fn new(inner: Arc<dyn Disk>, requests: Option<u64>, bytes: Option<u64>) -> Self {
        let limits = Limits {
            requests: requests.map(Rate::new),
            bytes: bytes.map(Rate::new),
        };
        Self {
            inner,
            limits: Arc::new(limits),
        }
    }
}

impl Disk for LimitedDisk {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn open_queue(
        &self,
        ram: Ram,
        index: u16,
        depth: u16,
    ) -> Result<Box<dyn DiskQueue>, DiskError> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, flags).map_err(|error| DiskError::Host {
                operation: "make a timer for",
                path: "a limited disk".into(),
                source: error.into(),
            })?;
        let inner = self.inner.open_queue(ram, index, depth)?;
        Ok(Box::new(LimitedQueue {
            inner,
            limits: Arc::clone(&self.limits),
            timer,
        }))
    }

    fn rescan(&self) -> Result<Geometry, DiskError> {
        self.inner.rescan()
    }

    fn extent(&self, offset: u64) -> Result<Extent, IoFault> {
        self.inner.extent(offset)
    }

    fn identity(&self) -> Option<ImageId> {
        self.inner.identity()
    }
}

struct LimitedQueue {
    inner: Box<dyn DiskQueue>,
    limits: Arc<Limits>,
    timer: OwnedFd,
}

impl LimitedQueue {
    /// Makes the event fire in `wait` nanoseconds.
    fn alarm(&self, wait: u64) {
        let in_range = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let alarm = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: in_range(wait.wrapping_div(SECOND)),
                tv_nsec: in_range(wait.wrapping_rem(SECOND)),
            },
        };
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &alarm) {
            tracing::error!("a rate limit can't set its timer: {error}");
        }
    }
}

impl DiskQueue for LimitedQueue {
    fn ready(&mut self) -> bool {
        match self.limits.wait(now()) {
            0 => self.inner.ready(),
            wait => {
                self.alarm(wait);
                false
            }
        }
    }

    fn submit(&mut self, tag: u64, op: DiskOp<'_>) -> Result<(), Full> {
        let bytes = match &op {
            DiskOp::Read { data, .. } | DiskOp::Write { data, .. } => len(data),
            DiskOp::Flush | DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } => 0,
        };
        self.inner.submit(tag, op)?;
        self.limits.charge(now(), bytes);
        Ok(())
    }

    fn commit(&mut self) {
        self.inner.commit();
    }

    fn completions(&mut self, out: &mut Vec<Completion>) {
        self.inner.completions(out);
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        let mut events = self.inner.events();
        events.push(self.timer.as_fd());
        events
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn cancel(&mut self, tag: u64) {
        self.inner.cancel(tag);
    }

    fn drain(&mut self, out: &mut Vec<Completion>) {
        self.inner.drain(out);
    }
}

fn len(data: &Data<'_>) -> u64 {
    let sum = match data {
        Data::Guest(segments) => segments
            .iter()
            .fold(0, |sum: usize, part| sum.saturating_add(part.len())),
        Data::Host(buffer) => buffer.len(),
    };
    u64::try_from(sum).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::doubles::MemoryDisk;
    use crate::testing::memory;
    use rustix::event::{PollFd, PollFlags, poll};

    #[test]
    fn a_rate_lets_a_burst_through_and_then_its_share() {
        let rate = Rate::new(1000);
        let mut admitted = 0;
        let mut time = SECOND;
        while rate.wait(time) == 0 {
            rate.charge(time, 1);
            admitted += 1;
        }
        assert_eq!(
            admitted, 101,
            "a tenth of a second's worth and the one that is under way"
        );
        time += rate.wait(time);
        for _ in 0..1000 {
            assert_eq!(rate.wait(time), 0);
            rate.charge(time, 1);
            time += rate.wait(time);
        }
        assert!(
            (time - SECOND).abs_diff(SECOND) < SECOND / 100,
            "1000 more take a second"
        );
    }

    #[test]
    fn one_request_larger_than_the_burst_goes_through_and_is_paid_for() {
        let rate = Rate::new(100);
        assert_eq!(rate.wait(SECOND), 0);
        rate.charge(SECOND, 1000);
        assert_eq!(rate.wait(SECOND), 10 * SECOND - BURST);
        rate.charge(SECOND, u64::MAX);
        assert!(rate.wait(SECOND) > 0);
    }

    #[test]
    fn a_queue_over_its_limit_is_not_ready_until_its_event() {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new(1 << 20));
        let limited = LimitedDisk::new(disk, None, Some(1 << 20));
        let mut queue = limited.open_queue(memory(), 0, 4).expect("queue");
        let mut done = Vec::new();
        assert!(queue.ready());
        // 150 ms worth, 50 more than the burst.
        let write = DiskOp::Write {
            offset: 0,
            data: Data::Host(vec![1; 157_286]),
            fua: false,
        };
        queue.submit(1, write).expect("room");
        queue.completions(&mut done);
        assert_eq!(done.len(), 1);
        assert!(!queue.ready());
        let start = std::time::Instant::now();
        let events = queue.events();
        let mut fds: Vec<_> = events
            .iter()
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        assert_eq!(poll(&mut fds, None).expect("poll"), 1);
        assert!(start.elapsed().as_millis() >= 30, "{:?}", start.elapsed());
        assert!(queue.ready());
    }
}
