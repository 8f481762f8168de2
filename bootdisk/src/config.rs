//! Boot descriptions: what the loaders' configuration files say.
//!
//! These modules parse text. Which files are read, and where the paths in them lead, is the
//! planner's business.

pub(crate) mod bls;
pub(crate) mod extlinux;
pub(crate) mod glob;
pub(crate) mod grub;
pub(crate) mod grubenv;
pub(crate) mod uki;
pub(crate) mod version;
