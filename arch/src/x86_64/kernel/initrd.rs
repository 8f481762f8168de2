//! The initial ramdisk and its address in guest memory.
//!
//! It is read from the opened file at every start.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use vm_memory::GuestMemoryBackend;

use super::plan::{ImageFile, LoadPlan, Piece, Source};
use super::{Kernel, KernelError, check_regular, io_error, open_regular};
use crate::layout::{Layout, MIB, PAGE};

/// Upper limit that all 64-bit kernels accept (`initrd_addr_max` of their setup header, plus one).
const LIMIT: u64 = 0x8000_0000;

/// An initial ramdisk with its guest addresses.
#[derive(Debug)]
pub struct Initrd {
    path: PathBuf,
    plan: LoadPlan,
    range: Range<u64>,
}

impl Initrd {
    /// Opens the initrd at `path`, to be placed by [`Initrd::place`].
    ///
    /// # Errors
    ///
    /// The file can't be opened, or is not a regular file.
    pub fn open(path: &Path) -> Result<File, KernelError> {
        let file = open_regular(path)?;
        let metadata = file
            .metadata()
            .map_err(|source| io_error(path, "read", source))?;
        check_regular(path, &metadata)?;
        Ok(file)
    }

    /// Places the initrd in `file` as high in `layout`'s low RAM as `kernel` allows. `path` is used
    /// in messages only.
    ///
    /// # Errors
    ///
    /// The file is not a regular file, or does not fit.
    pub fn place(
        file: File,
        path: &Path,
        layout: &Layout,
        kernel: &Kernel,
    ) -> Result<Self, KernelError> {
        let metadata = file
            .metadata()
            .map_err(|source| io_error(path, "read", source))?;
        check_regular(path, &metadata)?;
        let header_limit = kernel
            .setup_header()
            .map_or(LIMIT, |header| u64::from(header.initrd_addr_max) + 1);
        let range = highest_page(
            metadata.len(),
            kernel.range().end,
            header_limit.min(layout.low_end()),
        );
        let range = range.map_err(|remedy| KernelError::InitrdDoesNotFit {
            path: path.to_owned(),
            size: metadata.len(),
            kernel_end: kernel.range().end,
            limit: header_limit.min(layout.low_end()),
            remedy,
        })?;
        let piece = Piece {
            guest: range.start,
            source: Source::File(ImageFile::new(file)),
            offset: 0,
            len: metadata.len(),
        };
        Ok(Self {
            path: path.to_owned(),
            plan: LoadPlan {
                pieces: vec![piece],
            },
            range,
        })
    }

    /// Returns the guest addresses of its bytes.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Copies the initrd into `memory`.
    pub fn copy_into<M: GuestMemoryBackend>(&self, memory: &M) -> Result<(), KernelError> {
        self.plan
            .copy_into(memory)
            .map_err(|source| KernelError::Copy {
                path: self.path.clone(),
                source,
            })
    }
}

/// Returns the highest page-aligned range of `size` bytes between `floor` and `limit`, or else the
/// approximate memory size in MiB that would be enough.
fn highest_page(size: u64, floor: u64, limit: u64) -> Result<Range<u64>, u64> {
    let start = limit.checked_sub(size).map(|start| start - start % PAGE);
    match start {
        Some(start) if start >= floor => Ok(start..start + size),
        _ => Err(floor.saturating_add(size).div_ceil(MIB).saturating_add(1)),
    }
}

#[cfg(test)]
mod tests;
