//! Finds the boot descriptions of an image, one kind after the other.

mod bls;
mod extlinux;
mod grub;
mod newest;
mod uki;

use alloc::vec::Vec;

use crate::entry::{Draft, Source};
use crate::error::{Error, Result};
use crate::survey::Survey;

/// The entries of one kind of description, in the menu's order, and which is booted.
#[derive(Debug, Default)]
pub(crate) struct Menu {
    pub(crate) drafts: Vec<Draft>,
    pub(crate) default: usize,
}

/// The kinds, in the order in which they are looked for.
pub(crate) const ORDER: [Source; 5] = [
    Source::UnifiedKernel,
    Source::BootLoaderEntry,
    Source::Grub,
    Source::Extlinux,
    Source::NewestKernel,
];

impl Survey {
    /// Reads the descriptions of one kind. An empty menu means that there are none.
    pub(crate) fn menu(&self, source: Source) -> Result<Menu> {
        match source {
            Source::UnifiedKernel => uki::menu(self),
            Source::BootLoaderEntry => bls::menu(self),
            Source::Grub => grub::menu(self),
            Source::Extlinux => extlinux::menu(self),
            Source::NewestKernel => newest::menu(self),
        }
    }
}

/// The text of `loader.conf`'s default pattern, from the first volume that has one.
fn loader_default(survey: &Survey) -> Result<Option<alloc::string::String>> {
    for (_, volume) in survey.volumes() {
        if let Some(file) = volume.file(0, "/loader/loader.conf")? {
            let text = volume.text(&file)?;
            return Ok(crate::config::bls::default_pattern(&text));
        }
    }
    Ok(None)
}

/// Passes on what ends everything, and takes anything else for "not there".
fn unless_final<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if Error::is_final(&error) => Err(error),
        Err(_) => Ok(None),
    }
}
