//! A command at work: what it is, whom it is for, and what it waits for.

use std::sync::Arc;

use crate::scsi::job::{Job, Op};
use crate::scsi::lock::Held;
use crate::scsi::request::Request;
use crate::scsi::reserving::{Change, Saving};
use crate::scsi::unit::Nexus;
use crate::scsi::workers::{Reply, Sweep};

/// A command at work.
pub(super) struct Task {
    pub(super) request: Request,
    pub(super) nexus: Arc<Nexus>,
    pub(super) work: Work,
    /// Bytes of data-out it takes.
    pub(super) used: u64,
    pub(super) held: Option<Held>,
    /// Ended by task management with this response.
    pub(super) end: Option<u8>,
    /// To be given when it has ended.
    pub(super) replies: Vec<Reply>,
    /// A request of it was given to the disk.
    pub(super) begun: bool,
    /// When it was taken, in nanoseconds of the metrics' clock.
    pub(super) started: u64,
}

pub(super) enum Work {
    /// A request of its job is with the disk.
    Disk(Job),
    /// Its range is locked by another.
    Locked(Job),
    /// The disk takes no more now; this is next.
    Queued(Job, Op),
    /// Waits for its turn to change the reservations.
    Reserving(Change),
    /// Its change of the reservations is being made stable.
    Saving(Arc<Saving>),
    /// Waits until other commands have been aborted.
    Aborting(Arc<Sweep>),
}

impl Work {
    /// What waited for a lock or for the disk is with the disk from now on; the request that waited is returned.
    pub(super) fn hand_over(&mut self) -> Option<Op> {
        let (work, op) = match std::mem::replace(self, Self::Locked(Job::Flush)) {
            Self::Locked(job) => (Self::Disk(job), None),
            Self::Queued(job, op) => (Self::Disk(job), Some(op)),
            other => (other, None),
        };
        *self = work;
        op
    }

    /// The disk does not take `op` now.
    pub(super) fn queue(&mut self, op: Op) {
        *self = match std::mem::replace(self, Self::Locked(Job::Flush)) {
            Self::Disk(job) => Self::Queued(job, op),
            other => other,
        };
    }
}
