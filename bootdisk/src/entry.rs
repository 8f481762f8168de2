//! Boot entries, whatever description they come from.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::config::uki::{Range, Uki};
use crate::error::{Error, ErrorKind, OTHER_ENTRY, Result};
use crate::fs::{Kind, Located, Volume};
use crate::survey::Survey;

/// The kind of description that an entry comes from, in the order in which they are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Source {
    /// A unified kernel image in `EFI/Linux`.
    UnifiedKernel,
    /// A Boot Loader Specification entry in `loader/entries`.
    BootLoaderEntry,
    /// A menu entry of a `grub.cfg`.
    Grub,
    /// A label of an `extlinux.conf` or `syslinux.cfg`.
    Extlinux,
    /// None: the newest kernel in a usual folder.
    NewestKernel,
}

/// A file that a description names.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    /// The slot, or the device that was asked for and isn't here.
    pub(crate) slot: core::result::Result<usize, String>,
    pub(crate) view: usize,
    /// Where it may be, in order of preference.
    pub(crate) paths: Vec<String>,
}

/// What an entry boots.
#[derive(Debug, Clone)]
pub(crate) enum Payload {
    /// A kernel with ramdisks.
    Files {
        kernel: Reference,
        initrds: Vec<Reference>,
    },
    /// A unified kernel image.
    Unified {
        slot: usize,
        file: Located,
        image: Uki,
    },
    /// Nothing that can be booted.
    Nothing(Error),
}

/// An entry before its files have been looked up.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) source: Source,
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) version: Option<String>,
    /// "/loader/entries/a.conf on partition 1 (FAT)".
    pub(crate) found_in: String,
    pub(crate) command_line: String,
    pub(crate) payload: Payload,
}

/// A part of a file on the image.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) slot: usize,
    pub(crate) volume: Rc<Volume>,
    pub(crate) file: Located,
    pub(crate) range: Range,
}

/// An entry's files.
pub(crate) struct Files {
    pub(crate) kernel: Found,
    pub(crate) initrds: Vec<Found>,
}

impl Draft {
    /// Whether `name` means this entry.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        let bare = name
            .strip_suffix(".conf")
            .or_else(|| name.strip_suffix(".efi"));
        self.id == name || self.title == name || bare.is_some_and(|bare| bare == self.id)
    }

    /// Looks the files up.
    pub(crate) fn files(&self, survey: &Survey) -> Result<Files> {
        match &self.payload {
            Payload::Nothing(error) => Err(error.clone()),
            Payload::Unified { slot, file, image } => {
                let volume = survey.slots.get(*slot).and_then(|slot| slot.volume());
                let Some(volume) = volume else {
                    return Err(self.missing(&file.path, "its partition is gone"));
                };
                let found = |range: Range| Found {
                    slot: *slot,
                    volume: Rc::clone(volume),
                    file: file.clone(),
                    range,
                };
                // The processor's microcode comes first.
                let initrds = [image.ucode, image.initrd].into_iter().flatten();
                Ok(Files {
                    kernel: found(image.linux),
                    initrds: initrds.map(found).collect(),
                })
            }
            Payload::Files { kernel, initrds } => {
                let initrds = initrds.iter().map(|initrd| self.find(survey, initrd));
                Ok(Files {
                    kernel: self.find(survey, kernel)?,
                    initrds: initrds.collect::<Result<_>>()?,
                })
            }
        }
    }

    fn missing(&self, path: &str, cause: impl Into<String>) -> Error {
        Error::new(
            ErrorKind::Missing,
            "open",
            format!("{path}, which {} names", self.found_in),
            cause,
            OTHER_ENTRY,
        )
    }

    fn find(&self, survey: &Survey, reference: &Reference) -> Result<Found> {
        let path = reference.paths.first().map_or("", String::as_str);
        let slot = match &reference.slot {
            Ok(slot) => *slot,
            Err(device) => {
                return Err(survey.explanation().unwrap_or_else(|| {
                    self.missing(path, format!("the image has no device \"{device}\""))
                }));
            }
        };
        let volume = survey.slots.get(slot).and_then(|slot| slot.volume());
        let Some(volume) = volume else {
            return Err(survey.explanation().unwrap_or_else(|| {
                self.missing(path, "its partition has no file system that is read")
            }));
        };
        for path in &reference.paths {
            let Some(file) = volume.find_anywhere(reference.view, path)? else {
                continue;
            };
            if file.meta.kind != Kind::File {
                continue;
            }
            let range = Range {
                offset: 0,
                size: file.meta.size,
            };
            return Ok(Found {
                slot,
                volume: Rc::clone(volume),
                file,
                range,
            });
        }
        Err(self.missing(path, format!("{} has no such file", volume.place)))
    }
}

/// `text` in front of other words.
pub(crate) fn words<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    let mut line = String::new();
    for word in words {
        let word = word.trim();
        if word.is_empty() {
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

/// A path joined to a folder.
pub(crate) fn join(folder: &str, name: &str) -> String {
    if name.starts_with('/') {
        return name.to_string();
    }
    format!("{}/{name}", folder.trim_end_matches('/'))
}
