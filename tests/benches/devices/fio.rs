//! fio in the guest on a raw file in memory, at a queue depth of 32.

use std::path::Path;

use splitring_tests::assets::Disk;
use splitring_tests::guest::Guest;

use crate::Mode;
use crate::peers::{self, Bus, Extra};
use crate::sample::Table;

const DISK_BYTES: u64 = 256 << 20;
const SECONDS: u32 = 3;
/// Name, fio's pattern, block size, and requests when they are counted.
const JOBS: [(&str, &str, &str, u32); 4] = [
    ("4k randread", "randread", "4k", 4000),
    ("4k randwrite", "randwrite", "4k", 4000),
    ("128k read", "read", "128k", 500),
    ("128k write", "write", "128k", 500),
];
/// Under a clock at shift 0 a nanosecond is an instruction.
const INSTRUCTIONS_PER_MS: f64 = 1e6;

pub(crate) fn run(bus: Bus, mode: Mode) -> Table {
    let root = Disk::copy_of("tools");
    let data = Disk::empty(DISK_BYTES);
    let extra = Extra::Disk(bus, data.path());
    let mut table = Table::default();
    let mut warm = peers::splitring(root.path(), extra);
    // Allocates the file's pages, so that the first subject does not pay for them.
    warm.succeed(&format!(
        "dd if=/dev/zero of={} bs=1M count=256 2>/dev/null",
        bus.device()
    ));
    warm.power_off();
    for round in 0..mode.rounds() {
        let mut subjects: [(&str, Start); 2] =
            [("splitring", peers::splitring), ("QEMU", peers::qemu)];
        // Whoever comes second may find things warmer: they take turns.
        if round % 2 == 1 {
            subjects.reverse();
        }
        for (subject, start) in subjects {
            measure(&mut table, subject, start(root.path(), extra), bus, mode);
        }
    }
    table.first("splitring")
}

type Start = fn(&Path, Extra<'_>) -> Guest;

fn measure(table: &mut Table, subject: &str, mut guest: Guest, bus: Bus, mode: Mode) {
    for (name, pattern, block, requests) in JOBS {
        let bound = match mode {
            Mode::Pairs(_) => format!("--time_based --runtime={SECONDS}"),
            Mode::Count => format!("--number_ios={requests}"),
        };
        guest.succeed(&format!(
            "fio --name=x --filename={} --direct=1 --ioengine=libaio --iodepth=32 --rw={pattern} \
             --bs={block} {bound} --output-format=json --output=/tmp/fio",
            bus.device()
        ));
        let value = match mode {
            Mode::Pairs(_) => largest(&mut guest, "iops"),
            Mode::Count => {
                largest(&mut guest, "runtime") * INSTRUCTIONS_PER_MS / f64::from(requests)
            }
        };
        table.add(name, subject, value);
    }
    guest.power_off();
}

/// The figure called `key` in fio's result: reads, writes and trims have one each, all but one 0.
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
