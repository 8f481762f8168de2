//! Rate limits on a disk: requests and bytes a second, shared by all its queues.
//!
//! It works around any disk and knows nothing of what is behind.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::{
    Completion, Data, Disk, DiskError, DiskOp, DiskQueue, Extent, Full, Geometry, ImageId, IoFault,
};
use crate::clock::now;
use crate::debug::opaque_debug;
use crate::limits::{Alarm, Limits};
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
        let timer = Alarm::new().map_err(|source| DiskError::Host {
            operation: "make a timer for",
            path: "a limited disk".into(),
            source,
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
    timer: Alarm,
}

impl DiskQueue for LimitedQueue {
    fn ready(&mut self) -> bool {
        match self.limits.wait(now()) {
            0 => self.inner.ready(),
            wait => {
                self.timer.set(wait);
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
