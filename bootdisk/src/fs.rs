//! File systems, read-only, behind one contract.
//!
//! A file system knows paths without symbolic links; [`walk`] resolves those, so that the rules
//! for links and `..` are the same for all of them.

#[cfg(feature = "btrfs")]
mod btrfs;
mod contract;
mod ext4;
mod fat;
mod iso9660;
mod probe;
mod volume;
mod walk;
#[cfg(feature = "xfs")]
mod xfs;

pub use contract::FsKind;
pub(crate) use contract::{Kind, OpenFile};
pub(crate) use probe::{Found, Refusal, probe};
pub(crate) use volume::{Located, Volume};
