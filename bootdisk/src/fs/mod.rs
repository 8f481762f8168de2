//! File systems, read-only, behind one contract.
//!
//! A file system knows paths without symbolic links; [`walk`] resolves those, so that the rules
//! for links and `..` are the same for all of them.

#[cfg(feature = "btrfs")]
mod btrfs;
mod ext4;
mod fat;
mod iso9660;
mod probe;
mod walk;
#[cfg(feature = "xfs")]
mod xfs;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

pub(crate) use probe::{Found, Refusal, probe};

use crate::bytes::{number, size};
use crate::error::{Error, ErrorKind, OTHER_ENTRY, OTHER_WAY, REPAIR, Result};
use crate::io::{Image, Region};

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

/// One tree of files: a file system, or a subvolume.
struct View {
    /// The subvolume's name; empty for a whole file system.
    name: String,
    fs: Box<dyn Fs>,
}

/// An open file system with its views.
pub(crate) struct Volume {
    /// "partition 1 (ext4)", for messages.
    pub(crate) place: String,
    pub(crate) identity: Identity,
    region: Region,
    views: Vec<View>,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Volume").field(&self.place).finish()
    }
}

/// A file that has been found: which view, its path without links, its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) view: usize,
    pub(crate) path: String,
    pub(crate) meta: Meta,
}

/// No boot description is larger.
const MAX_TEXT: u64 = 1 << 20;
/// No directory of boot files has more entries.
const MAX_LISTED: usize = 16 * 1024;

impl Volume {
    /// Opens the file system in `region`.
    pub(crate) fn open(region: Region, identity: Identity, place: String) -> Result<Self> {
        // What was looked at before must not colour this file system's failures.
        region.image().take_fault();
        let opened = match identity.kind {
            FsKind::Fat => fat::Fat::open(region.clone()).map(|fs| one(Box::new(fs))),
            FsKind::Ext4 => ext4::open(region.clone()).map(one),
            FsKind::Iso9660 => iso9660::Iso::open(region.clone()).map(|fs| one(Box::new(fs))),
            #[cfg(feature = "xfs")]
            FsKind::Xfs => xfs::open(region.clone()).map(one),
            #[cfg(feature = "btrfs")]
            FsKind::Btrfs => btrfs::open(&region),
            #[cfg(not(all(feature = "xfs", feature = "btrfs")))]
            _ => Err(Fault::from("this build has no reader for it")),
        };
        let views = opened.map_err(|fault| match region.image().take_fault() {
            Some(error) if error.is_final() => error,
            Some(error) => Error::new(
                error.kind(),
                "open",
                place.clone(),
                error.cause(),
                error.remedy(),
            ),
            None => Error::new(
                ErrorKind::FileSystem,
                "open",
                place.clone(),
                fault.0,
                OTHER_WAY,
            ),
        })?;
        let views = views.into_iter();
        let views = views.map(|(name, fs)| View { name, fs }).collect();
        Ok(Self {
            place,
            identity,
            region,
            views,
        })
    }

    fn image(&self) -> &Image {
        self.region.image()
    }

    /// The views' names, in the order in which boot descriptions are looked for.
    pub(crate) fn views(&self) -> impl Iterator<Item = (usize, &str)> {
        self.views.iter().map(|view| view.name.as_str()).enumerate()
    }

    /// "/boot/vmlinuz on partition 1 (ext4)".
    pub(crate) fn named(&self, path: &str) -> String {
        format!("{path} on {}", self.place)
    }

    /// Turns a file system's failure into an error, by what the image remembers of it.
    fn failure(&self, operation: &'static str, path: &str, fault: Fault) -> Error {
        let object = self.named(path);
        match self.image().take_fault() {
            Some(error) if error.is_final() => error,
            Some(error) => Error::new(
                error.kind(),
                operation,
                object,
                error.cause(),
                error.remedy(),
            ),
            None => Error::new(ErrorKind::FileSystem, operation, object, fault.0, REPAIR),
        }
    }

    /// Looks `path` up in one view, following links. Returns nothing if it doesn't exist.
    pub(crate) fn find(&self, view: usize, path: &str) -> Result<Option<Located>> {
        self.image().step(1)?;
        let Some(opened) = self.views.get(view) else {
            return Ok(None);
        };
        match walk::resolve(&*opened.fs, path) {
            Ok(found) => Ok(found.map(|(path, meta)| Located { view, path, meta })),
            Err(walk::Failure::Fault(fault)) => Err(self.failure("look up", path, fault)),
            Err(walk::Failure::Path(cause)) => Err(Error::new(
                ErrorKind::Path,
                "look up",
                self.named(path),
                cause,
                OTHER_ENTRY,
            )),
        }
    }

    /// The same, in the view given first and then in every other.
    pub(crate) fn find_anywhere(&self, view: usize, path: &str) -> Result<Option<Located>> {
        let others = (0..self.views.len()).filter(|other| *other != view);
        for view in core::iter::once(view).chain(others) {
            if let Some(found) = self.find(view, path)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The regular file at `path` in one view.
    pub(crate) fn file(&self, view: usize, path: &str) -> Result<Option<Located>> {
        let found = self.find(view, path)?;
        Ok(found.filter(|found| found.meta.kind == Kind::File))
    }

    /// The names in the directory at `path`, sorted; none if there is no such directory.
    pub(crate) fn list(&self, view: usize, path: &str) -> Result<Vec<String>> {
        let found = self.find(view, path)?;
        let Some(found) = found.filter(|found| found.meta.kind == Kind::Dir) else {
            return Ok(Vec::new());
        };
        let Some(opened) = self.views.get(view) else {
            return Ok(Vec::new());
        };
        let names = opened.fs.list(&found.path);
        let mut names = names.map_err(|fault| self.failure("list", path, fault))?;
        names.truncate(MAX_LISTED);
        self.image().step(number(names.len()))?;
        let memory: usize = names.iter().map(String::len).fold(0, usize::saturating_add);
        self.image().memory(number(memory))?;
        names.retain(|name| !name.contains('/') && !name.is_empty());
        names.sort_unstable();
        Ok(names)
    }

    /// Opens a file that has been found.
    pub(crate) fn open_file(&self, file: &Located) -> Result<Box<dyn OpenFile>> {
        let opened = self.views.get(file.view);
        let opened = opened.map(|view| view.fs.open(&file.path));
        opened
            .unwrap_or_else(|| Err("no such subvolume".into()))
            .map_err(|fault| self.failure("open", &file.path, fault))
    }

    /// Fills `buf` from an open file.
    pub(crate) fn read_exact(
        &self,
        file: &mut dyn OpenFile,
        path: &str,
        mut offset: u64,
        mut buf: &mut [u8],
    ) -> Result<()> {
        while !buf.is_empty() {
            let read = file.read_at(offset, buf);
            let count = read.map_err(|fault| self.failure("read", path, fault))?;
            if count == 0 || count > buf.len() {
                let fault = Fault::from("it ends before its size");
                return Err(self.failure("read", path, fault));
            }
            offset = offset.saturating_add(number(count));
            buf = buf
                .split_at_mut_checked(count)
                .map_or(&mut [], |(_, rest)| rest);
        }
        Ok(())
    }

    /// The error of a read behind the end of a file.
    pub(crate) fn behind_the_end(&self, path: &str, offset: u64) -> Error {
        let fault = Fault(format!("byte {offset} is behind its end"));
        self.failure("read", path, fault)
    }

    /// Lets a file of `size` bytes be read, whatever is left of the budget: its extents, the tables
    /// that lead to them, and what compressed extents at the edges of reads cost twice.
    pub(crate) fn allow(&self, size: u64) {
        self.image()
            .allow(size.saturating_mul(4).saturating_add(64 << 20));
    }

    /// Reads part of a file into memory.
    pub(crate) fn piece(&self, file: &Located, offset: u64, length: u64) -> Result<Vec<u8>> {
        self.image().memory(length)?;
        let mut bytes = vec![0; size(length)];
        let mut open = self.open_file(file)?;
        self.read_exact(&mut *open, &file.path, offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a boot description.
    pub(crate) fn text(&self, file: &Located) -> Result<String> {
        if file.meta.size > MAX_TEXT {
            return Err(Error::new(
                ErrorKind::TooLarge,
                "read",
                self.named(&file.path),
                format!("it has {} bytes, more than {MAX_TEXT}", file.meta.size),
                OTHER_WAY,
            ));
        }
        let bytes = self.piece(file, 0, file.meta.size)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn one(fs: Box<dyn Fs>) -> Vec<(String, Box<dyn Fs>)> {
    vec![(String::new(), fs)]
}
