//! Devices in a stock guest, Splitring against Debian's QEMU, in interleaved pairs.
//!
//! Run by `cargo xtask bench blk|scsi|net`, where a stock kernel can run. Two modes: `pairs N` runs
//! for a time and gives rates; `count` runs a fixed amount of work, for a clock that counts
//! instructions. The last line has the ratios.

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

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (device, mode) = match words.as_slice() {
        [device, "pairs", rounds] => (*device, Mode::Pairs(rounds.parse().expect("a number"))),
        [device, "count"] => (*device, Mode::Count),
        _ => panic!("usage: devices blk|scsi|net pairs N|count; see `cargo xtask bench`"),
    };
    let table: Table = match device {
        "blk" => fio::run(peers::Bus::Blk, mode),
        "scsi" => fio::run(peers::Bus::Scsi, mode),
        "net" => network::run(mode),
        other => panic!("no bench for {other}"),
    };
    table.print(device, mode);
}
