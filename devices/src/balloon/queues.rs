//! The balloon's queues: lists of pages, statistics and reports of free pages.
//!
//! A pass does a limited amount of work, whatever the driver puts into one request; a request that
//! is longer goes on in the next pass.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use splitring_virtio::spec::balloon::{PAGE_SIZE, feature, queue};
use zerocopy::little_endian::U32;
use zerocopy::{FromZeros, IntoBytes};

use super::shared::Shared;
use super::statistics::BalloonStatistics;
use crate::device::{Broken, Cause, DescriptorChain, Outcome, QueueHandler, QueueSet, Source};
use crate::log;
use crate::ram::{DiscardError, Ram};

/// Sizes of the queues. Linux wants room for 32 ranges in one report.
const SIZES: [u16; queue::COUNT as usize] = [128, 128, 16, 64, 64];
/// Without reports the queues end with the statistics.
const WITHOUT_REPORTS: usize = queue::STATS as usize + 1;

/// The sizes of the queues that the device offers.
pub(super) fn sizes(reporting: bool) -> &'static [u16] {
    if reporting {
        &SIZES
    } else {
        SIZES.get(..WITHOUT_REPORTS).unwrap_or(&SIZES)
    }
}

/// Units of work in a pass. A page number is one, a range of free pages one and one more for each
/// [`UNIT`] of its bytes.
const PASS: usize = 512;
/// Bytes of a range that are one unit of work: releasing a page of a range takes the host a
/// fraction of what releasing it by itself does.
const UNIT: u64 = 128 << 10;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Inflate,
    Deflate,
    Statistics,
    Report,
}

impl Role {
    /// The role of queue `index` for a driver with these `features`. The specification numbers
    /// queues as if all features were negotiated; Linux leaves no gap for those that are not. Free
    /// page hinting is not offered, so both are told from one another.
    pub(super) fn of(index: u16, features: u64) -> Option<Self> {
        let has = |feature| features & feature != 0;
        let reports = has(feature::PAGE_REPORTING).then_some(Self::Report);
        match index {
            queue::INFLATE => Some(Self::Inflate),
            queue::DEFLATE => Some(Self::Deflate),
            queue::STATS if has(feature::STATS_VQ) => Some(Self::Statistics),
            queue::STATS | queue::FREE_PAGE | queue::REPORTING => reports,
            _ => None,
        }
    }
}

/// Bytes of a page's number in a list.
const PAGE_NUMBER: u64 = size_of::<U32>() as u64;

/// Tokens of the source and the timer.
const REQUEST: u32 = 0;
const INTERVAL: u32 = 1;

/// The data side of a balloon.
pub(super) struct Queues {
    shared: Arc<Shared>,
    ram: Ram,
    roles: Vec<(u16, Role)>,
    /// Free pages have to keep what the guest filled them with, unless that is zero.
    poison: bool,
    current: Option<Current>,
    /// The queue of statistics, and its buffer, which the driver gets back when new ones are
    /// wanted.
    statistics: Option<(u16, DescriptorChain)>,
    timer_set: bool,
}

/// A request that is being worked on.
struct Current {
    queue: u16,
    role: Role,
    chain: DescriptorChain,
    /// Bytes of it that are done.
    done: u64,
}

impl Current {
    /// Whether no whole page number is left of it.
    fn is_read(&self) -> bool {
        let left = self.chain.readable_len().saturating_sub(self.done);
        left < PAGE_NUMBER
    }
}

impl Queues {
    pub(super) fn new(
        shared: Arc<Shared>,
        ram: Ram,
        roles: Vec<(u16, Role)>,
        poison: bool,
    ) -> Self {
        Self {
            shared,
            ram,
            roles,
            poison,
            current: None,
            statistics: None,
            timer_set: false,
        }
    }

    /// Sets the timer for the next request for statistics, unless it is set already.
    fn set_timer(&mut self, queues: &mut QueueSet<'_>) {
        let next = self.shared.interval;
        let next = next.and_then(|interval| Instant::now().checked_add(interval));
        if let Some(next) = next.filter(|_| !self.timer_set) {
            queues.registry().set_timer(INTERVAL, next);
            self.timer_set = true;
        }
    }

    /// Gives the driver its buffer back, which asks it for new statistics. Without one, new ones
    /// are on their way.
    fn request_statistics(&mut self, queues: &mut QueueSet<'_>) {
        if let Some((index, chain)) = self.statistics.take()
            && let Some(queue) = queues.get(index)
        {
            queue.complete(chain, 0);
        }
    }

    fn receive_statistics(
        &mut self,
        queues: &mut QueueSet<'_>,
        index: u16,
        chain: DescriptorChain,
    ) {
        *self.shared.statistics() = Some(BalloonStatistics::read(&chain));
        // A driver has one buffer there; of several the last one is kept.
        self.request_statistics(queues);
        self.statistics = Some((index, chain));
    }

    /// The next request, of whichever queue.
    fn next(&mut self, queues: &mut QueueSet<'_>) -> Result<Option<Current>, Broken> {
        for at in 0..self.roles.len() {
            let Some(&(index, role)) = self.roles.get(at) else {
                break;
            };
            while let Some(queue) = queues.get(index) {
                let popped = queue.pop().map_err(|error| Broken::new(index, error))?;
                match popped {
                    None => break,
                    Some(chain) if role == Role::Statistics => {
                        self.receive_statistics(queues, index, chain);
                    }
                    Some(chain) => {
                        return Ok(Some(Current {
                            queue: index,
                            role,
                            chain,
                            done: 0,
                        }));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Works on a request as far as `left` goes; returns whether it is done.
    fn work(&self, current: &mut Current, left: &mut usize) -> bool {
        match current.role {
            Role::Inflate => self.take_pages(current, left),
            Role::Deflate => self.give_pages(current, left),
            Role::Report => self.take_reported(current, left),
            Role::Statistics => true,
        }
    }

    fn take_pages(&self, current: &mut Current, left: &mut usize) -> bool {
        let mut numbers = [0; PASS];
        let Some(pages) = read_pages(current, &mut numbers, left) else {
            return true;
        };
        count(&self.shared.counters.inflated, bytes_of(pages.len()));
        // The driver allocates neighbours mostly: one call to the host for each run of them.
        pages.sort_unstable();
        for run in pages.chunk_by(|a, b| b.wrapping_sub(*a) <= 1) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                let start = u64::from(*first).saturating_mul(PAGE_SIZE);
                let pages = u64::from(last.wrapping_sub(*first)).saturating_add(1);
                self.release(start, pages.saturating_mul(PAGE_SIZE));
            }
        }
        current.is_read()
    }

    /// The host's memory comes back when the guest touches the pages.
    fn give_pages(&self, current: &mut Current, left: &mut usize) -> bool {
        let mut numbers = [0; PASS];
        let Some(pages) = read_pages(current, &mut numbers, left) else {
            return true;
        };
        count(&self.shared.counters.deflated, bytes_of(pages.len()));
        current.is_read()
    }

    fn take_reported(&self, current: &mut Current, left: &mut usize) -> bool {
        if self.poison && self.shared.poison.load(Ordering::Relaxed) != 0 {
            return true;
        }
        let mut before = 0_u64;
        for segment in current.chain.writable() {
            let len = u64::try_from(segment.len()).unwrap_or(u64::MAX);
            let end = before.saturating_add(len);
            while current.done < end {
                let Some(units) = left.checked_sub(1) else {
                    return false;
                };
                let most = u64::try_from(units).unwrap_or(0).saturating_add(1);
                let piece = end
                    .saturating_sub(current.done)
                    .min(most.saturating_mul(UNIT));
                if let Some(start) = self.ram.address_of(segment) {
                    let offset = current.done.saturating_sub(before);
                    self.release(start.saturating_add(offset), piece);
                }
                count(&self.shared.counters.reported, piece);
                current.done = current.done.saturating_add(piece);
                let cost = usize::try_from(piece / UNIT).unwrap_or(units);
                *left = units.saturating_sub(cost);
            }
            before = end;
        }
        true
    }

    /// Releases the memory of whole pages to the host. What is no memory is ignored.
    fn release(&self, start: u64, len: u64) {
        let Shared {
            id,
            counters,
            throttle,
            ..
        } = self.shared.as_ref();
        let mut done = 0;
        while done < len {
            let rest = len.saturating_sub(done);
            let address = start.saturating_add(done);
            match self.ram.discard(address, rest) {
                Ok(discarded) => {
                    count(&counters.released, discarded.released);
                    done = done.saturating_add(discarded.passed.max(1));
                }
                Err(error) => {
                    count(&counters.ignored, rest);
                    let address = format_args!("{address:#x}");
                    match error {
                        DiscardError::NoMemory => log::warn!(
                            throttle,
                            device = id,
                            address,
                            "the guest puts into its balloon what is no memory; it is ignored"
                        ),
                        DiscardError::Host(error) => log::warn!(
                            throttle,
                            device = id,
                            address,
                            %error,
                            "the host keeps memory that the guest does without"
                        ),
                    }
                    return;
                }
            }
        }
    }
}

/// Page numbers of a request from where it is, as many as `left` and `numbers` have room for.
/// `None` if there are no more; a broken last number means nothing.
fn read_pages<'a>(
    current: &mut Current,
    numbers: &'a mut [u32; PASS],
    left: &mut usize,
) -> Option<&'a mut [u32]> {
    let mut raw = [U32::new_zeroed(); PASS];
    let mut reader = current.chain.reader();
    reader.skip(current.done).ok()?;
    let there = usize::try_from(reader.remaining() / PAGE_NUMBER).unwrap_or(PASS);
    let wanted = there.min(*left).min(PASS);
    let raw = raw.get_mut(..wanted).filter(|raw| !raw.is_empty())?;
    reader.read_exact(raw.as_mut_bytes()).ok()?;
    let numbers = numbers.get_mut(..wanted)?;
    for (number, raw) in numbers.iter_mut().zip(raw) {
        *number = raw.get();
    }
    current.done = current
        .done
        .saturating_add(PAGE_NUMBER.saturating_mul(u64::try_from(wanted).unwrap_or(0)));
    *left = left.saturating_sub(wanted);
    Some(numbers)
}

fn bytes_of(pages: usize) -> u64 {
    u64::try_from(pages).unwrap_or(0).saturating_mul(PAGE_SIZE)
}

fn count(counter: &AtomicU64, bytes: u64) {
    counter.fetch_add(bytes, Ordering::Relaxed);
}

impl QueueHandler for Queues {
    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::edge(self.shared.request.as_fd(), REQUEST)]
    }

    fn run(&mut self, queues: &mut QueueSet<'_>, cause: Cause) -> Result<Outcome, Broken> {
        match cause {
            Cause::Source(REQUEST) => self.request_statistics(queues),
            Cause::Timer(INTERVAL) => {
                self.request_statistics(queues);
                self.timer_set = false;
            }
            _ => {}
        }
        self.set_timer(queues);
        let mut left = PASS;
        loop {
            let mut current = match self.current.take() {
                Some(current) => current,
                None => match self.next(queues)? {
                    Some(current) => current,
                    None => return Ok(Outcome::Idle),
                },
            };
            if left == 0 || !self.work(&mut current, &mut left) {
                self.current = Some(current);
                return Ok(Outcome::More);
            }
            if let Some(queue) = queues.get(current.queue) {
                queue.complete(current.chain, 0);
            }
        }
    }

    fn stop(&mut self, queues: &mut QueueSet<'_>) {
        self.request_statistics(queues);
        if let Some(Current { queue, chain, .. }) = self.current.take()
            && let Some(queue) = queues.get(queue)
        {
            queue.complete(chain, 0);
        }
    }
}
