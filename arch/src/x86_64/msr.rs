//! Model-specific registers (MSRs) that a vCPU starts with.
//!
//! Most registers keep KVM's reset values, and the APIC base stays KVM's own. Set here are those
//! that Linux reads early and that firmware would have set.

use kvm_bindings::kvm_msr_entry;

/// `IA32_TSC`.
pub const TSC: u32 = 0x10;
/// `IA32_MISC_ENABLE`.
pub const MISC_ENABLE: u32 = 0x1a0;
/// `IA32_MTRR_DEF_TYPE`.
pub const MTRR_DEF_TYPE: u32 = 0x2ff;

/// Fast strings: without this bit Linux clears `rep_good` and `erms` on Intel.
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
/// MTRRs enabled, write-back by default.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// One register to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootMsr {
    /// Register number.
    pub index: u32,
    /// Value.
    pub value: u64,
}

impl BootMsr {
    /// Returns the register in KVM's format.
    #[must_use]
    pub fn entry(&self) -> kvm_msr_entry {
        kvm_msr_entry {
            index: self.index,
            data: self.value,
            ..Default::default()
        }
    }
}

/// Returns the registers to set on each vCPU. All of them are optional. `KVM_SET_MSRS` stops at the
/// first one that it refuses (KVM-PVM refuses some); the caller then continues with the next.
#[must_use]
pub fn boot_msrs() -> Vec<BootMsr> {
    vec![
        BootMsr {
            index: TSC,
            value: 0,
        },
        BootMsr {
            index: MISC_ENABLE,
            value: MISC_ENABLE_FAST_STRINGS,
        },
        BootMsr {
            index: MTRR_DEF_TYPE,
            value: MTRR_ENABLED_WRITE_BACK,
        },
    ]
}
