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
