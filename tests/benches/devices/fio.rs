//! fio in the guest, on a raw file in memory and on a disk that moves no data: the cost of
//! everything except the data.

use std::path::Path;

use splitring_tests::assets::{self, Disk};
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
    /// Whether it reads the root disk while another one reads the data disk at depth 32.
    beside: bool,
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
        beside: false,
    }
}

/// Only its rate says something: its requests are not counted.
const BESIDE: Job = Job {
    beside: true,
    ..job("4k randread QD1 beside", "randread", "4k", 1, 0)
};

const JOBS: [Job; 7] = [
    job("4k randread QD32", "randread", "4k", 32, 16000),
    job("4k randwrite QD32", "randwrite", "4k", 32, 16000),
    job("4k randread QD1", "randread", "4k", 1, 4000),
    job("4k randwrite QD1", "randwrite", "4k", 1, 4000),
    job("128k read QD32", "read", "128k", 32, 2000),
    job("128k write QD32", "write", "128k", 32, 2000),
    BESIDE,
];

impl Job {
    /// fio's options for it, on `disk`.
    fn words(&self, disk: &str) -> String {
        format!(
            "--name=on-{} --filename={disk} --iodepth={} --rw={} --bs={}",
            disk.trim_start_matches("/dev/"),
            self.depth,
            self.pattern,
            self.block
        )
    }
}

type Start = fn(&Path, Extra<'_>) -> Guest;

pub(crate) fn run(bus: Bus, plan: Plan<'_>) -> Table {
    if let Mode::Turns(turns) = plan.mode {
        return take_turns(bus, plan, turns);
    }
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
        if assets::base().is_some() {
            subjects.push(("base", peers::base, bus, file));
        }
        subjects.retain(|(name, ..)| plan.wants_subject(name));
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

/// Boots all subjects, each with disks of its own, and has them run each job in turns of a second:
/// what else the machine does meanwhile disturbs them alike.
fn take_turns(bus: Bus, plan: Plan<'_>, turns: usize) -> Table {
    let mut subjects: Vec<(&str, Start)> =
        vec![("splitring", peers::splitring), ("QEMU", peers::qemu)];
    if assets::base().is_some() {
        subjects.push(("base", peers::base));
    }
    subjects.retain(|(name, _)| plan.wants_subject(name));
    let disks = || (Disk::copy_of("tools"), Disk::empty(DISK_BYTES));
    let disks: Vec<_> = subjects.iter().map(|_| disks()).collect();
    let mut guests = Vec::new();
    for ((name, start), (root, data)) in subjects.into_iter().zip(&disks) {
        let mut guest = start(root.path(), Extra::Disk(bus, data.path()));
        wait_for_disk(&mut guest, bus);
        // Allocates the file's pages.
        guest.succeed(&format!(
            "dd if=/dev/zero of={} bs=1M count=256 2>/dev/null",
            bus.device()
        ));
        guests.push((name, guest));
    }
    let mut table = Table::default();
    for job in JOBS.into_iter().filter(|job| plan.wants(job.name)) {
        for turn in 0..turns {
            for (name, guest) in &mut guests {
                table.add(job.name, name, measure_job(guest, bus, job, plan.mode));
            }
            if turn % 2 == 0 {
                guests.reverse();
            }
        }
    }
    guests.into_iter().for_each(|(_, guest)| {
        guest.power_off();
    });
    table.first("splitring")
}

/// Linux scans for SCSI disks asynchronously.
fn wait_for_disk(guest: &mut Guest, bus: Bus) {
    guest.succeed(&format!(
        "for n in $(seq 60); do [ -b {0} ] && break; sleep 1; done; [ -b {0} ]",
        bus.device()
    ));
}

/// Returns each job's result.
fn measure(mut guest: Guest, bus: Bus, plan: Plan<'_>) -> Vec<(&'static str, f64)> {
    let mut figures = Vec::new();
    wait_for_disk(&mut guest, bus);
    for job in JOBS.into_iter().filter(|job| plan.wants(job.name)) {
        if job.beside && matches!(plan.mode, Mode::Count) {
            continue;
        }
        let value = measure_job(&mut guest, bus, job, plan.mode);
        figures.push((job.name, value));
    }
    guest.power_off();
    figures
}

/// Runs a job and returns its result.
fn measure_job(guest: &mut Guest, bus: Bus, job: Job, mode: Mode) -> f64 {
    let bound = match mode {
        Mode::Pair(_) => format!("--time_based --runtime={SECONDS}"),
        Mode::Turns(_) => "--time_based --runtime=1".to_owned(),
        Mode::Count => format!("--number_ios={}", job.requests),
    };
    let (disk, beside) = match job.beside {
        true => ("/dev/vda", Some(JOBS[0])),
        false => (bus.device(), None),
    };
    let deep = beside.map(|deep| deep.words(bus.device()));
    // The last one's figures are the last in the output.
    guest.succeed(&format!(
        "fio --eta=never --direct=1 --ioengine=libaio {bound} --output-format=json --output=/tmp/fio {} {}",
        deep.unwrap_or_default(),
        job.words(disk),
    ));
    match mode {
        Mode::Pair(_) | Mode::Turns(_) => largest(guest, "iops"),
        Mode::Count => largest(guest, "runtime") * INSTRUCTIONS_PER_MS / f64::from(job.requests),
    }
}

/// Returns the value of `key` of the last job in fio's result. Reads, writes and trims have one
/// each, and all except one are 0.
fn largest(guest: &mut Guest, key: &str) -> f64 {
    let lines = guest.succeed(&format!("grep '\"{key}\" :' /tmp/fio | tail -n 3"));
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
