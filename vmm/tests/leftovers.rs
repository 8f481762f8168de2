//! Machines leave no descriptors, threads or mappings behind. One test in a process of its own, so
//! that it can count exactly.

use std::fs;

use splitring::config::SerialTarget;
use splitring::{ExitReason, Machine, Resources, VmConfig};
use splitring_needs::tiny::{SPIN, directory, kernel};

fn start(config: VmConfig) -> Machine {
    let options = Resources::options().any_kvm(true);
    let resources = options.open(&config).expect("opens");
    let machine = Machine::new(config, resources).expect("builds");
    machine.start().expect("starts");
    machine
}

#[test]
fn machines_live_side_by_side_and_leave_nothing_behind() {
    let Some(dir) = directory() else { return };
    let spin = VmConfig::new(kernel(dir.path(), SPIN))
        .cpus(2)
        .serial(SerialTarget::Off);
    let ended = start(spin.clone());
    drop(ended);
    let before = (entries("/proc/self/fd"), mappings());
    let threads = entries("/proc/self/task");
    for _ in 0..100 {
        assert_eq!(start(spin.clone()).stop(), ExitReason::Stopped);
    }
    for _ in 0..3 {
        let machines: Vec<_> = (0..4).map(|_| start(spin.clone())).collect();
        assert_eq!(machines[1].stop(), ExitReason::Stopped);
        assert_eq!(machines[2].try_wait(), None, "its neighbour does not care");
    }
    let after = (entries("/proc/self/fd"), mappings());
    assert_eq!(after.0, before.0, "descriptors");
    assert_eq!(entries("/proc/self/task"), threads, "threads");
    assert_eq!(after.1, before.1, "mappings");
}

fn entries(directory: &str) -> usize {
    fs::read_dir(directory).expect("list").count()
}

/// Returns the mappings of guest memory, of vCPUs and of configuration space. The C library keeps
/// the stacks of ended threads.
fn mappings() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let ours = |line: &&str| {
        let (start, end) = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'))
            .expect("a range");
        let address = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
        address(end) - address(start) >= 256 << 20 || line.contains("kvm") || line.contains("memfd")
    };
    maps.lines().filter(ours).count()
}
