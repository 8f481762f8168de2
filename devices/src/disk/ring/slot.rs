//! The requests of a queue in flight, each in a slot of its own.

use std::sync::Arc;

use super::job::{Step, What};
use crate::disk::IoFault;
use crate::disk::flush::Mark;
use crate::disk::handle::Handle;
use crate::disk::spans::Guard;
use crate::disk::transfer::Transfer;

/// A place for one request in flight.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) tag: u64,
    pub(super) seat: u16,
    pub(super) step: Step,
    pub(super) offset: u64,
    pub(super) transfer: Transfer,
    pub(super) busy: u8,
    /// It is not to be taken up again: somebody asked for it to be given up.
    pub(super) cancelled: bool,
    /// When it began.
    pub(super) mark: Mark,
    /// The blocking thread has it.
    pub(super) offloaded: bool,
    /// Keeps others from patching the blocks that it writes.
    pub(super) lock: Option<Guard>,
}

/// What comes next for a request that was taken.
pub(super) enum Next {
    /// It is answered.
    Done(Result<u64, IoFault>),
    /// The ring gets it.
    Ring,
    /// It would block.
    Blocking(What),
}

/// Whose file sits there.
pub(super) fn seated(images: &[Option<Arc<Handle>>], seat: u16) -> Option<&Arc<Handle>> {
    images.get(usize::from(seat))?.as_ref()
}
