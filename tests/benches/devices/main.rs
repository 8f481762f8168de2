//! Devices in a stock guest, Splitring against Debian's QEMU, in interleaved pairs.
//!
//! Run by `cargo xtask bench blk|scsi|net`, where a stock kernel can run. `pair N FILE` runs the
//! Nth pair for a time and adds its rates to a file, so that each pair can have a machine of its
//! own. `count` runs a fixed amount of work, for a clock that counts instructions. One more word
//! selects workloads by a part of their name. `pairs FILE` prints the results of the pairs. The
//! last line has the ratios.

mod fio;
mod network;
mod peers;
mod sample;

use std::ops::Range;
use std::path::Path;

use sample::Table;

/// How much to run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mode {
    /// One pair, by its number, for a time.
    Pair(usize),
    /// All subjects at once, so many turns of a second for each workload.
    Turns(usize),
    /// A fixed amount of work.
    Count,
}

impl Mode {
    fn rounds(self) -> Range<usize> {
        match self {
            Self::Pair(number) => number..number + 1,
            // The clock is deterministic: a second round confirms that.
            Self::Count => 0..2,
            Self::Turns(_) => 0..1,
        }
    }
}

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'a> {
    pub(crate) mode: Mode,
    only: &'a str,
}

/// Names the subjects to measure besides Splitring, separated by commas.
const AGAINST: &str = "SPLITRING_BENCH_AGAINST";

impl Plan<'_> {
    /// Returns whether the subject called `name` is wanted.
    pub(crate) fn wants_subject(&self, name: &str) -> bool {
        let wanted = |names: String| {
            names
                .split(',')
                .any(|one| name == "splitring" || name == one)
        };
        std::env::var(AGAINST).map_or(true, wanted)
    }

    /// Returns whether the workload called `name` is selected.
    pub(crate) fn wants(&self, name: &str) -> bool {
        name.contains(self.only)
    }
}

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [device, "pair", number, file, only @ ..] => {
            let number = number.parse().expect("a number");
            measure(device, Mode::Pair(number), only).append(Path::new(file));
        }
        [device, "turns", turns, file, only @ ..] => {
            let turns = turns.parse().expect("a number");
            measure(device, Mode::Turns(turns), only).append(Path::new(file));
        }
        [device, "pairs", file] => {
            Table::read(Path::new(file)).print(device, "rates (time for pings)");
        }
        [device, "count", only @ ..] => {
            measure(device, Mode::Count, only).print(device, "level-1 instructions each");
        }
        _ => panic!("usage: devices blk|scsi|net pair N FILE [ONLY]|pairs FILE|count [ONLY]"),
    }
}

fn measure(device: &str, mode: Mode, only: &[&str]) -> Table {
    let only = only.first().copied().unwrap_or_default();
    let plan = Plan { mode, only };
    match device {
        "blk" => fio::run(peers::Bus::Blk, plan),
        "scsi" => fio::run(peers::Bus::Scsi, plan),
        "net" => network::run(plan),
        other => panic!("no benchmark for {other}"),
    }
}
