//! What the requests to a disk came to: counts, bytes, errors and a latency histogram for each kind.
//!
//! Each queue has counters of its own, written by its one thread without locked instructions and added up by whoever
//! asks. It knows neither virtio nor SCSI.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Serialize, Serializer};

pub use crate::clock::now;

/// Latency classes: bucket `n` counts what took less than 2^n µs and not less than half of that; the last takes the rest.
pub const BUCKETS: usize = 24;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Data from the disk.
    Read,
    /// Data to the disk.
    Write,
    /// Making writes stable.
    Flush,
    /// Freeing ranges.
    Discard,
    /// Zeroing ranges.
    WriteZeroes,
}

/// The counters of one kind of request on one queue.
#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    latency: [AtomicU64; BUCKETS],
}

/// The counters of one queue, written by the thread that serves it.
#[derive(Debug, Default)]
pub struct QueueMetrics {
    read: Counters,
    write: Counters,
    flush: Counters,
    discard: Counters,
    write_zeroes: Counters,
    refused: AtomicU64,
}

/// The counters of a device.
#[derive(Debug)]
pub struct DiskMetrics {
    queues: Box<[QueueMetrics]>,
}

/// Sums for one kind of request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KindTotals {
    /// Requests answered.
    pub requests: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// How many took how long; see [`BUCKETS`]. Written as a map from the microseconds they took less than to how many
    /// did, without what is empty.
    #[serde(rename = "latency_us", serialize_with = "by_bound")]
    pub latency: [u64; BUCKETS],
}

fn by_bound<S: Serializer>(latency: &[u64; BUCKETS], serializer: S) -> Result<S::Ok, S::Error> {
    let last = BUCKETS.saturating_sub(1);
    let bound = |class: usize| match class {
        class if class == last => "more".to_owned(),
        class => (1_u64 << class).to_string(),
    };
    let taken = latency.iter().enumerate().filter(|(_, count)| **count > 0);
    serializer.collect_map(taken.map(|(class, count)| (bound(class), count)))
}

/// Sums over all queues.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DiskTotals {
    /// Reads.
    pub read: KindTotals,
    /// Writes.
    pub write: KindTotals,
    /// Flushes.
    pub flush: KindTotals,
    /// Discards.
    pub discard: KindTotals,
    /// Zeroings.
    pub write_zeroes: KindTotals,
    /// Requests to a virtio-blk device that asked for what can't be, such as sectors past the end, and were answered
    /// with nothing done. They are in none of the above.
    pub refused: u64,
}

impl DiskMetrics {
    /// Counters for `queues` queues, all zero.
    #[must_use]
    pub fn new(queues: u16) -> Self {
        Self {
            queues: (0..queues).map(|_| QueueMetrics::default()).collect(),
        }
    }

    /// The counters of queue `index`.
    #[must_use]
    pub fn queue(&self, index: u16) -> Option<&QueueMetrics> {
        self.queues.get(usize::from(index))
    }

    /// The sums at this moment.
    #[must_use]
    pub fn totals(&self) -> DiskTotals {
        let mut totals = DiskTotals::default();
        for queue in &self.queues {
            queue.read.add_to(&mut totals.read);
            queue.write.add_to(&mut totals.write);
            queue.flush.add_to(&mut totals.flush);
            queue.discard.add_to(&mut totals.discard);
            queue.write_zeroes.add_to(&mut totals.write_zeroes);
            let refused = queue.refused.load(Ordering::Relaxed);
            totals.refused = totals.refused.wrapping_add(refused);
        }
        totals
    }
}

impl QueueMetrics {
    /// Counts a request that was answered after `nanoseconds`, with its bytes if it succeeded. To be called by the
    /// queue's own thread only: two at once would lose counts.
    #[inline]
    pub fn record(&self, kind: RequestKind, nanoseconds: u64, outcome: Result<u64, ()>) {
        let counters = match kind {
            RequestKind::Read => &self.read,
            RequestKind::Write => &self.write,
            RequestKind::Flush => &self.flush,
            RequestKind::Discard => &self.discard,
            RequestKind::WriteZeroes => &self.write_zeroes,
        };
        bump(&counters.requests, 1);
        match outcome {
            Ok(bytes) => bump(&counters.bytes, bytes),
            Err(()) => bump(&counters.errors, 1),
        }
        if let Some(bucket) = counters.latency.get(bucket(nanoseconds)) {
            bump(bucket, 1);
        }
    }

    /// Counts a request that was refused. As for [`record`](Self::record), by the queue's own thread only.
    pub fn refuse(&self) {
        bump(&self.refused, 1);
    }
}

/// Number of the bucket for a latency.
#[inline]
fn bucket(nanoseconds: u64) -> usize {
    // 1024 ns stand for a µs: a shift instead of a division.
    let bits = u64::BITS.saturating_sub((nanoseconds >> 10).leading_zeros());
    usize::try_from(bits)
        .unwrap_or(usize::MAX)
        .min(BUCKETS.saturating_sub(1))
}

/// Adds to a counter that only this thread writes.
#[inline]
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(by),
        Ordering::Relaxed,
    );
}

impl Counters {
    fn add_to(&self, totals: &mut KindTotals) {
        let add = |total: &mut u64, counter: &AtomicU64| {
            *total = total.wrapping_add(counter.load(Ordering::Relaxed))
        };
        add(&mut totals.requests, &self.requests);
        add(&mut totals.bytes, &self.bytes);
        add(&mut totals.errors, &self.errors);
        for (total, counter) in totals.latency.iter_mut().zip(&self.latency) {
            add(total, counter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_summed_over_queues_by_kind_and_latency() {
        let metrics = DiskMetrics::new(2);
        let record = |queue, kind, time, outcome| {
            metrics
                .queue(queue)
                .expect("there")
                .record(kind, time, outcome)
        };
        record(0, RequestKind::Read, 500, Ok(4096));
        record(1, RequestKind::Read, 3000, Ok(512));
        record(1, RequestKind::Write, u64::MAX, Err(()));
        for queue in [0, 1, 1] {
            metrics.queue(queue).expect("there").refuse();
        }
        let totals = metrics.totals();
        assert_eq!(totals.refused, 3);
        assert_eq!(
            (totals.read.requests, totals.read.bytes, totals.read.errors),
            (2, 4608, 0)
        );
        assert_eq!((totals.read.latency[0], totals.read.latency[2]), (1, 1));
        assert_eq!(
            (
                totals.write.requests,
                totals.write.bytes,
                totals.write.errors
            ),
            (1, 0, 1)
        );
        assert_eq!(totals.write.latency[BUCKETS - 1], 1);
        assert!(metrics.queue(2).is_none());
        let written = serde_json::to_value(&totals).expect("JSON");
        assert_eq!(
            written["read"]["latency_us"],
            serde_json::json!({"1": 1, "4": 1})
        );
        assert_eq!(
            written["write"],
            serde_json::json!({"requests": 1, "bytes": 0, "errors": 1, "latency_us": {"more": 1}})
        );
    }
}
