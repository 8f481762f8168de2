//! Where a task's interrupts end when no function is round it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::device::Broken;
use crate::interrupt::InterruptSink;

/// Counts interrupts.
#[derive(Default)]
pub(crate) struct Sink {
    queue: AtomicUsize,
    broken: AtomicBool,
}

impl Sink {
    /// Those for queues so far.
    pub(crate) fn interrupts(&self) -> usize {
        self.queue.load(Ordering::SeqCst)
    }
}

impl InterruptSink for Sink {
    fn queue(&self, _index: u16) {
        self.queue.fetch_add(1, Ordering::SeqCst);
    }
    fn config(&self) {}
    fn broken(&self, _why: &Broken) {
        self.broken.store(true, Ordering::SeqCst);
    }
    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }
}
