//! `grub.cfg`, wherever it is.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::entries;
use super::menu::Menu;
use crate::config::bls::Entry;
use crate::config::grub::{Boot, Host, Item, Machine, Named, SearchKey, Stop};
use crate::entry::{Draft, Payload, Reference, Source, join, words};
use crate::error::{BOOT_OTHERWISE, Error, ErrorKind, OTHER_ENTRY, Result};
use crate::fs::{FsKind, Kind, Located, Volume};
use crate::survey::Survey;

/// Where a root file system or boot partition has it.
const FOLDERS: [&str; 4] = ["/boot/grub", "/grub", "/boot/grub2", "/grub2"];
/// How deep submenus are followed.
const MAX_SUBMENUS: usize = 8;
/// A script's tokens take up to this many times its size.
const MEMORY_PER_BYTE: u64 = 64;

/// The disk as GRUB sees it from a configuration file.
#[derive(Clone, Copy)]
pub(super) struct Grub<'s> {
    pub(super) survey: &'s Survey,
    /// Where the configuration is.
    pub(super) slot: usize,
    pub(super) view: usize,
}

impl Grub<'_> {
    fn volume(&self, device: &str) -> Option<(usize, &Volume)> {
        let slot = self.survey.slot_of(device)?;
        let volume = self.survey.slots.get(slot)?.volume()?;
        Some((self.view_of(slot), volume))
    }

    /// The subvolume that paths on `slot` start from.
    fn view_of(&self, slot: usize) -> usize {
        if slot == self.slot { self.view } else { 0 }
    }

    fn find(&self, device: &str, path: &str) -> Result<Option<(&Volume, Located)>> {
        let Some((view, volume)) = self.volume(device) else {
            return Ok(None);
        };
        let found = volume.find_anywhere(view, path);
        // What GRUB couldn't read doesn't exist for a script.
        let found = match found {
            Err(error) if !error.is_final() => None,
            found => found?,
        };
        Ok(found.map(|found| (volume, found)))
    }
}

impl Host for Grub<'_> {
    fn step(&self) -> Result<()> {
        self.survey.image.step(1)
    }

    fn search(&self, key: SearchKey, value: &str) -> Result<Option<String>> {
        for (slot, volume) in self.survey.volumes() {
            let identity = &volume.identity;
            let matches = match key {
                SearchKey::Uuid => identity
                    .uuid
                    .as_deref()
                    .is_some_and(|uuid| uuid.eq_ignore_ascii_case(value)),
                SearchKey::Label => identity.label.as_deref() == Some(value),
                SearchKey::File => self.find(&self.survey.device(slot), value)?.is_some(),
            };
            if matches {
                return Ok(Some(self.survey.device(slot)));
            }
        }
        Ok(None)
    }

    fn stat(&self, device: &str, path: &str) -> Result<Option<Option<u64>>> {
        let found = self.find(device, path)?;
        Ok(found.map(|(_, file)| (file.meta.kind != Kind::Dir).then_some(file.meta.size)))
    }

    fn text(&self, device: &str, path: &str) -> Result<Option<String>> {
        let Some((volume, file)) = self.find(device, path)? else {
            return Ok(None);
        };
        if file.meta.kind != Kind::File {
            return Ok(None);
        }
        let text = volume.text(&file)?;
        let size = crate::bytes::number(text.len());
        self.survey
            .image
            .memory(size.saturating_mul(MEMORY_PER_BYTE))?;
        Ok(Some(text))
    }

    fn probe(&self, device: &str, what: SearchKey) -> Option<String> {
        let (_, volume) = self.volume(device)?;
        match what {
            SearchKey::Uuid => volume.identity.uuid.clone(),
            SearchKey::Label => volume.identity.label.clone(),
            SearchKey::File => None,
        }
    }

    fn entries(&self, device: &str, folder: Option<&str>) -> Result<Vec<Entry>> {
        match self.volume(device) {
            Some((view, volume)) => entries::for_grub(volume, view, folder),
            None => Ok(Vec::new()),
        }
    }
}

/// Runs a configuration of `host`'s volume. Returns the interpreter with its menu.
pub(super) fn run<'h>(
    host: &'h Grub<'_>,
    folder: &str,
    text: &str,
    path: &str,
) -> Result<Machine<'h>> {
    let size = crate::bytes::number(text.len());
    host.survey
        .image
        .memory(size.saturating_mul(MEMORY_PER_BYTE))?;
    let device = host.survey.device(host.slot);
    let mut machine = Machine::new(host, &device, folder);
    machine
        .run(text)
        .map_err(|stop| stopped(host, path, stop))?;
    Ok(machine)
}

fn stopped(host: &Grub<'_>, path: &str, stop: Stop) -> Error {
    let volume = host
        .survey
        .slots
        .get(host.slot)
        .and_then(|slot| slot.volume());
    let object = volume.map_or_else(|| path.to_string(), |volume| volume.named(path));
    match stop {
        Stop::Error(error) => error,
        Stop::Endless(cause) => {
            Error::new(ErrorKind::Endless, "run", object, cause, BOOT_OTHERWISE)
        }
        Stop::Malformed(cause) => {
            Error::new(ErrorKind::Config, "parse", object, cause, BOOT_OTHERWISE)
        }
    }
}

pub(super) fn menu(survey: &Survey) -> Result<Menu> {
    for (slot, volume) in survey.volumes() {
        // An EFI system partition has a few lines that lead to the true configuration.
        let mut places = Vec::new();
        if volume.identity.kind == FsKind::Fat {
            for vendor in volume.list(0, "/EFI")? {
                places.push((0, format!("/EFI/{vendor}")));
            }
        }
        let views = volume.views().map(|(view, _)| view);
        places.extend(views.flat_map(|view| FOLDERS.map(|folder| (view, folder.to_string()))));
        for (view, folder) in places {
            let Some(file) = volume.file(view, &format!("{folder}/grub.cfg"))? else {
                continue;
            };
            let host = Grub { survey, slot, view };
            let menu = evaluate(&host, volume, &folder, &file)?;
            if !menu.drafts.is_empty() {
                return Ok(menu);
            }
        }
    }
    Ok(Menu::default())
}

fn evaluate(host: &Grub<'_>, volume: &Volume, folder: &str, file: &Located) -> Result<Menu> {
    let text = volume.text(file)?;
    let machine = run(host, folder, &text, &file.path)?;
    let mut flat = Flat {
        host,
        path: file.path.clone(),
        found_in: volume.named(&file.path),
        entries: Vec::new(),
    };
    flat.add(&machine, &[])?;
    let wanted = machine.variable("default").to_string();
    let default = flat.default(&wanted);
    let drafts = flat.entries.into_iter().map(|(_, draft)| draft).collect();
    Ok(Menu { drafts, default })
}

/// One level of the path to an entry.
#[derive(Clone)]
struct Step {
    index: usize,
    id: String,
    title: String,
}

impl Step {
    fn is(&self, name: &str) -> bool {
        self.id == name || self.title == name || name.parse() == Ok(self.index)
    }
}

/// A menu with its submenus, as one list.
struct Flat<'h, 's> {
    host: &'h Grub<'s>,
    path: String,
    found_in: String,
    entries: Vec<(Vec<Step>, Draft)>,
}

impl Flat<'_, '_> {
    fn add(&mut self, machine: &Machine<'_>, above: &[Step]) -> Result<()> {
        for (index, item) in machine.items().iter().enumerate() {
            let mut steps = above.to_vec();
            steps.push(Step {
                index,
                id: item.id.clone(),
                title: item.title.clone(),
            });
            if !item.is_submenu() {
                let draft = self.draft(machine, item, &steps)?;
                self.entries.push((steps, draft));
            } else if steps.len() < MAX_SUBMENUS {
                let inner = machine.open(item);
                let inner = inner.map_err(|stop| stopped(self.host, &self.path, stop))?;
                self.add(&inner, &steps)?;
            }
        }
        Ok(())
    }

    /// The entry that `wanted` names: numbers, ids or titles, with `>` before those of a submenu.
    fn default(&self, wanted: &str) -> usize {
        let names: Vec<&str> = wanted.split('>').collect();
        let matches = |steps: &[Step]| {
            let pairs = names.iter().zip(steps);
            names.len() <= steps.len() && pairs.into_iter().all(|(name, step)| step.is(name))
        };
        // A title may have a `>` of its own.
        let titled = |steps: &[Step]| matches!(steps, [step] if step.title == wanted);
        let found = self
            .entries
            .iter()
            .position(|(steps, _)| titled(steps) || matches(steps));
        found.unwrap_or(0)
    }

    fn draft(&self, machine: &Machine<'_>, item: &Item, steps: &[Step]) -> Result<Draft> {
        let join = |part: fn(&Step) -> &str| {
            let parts: Vec<&str> = steps.iter().map(part).collect();
            parts.join(">")
        };
        let mut draft = Draft {
            source: Source::Grub,
            id: join(|step| &step.id),
            title: item.title.clone(),
            version: None,
            found_in: self.found_in.clone(),
            command_line: String::new(),
            payload: Payload::Nothing(self.no_kernel(item, "it loads no kernel")),
        };
        if let Some((entry, device)) = item.entry() {
            draft.version = entry.version.clone();
            if let Some(slot) = self.host.survey.slot_of(device) {
                let value = |name: &str| Some(machine.variable(name));
                let prefix = format!("({device})");
                let place = (slot, self.host.view_of(slot));
                (draft.payload, draft.command_line) = entries::payload(
                    self.host.survey,
                    place,
                    entry,
                    &self.found_in,
                    Some(&prefix),
                    value,
                )?;
            }
            return Ok(draft);
        }
        let boot = machine.choose(item);
        let boot = boot.map_err(|stop| stopped(self.host, &self.path, stop))?;
        if let Some(foreign) = &boot.foreign {
            let cause = format!("it uses \"{foreign}\", which needs a boot loader");
            draft.payload = Payload::Nothing(self.no_kernel(item, &cause));
        } else if let Some(kernel) = &boot.kernel {
            draft.command_line = command_line(&boot);
            draft.payload = Payload::Files {
                kernel: self.reference(kernel),
                initrds: boot
                    .initrds
                    .iter()
                    .map(|initrd| self.reference(initrd))
                    .collect(),
            };
        }
        Ok(draft)
    }

    fn no_kernel(&self, item: &Item, cause: &str) -> Error {
        Error::new(
            ErrorKind::Unsupported,
            "boot",
            format!("the entry \"{}\" of {}", item.title, self.found_in),
            cause,
            OTHER_ENTRY,
        )
    }

    fn reference(&self, named: &Named) -> Reference {
        let slot = self.host.survey.slot_of(&named.device);
        Reference {
            view: slot.map_or(0, |slot| self.host.view_of(slot)),
            slot: slot.ok_or_else(|| named.device.clone()),
            paths: [join("/", &named.path)].to_vec(),
        }
    }
}

/// The kernel's command line as GRUB passes it on (`grub_create_loader_cmdline`): the image first,
/// then the arguments, those with spaces in quotes.
fn command_line(boot: &Boot) -> String {
    let image = format!("BOOT_IMAGE={}", boot.image);
    let mut line = words([image.as_str()]);
    for argument in &boot.arguments {
        line.push(' ');
        let quoted = argument.contains(' ');
        if quoted {
            line.push('"');
        }
        for character in argument.chars() {
            if matches!(character, '\\' | '\'' | '"') {
                line.push('\\');
            }
            line.push(character);
        }
        if quoted {
            line.push('"');
        }
    }
    line
}
