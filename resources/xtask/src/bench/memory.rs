//! A VMM's own memory, resident and private: all of its mappings except the guest's memory.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};

/// A thread that KVM itself runs in every process with a VM.
const KVMS_THREAD: &str = "kvm-nx-lpage-re";

/// An entry of `smaps`: the mapping's addresses, and how much of it is resident and anonymous.
#[derive(Debug, Clone, Copy)]
struct Mapping {
    start: u64,
    end: u64,
    resident_kib: u64,
    anonymous_kib: u64,
}

/// The memory and the threads of a VMM itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnMemory {
    /// Resident set in KiB, without guest memory.
    pub(crate) resident_kib: u64,
    /// Private memory in KiB, without guest memory, as `RssAnon` in a process's status counts it.
    pub(crate) private_kib: u64,
    /// Number of threads, without the one that KVM adds.
    pub(crate) threads: usize,
}

impl fmt::Display for OwnMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} KiB resident, {} KiB private, {} threads",
            self.resident_kib, self.private_kib, self.threads
        )
    }
}

/// Measures process `pid`, whose guest has `guest_bytes` of contiguous memory.
pub(crate) fn measure(pid: u32, guest_bytes: u64) -> Result<OwnMemory> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let mappings = parse(&text);
    let guest = guest_range(&mappings, guest_bytes)
        .with_context(|| format!("no {guest_bytes} bytes of guest memory in {path}"))?;
    let own = || {
        let outside = |mapping: &&Mapping| mapping.start < guest.0 || mapping.end > guest.1;
        mappings.iter().filter(outside)
    };
    let resident_kib = own().map(|mapping| mapping.resident_kib).sum();
    let private_kib = own().map(|mapping| mapping.anonymous_kib).sum();
    let tasks = format!("/proc/{pid}/task");
    let threads = fs::read_dir(&tasks)
        .with_context(|| format!("cannot list {tasks}"))?
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.trim_end() != KVMS_THREAD)
        .count();
    Ok(OwnMemory {
        resident_kib,
        private_kib,
        threads,
    })
}

fn parse(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let kib = |size: &str| size.trim().trim_end_matches(" kB").parse().unwrap_or(0);
        if let Some(size) = line.strip_prefix("Rss:") {
            if let Some(last) = mappings.last_mut() {
                last.resident_kib = kib(size);
            }
        } else if let Some(size) = line.strip_prefix("Anonymous:") {
            if let Some(last) = mappings.last_mut() {
                last.anonymous_kib = kib(size);
            }
        } else if let Some((start, end)) = line
            .split_once(' ')
            .and_then(|(range, _)| range.split_once('-'))
            && let (Ok(start), Ok(end)) =
                (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            mappings.push(Mapping {
                start,
                end,
                resident_kib: 0,
                anonymous_kib: 0,
            });
        }
    }
    mappings
}

/// Returns the range of adjacent mappings that add up to exactly the guest's size: parts of guest
/// memory may be mapped from files.
fn guest_range(mappings: &[Mapping], bytes: u64) -> Option<(u64, u64)> {
    mappings.iter().enumerate().find_map(|(first, from)| {
        let mut end = from.start;
        for mapping in mappings.get(first..)? {
            if mapping.start != end {
                return None;
            }
            end = mapping.end;
            if end - from.start >= bytes {
                return (end - from.start == bytes).then_some((from.start, end));
            }
        }
        None
    })
}

#[cfg(test)]
mod tests;
