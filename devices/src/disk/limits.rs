//! Rate limits on a disk: requests and bytes a second, shared by all its queues.
//!
//! It works around any disk and knows nothing of what is behind.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{
    Completion, Data, Disk, DiskError, DiskOp, DiskQueue, Extent, Full, Geometry, ImageId, IoFault,
};
use crate::clock::now;
use crate::debug::opaque_debug;
use crate::limits::Limits;
use crate::ram::Ram;

/// A disk with limits in front of it.
pub struct LimitedDisk {
    inner: Arc<dyn Disk>,
    limits: Arc<Limits>,
}

opaque_debug! { LimitedDisk |it| { geometry: it.inner.geometry() } }

impl LimitedDisk {
    /// `inner` with at most `requests` and `bytes` a second; `None` is no limit.
    #[must_use]
    pub fn new(inner: Arc<dyn Disk>, requests: Option<u64>, bytes: Option<u64>) -> Self {
        Self {
            inner,
            limits: Arc::new(Limits::new(requests, bytes)),
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
        let inner = self.inner.open_queue(ram, index, depth)?;
        Ok(Box::new(LimitedQueue {
            inner,
            limits: Arc::clone(&self.limits),
            ready_at: None,
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
    /// While the limit is reached.
    ready_at: Option<Instant>,
}

impl DiskQueue for LimitedQueue {
    fn ready(&mut self) -> bool {
        let wait = self.limits.wait(now());
        if wait == 0 {
            self.ready_at = None;
            return self.inner.ready();
        }
        self.ready_at = Instant::now().checked_add(Duration::from_nanos(wait));
        false
    }

    fn ready_at(&self) -> Option<Instant> {
        self.ready_at.or(self.inner.ready_at())
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

    fn completed(&mut self, out: &mut Vec<Completion>) {
        self.inner.completed(out);
    }

    fn completions(&mut self, out: &mut Vec<Completion>) {
        self.inner.completions(out);
    }

    fn has_completions(&mut self) -> bool {
        self.inner.has_completions()
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        self.inner.events()
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

    #[test]
    fn a_queue_over_its_limit_says_when_it_is_ready_again() {
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
        let at = queue.ready_at().expect("a time");
        let wait = at.saturating_duration_since(Instant::now());
        assert!((30..=60).contains(&wait.as_millis()), "{wait:?}");
        std::thread::sleep(wait);
        assert!(queue.ready());
        assert_eq!(queue.ready_at(), None);
    }
}
