//! Transfers that the page cache serves at once, ahead of the ring.
//!
//! What is cached is copied sooner than a ring can be told about it: the kernel would copy it at submission too, after
//! more work, and for writes to file systems like ext4 it would wake a thread for each. So buffered transfers are tried
//! by a plain call that must not wait. Where it would have to, the ring takes over, and for a while it is asked first.

use super::IoFault;
use super::handle::Handle;
use super::metrics::now;
use super::transfer::{Attempt, Transfer};

/// Requests that go to the ring without an attempt after one in vain.
const PAUSE: u8 = 32;
/// Nanoseconds a write may take that can't be told not to wait. Longer means that the host is writing back.
const SLOW: u64 = 500_000;

/// What is known about attempts on one queue.
#[derive(Debug, Default)]
pub(super) struct Cached {
    reads: Direction,
    writes: Direction,
}

#[derive(Debug, Default)]
struct Direction {
    /// Requests still to be left to the ring.
    pause: u8,
    /// The file system has no calls that don't wait.
    waits: bool,
}

impl Direction {
    fn may_try(&mut self) -> bool {
        let may = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        may
    }
}

impl Cached {
    /// Tries a read. `None` leaves what is left of it to the ring.
    pub(super) fn read(
        &mut self,
        image: &Handle,
        transfer: &mut Transfer,
        offset: u64,
    ) -> Option<Result<u64, IoFault>> {
        if image.direct || self.reads.waits || !self.reads.may_try() {
            return None;
        }
        match transfer.try_read(image.file(), offset) {
            Attempt::Done => return Some(Ok(transfer.len())),
            Attempt::Unsupported => self.reads.waits = true,
            Attempt::Partial | Attempt::WouldWait => self.reads.pause = PAUSE,
        }
        None
    }

    /// Tries a write that need not be stable. `None` leaves what is left of it to the ring.
    pub(super) fn write(
        &mut self,
        image: &Handle,
        transfer: &mut Transfer,
        offset: u64,
    ) -> Option<Result<u64, IoFault>> {
        if image.direct || !self.writes.may_try() {
            return None;
        }
        if self.writes.waits {
            return Some(self.write_timed(image, transfer, offset));
        }
        match transfer.try_write(image.file(), offset) {
            Attempt::Done => Some(Ok(transfer.len())),
            Attempt::Unsupported => {
                self.writes.waits = true;
                Some(self.write_timed(image, transfer, offset))
            }
            Attempt::Partial | Attempt::WouldWait => {
                self.writes.pause = PAUSE;
                None
            }
        }
    }

    /// A write into the page cache by a call that waits if it has to; then the next ones are the ring's.
    fn write_timed(
        &mut self,
        image: &Handle,
        transfer: &mut Transfer,
        offset: u64,
    ) -> Result<u64, IoFault> {
        let start = now();
        transfer.write_at(image.file(), offset, false)?;
        if now().saturating_sub(start) > SLOW {
            self.writes.pause = PAUSE;
        }
        Ok(transfer.len())
    }
}
