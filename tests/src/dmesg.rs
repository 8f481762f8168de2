//! Checks a guest kernel's log: every message of level warning or worse must be a known one.

/// A message that is not caused by the VMM, and why.
#[derive(Debug)]
struct Allowed {
    part: &'static str,
    #[expect(dead_code, reason = "the reason is for the reader")]
    reason: &'static str,
}

/// Four vCPUs on the lab's one emulated CPU wait for each other, especially on a busy host.
const NOT_SCHEDULED: &str = "the vCPU was not scheduled for a while";

const ALLOWED: &[Allowed] = &[
    Allowed {
        part: "Speculative Return Stack Overflow: ",
        reason: "the CPU (the lab's emulated one) lacks the microcode that mitigates it",
    },
    Allowed {
        part: "PCI: Fatal: No config space access function found",
        reason: "printed before ACPI reports the memory-mapped configuration space; the ports are disabled",
    },
    Allowed {
        part: "Power-on or device reset occurred",
        reason: "every SCSI disk reports its power-on once, as SAM-5 requires, and Linux prints it",
    },
    Allowed {
        part: "clocksource: Long readout interval, skipping watchdog check",
        reason: NOT_SCHEDULED,
    },
    Allowed {
        part: "hrtimer: interrupt took ",
        reason: NOT_SCHEDULED,
    },
    Allowed {
        part: "perf: interrupt took too long",
        reason: NOT_SCHEDULED,
    },
    Allowed {
        part: " hogged CPU for >",
        reason: NOT_SCHEDULED,
    },
];

/// Prints the serious messages only: a whole log takes long on a serial console.
pub const COMMAND: &str = "busybox dmesg -r | grep '^<[0-4]>' || true";

/// The least severe level of interest. A raw priority is the facility (0 for the kernel) times 8
/// plus the level.
const WARNING: u32 = 4;

/// Returns the unexpected lines in the output of `dmesg -r`.
pub fn unexpected(raw: &str) -> Vec<&str> {
    raw.lines()
        .filter(|line| is_serious(line) && !is_allowed(line))
        .collect()
}

fn is_serious(line: &str) -> bool {
    line.strip_prefix('<')
        .and_then(|rest| rest.split_once('>'))
        .and_then(|(priority, _)| priority.parse::<u32>().ok())
        .is_some_and(|priority| priority <= WARNING)
}

fn is_allowed(line: &str) -> bool {
    ALLOWED.iter().any(|allowed| line.contains(allowed.part))
}

#[cfg(test)]
mod tests;
