//! What a disk image boots: kernel, initial ramdisks and command line, found without running its
//! boot loader.
//!
//! A [`Survey`] looks at the partition table (GPT, MBR, or none) and the file systems (FAT, ext4,
//! XFS, btrfs, ISO 9660) of an image. [`Survey::plan`] reads its boot descriptions, in this order:
//! unified kernel images in `EFI/Linux`; Boot Loader Specification entries; `grub.cfg`, which is
//! evaluated; `extlinux.conf`; and without any, the newest kernel. [`Survey::listing`] is all of
//! that for people and programs.
//!
//! The crate does no I/O of its own: it reads through [`ReadAt`], within a [`Budget`]. It does not
//! know virtual machines. Images are taken for hostile: whatever they hold, the answer is a plan or
//! an [`Error`] with an [`ErrorKind`], after bounded time and memory.
//!
//! ```
//! use splitring_bootdisk::{Budget, Choice, ErrorKind, Survey};
//!
//! let image = vec![0u8; 1 << 20];
//! let survey = Survey::new(image, Budget::new())?;
//! let error = survey.plan(&Choice::new()).unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::Empty);
//! # Ok::<(), splitring_bootdisk::Error>(())
//! ```
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![warn(missing_debug_implementations)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;

mod bytes;
mod config;
mod contents;
mod entry;
mod error;
mod fs;
mod io;
mod listing;
mod plan;
mod sources;
mod survey;
mod table;

pub use contents::Contents;
pub use entry::Source;
pub use error::{Error, ErrorKind, Result};
pub use fs::FsKind;
pub use io::{Budget, ReadAt, ReadFault};
pub use listing::{BootInfo, EntryInfo, FileInfo, FsInfo, Listing, PartitionInfo, Problem};
pub use plan::{BootFile, Choice, Plan};
pub use survey::Survey;
pub use table::{Role, TableKind};
