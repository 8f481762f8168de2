//! `extlinux.conf` and `syslinux.cfg`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::menu::Menu;
use crate::config::extlinux::{Config, Label};
use crate::entry::{Draft, Payload, Reference, Source, join};
use crate::error::{Error, ErrorKind, OTHER_ENTRY, Result};
use crate::fs::Volume;
use crate::survey::Survey;

const FILES: [&str; 11] = [
    "/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/boot/extlinux/extlinux.conf",
    "/syslinux.cfg",
    "/syslinux/syslinux.cfg",
    "/boot/syslinux/syslinux.cfg",
    "/boot/syslinux.cfg",
    "/EFI/syslinux/syslinux.cfg",
    "/isolinux/isolinux.cfg",
    "/boot/isolinux/isolinux.cfg",
];
/// Included files that are read.
const MAX_INCLUDES: usize = 16;

pub(super) fn menu(survey: &Survey) -> Result<Menu> {
    for (slot, volume) in survey.volumes() {
        let views: Vec<usize> = volume.views().map(|(view, _)| view).collect();
        for (view, path) in views
            .iter()
            .flat_map(|view| FILES.map(|path| (*view, path)))
        {
            let Some(config) = read(volume, view, path)? else {
                continue;
            };
            if config.labels.is_empty() {
                continue;
            }
            let place = Place {
                slot,
                view,
                folder: path.rsplit_once('/').map_or("", |(folder, _)| folder),
                found_in: volume.named(path),
            };
            let drafts = config
                .labels
                .iter()
                .map(|label| place.draft(&config, label));
            return Ok(Menu {
                drafts: drafts.collect(),
                default: config.chosen(),
            });
        }
    }
    Ok(Menu::default())
}

fn read(volume: &Volume, view: usize, path: &str) -> Result<Option<Config>> {
    let Some(file) = volume.file(view, path)? else {
        return Ok(None);
    };
    let mut config = Config::default();
    config.add(&volume.text(&file)?);
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    for index in 0..MAX_INCLUDES {
        // An included file may include more.
        let Some(name) = config.includes.get(index) else {
            break;
        };
        if let Some(file) = volume.file(view, &join(folder, name))? {
            config.add(&volume.text(&file)?);
        }
    }
    Ok(Some(config))
}

struct Place<'p> {
    slot: usize,
    view: usize,
    folder: &'p str,
    found_in: String,
}

impl Place<'_> {
    fn reference(&self, name: &str) -> Reference {
        let mut paths = [join(self.folder, name)].to_vec();
        // A boot partition's files are named as they are seen below its mount point.
        match name.strip_prefix("/boot/") {
            Some(inner) => paths.push(format!("/{inner}")),
            None => paths.push(join("/", name)),
        }
        Reference {
            slot: Ok(self.slot),
            view: self.view,
            paths,
        }
    }

    fn draft(&self, config: &Config, label: &Label) -> Draft {
        let kernel = label.kernel.as_deref();
        // Modules and boot sectors have these names.
        let foreign = |name: &&str| {
            let suffixes = [".c32", ".com", ".0", ".bs", ".bin", ".bss"];
            suffixes.iter().any(|suffix| name.ends_with(suffix))
        };
        let payload = match kernel.filter(|name| !foreign(name)) {
            Some(kernel) => Payload::Files {
                kernel: self.reference(kernel),
                initrds: config
                    .initrds(label)
                    .iter()
                    .map(|name| self.reference(name))
                    .collect(),
            },
            None => Payload::Nothing(Error::new(
                ErrorKind::Unsupported,
                "boot",
                format!("the label \"{}\" of {}", label.name, self.found_in),
                "it loads no Linux kernel",
                OTHER_ENTRY,
            )),
        };
        Draft {
            source: Source::Extlinux,
            id: label.name.to_string(),
            title: label.title.clone().unwrap_or_else(|| label.name.clone()),
            version: None,
            found_in: self.found_in.clone(),
            command_line: config.command_line(label),
            payload,
        }
    }
}
