//! Finds the boot descriptions of an image, one kind after the other.

mod bls;
mod entries;
mod extlinux;
mod grub;
mod menu;
mod newest;
mod uki;

use menu::Menu;

use crate::entry::Source;
use crate::error::Result;
use crate::survey::Survey;

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
