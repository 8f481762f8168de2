//! What a machine costs its host in addition to its guest: time and private memory, for many at
//! once and for many one after the other, with a guest of two instructions that runs wherever
//! `/dev/kvm` opens.
//!
//! `cargo bench --package splitring --bench machines`

use std::fs;
use std::time::Instant;

use splitring::{Machine, Resources, VmConfig};
use splitring_needs::tiny;

const AT_ONCE: u32 = 200;
const CYCLES: u32 = 1000;

fn build(config: &VmConfig) -> Machine {
    let options = Resources::options().any_kvm(true);
    let resources = options.open(config).expect("opens");
    Machine::new(config.clone(), resources).expect("builds")
}

fn main() {
    let Some(dir) = tiny::directory() else { return };
    let mut config = VmConfig::new(tiny::kernel(dir.path(), tiny::SLEEP));
    config.memory.size.0 = 16 << 20;
    at_once(&config);
    cycles(&config);
}

fn at_once(config: &VmConfig) {
    // The first machine of a process sets up what the later ones share.
    drop(build(config));
    let before = private_kib(config);
    let machines: Vec<_> = timed("build", AT_ONCE, || {
        (0..AT_ONCE).map(|_| build(config)).collect()
    });
    timed("start", AT_ONCE, || {
        machines
            .iter()
            .for_each(|machine| machine.start().expect("starts"));
    });
    let after = private_kib(config);
    let each = |part: usize| (after[part] - before[part]) / u64::from(AT_ONCE);
    println!(
        "{AT_ONCE} at once: {} KiB of private memory each, and {} KiB of guest memory",
        each(0),
        each(1)
    );
    timed("pause", AT_ONCE, || {
        machines
            .iter()
            .for_each(|machine| machine.pause().expect("pauses"));
    });
    timed("resume", AT_ONCE, || {
        machines
            .iter()
            .for_each(|machine| machine.resume().expect("resumes"));
    });
    timed("stop", AT_ONCE, || {
        machines.iter().for_each(|machine| drop(machine.stop()));
    });
    timed("drop", AT_ONCE, || drop(machines));
}

fn cycles(config: &VmConfig) {
    let before = leftovers();
    timed("start and stop", CYCLES, || {
        for _ in 0..CYCLES {
            let machine = build(config);
            machine.start().expect("starts");
            machine.stop();
        }
    });
    println!(
        "left behind by {CYCLES}: {} descriptors, {} threads, {} mappings",
        leftovers()[0] - before[0],
        leftovers()[1] - before[1],
        leftovers()[2] - before[2]
    );
}

fn timed<T>(what: &str, times: u32, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what}: {:.2?} each", start.elapsed() / times);
    result
}

/// Returns the resident anonymous memory in KiB: the process's own and the guests'. Guests' mappings
/// are as large as their memory, or larger if several are adjacent.
fn private_kib(config: &VmConfig) -> [u64; 2] {
    let smaps = fs::read_to_string("/proc/self/smaps").expect("smaps");
    let kib = |line: &str, key: &str| {
        let value = line.strip_prefix(key)?.trim().strip_suffix(" kB")?;
        value.parse::<u64>().ok()
    };
    let (mut of_guest, mut sum) = (false, [0; 2]);
    for line in smaps.lines() {
        if let Some(size) = kib(line, "Size:") {
            of_guest = size >= config.memory.size.0 >> 10;
        } else if let Some(size) = kib(line, "Anonymous:") {
            sum[usize::from(of_guest)] += size;
        }
    }
    sum
}

/// Returns the numbers of descriptors, threads and mappings of this process.
fn leftovers() -> [i64; 3] {
    let number = |count: usize| i64::try_from(count).expect("few");
    let count = |path: &str| number(fs::read_dir(path).expect("list").count());
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    [
        count("/proc/self/fd"),
        count("/proc/self/task"),
        number(maps.lines().count()),
    ]
}
