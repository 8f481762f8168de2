//! The ring engine against its peers, in one process, over the same memory and the same chains.
//!
//! `ring [PART]` prints the tables, or the rows whose label contains PART (`cross` and `lines` are
//! parts, too), and finally the ratios. `ring --count LABEL ROUNDS` runs one case this many times
//! and nothing else, for the instruction counter.

mod device;
mod driver;
mod lines;
mod memory;

use std::process::Command;
use std::time::{Duration, Instant};

/// One engine with one job: a call of `run` does the job once.
pub(crate) struct Case {
    /// Its name on the command line: job, shape and engine.
    label: String,
    /// Units (chains, buffers) per call.
    units: u32,
    run: Job,
}

/// The code that is timed. Its queue and memory are created at the first call, so that a run of one
/// case alone creates nothing for the others.
type Job = Box<dyn FnMut()>;

impl Case {
    /// Returns a case whose job `set_up` creates.
    pub(crate) fn new<J: FnMut() + 'static>(
        label: String,
        units: u16,
        set_up: impl FnOnce() -> J + 'static,
    ) -> Self {
        let mut set_up = Some(set_up);
        let mut job: Option<J> = None;
        let run = move || {
            if let Some(job) = &mut job {
                job();
            } else if let Some(set_up) = set_up.take() {
                job.insert(set_up())();
            }
        };
        Self {
            label,
            units: u32::from(units),
            run: Box::new(run),
        }
    }
}

/// One row of a table: the same job in both engines.
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

/// Runs of each engine, interleaved; the median counts.
const RUNS: usize = 301;
/// Duration of a run: far shorter than a time slice, so that most runs are undisturbed.
const RUN: Duration = Duration::from_micros(200);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let tables = vec![
        device::one_by_one(),
        device::batched(),
        driver::alone(),
        driver::round_trip(),
    ];
    if let [flag, label, rounds] = args.as_slice()
        && flag == "--count"
    {
        count(tables, label, rounds);
        return;
    }
    // Cargo adds a flag.
    let part = args.iter().find(|arg| !arg.starts_with("--"));
    let mut ratios = Vec::new();
    for mut table in tables {
        let wanted = |row: &Row| part.is_none_or(|part| row.ours.label.contains(part.as_str()));
        table.rows.retain(wanted);
        if !table.rows.is_empty() {
            print(table, &mut ratios);
        }
    }
    if part.is_none_or(|part| part == "cross") {
        driver::cross_thread();
    }
    if part.is_none_or(|part| part == "lines") {
        lines::print();
        driver::lines();
        driver::fences();
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

/// Returns nanoseconds per unit for Splitring and the peer.
fn medians(ours: &mut Case, peer: &mut Case) -> (f64, f64) {
    let calls = [calibrate(ours), calibrate(peer)];
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..RUNS {
        let cases = [&mut *ours, &mut *peer].into_iter().zip(calls);
        for ((case, calls), times) in cases.zip(&mut times) {
            times.push(run(case, calls) / f64::from(calls * case.units));
        }
    }
    let [ours, peer] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    (ours, peer)
}

/// Returns the nanoseconds that this number of calls takes.
fn run(case: &mut Case, calls: u32) -> f64 {
    let start = Instant::now();
    for _ in 0..calls {
        (case.run)();
    }
    start.elapsed().as_secs_f64() * 1e9
}

/// Returns how many calls make a run. Sets the case up and warms it up in the process.
fn calibrate(case: &mut Case) -> u32 {
    (case.run)();
    let mut calls = 1;
    while run(case, calls) < RUN.as_secs_f64() * 1e9 {
        calls *= 2;
    }
    calls
}

/// Returns the instructions per unit, from the difference of two runs of different lengths under
/// valgrind; `None` without valgrind, or if the case can't run under it.
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
        .ok()
        .filter(|output| output.status.success())?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(' ').next()?.parse().ok()
}
