//! The processors: what the guest finds them to be, and where the first of them starts.

use std::sync::Arc;

use kvm_bindings::{CpuId, Msrs};
use kvm_ioctls::VcpuFd;
use splitring_arch::cpuid::{self, CpuFeatures};
use splitring_arch::kernel::EntryPoint;
use splitring_arch::{msr, regs};

use super::buses::Buses;
use crate::error::BuildError;
use crate::kvm::{KvmError, Vm};
use crate::vcpu::{Exits, Vcpu};

pub(super) fn create(vm: &Vm, cpus: u32) -> Result<Vec<VcpuFd>, BuildError> {
    (0..cpus)
        .map(|index| vm.create_vcpu(index).map_err(BuildError::from))
        .collect()
}

pub(super) fn set_up(
    fds: Vec<VcpuFd>,
    supported: &CpuId,
    entry: EntryPoint,
    buses: &Buses,
    exits: &[Arc<Exits>],
) -> Result<Vec<Vcpu>, BuildError> {
    let features = CpuFeatures {
        vcpus: u32::try_from(fds.len()).unwrap_or(u32::MAX),
        tsc_khz: fds.first().and_then(|fd| fd.get_tsc_khz().ok()),
        brand: cpuid::host_brand(),
    };
    let mut vcpus = Vec::new();
    for ((index, fd), exits) in (0..).zip(fds).zip(exits) {
        set_features(&fd, supported, &features, index)?;
        if index == 0 {
            set_entry(&fd, entry)?;
        }
        vcpus.push(Vcpu {
            index,
            fd,
            ports: Arc::clone(&buses.ports),
            mmio: Arc::clone(&buses.mmio),
            exits: Arc::clone(exits),
        });
    }
    Ok(vcpus)
}

/// What the guest finds the processor to be.
fn set_features(
    fd: &VcpuFd,
    supported: &CpuId,
    features: &CpuFeatures,
    index: u32,
) -> Result<(), BuildError> {
    let leaves = cpuid::vcpu_cpuid(supported.as_slice(), features, index);
    let leaves =
        CpuId::from_entries(&leaves).map_err(|_| KvmError::Missing("room for the CPUID leaves"))?;
    fd.set_cpuid2(&leaves)
        .map_err(crate::kvm::refused("set the processor's features"))?;
    // One at a time: KVM stops at the first register it does not take, and some KVMs take few.
    for register in msr::boot_msrs() {
        let one = Msrs::from_entries(&[register.entry()])
            .map_err(|_| KvmError::Missing("room for registers"))?;
        if !matches!(fd.set_msrs(&one), Ok(1)) {
            tracing::debug!(
                register = format_args!("{:#x}", register.index),
                "KVM does not take a register's value"
            );
        }
    }
    Ok(())
}

/// Puts the first vCPU at the kernel's entry; the others wait to be woken by it.
fn set_entry(fd: &VcpuFd, entry: EntryPoint) -> Result<(), BuildError> {
    let before = fd
        .get_sregs()
        .map_err(crate::kvm::refused("read the first vCPU's registers"))?;
    fd.set_sregs(&regs::special(before, entry))
        .map_err(crate::kvm::refused("set segment registers"))?;
    fd.set_regs(&regs::general(entry))
        .map_err(crate::kvm::refused("set general registers"))?;
    fd.set_fpu(&regs::fpu())
        .map_err(crate::kvm::refused("set floating-point registers"))?;
    Ok(())
}
