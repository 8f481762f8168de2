//! The commands that matter for what is booted.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::eval::{Action, Boot, Flow, Item, Machine, Named, SearchKey, Stop};
use super::parse::Block;
use super::test;
use crate::config::grubenv;

type Done<T> = Result<T, Stop>;

impl Machine<'_> {
    /// Runs a built-in command. Returns nothing if `name` is none of them.
    pub(super) fn builtin(
        &mut self,
        name: &str,
        arguments: &[String],
        block: Option<&Block>,
    ) -> Done<Option<Flow>> {
        let first = arguments.first().map_or("", String::as_str);
        let levels = || first.parse().unwrap_or(1);
        let mut ok = true;
        match name {
            "set" => {
                if let Some((name, value)) = first.split_once('=') {
                    self.set(name, value)?;
                }
            }
            "unset" => arguments.iter().for_each(|name| self.unset(name)),
            "[" | "test" => ok = test::evaluate(self, name, arguments)?,
            "true" => {}
            // A key that is not held down, a bit that is not set, a pattern that is not known.
            "false" | "keystatus" | "cmostest" | "regexp" => ok = false,
            "search" => ok = self.search(arguments)?,
            "search.fs_uuid" | "search_fs_uuid" => ok = self.find(SearchKey::Uuid, arguments)?,
            "search.fs_label" | "search_label" => ok = self.find(SearchKey::Label, arguments)?,
            "search.file" | "search_fs_file" => ok = self.find(SearchKey::File, arguments)?,
            "probe" => ok = self.probe(arguments)?,
            "load_env" => ok = self.load_env(arguments)?,
            "menuentry" | "submenu" => {
                if let Some(block) = block {
                    self.item(name == "submenu", arguments, block)?;
                }
            }
            "blscfg" => ok = self.entries(arguments)?,
            "source" | "." => return self.source(first).map(Some),
            "configfile" => return self.configfile(first).map(Some),
            "eval" => return self.execute_text(&arguments.join(" ")).map(Some),
            "linux" | "linux16" | "linuxefi" | "kernel" => self.linux(arguments),
            "initrd" | "initrd16" | "initrdefi" => self.initrd(arguments),
            "chainloader" | "multiboot" | "multiboot2" | "xen_hypervisor" | "fwsetup"
            | "linux_xen" => {
                self.boot.foreign = Some(name.to_string());
            }
            "setparams" => self.arguments = arguments.to_vec(),
            "shift" => {
                let count = levels().min(self.arguments.len());
                self.arguments.drain(..count);
            }
            "return" => {
                self.ok = first.is_empty() || first == "0";
                return Ok(Some(Flow::Return));
            }
            "break" => return Ok(Some(Flow::Break(first.parse().unwrap_or(1)))),
            "continue" => return Ok(Some(Flow::Continue(first.parse().unwrap_or(1)))),
            "exit" | "normal_exit" | "boot" | "reboot" | "halt" => return Ok(Some(Flow::Exit)),
            _ => return Ok(None),
        }
        self.ok = ok;
        Ok(Some(Flow::Next))
    }

    /// Splits "(hd0,gpt1)/path" into its parts; without a device it is on `$root`.
    pub(super) fn named(&self, text: &str) -> Named {
        let split = text.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        let (device, path) = split.unwrap_or((self.variable("root"), text));
        Named {
            device: device.to_string(),
            path: path.to_string(),
        }
    }

    fn search(&mut self, arguments: &[String]) -> Done<bool> {
        let mut key = SearchKey::File;
        let mut variable = None;
        let mut value = None;
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--fs-uuid" | "-u" => key = SearchKey::Uuid,
                "--label" | "--fs-label" | "-l" => key = SearchKey::Label,
                "--file" | "-f" => key = SearchKey::File,
                "--set" | "-s" => variable = Some("root"),
                // Hints name where to look first; here everything is looked at.
                "--hint" => drop(words.next()),
                word => match word.strip_prefix("--set=") {
                    Some(name) => variable = Some(name),
                    None if word.starts_with('-') => {}
                    None => value = Some(word),
                },
            }
        }
        let found = match value {
            Some(value) => self.host.search(key, value)?,
            None => None,
        };
        self.found(variable, found)
    }

    fn found(&mut self, variable: Option<&str>, device: Option<String>) -> Done<bool> {
        let Some(device) = device else {
            return Ok(false);
        };
        if let Some(variable) = variable {
            self.set(variable, &device)?;
        }
        Ok(true)
    }

    /// `search.fs_uuid VALUE [VARIABLE [HINT...]]`.
    fn find(&mut self, key: SearchKey, arguments: &[String]) -> Done<bool> {
        let mut words = arguments.iter().filter(|word| !word.starts_with("--"));
        let Some(value) = words.next() else {
            return Ok(false);
        };
        let found = self.host.search(key, value)?;
        self.found(words.next().map(String::as_str), found)
    }

    /// `probe --set=VARIABLE --fs-uuid|--label DEVICE`.
    fn probe(&mut self, arguments: &[String]) -> Done<bool> {
        let mut what = None;
        let mut variable = None;
        let mut device = None;
        let mut words = arguments.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "--fs-uuid" | "-u" => what = Some(SearchKey::Uuid),
                "--label" | "-l" => what = Some(SearchKey::Label),
                "--set" | "-s" => variable = words.next(),
                word if word.starts_with("--set=") => variable = word.strip_prefix("--set="),
                word => device = Some(word),
            }
        }
        let (Some(what), Some(variable), Some(device)) = (what, variable, device) else {
            return Ok(false);
        };
        let device = device.trim_start_matches('(').trim_end_matches(')');
        let Some(value) = self.host.probe(device, what) else {
            return Ok(false);
        };
        self.set(variable, &value)?;
        Ok(true)
    }

    /// `load_env [--file FILE] [VARIABLE...]`.
    fn load_env(&mut self, arguments: &[String]) -> Done<bool> {
        let mut file = alloc::format!("{}/grubenv", self.variable("prefix"));
        let mut wanted: Vec<&str> = Vec::new();
        let mut words = arguments.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "--file" | "-f" => file = words.next().unwrap_or_default().to_string(),
                word if word.starts_with("--file=") => file = word.replacen("--file=", "", 1),
                word if word.starts_with('-') => {}
                word => wanted.push(word),
            }
        }
        let Named { device, path } = self.named(&file);
        let Some(text) = self.host.text(&device, &path)? else {
            return Ok(false);
        };
        for (name, value) in grubenv::parse(&text) {
            if wanted.is_empty() || wanted.contains(&name.as_str()) {
                self.set(&name, &value)?;
            }
        }
        Ok(true)
    }

    /// `menuentry TITLE [--id ID] [--class CLASS]... [ARGUMENT...] { ... }`.
    fn item(&mut self, submenu: bool, arguments: &[String], block: &Block) -> Done<()> {
        let mut id = None;
        let mut plain: Vec<String> = Vec::new();
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--id" => id = words.next().cloned(),
                "--class" | "--users" | "--hotkey" | "--source" => drop(words.next()),
                option if option.starts_with("--id=") => id = Some(option.replacen("--id=", "", 1)),
                option if option.starts_with("--") => {}
                _ => plain.push(word.clone()),
            }
        }
        let title = plain.first().cloned().unwrap_or_default();
        plain.drain(..plain.len().min(1));
        let block = block.clone();
        self.add_item(Item {
            id: id.unwrap_or_else(|| title.clone()),
            title,
            action: if submenu {
                Action::Open(block)
            } else {
                Action::Run(block)
            },
            arguments: plain,
        })
    }

    /// `blscfg`: the entries of `$root`.
    fn entries(&mut self, arguments: &[String]) -> Done<bool> {
        let named = arguments
            .first()
            .filter(|name| name.starts_with(['/', '(']));
        let folder = named.map_or_else(|| self.variable("blsdir").to_string(), String::clone);
        let Named { device, path } = self.named(&folder);
        let folder = (!path.is_empty()).then_some(path.as_str());
        let entries = self.host.entries(&device, folder)?;
        let any = !entries.is_empty();
        for entry in entries {
            self.add_item(Item {
                id: entry.id.clone(),
                title: entry.title.clone().unwrap_or_else(|| entry.id.clone()),
                action: Action::Entry(Box::new(entry), device.clone()),
                arguments: Vec::new(),
            })?;
        }
        Ok(any)
    }

    fn source(&mut self, file: &str) -> Done<Flow> {
        let Named { device, path } = self.named(file);
        match self.host.text(&device, &path)? {
            Some(text) => self.execute_text(&text),
            None => {
                self.ok = false;
                Ok(Flow::Next)
            }
        }
    }

    /// Another menu takes this one's place, if it has entries.
    fn configfile(&mut self, file: &str) -> Done<Flow> {
        let named = self.named(file);
        let Some(text) = self.host.text(&named.device, &named.path)? else {
            self.ok = false;
            return Ok(Flow::Next);
        };
        let (folder, _) = named.path.rsplit_once('/').unwrap_or_default();
        let folder = alloc::format!("({}){folder}", named.device);
        self.set("config_directory", &folder)?;
        let outer = core::mem::take(&mut self.items);
        self.execute_text(&text)?;
        if self.items.is_empty() {
            self.items = outer;
            return Ok(Flow::Next);
        }
        Ok(Flow::Exit)
    }

    fn linux(&mut self, arguments: &[String]) {
        let Some((image, rest)) = arguments.split_first() else {
            return;
        };
        self.boot = Boot {
            kernel: Some(self.named(image)),
            image: image.clone(),
            arguments: rest.to_vec(),
            initrds: Vec::new(),
            foreign: self.boot.foreign.take(),
        };
    }

    fn initrd(&mut self, arguments: &[String]) {
        if arguments.iter().any(|name| name.starts_with("newc:")) {
            self.boot.foreign = Some("initrd newc:".to_string());
        }
        self.boot.initrds = arguments.iter().map(|name| self.named(name)).collect();
    }
}
