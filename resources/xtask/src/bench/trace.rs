//! What KVM does for one machine, measured with the kernel's trace points.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const TRACEFS: &str = "/sys/kernel/tracing";
const EVENTS: [&str; 4] = [
    "sched/sched_process_exec",
    "kvm/kvm_entry",
    "kvm/kvm_exit",
    "kvm/kvm_userspace_exit",
];
/// Enough for a boot of the VMM with the most exits: about 70,000 events.
const BUFFER_KIB: u32 = 32 * 1024;
const MARK: &str = "bench: first line";

/// Results of one traced boot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct TracedBoot {
    /// From the program's exec to the first entry into the guest, in milliseconds.
    pub(crate) first_entry_ms: f64,
    /// Exits to user space until the guest's first line.
    pub(crate) user_exits: u32,
    /// All exits until the guest's first line.
    pub(crate) exits: u32,
}

/// The trace buffer, which records until it is dropped.
#[derive(Debug)]
pub(crate) struct Tracer(());

impl Tracer {
    /// Clears the buffer and starts recording.
    pub(crate) fn start() -> Result<Self> {
        write("tracing_on", "0")?;
        write("trace_clock", "mono")?;
        write("buffer_size_kb", &BUFFER_KIB.to_string())?;
        write("trace", "")?;
        for event in EVENTS {
            write(&format!("events/{event}/enable"), "1")?;
        }
        let tracer = Self(());
        write("tracing_on", "1")?;
        Ok(tracer)
    }

    /// Marks the time of the guest's first line.
    pub(crate) fn mark(&self) -> Result<()> {
        write("trace_marker", MARK)
    }

    /// Stops recording and returns what happened since `program` was executed.
    pub(crate) fn finish(self, program: &Path) -> Result<TracedBoot> {
        write("tracing_on", "0")?;
        let path = Path::new(TRACEFS).join("trace");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        count(&text, &program.display().to_string())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        for event in EVENTS {
            // It does no harm if an event stays enabled in the lab.
            drop(write(&format!("events/{event}/enable"), "0"));
        }
    }
}

fn write(file: &str, text: &str) -> Result<()> {
    let path = Path::new(TRACEFS).join(file);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Parses the buffer's text format: `task-pid [cpu] flags seconds: event: details`.
fn count(text: &str, program: &str) -> Result<TracedBoot> {
    let executed = format!("filename={program} ");
    let mut started = None;
    let mut first_entry = None;
    let (mut user_exits, mut exits) = (0, 0);
    for line in text.lines() {
        if started.is_none() {
            if line.contains("sched_process_exec:") && line.contains(&executed) {
                started = Some(seconds(line, "sched_process_exec:")?);
            }
        } else if line.contains("kvm_entry:") {
            if first_entry.is_none() {
                first_entry = Some(seconds(line, "kvm_entry:")?);
            }
        } else if line.contains("kvm_userspace_exit:") {
            user_exits += 1;
        } else if line.contains("kvm_exit:") {
            exits += 1;
        } else if line.contains(MARK) {
            let started = started.context("the program's exec was not traced")?;
            let entered = first_entry.context("the guest was never entered")?;
            return Ok(TracedBoot {
                first_entry_ms: (entered - started) * 1000.0,
                user_exits,
                exits,
            });
        }
    }
    anyhow::bail!("the trace does not hold a whole boot of {program}")
}

/// Returns the time in front of `event`.
fn seconds(line: &str, event: &str) -> Result<f64> {
    line.split(event)
        .next()
        .and_then(|before| before.split_whitespace().last())
        .and_then(|word| word.trim_end_matches(':').parse().ok())
        .with_context(|| format!("no time in {line:?}"))
}

#[cfg(test)]
mod tests;
