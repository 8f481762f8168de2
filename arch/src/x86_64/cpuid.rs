//! CPUID of each vCPU: what KVM supports, with this machine's topology and paravirtual features.
//!
//! Pure data: entries in, entries out. It knows Intel's and AMD's leaves and KVM's; it does not know the host.

use kvm_bindings::kvm_cpuid_entry2;

/// Most vCPUs of a machine.
pub const MAX_VCPUS: u32 = 32;

/// What vCPUs get beyond what `KVM_GET_SUPPORTED_CPUID` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuFeatures {
    /// vCPUs, 1 to [`MAX_VCPUS`]; one package, one thread a core, APIC id = index.
    pub vcpus: u32,
    /// `KVM_CAP_TSC_DEADLINE_TIMER`; KVM does not report the bit by itself.
    pub tsc_deadline: bool,
    /// TSC frequency (`KVM_GET_TSC_KHZ`): with it the guest calibrates nothing.
    pub tsc_khz: Option<u32>,
}

/// The CPUID of vCPU `index`, made from `supported` (`KVM_GET_SUPPORTED_CPUID`).
#[must_use]
pub fn vcpu_cpuid(
    supported: &[kvm_cpuid_entry2],
    features: &CpuFeatures,
    index: u32,
) -> Vec<kvm_cpuid_entry2> {
    let _ = (supported, features, index);
    todo!()
}

/// Physical address bits in `cpuid` (leaf 0x8000_0008), 36 if not given.
#[must_use]
pub fn physical_bits(cpuid: &[kvm_cpuid_entry2]) -> u8 {
    let _ = cpuid;
    todo!()
}
