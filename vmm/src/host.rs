//! What this host can and cannot do for a virtual machine, and how to fix it.
//!
//! Reads /proc, /sys and /dev and tries each facility; changes nothing. Used by `splitring check`
//! and for the remedies in error messages.

mod access;
mod hardware;

use std::fs::{self, OpenOptions};
use std::io;

use serde::Serialize;
use splitring_devices::disk::SharedRings;
use splitring_devices::kind::ErrorKind;

use crate::kvm;

pub use access::kvm_remedy;

use access::first_cpu;

/// The kind of virtualisation that KVM has on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Virtualisation {
    /// VMX or SVM: every guest runs.
    Hardware,
    /// KVM without either (KVM-PVM): guest kernel code is emulated instruction by instruction,
    /// which stock kernels don't survive.
    SoftwareOnly,
}

/// The host's KVM can't run a stock kernel.
#[derive(Debug, thiserror::Error)]
#[error(
    "KVM here works without VMX or SVM{module}: it emulates kernel code and cannot run a stock kernel; \
          use a host with hardware virtualisation (in a virtual machine: enable nested virtualisation), or `splitring selftest`, which runs here"
)]
pub struct SoftwareKvm {
    module: &'static str,
}

impl SoftwareKvm {
    /// Returns [`ErrorKind::Kvm`].
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Kvm
    }
}

/// Returns the kind of virtualisation, according to the processor and the loaded modules.
#[must_use]
pub fn virtualisation() -> Virtualisation {
    if hardware::is_hardware(&first_cpu(), hardware::is_loaded) {
        Virtualisation::Hardware
    } else {
        Virtualisation::SoftwareOnly
    }
}

/// Checks that KVM can run a stock kernel.
///
/// # Errors
/// [`SoftwareKvm`] if there is no hardware virtualisation.
pub fn require_hardware() -> Result<(), SoftwareKvm> {
    match virtualisation() {
        Virtualisation::Hardware => Ok(()),
        Virtualisation::SoftwareOnly => Err(SoftwareKvm {
            module: if hardware::is_pvm(hardware::is_loaded) {
                " (module kvm_pvm)"
            } else {
                ""
            },
        }),
    }
}

/// The outcome of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum FindingOutcome {
    /// It works.
    Ok,
    /// Virtual machines run without it; something is slower or not available.
    Limited,
    /// Virtual machines can't run.
    Failed,
}

/// The former name of [`FindingOutcome`].
#[deprecated = "renamed to `FindingOutcome`"]
pub type Outcome = FindingOutcome;

/// The result of one check.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The checked facility, as one word.
    pub name: &'static str,
    /// The outcome.
    pub outcome: FindingOutcome,
    /// The details.
    pub detail: String,
    /// How to fix it; empty if there is nothing to fix.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

/// The results of all checks.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct HostReport {
    /// Whether a stock kernel can run.
    pub can_run: bool,
    /// The result of each check.
    pub findings: Vec<Finding>,
}

/// The former name of [`HostReport`].
#[deprecated = "renamed to `HostReport`"]
pub type Report = HostReport;

fn finding(
    name: &'static str,
    outcome: FindingOutcome,
    detail: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding {
        name,
        outcome,
        detail: detail.into(),
        remedy: remedy.into(),
    }
}

/// Checks everything that a machine may need of this host. Takes some milliseconds. Opens
/// `/dev/kvm` and other devices, and closes them again.
#[must_use]
pub fn report() -> HostReport {
    let findings = vec![
        kvm_device(),
        hardware(),
        huge_pages(),
        tun(),
        io_uring(),
        open_files(),
    ];
    let can_run = findings
        .iter()
        .all(|found| found.outcome != FindingOutcome::Failed);
    HostReport { can_run, findings }
}

fn kvm_device() -> Finding {
    const NAME: &str = "kvm";
    match kvm::Host::open() {
        Ok(host) => finding(
            NAME,
            FindingOutcome::Ok,
            format!(
                "/dev/kvm opens, up to {} vCPUs per machine",
                host.max_vcpus()
            ),
            "",
        ),
        Err(kvm::KvmError::Open(error)) => finding(
            NAME,
            FindingOutcome::Failed,
            format!("cannot open /dev/kvm: {error}"),
            kvm_remedy(&error),
        ),
        Err(error) => finding(NAME, FindingOutcome::Failed, error.to_string(), ""),
    }
}

fn hardware() -> Finding {
    const NAME: &str = "hardware";
    match require_hardware() {
        Ok(()) => finding(
            NAME,
            FindingOutcome::Ok,
            "VMX or SVM is available: stock kernels run",
            "",
        ),
        Err(error) => {
            let text = error.to_string();
            let (detail, remedy) = text.split_once("; ").unwrap_or((&text, ""));
            finding(NAME, FindingOutcome::Failed, detail, remedy)
        }
    }
}

fn huge_pages() -> Finding {
    const NAME: &str = "huge-pages";
    let file = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let free: u64 = fs::read_to_string(file)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    let transparent =
        fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let transparent = if transparent.contains("[always]") || transparent.contains("[madvise]") {
        "on"
    } else {
        "off"
    };
    let detail =
        format!("{free} free reserved pages of 2 MiB; transparent huge pages are {transparent}");
    if free > 0 {
        finding(NAME, FindingOutcome::Ok, detail, "")
    } else {
        let remedy =
            "needed for memory hugepages=on only: echo 512 | sudo tee /proc/sys/vm/nr_hugepages";
        finding(NAME, FindingOutcome::Limited, detail, remedy)
    }
}

fn tun() -> Finding {
    const NAME: &str = "tun";
    match OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
    {
        Ok(_) => finding(
            NAME,
            FindingOutcome::Ok,
            "/dev/net/tun opens: TAP interfaces can be used",
            "",
        ),
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "ask an administrator to create the TAP interface: ip tuntap add mode tap user \"$USER\" …; or use passt"
                }
                _ => "load its module: modprobe tun; or use passt",
            };
            finding(
                NAME,
                FindingOutcome::Limited,
                format!("cannot open /dev/net/tun: {error}"),
                remedy,
            )
        }
    }
}

fn io_uring() -> Finding {
    const NAME: &str = "io-uring";
    // The ring that a disk would use, created and dropped.
    match SharedRings::new(1, 8, 1) {
        Ok(_) => finding(NAME, FindingOutcome::Ok, "disks use io_uring", ""),
        Err(error) => finding(
            NAME,
            FindingOutcome::Limited,
            format!("io_uring is refused ({error}): disks use slower blocking system calls"),
            "set kernel.io_uring_disabled to 0, and allow the system calls in the container",
        ),
    }
}

fn open_files() -> Finding {
    const NAME: &str = "open-files";
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let shown = limit
        .current
        .map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    if limit.current.is_some_and(|limit| limit < 256) {
        let remedy =
            "raise the limit: ulimit -n 1024; each queue of a device needs several descriptors";
        finding(
            NAME,
            FindingOutcome::Limited,
            format!("at most {shown} open files"),
            remedy,
        )
    } else {
        finding(
            NAME,
            FindingOutcome::Ok,
            format!("at most {shown} open files"),
            "",
        )
    }
}

#[cfg(test)]
mod tests;
