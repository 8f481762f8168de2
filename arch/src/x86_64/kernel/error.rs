//! Errors of loading a kernel or an initrd, for operators: object, operation, cause, remedy.

use std::io;
use std::path::{Path, PathBuf};

use super::bzimage::BzImageError;
use super::elf::ElfError;
use super::unpack::Format;

/// Why a kernel or initrd can't be loaded.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "each variant's message says what its fields are"
)]
#[non_exhaustive]
pub enum KernelError {
    #[error("cannot {operation} {path}: {source}{}", remedy(source))]
    Io {
        path: PathBuf,
        operation: &'static str,
        source: io::Error,
    },
    #[error("cannot load {path}: it is {what}, not a regular file; give the path of an image file")]
    NotAFile { path: PathBuf, what: &'static str },
    #[error("cannot load {path}: the file is empty")]
    Empty { path: PathBuf },
    #[error(
        "cannot boot {path}: not a kernel ({found}); give an x86-64 vmlinuz (bzImage) or vmlinux (ELF)"
    )]
    NotAKernel { path: PathBuf, found: &'static str },
    #[error("cannot boot {path}: a 32-bit ELF file; give a kernel built for x86-64")]
    Elf32 { path: PathBuf },
    #[error(
        "cannot boot {path}: an ELF file for another processor (machine {machine}); give a kernel built for x86-64"
    )]
    WrongMachine { path: PathBuf, machine: u16 },
    #[error(
        "cannot boot {path}: the file is truncated: {what} ends at byte {needed}, the file at byte {len}; copy it again"
    )]
    Truncated {
        path: PathBuf,
        what: &'static str,
        needed: u64,
        len: u64,
    },
    #[error(
        "cannot boot {path}: malformed {what}: {reason}; the file is damaged or not a Linux kernel"
    )]
    Malformed {
        path: PathBuf,
        what: &'static str,
        reason: &'static str,
    },
    #[error(
        "cannot boot {path}: its {format} payload can't be unpacked: {reason}; the file is damaged, copy it again"
    )]
    Payload {
        path: PathBuf,
        format: Format,
        reason: String,
    },
    #[error(
        "cannot boot {path}: neither its payload ({payload}) nor its own 64-bit entry (boot protocol {major}.{minor:02}) can be booted; give a kernel built for x86-64 with CONFIG_PVH"
    )]
    NoEntry {
        path: PathBuf,
        payload: String,
        major: u8,
        minor: u8,
    },
    #[error(
        "cannot boot {path}: it occupies guest memory up to {needed:#x}, RAM ends at {available:#x}; give at least {remedy} MiB of memory"
    )]
    KernelDoesNotFit {
        path: PathBuf,
        needed: u64,
        available: u64,
        remedy: u64,
    },
    #[error(
        "cannot load initrd {path}: its {size} bytes don't fit between the kernel's end {kernel_end:#x} and {limit:#x}; give more memory (about {remedy} MiB) or a smaller initrd"
    )]
    InitrdDoesNotFit {
        path: PathBuf,
        size: u64,
        kernel_end: u64,
        limit: u64,
        remedy: u64,
    },
    #[error("cannot copy {path} into guest memory: {source}")]
    Copy {
        path: PathBuf,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Returns the remedy for an I/O error of opening or reading a file.
fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::PermissionDenied => {
            "; have its owner let this user read it (chmod, chgrp), or copy it to where it may be read"
        }
        _ => "",
    }
}

impl ElfError {
    /// Returns the error for the file at `path`, which has `len` bytes.
    pub(super) fn at(self, path: &Path, len: u64) -> KernelError {
        let path = path.to_owned();
        match self {
            Self::Elf32 => KernelError::Elf32 { path },
            Self::WrongMachine(machine) => KernelError::WrongMachine { path, machine },
            Self::Truncated { what, needed } => KernelError::Truncated {
                path,
                what,
                needed,
                len,
            },
            Self::Malformed(reason) => KernelError::Malformed {
                path,
                what: "ELF file",
                reason,
            },
            Self::Unreadable => KernelError::Malformed {
                path,
                what: "ELF file",
                reason: "it changed while it was read",
            },
        }
    }
}

impl BzImageError {
    /// Returns the error for the file at `path`, which has `len` bytes.
    pub(super) fn at(self, path: &Path, len: u64) -> KernelError {
        let path = path.to_owned();
        match self {
            Self::Truncated { what, needed } => KernelError::Truncated {
                path,
                what,
                needed,
                len,
            },
            Self::Malformed(reason) => KernelError::Malformed {
                path,
                what: "bzImage",
                reason,
            },
        }
    }
}
