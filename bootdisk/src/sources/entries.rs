//! Boot Loader Specification entries, whoever shows them: their files and what they boot.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::uki;
use crate::config::bls::{self, Entry, expand};
use crate::entry::{Payload, Reference, join, words};
use crate::error::{Error, ErrorKind, OTHER_ENTRY, Result};
use crate::fs::Volume;
use crate::survey::Survey;

/// Where the folder is: at the root of a boot partition, or below `/boot` of a root file system.
pub(super) const BASES: [&str; 2] = ["", "/boot"];
/// The folder.
pub(super) const FOLDER: &str = "/loader/entries";

/// The entries in a folder that fit the machine, each with its path.
pub(super) fn read(volume: &Volume, view: usize, folder: &str) -> Result<Vec<(Entry, String)>> {
    let mut entries = Vec::new();
    for name in volume.list(view, folder)? {
        if !name.ends_with(".conf") {
            continue;
        }
        let path = format!("{folder}/{name}");
        let Some(file) = volume.file(view, &path)? else {
            continue;
        };
        let entry = Entry::parse(&name, &volume.text(&file)?);
        let boots = entry.linux.is_some() || entry.efi.is_some();
        if boots && entry.fits() {
            entries.push((entry, path));
        }
    }
    Ok(entries)
}

/// The same for GRUB's `blscfg`, in the menu's order.
pub(super) fn for_grub(volume: &Volume, view: usize, folder: Option<&str>) -> Result<Vec<Entry>> {
    let folders = match folder {
        Some(folder) => [folder.to_string()].to_vec(),
        None => BASES.map(|base| format!("{base}{FOLDER}")).to_vec(),
    };
    for folder in folders {
        let entries = read(volume, view, &folder)?;
        let mut entries: Vec<Entry> = entries.into_iter().map(|(entry, _)| entry).collect();
        if !entries.is_empty() {
            entries.sort_by(bls::order);
            return Ok(entries);
        }
    }
    Ok(Vec::new())
}

/// Where a path of an entry may be: as it is, or as seen from the other side of a mount at `/boot`.
fn places(path: &str) -> Vec<String> {
    let path = join("/", path);
    let other = match path.strip_prefix("/boot") {
        Some(inner) if inner.starts_with('/') => inner.to_string(),
        _ => format!("/boot{path}"),
    };
    [path, other].to_vec()
}

/// What an entry on `slot` boots, and with which command line. `value` knows variables.
pub(super) fn payload<'v>(
    survey: &Survey,
    (slot, view): (usize, usize),
    entry: &Entry,
    found_in: &str,
    image_prefix: Option<&str>,
    value: impl Fn(&str) -> Option<&'v str> + Copy,
) -> Result<(Payload, String)> {
    let options = words(entry.options.iter().map(String::as_str));
    let options = words(expand(&options, value).split_ascii_whitespace());
    let reference = |path: &str| Reference {
        slot: Ok(slot),
        view,
        paths: places(path),
    };
    if let Some(linux) = &entry.linux {
        let initrds = entry.initrds.iter().map(|initrd| expand(initrd, value));
        let initrds = initrds.filter(|initrd| !initrd.is_empty());
        let initrds = initrds.map(|initrd| reference(&initrd)).collect();
        let image = image_prefix.map(|prefix| format!("BOOT_IMAGE={prefix}{linux}"));
        let payload = Payload::Files {
            kernel: reference(linux),
            initrds,
        };
        return Ok((
            payload,
            words([image.as_deref().unwrap_or_default(), &options]),
        ));
    }
    let path = entry.efi.as_deref().unwrap_or_default();
    let volume = survey.slots.get(slot).and_then(|slot| slot.volume());
    let file = match volume {
        Some(volume) => volume.file(view, path)?,
        None => None,
    };
    let (Some(volume), Some(file)) = (volume, file) else {
        let error = Error::new(
            ErrorKind::Missing,
            "open",
            format!("{path}, which {found_in} names"),
            "there is no such file",
            OTHER_ENTRY,
        );
        return Ok((Payload::Nothing(error), options));
    };
    match uki::read(volume, &file) {
        Ok(image) => {
            let own = uki::section(volume, &file, image.cmdline)?;
            let own = crate::config::uki::text(own.as_bytes());
            let line = if options.is_empty() { own } else { options };
            Ok((Payload::Unified { slot, file, image }, line))
        }
        Err(error) if error.is_final() => Err(error),
        Err(error) => Ok((Payload::Nothing(error), options)),
    }
}
