//! fio in the guest, on a raw file in memory and on a disk that moves no data: the cost of
//! everything except the data.

use std::path::Path;

use splitring_tests::assets::Disk;
use splitring_tests::guest::Guest;

use crate::peers::{self, Bus, Extra};
use crate::sample::Table;
use crate::{Mode, Plan};

const DISK_BYTES: u64 = 256 << 20;
const SECONDS: u32 = 3;
/// Under a clock with shift 0 a nanosecond is an instruction.
const INSTRUCTIONS_PER_MS: f64 = 1e6;

/// A workload of fio.
#[derive(Debug, Clone, Copy)]
struct Job {
    name: &'static str,
    pattern: &'static str,
    block: &'static str,
    depth: u32,
    /// Number of requests in runs that count instructions.
    requests: u32,
}

const fn job(
    name: &'static str,
    pattern: &'static str,
    block: &'static str,
    depth: u32,
    requests: u32,
) -> Job {
    Job {
        name,
        pattern,
        block,
        depth,
        requests,
    }
}

const JOBS: [Job; 6] = [
    job("4k randread QD32", "randread", "4k", 32, 16000),
    job("4k randwrite QD32", "randwrite", "4k", 32, 16000),
    job("4k randread QD1", "randread", "4k", 1, 4000),
    job("4k randwrite QD1", "randwrite", "4k", 1, 4000),
    job("128k read QD32", "read", "128k", 32, 2000),
    job("128k write QD32", "write", "128k", 32, 2000),
];

type Start = fn(&Path, Extra<'_>) -> Guest;

pub(crate) fn run(bus: Bus, plan: Plan<'_>) -> Table {
    let root = Disk::copy_of("tools");
    let data = Disk::empty(DISK_BYTES);
    let (file, null) = (Extra::Disk(bus, data.path()), Extra::Null(bus, data.path()));
    let mut table = Table::default();
    let mut warm = peers::splitring(root.path(), file);
    // Allocates the file's pages, so that this does not slow down the first subject.
    warm.succeed(&format!(
        "dd if=/dev/zero of={} bs=1M count=256 2>/dev/null",
        bus.device()
    ));
    warm.power_off();
    for round in plan.mode.rounds() {
        let mut subjects: Vec<(&str, Start, Bus, Extra<'_>)> = vec![
            ("splitring", peers::splitring, bus, file),
            ("QEMU", peers::qemu, bus, file),
            ("no data", peers::splitring, bus, null),
        ];
        if bus == Bus::Scsi {
            let blk = Extra::Disk(Bus::Blk, data.path());
            subjects.push(("our blk", peers::splitring, Bus::Blk, blk));
        }
        // The second subject may find warmer caches, so they alternate.
        if round % 2 == 1 {
            subjects.reverse();
        }
        for (subject, start, bus, extra) in subjects {
            eprintln!("  round {}, {subject}", round + 1);
            let figures = peers::last_of(3, || measure(start(root.path(), extra), bus, plan));
            for (job, value) in figures {
                table.add(job, subject, value);
            }
        }
    }
    table.first("splitring")
}

/// Returns each job's result.
fn measure(mut guest: Guest, bus: Bus, plan: Plan<'_>) -> Vec<(&'static str, f64)> {
    let mut figures = Vec::new();
    // Linux scans for SCSI disks asynchronously.
    guest.succeed(&format!(
        "for n in $(seq 60); do [ -b {0} ] && break; sleep 1; done; [ -b {0} ]",
        bus.device()
    ));
    for job in JOBS.into_iter().filter(|job| plan.wants(job.name)) {
        let bound = match plan.mode {
            Mode::Pair(_) => format!("--time_based --runtime={SECONDS}"),
            Mode::Count => format!("--number_ios={}", job.requests),
        };
        guest.succeed(&format!(
            "fio --eta=never --name=x --filename={} --direct=1 --ioengine=libaio --iodepth={} --rw={} \
             --bs={} {bound} --output-format=json --output=/tmp/fio",
            bus.device(),
            job.depth,
            job.pattern,
            job.block
        ));
        let value = match plan.mode {
            Mode::Pair(_) => largest(&mut guest, "iops"),
            Mode::Count => {
                largest(&mut guest, "runtime") * INSTRUCTIONS_PER_MS / f64::from(job.requests)
            }
        };
        figures.push((job.name, value));
    }
    guest.power_off();
    figures
}

/// Returns the value of `key` in fio's result. Reads, writes and trims have one each, and all
/// except one are 0.
fn largest(guest: &mut Guest, key: &str) -> f64 {
    let lines = guest.succeed(&format!("grep '\"{key}\" :' /tmp/fio"));
    lines
        .lines()
        .filter_map(|line| {
            line.split(':')
                .nth(1)?
                .trim()
                .trim_end_matches(',')
                .parse()
                .ok()
        })
        .fold(0.0, f64::max)
}
