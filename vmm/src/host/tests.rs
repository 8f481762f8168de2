//! The checks of this host, and the detection of hardware virtualisation.

use super::hardware::is_hardware;
use super::*;
use crate::config::MAX_CPUS;

#[test]
fn the_report_says_how_many_vcpus_a_machine_can_have() {
    if !splitring_needs::kvm() {
        return;
    }
    let found = kvm_device();
    assert_eq!(found.outcome, FindingOutcome::Ok);
    let words = format!("up to {MAX_CPUS} vCPUs per machine");
    assert!(found.detail.ends_with(&words), "{}", found.detail);
}

#[test]
fn every_way_of_not_opening_kvm_has_its_own_remedy() {
    let remedies: Vec<String> = [libc::EACCES, libc::ENXIO, libc::EBUSY, libc::EIO]
        .map(|errno| kvm_remedy(&io::Error::from_raw_os_error(errno)))
        .into();
    assert!(remedies[0].contains("usermod"));
    assert!(remedies[1].contains("modprobe"));
    assert!(remedies[2].contains("another hypervisor"));
    assert!(remedies[3].contains("splitring check"));
}

const NONE: fn(&str) -> bool = |_| false;

#[test]
fn extensions_are_read_from_whole_flag_words() {
    assert!(is_hardware(
        "processor : 0\nflags\t\t: fpu vme svm sse\n",
        NONE
    ));
    assert!(is_hardware("flags\t\t: fpu vmx\n", NONE));
    let others = "flags\t\t: fpu svm_lock vmxnet\nvmx flags\t: vnmi\nbugs : vmx\n";
    assert!(!is_hardware(others, NONE));
}

#[test]
fn a_processor_with_svm_is_no_hardware_to_a_kvm_that_is_pvm() {
    const FLAGS: &str = "flags\t\t: fpu svm npt\n";
    assert!(!is_hardware(FLAGS, |module| module == "kvm_pvm"));
    assert!(is_hardware(FLAGS, |module| ["kvm_pvm", "kvm_amd"].contains(&module)));
    assert!(!is_hardware("flags\t\t: fpu\n", |module| module == "kvm_amd"));
}
