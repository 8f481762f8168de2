//! What the readers of descriptions share.

use alloc::string::String;
use alloc::vec::Vec;

use crate::config::bls::default_pattern;
use crate::entry::Draft;
use crate::error::{Error, Result};
use crate::survey::Survey;

/// The entries of one kind of description, in the menu's order, and which is booted.
#[derive(Debug, Default)]
pub(crate) struct Menu {
    pub(crate) drafts: Vec<Draft>,
    pub(crate) default: usize,
}

/// The text of `loader.conf`'s default pattern, from the first volume that has one.
pub(super) fn loader_default(survey: &Survey) -> Result<Option<String>> {
    for (_, volume) in survey.volumes() {
        if let Some(file) = volume.file(0, "/loader/loader.conf")? {
            let text = volume.text(&file)?;
            return Ok(default_pattern(&text));
        }
    }
    Ok(None)
}

/// Passes on what ends everything, and takes anything else for "not there".
pub(super) fn unless_final<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if Error::is_final(&error) => Err(error),
        Err(_) => Ok(None),
    }
}
