//! What a partition table is made of.

use alloc::string::String;
use alloc::vec::Vec;

/// The kind of a partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum TableKind {
    /// A GUID partition table.
    Gpt,
    /// A GUID partition table of which the backup was used: the primary one is damaged.
    GptBackup,
    /// A DOS partition table.
    Mbr,
    /// None: a file system fills the disk.
    None,
}

/// What a partition is for, by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Role {
    /// The EFI system partition.
    Esp,
    /// The extended boot loader partition of the Boot Loader Specification.
    Xbootldr,
    /// The root file system for x86-64 (Discoverable Partitions Specification).
    LinuxRoot,
    /// Any Linux file system.
    Linux,
    /// Swap space.
    Swap,
    /// The part of a boot loader for BIOS machines.
    BiosBoot,
    /// A physical volume of LVM.
    Lvm,
    /// A member of a software RAID.
    Raid,
    /// The whole disk, which has no table.
    WholeDisk,
    /// Anything else.
    Other,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    /// As Linux and GRUB count: from 1; logical ones from 5; 0 is the whole disk.
    pub(crate) number: u32,
    /// In bytes.
    pub(crate) start: u64,
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) role: Role,
    /// The type as GUID or number.
    pub(crate) kind: String,
    pub(crate) name: Option<String>,
    /// What `root=PARTUUID=` names.
    pub(crate) uuid: Option<String>,
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) kind: TableKind,
    /// Bytes per sector.
    pub(crate) sector: u64,
    pub(crate) partitions: Vec<Partition>,
}

/// The sector sizes that disks have.
pub(super) const SECTORS: [u64; 2] = [512, 4096];
