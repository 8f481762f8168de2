//! Transfers that the page cache serves at once, ahead of the ring.
//!
//! What is cached is copied sooner than a ring can be told about it: the kernel would copy it at
//! submission too, after more work. So buffered transfers are tried by a plain call that must not
//! wait (RWF_NOWAIT). Where it would have to, the ring takes over, and for a while it is asked
//! first.
//!
//! Nothing here ever waits. xfs, btrfs and block devices take buffered writes with RWF_NOWAIT; ext4
//! refuses them (EOPNOTSUPP, as of Linux 6.18), so there all writes are the ring's. It has them
//! done by a thread of the kernel's, one after the other per file, and a write that the host
//! throttles (up to 200 ms) delays that thread alone. That costs the depth-1 write on ext4 the time
//! it takes to wake the thread, which a blocking call on the event loop would save at the expense
//! of every other device there.

use super::IoFault;
use super::handle::Handle;
use super::transfer::{Attempt, Transfer};

/// Requests that go to the ring without an attempt after one in vain.
const PAUSE: u8 = 32;

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
        if image.direct || self.writes.waits || !self.writes.may_try() {
            return None;
        }
        match transfer.try_write(image.file(), offset) {
            Attempt::Done => return Some(Ok(transfer.len())),
            Attempt::Unsupported => self.writes.waits = true,
            Attempt::Partial | Attempt::WouldWait => self.writes.pause = PAUSE,
        }
        None
    }
}
