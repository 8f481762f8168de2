//! Whether flushes through the host's page cache may be believed.
//!
//! When writing back fails, the kernel reports it once per open file description and then takes the
//! pages for clean: the next fsync(2) succeeds although what it should have made stable is gone. So
//! the first failure is remembered for as long as the image is open. A write with RWF_DSYNC ends
//! with an fsync(2) of its range, which reports as much.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::IoFault;

/// What became of the flushes of one image so far, on all its streams.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    /// How many failed.
    failures: AtomicU32,
}

/// A moment in the life of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark(u32);

impl Flushes {
    /// Whether a flush, about to begin or just ended well, may be believed.
    pub(super) fn admit(&self) -> Result<(), IoFault> {
        self.admit_since(Mark(0))
    }

    /// Whether what began at `mark` and ended well may be believed: nothing failed meanwhile.
    pub(super) fn admit_since(&self, mark: Mark) -> Result<(), IoFault> {
        if self.mark() == mark {
            Ok(())
        } else {
            Err(IoFault::FlushLost)
        }
    }

    /// This moment.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.failures.load(Ordering::Relaxed))
    }

    /// Remembers that one failed, and tells the operator the first time.
    pub(super) fn failed(&self, path: &Path) {
        let one_more = |failures: u32| failures.checked_add(1);
        let (set, fetched) = (Ordering::Relaxed, Ordering::Relaxed);
        if self.failures.fetch_update(set, fetched, one_more) == Ok(0) {
            tracing::error!(
                "{}: the host failed to write cached data back; every flush from now on fails, since what is on the \
                 medium is not known any more. Free space or replace the medium, check the image and restart",
                path.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_no_flush_is_believed() {
        let flushes = Flushes::default();
        assert_eq!(flushes.admit(), Ok(()));
        flushes.failed(Path::new("image"));
        assert_eq!(flushes.admit(), Err(IoFault::FlushLost));
        assert_eq!(flushes.admit(), Err(IoFault::FlushLost));
    }

    #[test]
    fn what_began_after_a_failure_is_believed_until_the_next() {
        let flushes = Flushes::default();
        flushes.failed(Path::new("image"));
        let mark = flushes.mark();
        assert_eq!(flushes.admit_since(mark), Ok(()));
        flushes.failed(Path::new("image"));
        assert_eq!(flushes.admit_since(mark), Err(IoFault::FlushLost));
    }
}
