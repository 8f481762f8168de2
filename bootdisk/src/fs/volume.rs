//! An open file system, with its failures as errors for the operator.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;

#[cfg(feature = "btrfs")]
use super::btrfs;
use super::contract::{Fault, Fs, FsKind, Identity, Kind, MAX_LISTED, Meta, OpenFile};
#[cfg(feature = "xfs")]
use super::xfs;
use super::{ext4, fat, iso9660, walk};
use crate::bytes::{number, size};
use crate::error::{BOOT_OTHERWISE, Error, ErrorKind, OTHER_ENTRY, REPAIR, Result};
use crate::io::{Image, Region};

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
    /// The first failure of a search that went on elsewhere.
    trouble: RefCell<Option<Error>>,
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
                BOOT_OTHERWISE,
            ),
        })?;
        let views = views.into_iter();
        let views = views.map(|(name, fs)| View { name, fs }).collect();
        Ok(Self {
            place,
            identity,
            region,
            views,
            trouble: RefCell::new(None),
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

    /// Takes what cannot be looked up for absent, and remembers why.
    fn tolerate<T>(&self, found: Result<Option<T>>) -> Result<Option<T>> {
        match found {
            Err(error) if !error.is_final() => {
                self.trouble.borrow_mut().get_or_insert(error);
                Ok(None)
            }
            found => found,
        }
    }

    /// Why a search for descriptions may have missed one.
    pub(crate) fn trouble(&self) -> Option<Error> {
        self.trouble.borrow().clone()
    }

    /// Searches for a description: the regular file at `path` in one view. A file system that is
    /// damaged there does not keep others from being searched; see [`Volume::trouble`].
    pub(crate) fn file(&self, view: usize, path: &str) -> Result<Option<Located>> {
        let found = self.tolerate(self.find(view, path))?;
        Ok(found.filter(|found| found.meta.kind == Kind::File))
    }

    /// The names in the directory at `path`, sorted; none if there is no such directory. Damage is
    /// tolerated as in [`Volume::file`].
    pub(crate) fn list(&self, view: usize, path: &str) -> Result<Vec<String>> {
        let names = self.tolerate(self.names(view, path).map(Some))?;
        Ok(names.unwrap_or_default())
    }

    fn names(&self, view: usize, path: &str) -> Result<Vec<String>> {
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
                BOOT_OTHERWISE,
            ));
        }
        let bytes = self.piece(file, 0, file.meta.size)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn one(fs: Box<dyn Fs>) -> Vec<(String, Box<dyn Fs>)> {
    vec![(String::new(), fs)]
}
