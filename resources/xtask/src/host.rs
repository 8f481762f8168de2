//! The host: whether its KVM can run a stock kernel, and whether it is the lab.

#[path = "../../../vmm/src/host/hardware.rs"]
mod hardware;

use std::fmt;
use std::fs;
use std::path::Path;

/// Set in the environment of everything that runs inside the lab.
pub(crate) const IN_LAB: &str = "SPLITRING_LAB";

/// Capability of the host's KVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostKvm {
    /// Hardware virtualisation: a stock kernel runs.
    Hardware,
    /// There is no `/dev/kvm`.
    Missing,
    /// `/dev/kvm` can't be opened by this user.
    Denied(String),
    /// KVM-PVM: it emulates privileged code, and a stock kernel does not boot.
    Pvm,
    /// KVM, but the CPU reports neither VMX nor SVM.
    NoExtensions,
}

impl HostKvm {
    /// Detects the capability.
    pub(crate) fn detect() -> Self {
        if !Path::new("/dev/kvm").exists() {
            return Self::Missing;
        }
        if let Err(why) = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
        {
            return Self::Denied(why.to_string());
        }
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        judge(&cpuinfo, hardware::is_loaded)
    }

    /// Returns advice for a user who does not want to run as root, as the continuation of a
    /// message.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Denied(_) => {
                "\nor, if this machine has VMX or SVM, join the group that may use its KVM and log in again:\n  \
                 sudo usermod -aG kvm \"$USER\""
            }
            _ => "",
        }
    }

    /// Returns whether a stock kernel can run on it.
    pub(crate) fn runs_stock_kernels(&self) -> bool {
        *self == Self::Hardware
    }
}

/// Judges an opened `/dev/kvm` by the same rule as `splitring check`.
fn judge(cpuinfo: &str, loaded: impl Fn(&str) -> bool) -> HostKvm {
    if hardware::is_hardware(cpuinfo, &loaded) {
        HostKvm::Hardware
    } else if hardware::is_pvm(&loaded) {
        HostKvm::Pvm
    } else {
        HostKvm::NoExtensions
    }
}

impl fmt::Display for HostKvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware => write!(f, "the host's KVM has hardware virtualisation"),
            Self::Missing => write!(f, "the host has no /dev/kvm"),
            Self::Denied(why) => write!(f, "the host's /dev/kvm can't be opened ({why})"),
            Self::Pvm => write!(
                f,
                "the host's KVM is KVM-PVM, which can't run a stock kernel"
            ),
            Self::NoExtensions => write!(f, "the host's CPU reports neither VMX nor SVM"),
        }
    }
}

/// Returns whether this process runs inside the lab.
pub(crate) fn in_lab() -> bool {
    std::env::var_os(IN_LAB).is_some()
}

/// Returns how many machines with `memory_mib` each fit on this host, with one core per machine; at
/// least one.
pub(crate) fn slots(memory_mib: u32) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    cores.min(memory_slots(&meminfo, memory_mib)).max(1)
}

fn memory_slots(meminfo: &str, memory_mib: u32) -> usize {
    let total_kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|word| word.parse::<usize>().ok())
        .unwrap_or(0);
    let each_kib = usize::try_from(memory_mib)
        .unwrap_or(usize::MAX)
        .saturating_mul(1024);
    total_kib.checked_div(each_kib).unwrap_or(0)
}

/// Returns whether this process may install packages.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests;
