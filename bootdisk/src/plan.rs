//! What is booted: the chosen entry's files and command line.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::contents::Contents;
use crate::entry::{self, Draft, Files, Source, words};
use crate::error::{BOOT_OTHERWISE, Error, ErrorKind, OTHER_ENTRY, Result};
use crate::fs::FsKind;
use crate::sources::ORDER;
use crate::survey::Survey;

/// What a caller wants other than the image's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Choice {
    /// The entry: its id, its title, or its number in [`Survey::listing`], counted from 0.
    pub entry: Option<String>,
    /// What is added at the end of the command line.
    pub append: Option<String>,
}

impl Choice {
    /// Returns the image's own choice.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Chooses an entry by id, title or number.
    #[must_use]
    pub fn entry(mut self, entry: impl Into<String>) -> Self {
        self.entry = Some(entry.into());
        self
    }

    /// Adds `text` to the command line.
    #[must_use]
    pub fn append(mut self, text: impl Into<String>) -> Self {
        self.append = Some(text.into());
        self
    }
}

/// What an image boots.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Plan {
    /// The entry's id, as its description has it.
    pub id: String,
    /// The entry's title, for people.
    pub title: String,
    /// The kernel's release or the entry's version, if the description says it.
    pub version: Option<String>,
    /// The kind of description.
    pub source: Source,
    /// The description, for people: "/grub/grub.cfg on partition 1 (ext4)".
    pub found_in: String,
    /// The kernel: a bzImage.
    pub kernel: BootFile,
    /// Initial ramdisks, in the order in which the kernel takes them, one behind the other.
    pub initrds: Vec<BootFile>,
    /// The kernel's command line.
    pub command_line: String,
}

/// A file of the image, or a part of one.
#[derive(Debug, Clone)]
pub struct BootFile {
    found: entry::Found,
    partition: u32,
}

impl BootFile {
    /// Returns the partition's number, as Linux counts; 0 if the disk has no table.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Returns the kind of file system.
    #[must_use]
    pub fn file_system(&self) -> FsKind {
        self.found.volume.identity.kind
    }

    /// Returns the path in the file system (on btrfs: in the subvolume), without symbolic links.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.found.file.path
    }

    /// Returns the size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.found.range.size
    }

    /// Opens the file. What is read through it counts against an allowance of its own, some times
    /// its size, not against the survey's budget.
    ///
    /// # Errors
    ///
    /// The file system is damaged, or the image's reader fails.
    pub fn open(&self) -> Result<Contents> {
        Contents::open(&self.found)
    }
}

impl Survey {
    /// Returns what the image boots: the default of the first kind of description that it has, or
    /// the entry that `choice` names.
    ///
    /// # Errors
    ///
    /// Nothing to boot is found, a description is malformed or does not end, a file that the entry
    /// names does not exist or is too large, or no entry is the one that is wanted.
    pub fn plan(&self, choice: &Choice) -> Result<Plan> {
        match &choice.entry {
            Some(name) => self.chosen(name, choice),
            None => self.first(choice),
        }
    }

    /// The default of the first kind of description.
    fn first(&self, choice: &Choice) -> Result<Plan> {
        let mut problem = None;
        for source in ORDER {
            // A broken description is an error: booting something else would hide it.
            let menu = self.menu(source)?;
            let Some(draft) = menu.drafts.get(menu.default) else {
                continue;
            };
            match self.complete(draft, choice) {
                Ok(plan) => return Ok(plan),
                // A file in EFI/Linux may be any program: other descriptions have their turn.
                Err(error) if source == Source::UnifiedKernel && !error.is_final() => {
                    problem.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        let explained = problem.or_else(|| self.explanation());
        Err(explained.unwrap_or_else(|| self.nothing()))
    }

    fn nothing(&self) -> Error {
        let any = self.slots.iter().any(|slot| slot.volume().is_some());
        if !any {
            return Error::new(
                ErrorKind::Empty,
                "boot from",
                "the disk image",
                "it has no file system that is read: FAT, ext4, XFS, btrfs or ISO 9660",
                BOOT_OTHERWISE,
            );
        }
        Error::new(
            ErrorKind::NoEntry,
            "boot from",
            "the disk image",
            "it has no unified kernel image, no loader/entries, no grub.cfg, no extlinux.conf and no vmlinuz",
            BOOT_OTHERWISE,
        )
    }

    /// The entry called `name`, whatever kind of description has it.
    fn chosen(&self, name: &str, choice: &Choice) -> Result<Plan> {
        let mut all: Vec<Draft> = Vec::new();
        let mut problem = None;
        for source in ORDER {
            match self.menu(source) {
                Ok(menu) => all.extend(menu.drafts),
                Err(error) if error.is_final() => return Err(error),
                Err(error) => {
                    problem.get_or_insert(error);
                }
            }
        }
        let called = all.iter().find(|draft| draft.is_called(name));
        let numbered = || {
            name.parse::<usize>()
                .ok()
                .and_then(|number| all.get(number))
        };
        match (called.or_else(numbered), problem) {
            (Some(draft), _) => self.complete(draft, choice),
            (None, Some(problem)) => Err(problem),
            (None, None) if all.is_empty() => {
                Err(self.explanation().unwrap_or_else(|| self.nothing()))
            }
            (None, None) => Err(Error::new(
                ErrorKind::Choice,
                "choose",
                format!("the entry \"{name}\""),
                format!(
                    "no id, title or number of the image's {} entries is that",
                    all.len()
                ),
                "splitring inspect lists them",
            )),
        }
    }

    fn boot_file(&self, found: entry::Found) -> BootFile {
        let slot = self.slots.get(found.slot);
        BootFile {
            partition: slot.map_or(0, |slot| slot.partition.number),
            found,
        }
    }

    /// Looks an entry's files up and judges their sizes.
    pub(crate) fn complete(&self, draft: &Draft, choice: &Choice) -> Result<Plan> {
        let Files { kernel, initrds } = draft.files(self)?;
        let limits = self.image.budget();
        within("kernel", &kernel, kernel.range.size, limits.kernel)?;
        let mut sum = 0u64;
        for initrd in &initrds {
            sum = sum.saturating_add(initrd.range.size);
            within("initial ramdisk", initrd, sum, limits.initrd)?;
        }
        let append = choice.append.as_deref().unwrap_or_default();
        Ok(Plan {
            id: draft.id.clone(),
            title: draft.title.clone(),
            version: draft.version.clone(),
            source: draft.source,
            found_in: draft.found_in.clone(),
            kernel: self.boot_file(kernel),
            initrds: initrds
                .into_iter()
                .map(|found| self.boot_file(found))
                .collect(),
            command_line: words([draft.command_line.as_str(), append]),
        })
    }
}

fn within(what: &str, found: &entry::Found, size: u64, limit: u64) -> Result<()> {
    if size == 0 && what == "kernel" {
        return Err(Error::new(
            ErrorKind::Missing,
            "load",
            format!("the kernel {}", found.volume.named(&found.file.path)),
            "the file is empty",
            OTHER_ENTRY,
        ));
    }
    if size <= limit {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::TooLarge,
        "load",
        format!("the {what} {}", found.volume.named(&found.file.path)),
        format!("with it there are {size} bytes to load, more than {limit}"),
        OTHER_ENTRY,
    ))
}
