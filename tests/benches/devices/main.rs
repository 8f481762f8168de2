//! Devices in a stock guest, Splitring against Debian's QEMU, in interleaved pairs.
//!
//! Run by `cargo xtask bench blk|scsi|net`, where a stock kernel can run. Two modes: `pairs N` runs
//! for a time and gives rates; `count` runs a fixed amount of work, for a clock that counts
//! instructions. One more word selects workloads by a part of their name. The last line
//! has the ratios.

mod fio;
mod network;
mod peers;
mod sample;

use sample::Table;

/// How much is run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mode {
    /// So many pairs, each for a time.
    Pairs(usize),
    /// A fixed amount of work.
    Count,
}

impl Mode {
    fn rounds(self) -> usize {
        match self {
            Self::Pairs(rounds) => rounds,
            // The counting clock repeats: a second round shows that it did.
            Self::Count => 2,
        }
    }
}

/// What is to be measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'a> {
    pub(crate) mode: Mode,
    only: &'a str,
}

impl Plan<'_> {
    /// Whether the workload called `name` is wanted.
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
    let (device, mode, rest) = match words.as_slice() {
        [device, "pairs", rounds, rest @ ..] => {
            let rounds = rounds.parse().expect("a number");
            (*device, Mode::Pairs(rounds), rest)
        }
        [device, "count", rest @ ..] => (*device, Mode::Count, rest),
        _ => {
            panic!("usage: devices blk|scsi|net pairs N|count [ONLY]; see `cargo xtask bench`")
        }
    };
    let only = rest.first().copied().unwrap_or_default();
    let plan = Plan { mode, only };
    let table: Table = match device {
        "blk" => fio::run(peers::Bus::Blk, plan),
        "scsi" => fio::run(peers::Bus::Scsi, plan),
        "net" => network::run(plan),
        other => panic!("no bench for {other}"),
    };
    table.print(device, mode);
}
