//! A kernel that the next start should find in the cache, and what is left to do for that.
//!
//! Hashing, summing and writing cost a fifth of what unpacking did, and nothing in this start needs them: they can wait until the guest
//! has nothing better to do.

use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use super::cache::{Cache, Content, Stamp};
use super::flat::Flat;

/// Everything needed to put a kernel into the cache: the kernel itself and the file that it was made from, some 70 MB of them.
#[derive(Debug)]
pub struct Unsaved {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) stamp: Stamp,
    pub(super) original: Original,
    pub(super) flat: Flat,
    pub(super) cache: Cache,
}

/// What the file held.
#[derive(Debug)]
pub(super) enum Original {
    /// Nobody has asked for its digest yet.
    Bytes(Arc<Vec<u8>>),
    Hashed(Content),
}

impl Unsaved {
    /// Puts it there. Where that can't be done, the next start unpacks the kernel again.
    pub fn save(self) {
        let content = match self.original {
            Original::Hashed(content) => content,
            Original::Bytes(bytes) => Content::of(&bytes),
        };
        let source = (&self.file, &self.stamp);
        match self.flat.save(&self.cache, &content, source) {
            Ok(()) => {}
            // Where machines start side by side, one of them saves what they have in common.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                tracing::debug!(kernel = %self.path.display(), "the cache is busy");
            }
            Err(error) => {
                tracing::warn!(kernel = %self.path.display(), %error, "the kernel is not cached");
            }
        }
    }
}
