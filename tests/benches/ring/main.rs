//! The ring engine against its peers, in one process, over the same memory and the same chains.
//!
//! `ring` prints the tables and, last, the ratios. `ring --count LABEL ROUNDS` runs one case so many
//! times and nothing else: what the instruction counter is put on.

mod device;
mod memory;

use std::process::Command;
use std::time::Instant;

/// One engine at one job: a call does the job once.
pub(crate) struct Case {
    /// Names it on the command line: job, shape and engine.
    pub(crate) label: String,
    /// Units (chains, buffers) a call handles.
    pub(crate) units: u32,
    pub(crate) run: Box<dyn FnMut()>,
}

/// One row of a table: the same job by both engines.
pub(crate) struct Row {
    pub(crate) shape: String,
    /// The ratio to reach.
    pub(crate) target: f64,
    pub(crate) ours: Case,
    pub(crate) peer: Case,
}

/// A job, its peer and its rows.
pub(crate) struct Table {
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) rows: Vec<Row>,
}

/// Runs of each engine, taken in turns; the median counts.
const RUNS: usize = 41;
/// A run is about so many units.
const UNITS_PER_RUN: u32 = 100_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let tables = vec![device::one_by_one(), device::batched()];
    if let [flag, label, rounds] = args.as_slice()
        && flag == "--count"
    {
        count(tables, label, rounds);
        return;
    }
    let mut ratios = Vec::new();
    for table in tables {
        print(table, &mut ratios);
    }
    println!("ratios: {}", ratios.join(", "));
}

/// Runs the case named `label`.
fn count(tables: Vec<Table>, label: &str, rounds: &str) {
    let rounds: u32 = rounds.parse().expect("a number of rounds");
    let cases = tables.into_iter().flat_map(|table| table.rows);
    let mut case = cases
        .flat_map(|row| [row.ours, row.peer])
        .find(|case| case.label == label)
        .expect("a case of that label");
    for _ in 0..rounds {
        (case.run)();
    }
}

fn print(table: Table, ratios: &mut Vec<String>) {
    let unit = table.unit;
    println!("{}", table.title);
    println!(
        "{:<22} {:>9} {:>9} {:>7} {:>7} {:>11} {:>11} {:>7}",
        "shape", "ours ns", "peer ns", "ratio", "target", "ours instr", "peer instr", "ratio"
    );
    for mut row in table.rows {
        let (ours, peer) = medians(&mut row.ours, &mut row.peer);
        let counts = [&row.ours, &row.peer].map(instructions);
        let shown = counts.map(|n| n.map_or_else(|| "-".into(), |n| format!("{n:.0}")));
        let fewer = match counts {
            [Some(ours), Some(peer)] => format!("{:.1}", peer / ours),
            _ => "-".into(),
        };
        let ratio = peer / ours;
        println!(
            "{:<22} {ours:>9.1} {peer:>9.1} {ratio:>7.1} {:>7.1} {:>11} {:>11} {fewer:>7}",
            row.shape, row.target, shown[0], shown[1]
        );
        let verdict = if ratio < row.target { "!" } else { "" };
        ratios.push(format!("{} {ratio:.1}{verdict}", row.ours.label));
    }
    println!("(per {unit}; medians of {RUNS} interleaved runs; instructions by valgrind)\n");
}

/// Nanoseconds a unit, ours and the peer's.
fn medians(ours: &mut Case, peer: &mut Case) -> (f64, f64) {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..RUNS {
        for (case, times) in [&mut *ours, &mut *peer].into_iter().zip(&mut times) {
            let calls = (UNITS_PER_RUN / case.units).max(1);
            let start = Instant::now();
            for _ in 0..calls {
                (case.run)();
            }
            let spent = start.elapsed().as_secs_f64() * 1e9;
            times.push(spent / f64::from(calls * case.units));
        }
    }
    let [ours, peer] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    (ours, peer)
}

/// Instructions a unit takes, from the difference of two lengths of run under valgrind; `None`
/// without valgrind.
fn instructions(case: &Case) -> Option<f64> {
    let few = 1000 / case.units + 1;
    let many = few * 5;
    let spent = collected(&case.label, many)? - collected(&case.label, few)?;
    Some(spent / f64::from((many - few) * case.units))
}

fn collected(label: &str, rounds: u32) -> Option<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().ok()?)
        .args(["--count", label, &rounds.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.parse().ok()
}
