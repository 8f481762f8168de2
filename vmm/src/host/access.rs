//! Why `/dev/kvm` can't be opened, according to the kernel's error and the processor.

use std::fs::File;
use std::io::{self, Read};

/// Returns the entry of the first processor in /proc/cpuinfo, and possibly of a few more. On a
/// large host the whole file takes long to produce.
pub(super) fn first_cpu() -> String {
    const ENOUGH: u64 = 16 << 10;
    let mut text = String::new();
    let read =
        File::open("/proc/cpuinfo").and_then(|file| file.take(ENOUGH).read_to_string(&mut text));
    match read {
        Ok(_) => text,
        Err(_) => String::new(),
    }
}

/// Returns the remedy if `/dev/kvm` can't be opened because of `error`.
#[must_use]
pub fn kvm_remedy(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            let flags = first_cpu();
            if flags.contains("svm") {
                "load the module: modprobe kvm-amd".into()
            } else if flags.contains("vmx") {
                "load the module: modprobe kvm-intel".into()
            } else {
                "this processor has no VMX or SVM: enable virtualisation in the firmware, or nested virtualisation for this virtual machine".into()
            }
        }
        io::ErrorKind::PermissionDenied => {
            "join the group kvm and log in again: sudo usermod -aG kvm \"$USER\"".into()
        }
        _ => match error.raw_os_error() {
            Some(libc::ENXIO | libc::ENODEV) => {
                "the module is not loaded: modprobe kvm-intel or kvm-amd".into()
            }
            Some(libc::EBUSY) => {
                "another hypervisor uses the processor's virtualisation: stop it".into()
            }
            _ => "see `splitring check`".into(),
        },
    }
}
