//! Why `/dev/kvm` can't be opened, by what the kernel answers and the processor is.

use std::fs::File;
use std::io::{self, Read};

/// What Linux says about the first processor, and perhaps a few more: all of a large host's are long to write out.
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

/// What to do when /dev/kvm can't be opened for this reason.
#[must_use]
pub fn kvm_remedy(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            let flags = first_cpu();
            if flags.contains("svm") {
                "load its module: modprobe kvm-amd".into()
            } else if flags.contains("vmx") {
                "load its module: modprobe kvm-intel".into()
            } else {
                "this processor shows no VMX or SVM: switch virtualisation on in the firmware, or nested virtualisation for this virtual machine".into()
            }
        }
        io::ErrorKind::PermissionDenied => {
            "join its group and log in again: sudo usermod -aG kvm \"$USER\"".into()
        }
        _ => match error.raw_os_error() {
            Some(libc::ENXIO | libc::ENODEV) => {
                "its module is not loaded: modprobe kvm-intel or kvm-amd".into()
            }
            Some(libc::EBUSY) => "another hypervisor holds the processor's virtualisation".into(),
            _ => "see `splitring check`".into(),
        },
    }
}
