//! What `splitring inspect` shows: partitions, file systems, entries, and what would boot.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::entry::Source;
use crate::error::{Error, ErrorKind, Result};
use crate::fs::FsKind;
use crate::plan::{BootFile, Choice, Plan};
use crate::sources::ORDER;
use crate::survey::{Content, Slot, Survey};
use crate::table::{Role, TableKind};

/// Everything that is known of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Listing {
    /// The size in bytes.
    pub size: u64,
    /// The partition table.
    pub table: TableKind,
    /// Bytes per sector, as the table counts.
    pub sector: u64,
    /// The partitions in the table's order; the whole disk if there is no table.
    pub partitions: Vec<PartitionInfo>,
    /// Boot entries, in the order in which [`Choice::entry`] counts them.
    pub entries: Vec<EntryInfo>,
    /// What would boot, unless `problem` says why nothing would.
    pub boots: Option<BootInfo>,
    /// Why nothing would boot.
    pub problem: Option<Problem>,
}

/// A partition and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PartitionInfo {
    /// As Linux counts, from 1; 0 is the whole disk.
    pub number: u32,
    /// In bytes.
    pub start: u64,
    /// In bytes.
    pub size: u64,
    /// What it is for, by its type.
    pub role: Role,
    /// The type: a GUID, or a number as "0x83".
    #[cfg_attr(feature = "serde", serde(rename = "type"))]
    pub type_id: String,
    /// Its name in the table.
    pub name: Option<String>,
    /// What `root=PARTUUID=` names.
    pub uuid: Option<String>,
    /// The file system, if it is one that is read.
    pub file_system: Option<FsInfo>,
    /// What else is in it: "LUKS", "swap".
    pub content: Option<String>,
    /// Why its file system cannot be read.
    pub problem: Option<Problem>,
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct FsInfo {
    /// Its kind.
    pub kind: FsKind,
    /// What `root=UUID=` names.
    pub uuid: Option<String>,
    /// Its label.
    pub label: Option<String>,
}

/// A boot entry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct EntryInfo {
    /// Its id, with `>` between the levels of a menu.
    pub id: String,
    /// Its title.
    pub title: String,
    /// The kernel's release or the entry's version, if known.
    pub version: Option<String>,
    /// The kind of description.
    pub source: Source,
    /// The description.
    pub found_in: String,
    /// The kernel's command line.
    pub command_line: String,
    /// Why it cannot be booted.
    pub problem: Option<Problem>,
}

/// What would boot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct BootInfo {
    /// The entry's id.
    pub id: String,
    /// The entry's title.
    pub title: String,
    /// The description.
    pub found_in: String,
    /// The kernel.
    pub kernel: FileInfo,
    /// The initial ramdisks.
    pub initrds: Vec<FileInfo>,
    /// The kernel's command line.
    pub command_line: String,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct FileInfo {
    /// The partition's number; 0 is the whole disk.
    pub partition: u32,
    /// The kind of file system.
    pub file_system: FsKind,
    /// The path in it.
    pub path: String,
    /// In bytes; of a unified kernel image the part that is used.
    pub size: u64,
}

/// An error, in a form that can be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Problem {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// The whole message.
    pub message: String,
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind(),
            message: error.to_string(),
        }
    }
}

impl Survey {
    /// Returns everything that is known of the image. Descriptions and entries that are broken are
    /// in it with their errors.
    ///
    /// # Errors
    ///
    /// The image's reader fails, or the budget is used up.
    pub fn listing(&self, choice: &Choice) -> Result<Listing> {
        let mut entries = Vec::new();
        for source in ORDER {
            let menu = match self.menu(source) {
                Ok(menu) => menu,
                Err(error) if error.is_final() => return Err(error),
                // The plan below has the same error, unless something before it boots.
                Err(_) => continue,
            };
            for draft in menu.drafts {
                let problem = match self.complete(&draft, choice) {
                    Ok(_) => None,
                    Err(error) if error.is_final() => return Err(error),
                    Err(error) => Some(Problem::from(&error)),
                };
                entries.push(EntryInfo {
                    id: draft.id,
                    title: draft.title,
                    version: draft.version,
                    source: draft.source,
                    found_in: draft.found_in,
                    command_line: draft.command_line,
                    problem,
                });
            }
        }
        let (boots, problem) = match self.plan(choice) {
            Ok(plan) => (Some(BootInfo::from(&plan)), None),
            Err(error) if error.is_final() => return Err(error),
            Err(error) => (None, Some(Problem::from(&error))),
        };
        Ok(Listing {
            size: self.image.size(),
            table: self.table.kind,
            sector: self.table.sector,
            partitions: self.slots.iter().map(PartitionInfo::from).collect(),
            entries,
            boots,
            problem,
        })
    }
}

impl From<&Slot> for PartitionInfo {
    fn from(slot: &Slot) -> Self {
        let partition = &slot.partition;
        let (mut file_system, mut content, mut problem) = (None, None, None);
        match &slot.content {
            Content::Volume(volume) => {
                file_system = Some(FsInfo {
                    kind: volume.identity.kind,
                    uuid: volume.identity.uuid.clone(),
                    label: volume.identity.label.clone(),
                });
            }
            Content::Refused(refusal) => content = Some(refusal.name.to_string()),
            Content::Broken(error) => problem = Some(Problem::from(error)),
            Content::Unknown => {}
        }
        Self {
            number: partition.number,
            start: partition.start,
            size: partition.size,
            role: partition.role,
            type_id: partition.kind.clone(),
            name: partition.name.clone(),
            uuid: partition.uuid.clone(),
            file_system,
            content,
            problem,
        }
    }
}

impl From<&BootFile> for FileInfo {
    fn from(file: &BootFile) -> Self {
        Self {
            partition: file.partition(),
            file_system: file.file_system(),
            path: file.path().to_string(),
            size: file.size(),
        }
    }
}

impl From<&Plan> for BootInfo {
    fn from(plan: &Plan) -> Self {
        Self {
            id: plan.id.clone(),
            title: plan.title.clone(),
            found_in: plan.found_in.clone(),
            kernel: FileInfo::from(&plan.kernel),
            initrds: plan.initrds.iter().map(FileInfo::from).collect(),
            command_line: plan.command_line.clone(),
        }
    }
}
