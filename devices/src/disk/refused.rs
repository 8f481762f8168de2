//! What a host turned out not to do for an image, found out on the way.

use std::sync::atomic::AtomicBool;

/// What the host turned out not to do for an image. It is not asked again.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// Zeroing ranges of a file while keeping them allocated.
    pub(super) zero_range: AtomicBool,
    /// Zeroing ranges while freeing them.
    pub(super) zero_unmap: AtomicBool,
    /// Discarding.
    pub(super) discard: AtomicBool,
}
