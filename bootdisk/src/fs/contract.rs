//! What a file system is to the rest: paths, kinds and contents.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::error::Error;

/// The file systems that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum FsKind {
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// ext2, ext3 or ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// ISO 9660 with Rock Ridge names.
    Iso9660,
}

impl fmt::Display for FsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fat => "FAT",
            Self::Ext4 => "ext4",
            Self::Xfs => "XFS",
            Self::Btrfs => "btrfs",
            Self::Iso9660 => "ISO 9660",
        })
    }
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Link,
    Other,
}

/// What is known of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) kind: Kind,
    pub(crate) size: u64,
}

/// A failure inside a file system, in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault(pub(crate) String);

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self(error.cause().to_string())
    }
}

impl From<&str> for Fault {
    fn from(cause: &str) -> Self {
        Self(cause.to_string())
    }
}

pub(crate) type FsResult<T> = core::result::Result<T, Fault>;

/// One file system, or one subvolume of it. Paths are absolute, normalised, and free of symbolic
/// links and `..`.
pub(crate) trait Fs {
    /// What is at `path`, without following it; nothing if there is nothing.
    fn stat(&self, path: &str) -> FsResult<Option<Meta>>;

    /// The target of the symbolic link at `path`.
    fn link(&self, path: &str) -> FsResult<String>;

    /// The names in the directory at `path`, without `.` and `..`.
    fn list(&self, path: &str) -> FsResult<Vec<String>>;

    /// Opens the regular file at `path`.
    fn open(&self, path: &str) -> FsResult<Box<dyn OpenFile>>;
}

/// An open file.
pub(crate) trait OpenFile {
    /// Reads at `offset`, which lies within the file. Returns the number of bytes read, which is 0
    /// only at the end.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> FsResult<usize>;
}

/// What is needed to open a recognised file system.
pub(crate) struct Identity {
    pub(crate) kind: FsKind,
    /// What `root=UUID=` and GRUB's `search --fs-uuid` name.
    pub(crate) uuid: Option<String>,
    pub(crate) label: Option<String>,
}

/// No directory of boot files has more entries.
pub(super) const MAX_LISTED: usize = 16 * 1024;
