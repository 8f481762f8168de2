//! Without any description: the newest kernel in a usual folder, and the root file system by its
//! partition type or contents.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::menu::{Menu, unless_final};
use crate::config::version;
use crate::entry::{Draft, Payload, Reference, Source};
use crate::error::Result;
use crate::fs::{FsKind, Volume};
use crate::survey::{Slot, Survey};
use crate::table::Role;

const FOLDERS: [&str; 2] = ["/boot", "/"];
const KERNELS: [&str; 2] = ["vmlinuz", "bzImage"];
/// What is no kernel, or one for emergencies.
const NOT: [&str; 5] = ["rescue", "fallback", ".old", ".sig", ".hmac"];

pub(super) fn menu(survey: &Survey) -> Result<Menu> {
    let mut drafts = Vec::new();
    for (slot, volume) in survey.volumes() {
        let views: Vec<usize> = volume.views().map(|(view, _)| view).collect();
        for (view, folder) in views
            .iter()
            .flat_map(|view| FOLDERS.map(|path| (*view, path)))
        {
            for (kernel, initrd) in kernels(volume, view, folder)? {
                drafts.push(draft(
                    survey,
                    (slot, view),
                    folder,
                    &kernel,
                    initrd.as_deref(),
                )?);
            }
            // The newest of the first folder that has any.
            if !drafts.is_empty() {
                return Ok(Menu { drafts, default: 0 });
            }
        }
    }
    Ok(Menu::default())
}

/// The kernels in a folder, newest first, each with its ramdisk.
fn kernels(volume: &Volume, view: usize, folder: &str) -> Result<Vec<(String, Option<String>)>> {
    let names = volume.list(view, folder)?;
    let release = |name: &str| {
        let rest = KERNELS.iter().find_map(|start| name.strip_prefix(start))?;
        let usable = rest.is_empty() || rest.starts_with('-');
        let other = NOT.iter().any(|word| name.contains(word));
        (usable && !other).then(|| rest.trim_start_matches('-').to_string())
    };
    let mut found = Vec::new();
    for name in &names {
        let Some(release) = release(name) else {
            continue;
        };
        if volume.file(view, &format!("{folder}/{name}"))?.is_none() {
            continue;
        }
        let candidates = initrds(&release);
        let initrd = candidates
            .into_iter()
            .find(|candidate| names.contains(candidate));
        found.push((release, name.clone(), initrd));
    }
    found.sort_by(|(left, ..), (right, ..)| version::compare(right, left));
    Ok(found
        .into_iter()
        .map(|(_, name, initrd)| (name, initrd))
        .collect())
}

/// What distributions call the ramdisk of a release.
fn initrds(release: &str) -> Vec<String> {
    let mut names = Vec::new();
    for stem in ["initrd.img", "initrd", "initramfs"] {
        for suffix in ["", ".img"] {
            let dash = if release.is_empty() { "" } else { "-" };
            names.push(format!("{stem}{dash}{release}{suffix}"));
        }
    }
    names
}

fn draft(
    survey: &Survey,
    (slot, view): (usize, usize),
    folder: &str,
    kernel: &str,
    initrd: Option<&str>,
) -> Result<Draft> {
    let folder = folder.trim_end_matches('/');
    let reference = |name: &str| Reference {
        slot: Ok(slot),
        view,
        paths: [format!("{folder}/{name}")].to_vec(),
    };
    let volume = survey.slots.get(slot).and_then(|slot| slot.volume());
    let found_in = volume.map_or_else(String::new, |volume| volume.named(folder));
    let root = root(survey)?.map(|root| root.argument(initrd.is_some()));
    Ok(Draft {
        source: Source::NewestKernel,
        id: kernel.to_string(),
        title: kernel.to_string(),
        version: None,
        found_in,
        // There is no description that names the console.
        command_line: format!("{}ro console=ttyS0", root.unwrap_or_default()),
        payload: Payload::Files {
            kernel: reference(kernel),
            initrds: initrd.map(reference).into_iter().collect(),
        },
    })
}

struct Root<'s> {
    slot: &'s Slot,
    volume: &'s Volume,
    /// The subvolume's name.
    view: String,
}

impl Root<'_> {
    /// The arguments that name it, with a space behind them.
    fn argument(&self, with_initrd: bool) -> String {
        let file_system = self.volume.identity.uuid.as_ref();
        let partition = self.slot.partition.uuid.as_ref();
        // Without a ramdisk the kernel itself looks for the root: it knows partitions.
        let root = match (with_initrd, file_system, partition) {
            (true, Some(uuid), _) => format!("root=UUID={uuid} "),
            (_, _, Some(uuid)) => format!("root=PARTUUID={uuid} "),
            (_, Some(uuid), None) => format!("root=UUID={uuid} "),
            (_, None, None) => String::new(),
        };
        if self.volume.identity.kind == FsKind::Btrfs && !self.view.is_empty() {
            return format!("{root}rootflags=subvol={} ", self.view);
        }
        root
    }
}

/// The root file system: by its partition's type, or by what is in it.
fn root(survey: &Survey) -> Result<Option<Root<'_>>> {
    let mut slots: Vec<&Slot> = survey.slots.iter().collect();
    slots.sort_by_key(|slot| slot.partition.role != Role::LinuxRoot);
    for slot in slots {
        let Some(volume) = slot.volume() else {
            continue;
        };
        let root = |name: &str| Root {
            slot,
            volume,
            // What is mounted by default needs no name.
            view: if name.contains(' ') {
                String::new()
            } else {
                name.to_string()
            },
        };
        for (view, name) in volume.views() {
            for file in ["/etc/os-release", "/usr/lib/os-release", "/sbin/init"] {
                if unless_final(volume.find(view, file))?.flatten().is_some() {
                    return Ok(Some(root(name)));
                }
            }
        }
        if slot.partition.role == Role::LinuxRoot {
            return Ok(Some(root("")));
        }
    }
    Ok(None)
}
