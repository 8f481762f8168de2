//! Judges a guest kernel's log: every message of level warning or worse must be one we can explain.

/// A message that is not the VMM's fault, and why.
#[derive(Debug)]
struct Allowed {
    part: &'static str,
    #[expect(dead_code, reason = "the reason is for the reader")]
    reason: &'static str,
}

/// Four vCPUs on the lab's one emulated CPU wait for each other, the more so on a busy host.
const NOT_SCHEDULED: &str = "the vCPU was not scheduled for a while";

const ALLOWED: &[Allowed] = &[
    Allowed {
        part: "Speculative Return Stack Overflow: ",
        reason: "the CPU, here the lab's emulated one, has not got the microcode against it",
    },
    Allowed {
        part: "PCI: Fatal: No config space access function found",
        reason: "said before ACPI shows the memory-mapped configuration space; ports are off",
    },
    Allowed {
        part: "Power-on or device reset occurred",
        reason: "every SCSI disk reports its power-on once, as SAM-5 demands, and Linux says so",
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

/// Prints the serious messages only: a whole log takes a serial console long.
pub const COMMAND: &str = "busybox dmesg -r | grep '^<[0-4]>' || true";

/// The highest priority of interest; a raw priority is the facility, 0 for the kernel, times 8 plus
/// the level.
const WARNING: u32 = 4;

/// The unexpected lines of `dmesg -r` output.
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
