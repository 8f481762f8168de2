//! Unified kernel images in `EFI/Linux`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::menu::{Menu, loader_default};
use crate::config::uki::{HEAD, NotUki, Range, Uki, os_release, text};
use crate::config::{bls, glob};
use crate::entry::{Draft, Payload, Source};
use crate::error::{Error, ErrorKind, OTHER_ENTRY, Result};
use crate::fs::{Located, Volume};
use crate::survey::Survey;

const FOLDER: &str = "/EFI/Linux";

pub(super) fn menu(survey: &Survey) -> Result<Menu> {
    let mut found: Vec<(bls::Entry, Draft)> = Vec::new();
    for (slot, volume) in survey.volumes() {
        for name in volume.list(0, FOLDER)? {
            let lower = name.to_ascii_lowercase();
            let path = format!("{FOLDER}/{name}");
            let Some(stem) = lower
                .strip_suffix(".efi")
                .and_then(|stem| name.get(..stem.len()))
            else {
                continue;
            };
            if let Some(file) = volume.file(0, &path)? {
                found.push(entry(slot, volume, file, stem)?);
            }
        }
    }
    found.sort_by(|(left, _), (right, _)| bls::order(left, right));
    let drafts: Vec<Draft> = found.into_iter().map(|(_, draft)| draft).collect();
    let usable = |draft: &Draft| !matches!(draft.payload, Payload::Nothing(_));
    let wanted = loader_default(survey)?.and_then(|pattern| {
        let matches = |draft: &Draft| {
            glob::matches(&pattern, &draft.id)
                || glob::matches(&pattern, &format!("{}.efi", draft.id))
        };
        drafts
            .iter()
            .position(|draft| matches(draft) && usable(draft))
    });
    let default = wanted
        .or_else(|| drafts.iter().position(usable))
        .unwrap_or(0);
    Ok(Menu { drafts, default })
}

/// Reads the image at `file`, as far as a menu needs it.
pub(super) fn read(volume: &Volume, file: &Located) -> Result<Uki> {
    let head = volume.piece(file, 0, file.meta.size.min(HEAD))?;
    Uki::parse(&head, file.meta.size).map_err(|why| {
        let (kind, cause) = match why {
            NotUki::Malformed => (
                ErrorKind::Config,
                "it is no PE file, or its section table is damaged",
            ),
            NotUki::NoKernel => (
                ErrorKind::Unsupported,
                "it is an EFI program without a kernel section",
            ),
            NotUki::Cut => (
                ErrorKind::Config,
                "a section lies behind the end of the file",
            ),
        };
        Error::new(kind, "read", volume.named(&file.path), cause, OTHER_ENTRY)
    })
}

/// The text of a section.
pub(super) fn section(volume: &Volume, file: &Located, range: Option<Range>) -> Result<String> {
    const MAX: u64 = 64 * 1024;
    let Some(range) = range else {
        return Ok(String::new());
    };
    let bytes = volume.piece(file, range.offset, range.size.min(MAX))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn entry(slot: usize, volume: &Volume, file: Located, stem: &str) -> Result<(bls::Entry, Draft)> {
    let (id, bad) = bls::counted(stem);
    let mut order = bls::Entry {
        file: format!("{id}.efi"),
        id: id.clone(),
        bad,
        ..bls::Entry::default()
    };
    let mut draft = Draft {
        source: Source::UnifiedKernel,
        title: id.clone(),
        id,
        version: None,
        found_in: volume.named(&file.path),
        command_line: String::new(),
        payload: Payload::Nothing(not_read(volume, &file)),
    };
    match read(volume, &file) {
        Ok(image) => {
            let release = section(volume, &file, image.osrel)?;
            let value = |keys: &[&str]| keys.iter().find_map(|key| os_release(&release, key));
            order.sort_key = value(&["IMAGE_ID", "ID"]);
            order.version = value(&["IMAGE_VERSION", "VERSION_ID", "BUILD_ID"]);
            draft.title = value(&["PRETTY_NAME", "NAME"]).unwrap_or(draft.title);
            let uname = text(section(volume, &file, image.uname)?.as_bytes());
            draft.version = (!uname.is_empty())
                .then_some(uname)
                .or(order.version.clone());
            draft.command_line = text(section(volume, &file, image.cmdline)?.as_bytes());
            draft.payload = Payload::Unified { slot, file, image };
        }
        Err(error) if error.is_final() => return Err(error),
        Err(error) => draft.payload = Payload::Nothing(error),
    }
    Ok((order, draft))
}

fn not_read(volume: &Volume, file: &Located) -> Error {
    let object = volume.named(&file.path);
    Error::new(
        ErrorKind::Config,
        "read",
        object,
        "not read".to_string(),
        OTHER_ENTRY,
    )
}
