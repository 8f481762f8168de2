//! `extlinux.conf` and `syslinux.cfg` (SYSLINUX 6.03, "Config").

#[cfg(test)]
mod tests;

use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// One label.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) name: String,
    pub(crate) title: Option<String>,
    pub(crate) kernel: Option<String>,
    pub(crate) initrds: Vec<String>,
    pub(crate) append: Option<String>,
    menu_default: bool,
}

/// A whole file, with those that it includes read in by the caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Config {
    default: Option<String>,
    append: String,
    pub(crate) labels: Vec<Label>,
    /// Files to read in at the end.
    pub(crate) includes: Vec<String>,
}

/// More labels than this are no menu.
const MAX_LABELS: usize = 512;

impl Config {
    /// Reads `text` in addition to what has been read.
    pub(crate) fn add(&mut self, text: &str) {
        for line in text.lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, value) = split(line);
            self.set(&key.to_ascii_lowercase(), value);
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        let room = self.labels.len() < MAX_LABELS;
        let label = self.labels.last_mut();
        match (key, label) {
            ("default", _) => self.default = Some(value.to_string()),
            ("include", _) => self.includes.push(first_word(value).to_string()),
            ("menu", _) => self.menu(value),
            ("label", _) if room => self.labels.push(Label {
                name: value.to_string(),
                ..Label::default()
            }),
            ("append", None) => self.append = value.to_string(),
            ("append", Some(label)) => label.append = Some(value.to_string()),
            ("kernel" | "linux", Some(label)) => label.kernel = Some(value.to_string()),
            ("initrd", Some(label)) => label.initrds = names(value),
            _ => {}
        }
    }

    fn menu(&mut self, value: &str) {
        let (key, value) = split(value);
        match (key.to_ascii_lowercase().as_str(), self.labels.last_mut()) {
            // A caret marks the next letter as a shortcut.
            ("label", Some(label)) => label.title = Some(value.replacen('^', "", 1)),
            ("default", Some(label)) => label.menu_default = true,
            ("include", _) => self.includes.push(first_word(value).to_string()),
            _ => {}
        }
    }

    /// The number of the label that is booted.
    pub(crate) fn chosen(&self) -> usize {
        let marked = self.labels.iter().position(|label| label.menu_default);
        let named = self.default.as_deref().and_then(|name| {
            let name = first_word(name);
            self.labels.iter().position(|label| label.name == name)
        });
        marked.or(named).unwrap_or(0)
    }

    /// The command line of a label, without what names ramdisks.
    pub(crate) fn command_line(&self, label: &Label) -> String {
        let append = self.appended(label);
        let words = append.split_ascii_whitespace();
        let words: Vec<_> = words.filter(|word| !word.starts_with("initrd=")).collect();
        words.join(" ")
    }

    /// The ramdisks of a label: its own, or those that its command line names.
    pub(crate) fn initrds(&self, label: &Label) -> Vec<String> {
        if !label.initrds.is_empty() {
            return label.initrds.clone();
        }
        let words = self.appended(label).split_ascii_whitespace();
        let named = words.filter_map(|word| word.strip_prefix("initrd="));
        named.flat_map(names).collect()
    }

    fn appended<'c>(&'c self, label: &'c Label) -> &'c str {
        match label.append.as_deref() {
            Some("-") => "",
            Some(own) => own,
            None => &self.append,
        }
    }
}

fn split(line: &str) -> (&str, &str) {
    let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    (key, value.trim())
}

fn first_word(text: &str) -> &str {
    text.split_ascii_whitespace().next().unwrap_or_default()
}

fn names(list: &str) -> Vec<String> {
    let names = list.split([',', ' ', '\t']).filter(|name| !name.is_empty());
    names.map(ToString::to_string).collect()
}
