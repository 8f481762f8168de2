//! Whether KVM uses VMX or SVM. `cargo xtask` compiles this file too, so that it has the same rule
//! as `splitring check`.

use std::path::Path;

/// The module of a KVM that emulates the kernel code of its guests.
const PVM: &str = "kvm_pvm";
/// The modules of a KVM with hardware virtualisation. One module at a time owns `/dev/kvm`.
const VENDORS: [&str; 2] = ["kvm_intel", "kvm_amd"];

/// Returns whether KVM has hardware virtualisation: the processor has it, and KVM-PVM is not in use
/// instead. `cpuinfo` is the text of `/proc/cpuinfo`; `loaded` returns whether a kernel module is
/// loaded or built in.
pub(crate) fn is_hardware(cpuinfo: &str, loaded: impl Fn(&str) -> bool) -> bool {
    let pvm_only = loaded(PVM) && !VENDORS.iter().any(|module| loaded(module));
    has_extensions(cpuinfo) && !pvm_only
}

/// Returns whether the module of KVM-PVM is loaded.
pub(crate) fn is_pvm(loaded: impl Fn(&str) -> bool) -> bool {
    loaded(PVM)
}

/// Returns whether the running kernel has this module, loaded or built in.
pub(crate) fn is_loaded(module: &str) -> bool {
    Path::new("/sys/module").join(module).exists()
}

fn has_extensions(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm")
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
