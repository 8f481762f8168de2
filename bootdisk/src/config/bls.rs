//! Boot Loader Specification, type 1 entries and `loader.conf` (UAPI.1), and GRUB's and
//! systemd-boot's additions.

#[cfg(test)]
mod tests;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cmp::Ordering;

use super::version;

/// One entry file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The file's name without `.conf` and boot counters.
    pub(crate) id: String,
    /// The same with its suffix, which counts in comparisons.
    pub(crate) file: String,
    pub(crate) title: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) machine_id: Option<String>,
    pub(crate) sort_key: Option<String>,
    pub(crate) architecture: Option<String>,
    pub(crate) linux: Option<String>,
    pub(crate) initrds: Vec<String>,
    pub(crate) options: Vec<String>,
    /// A unified kernel image, or another EFI program.
    pub(crate) efi: Option<String>,
    /// The counter says that it has been tried in vain.
    pub(crate) bad: bool,
}

impl Entry {
    /// Parses the entry in the file called `name`.
    pub(crate) fn parse(name: &str, text: &str) -> Self {
        let stem = name.strip_suffix(".conf").unwrap_or(name);
        let (id, bad) = counted(stem);
        let mut entry = Self {
            file: alloc::format!("{id}.conf"),
            id,
            bad,
            ..Self::default()
        };
        for line in text.lines() {
            let line = line.trim();
            if line.starts_with('#') {
                continue;
            }
            let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            let value = value.trim();
            if !value.is_empty() {
                entry.set(key, value);
            }
        }
        entry
    }

    fn set(&mut self, key: &str, value: &str) {
        let text = || Some(value.to_string());
        match key {
            "title" => self.title = text(),
            "version" => self.version = text(),
            "machine-id" => self.machine_id = text(),
            "sort-key" => self.sort_key = text(),
            "architecture" => self.architecture = text(),
            "linux" => self.linux = text(),
            "efi" | "uki" => self.efi = text(),
            // GRUB takes several on a line, too.
            "initrd" => {
                let names = value.split_ascii_whitespace();
                self.initrds.extend(names.map(ToString::to_string));
            }
            "options" => self.options.push(value.to_string()),
            _ => {}
        }
    }

    /// Whether it is for the machines that this VMM makes.
    pub(crate) fn fits(&self) -> bool {
        let architecture = self.architecture.as_deref();
        architecture.is_none_or(|name| name.eq_ignore_ascii_case("x64"))
    }

    /// Whether `name` means this entry: its id, with or without the suffix.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.id == name.strip_suffix(".conf").unwrap_or(name)
    }
}

/// The menu's order: what comes first is booted.
pub(crate) fn order(left: &Entry, right: &Entry) -> Ordering {
    let keyed = |entry: &Entry| entry.sort_key.is_some();
    let newest = |left: Option<&str>, right: Option<&str>| {
        version::compare(right.unwrap_or_default(), left.unwrap_or_default())
    };
    left.bad
        .cmp(&right.bad)
        .then_with(|| keyed(right).cmp(&keyed(left)))
        .then_with(|| {
            if !keyed(left) {
                return Ordering::Equal;
            }
            left.sort_key
                .cmp(&right.sort_key)
                .then_with(|| left.machine_id.cmp(&right.machine_id))
                .then_with(|| newest(left.version.as_deref(), right.version.as_deref()))
        })
        .then_with(|| newest(Some(&left.file), Some(&right.file)))
}

/// Splits a boot counter off a name: `entry+3`, `entry+2-1`. Returns whether no try is left.
pub(crate) fn counted(stem: &str) -> (String, bool) {
    let plain = || (stem.to_string(), false);
    let Some((name, counter)) = stem.rsplit_once('+') else {
        return plain();
    };
    let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
    match (left.parse::<u32>(), done.parse::<u32>()) {
        (Ok(left), Ok(_)) => (name.to_string(), left == 0),
        _ => plain(),
    }
}

/// What is used of `loader.conf`: the pattern of the default entry.
pub(crate) fn default_pattern(text: &str) -> Option<String> {
    let mut pattern = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(("default" | "preferred", value)) = line.split_once([' ', '\t']) {
            pattern = Some(value.trim().to_string());
        }
    }
    // `@saved` and the like are kept by firmware.
    pattern.filter(|pattern| !pattern.is_empty() && !pattern.starts_with('@'))
}

/// Replaces `$name` and `${name}` by their values; unknown ones vanish.
pub(crate) fn expand<'v>(text: &str, value: impl Fn(&str) -> Option<&'v str>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let (name, next) = variable_name(after);
        if name.is_empty() {
            out.push('$');
        } else {
            out.push_str(value(name).unwrap_or_default());
        }
        rest = next;
    }
    out.push_str(rest);
    out
}

/// The name after a `$`, and what follows it. The name is empty if there is none.
fn variable_name(text: &str) -> (&str, &str) {
    if let Some(inner) = text.strip_prefix('{') {
        return inner.split_once('}').unwrap_or(("", text));
    }
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    text.split_at_checked(end.unwrap_or(text.len()))
        .unwrap_or((text, ""))
}
