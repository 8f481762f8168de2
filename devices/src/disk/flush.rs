//! Whether flushes through the host's page cache may be believed.
//!
//! When writing back fails, the kernel reports it once and then takes the pages for clean: the next fsync(2) succeeds
//! although what it should have made stable is gone. So the first failure is remembered for as long as the image is open.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::IoFault;

/// What became of the flushes of one image so far, on all its streams.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    lost: AtomicBool,
}

impl Flushes {
    /// Whether a flush, about to begin or just ended well, may be believed.
    pub(super) fn admit(&self) -> Result<(), IoFault> {
        if self.lost.load(Ordering::Relaxed) {
            Err(IoFault::FlushLost)
        } else {
            Ok(())
        }
    }

    /// Remembers that one failed, and tells the operator the first time.
    pub(super) fn failed(&self, path: &Path) {
        if !self.lost.swap(true, Ordering::Relaxed) {
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
}
