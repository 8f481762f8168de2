//! A kernel file from path to guest memory: sniff, unpack, plan, load.
//!
//! It knows file formats and guest addresses; it does not know boot parameters (see [`crate::boot`]) or how memory is mapped.
//! `vmm` either copies a [`LoadPlan`] into memory or maps its pieces over memory.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use linux_loader::bootparam::setup_header;
use vm_memory::GuestMemoryBackend;

/// How the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode without paging, `ebx` = `hvm_start_info` (Xen PVH, `XEN_ELFNOTE_PHYS32_ENTRY`).
    Pvh(u32),
    /// Long mode with identity page tables, `rsi` = zero page (Linux boot protocol, 64-bit entry).
    Linux64(u64),
}

/// Bytes to load from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file opened read-only.
    File(Arc<File>),
    /// A file unpacked into our own memory.
    Bytes(Arc<[u8]>),
}

/// A run of bytes that belongs at a guest address.
#[derive(Debug, Clone)]
pub struct Piece {
    /// First guest-physical address.
    pub guest: u64,
    /// Where the bytes come from.
    pub source: Source,
    /// Offset in the source.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// The source is a file of our own cache that nobody changes, offset and guest address are page-aligned and the file reaches to the
    /// end of the last page: it may be mapped `MAP_PRIVATE` over guest memory instead of being copied.
    pub mappable: bool,
}

/// What has to be in guest memory for something to run.
#[derive(Debug, Clone, Default)]
pub struct LoadPlan {
    /// Bytes to place, sorted by address, disjoint.
    pub pieces: Vec<Piece>,
    /// Ranges that must read as zero; fresh guest memory does.
    pub zero: Vec<Range<u64>>,
}

/// Whether unpacked kernels are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CachePolicy {
    /// In `$XDG_CACHE_HOME/splitring` or `~/.cache/splitring`.
    #[default]
    User,
    /// In this directory.
    Directory(PathBuf),
    /// Not at all.
    Off,
}

/// A kernel file, opened, recognised and ready to be loaded.
#[derive(Debug)]
pub struct Kernel {
    plan: LoadPlan,
    entry: Entry,
    range: Range<u64>,
    setup_header: Option<setup_header>,
}

/// An initial ramdisk, placed in guest memory.
#[derive(Debug)]
pub struct Initrd {
    /// How to load it.
    pub plan: LoadPlan,
    /// Guest addresses of its bytes.
    pub range: Range<u64>,
}

/// Why a kernel or initrd can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file can't be opened or read.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

impl Kernel {
    /// Opens and recognises the kernel at `path`, unpacking a bzImage's payload (or taking it from the cache).
    pub fn open(path: &Path, cache: &CachePolicy) -> Result<Self, KernelError> {
        let _ = (path, cache);
        todo!()
    }

    /// Where execution starts.
    #[must_use]
    pub fn entry(&self) -> Entry {
        self.entry
    }

    /// Guest addresses it occupies, its zero-initialised data included.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// What to place in memory.
    #[must_use]
    pub fn plan(&self) -> &LoadPlan {
        &self.plan
    }

    /// The setup header of a bzImage that is booted by its own 64-bit entry.
    #[must_use]
    pub fn setup_header(&self) -> Option<&setup_header> {
        self.setup_header.as_ref()
    }

    /// Copies the kernel into `memory` by linux-loader; the alternative to mapping the pieces of [`Kernel::plan`].
    pub fn copy_into<M: GuestMemoryBackend>(&self, memory: &M) -> Result<(), KernelError> {
        let _ = memory;
        todo!()
    }
}

impl Initrd {
    /// Opens the initrd at `path` and places it as high in `layout`'s low RAM as the kernel allows.
    pub fn open(
        path: &Path,
        cache: &CachePolicy,
        layout: &crate::layout::Layout,
        kernel: &Kernel,
    ) -> Result<Self, KernelError> {
        let _ = (path, cache, layout, kernel);
        todo!()
    }

    /// Copies the initrd into `memory`.
    pub fn copy_into<M: GuestMemoryBackend>(&self, memory: &M) -> Result<(), KernelError> {
        let _ = memory;
        todo!()
    }
}
