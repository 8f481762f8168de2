//! Entries in `loader/entries`: systemd-boot's, and those that GRUB shows by `blscfg`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::entries::{BASES, FOLDER, payload, read};
use super::grub::{self, Grub};
use super::menu::{Menu, loader_default, unless_final};
use crate::config::bls::{self, Entry};
use crate::config::{glob, grubenv};
use crate::entry::{Draft, Source};
use crate::error::Result;
use crate::survey::Survey;

/// The folders that GRUB's files are in.
const GRUB: [&str; 2] = ["/grub2", "/grub"];

/// What a menu of GRUB adds to its entries.
#[derive(Default)]
struct Environment {
    variables: Vec<(String, String)>,
    default: Option<String>,
    /// GRUB passes the kernel's name on: "(hd0,gpt1)".
    image_prefix: Option<String>,
}

pub(super) fn menu(survey: &Survey) -> Result<Menu> {
    let pattern = loader_default(survey)?;
    let mut all: Vec<(Entry, Draft)> = Vec::new();
    let mut wanted = None;
    for (slot, volume) in survey.volumes() {
        let views: Vec<usize> = volume.views().map(|(view, _)| view).collect();
        for (view, base) in views
            .iter()
            .flat_map(|view| BASES.map(|base| (*view, base)))
        {
            let entries = read(volume, view, &format!("{base}{FOLDER}"))?;
            if entries.is_empty() {
                continue;
            }
            let environment = environment(survey, slot, view, base)?;
            if let Some(default) = &environment.default {
                wanted.get_or_insert_with(|| default.clone());
            }
            for (entry, path) in entries {
                let draft = draft(survey, (slot, view), &path, &entry, &environment)?;
                all.push((entry, draft));
            }
        }
        // Views of one file system show the same entries.
        all.dedup_by(|(_, one), (_, other)| one.found_in == other.found_in);
    }
    all.sort_by(|(left, _), (right, _)| bls::order(left, right));
    let entries = || all.iter().map(|(entry, _)| entry);
    let by_pattern = pattern.and_then(|pattern| {
        let matches = |entry: &Entry| {
            glob::matches(&pattern, &entry.id) || glob::matches(&pattern, &entry.file)
        };
        entries().position(matches)
    });
    let by_name = || {
        let name = wanted.as_deref()?;
        let titled = |entry: &Entry| entry.title.as_deref() == Some(name);
        let number = || {
            name.parse::<usize>()
                .ok()
                .filter(|number| *number < all.len())
        };
        entries()
            .position(|entry| entry.is_called(name) || titled(entry))
            .or_else(number)
    };
    let default = by_pattern.or_else(by_name).unwrap_or(0);
    let drafts = all.into_iter().map(|(_, draft)| draft).collect();
    Ok(Menu { drafts, default })
}

/// What GRUB's environment block and configuration beside the entries say.
fn environment(survey: &Survey, slot: usize, view: usize, base: &str) -> Result<Environment> {
    let mut environment = Environment::default();
    let Some(volume) = survey.slots.get(slot).and_then(|slot| slot.volume()) else {
        return Ok(environment);
    };
    for folder in GRUB.map(|folder| format!("{base}{folder}")) {
        if let Some(file) = volume.file(view, &format!("{folder}/grubenv"))? {
            environment.variables = grubenv::parse(&volume.text(&file)?);
            let saved = |name: &str| {
                let found = environment.variables.iter().find(|(has, _)| has == name);
                found
                    .map(|(_, value)| value.clone())
                    .filter(|value| !value.is_empty())
            };
            environment.default = saved("next_entry").or_else(|| saved("saved_entry"));
        }
        let Some(file) = volume.file(view, &format!("{folder}/grub.cfg"))? else {
            continue;
        };
        environment.image_prefix = Some(format!("({})", survey.device(slot)));
        // A configuration that is broken costs its variables, no more.
        let text = volume.text(&file)?;
        let host = Grub { survey, slot, view };
        if let Some(machine) = unless_final(grub::run(&host, &folder, &text, &file.path))? {
            for name in ["kernelopts", "default_kernelopts", "early_initrd"] {
                let value = machine.variable(name);
                let known = environment.variables.iter().any(|(has, _)| has == name);
                if !value.is_empty() && !known {
                    environment
                        .variables
                        .push((name.to_string(), value.to_string()));
                }
            }
            let default = machine.variable("default");
            if !default.is_empty() {
                environment.default = Some(default.to_string());
            }
        }
        break;
    }
    Ok(environment)
}

fn draft(
    survey: &Survey,
    (slot, view): (usize, usize),
    path: &str,
    entry: &Entry,
    environment: &Environment,
) -> Result<Draft> {
    let value = |name: &str| {
        let found = environment.variables.iter().find(|(has, _)| has == name);
        found.map(|(_, value)| value.as_str())
    };
    let volume = survey.slots.get(slot).and_then(|slot| slot.volume());
    let found_in = volume.map_or_else(String::new, |volume| volume.named(path));
    let image = environment.image_prefix.as_deref();
    let (payload, command_line) = payload(survey, (slot, view), entry, &found_in, image, value)?;
    Ok(Draft {
        source: Source::BootLoaderEntry,
        id: entry.id.clone(),
        title: entry.title.clone().unwrap_or_else(|| entry.id.clone()),
        version: entry.version.clone(),
        found_in,
        command_line,
        payload,
    })
}
