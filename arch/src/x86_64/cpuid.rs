//! CPUID of each vCPU: what KVM supports, with this machine's topology, timers and paravirtual
//! features.
//!
//! Sources: Intel's leaves (SDM vol. 2A, CPUID), AMD's (APM vol. 3, appendix E) and KVM's (Linux
//! `Documentation/virt/kvm/x86/cpuid.rst`). The functions map entries to entries and don't look at
//! the host: a feature that `KVM_GET_SUPPORTED_CPUID` does not report stays absent. The one
//! exception is the processor's brand string, which KVM leaves out.
//!
//! The topology is one package with one core per vCPU and one thread per core. The APIC ID is the
//! vCPU's index.

use std::arch::x86_64::__cpuid;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Maximum number of vCPUs of a machine.
pub const MAX_VCPUS: u32 = 32;

/// What vCPUs get in addition to `KVM_GET_SUPPORTED_CPUID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuFeatures {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// TSC frequency (`KVM_GET_TSC_KHZ`). With it the guest needs no calibration.
    pub tsc_khz: Option<u32>,
    /// The processor's brand string, padded with zeros: [`host_brand`], or another one.
    pub brand: [u8; BRAND],
}

/// Length of a brand string in bytes.
pub const BRAND: usize = 48;
/// The three leaves that hold the brand string.
const BRAND_LEAVES: [u32; 3] = [0x8000_0002, 0x8000_0003, 0x8000_0004];

/// Returns the brand string of the host's processor; zeros if it has none.
#[must_use]
pub fn host_brand() -> [u8; BRAND] {
    let mut brand = [0; BRAND];
    if __cpuid(0x8000_0000).eax >= BRAND_LEAVES[2] {
        let words = BRAND_LEAVES
            .map(__cpuid)
            .map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
        for (bytes, word) in brand.chunks_exact_mut(4).zip(words.as_flattened()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
    brand
}

/// Leaf 1 ECX. VMX and, below, SVM are hidden, because nested virtualisation is not supported. KVM
/// reports the TSC deadline timer as a capability instead of a bit; `vmm` requires it.
const VMX: u32 = 1 << 5;
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX.
const HTT: u32 = 1 << 28;
/// Leaf 7 EBX and ECX. Enclaves need EPC memory, which the address map does not have.
const SGX: u32 = 1 << 2;
const SGX_LAUNCH: u32 = 1 << 30;
/// Leaf 0x8000_0001 ECX.
const CMP_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;
const TOPOEXT: u32 = 1 << 22;

/// Cache levels in leaves 4 and 0x8000_001d, EAX bits 5..=7.
const LAST_LEVEL: u32 = 3;
/// Frequency of KVM's local APIC timer in kHz.
const APIC_BUS_KHZ: u32 = 1_000_000;
/// Hypervisor leaves: signature, and the frequencies of TSC and APIC bus in kHz, as defined by
/// VMware.
const HYPERVISOR_BASE: u32 = 0x4000_0000;
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// Physical address bits of processors that lack leaf 0x8000_0008.
const DEFAULT_PHYSICAL_BITS: u8 = 36;

/// Returns the CPUID of vCPU `index`, made from `supported` (`KVM_GET_SUPPORTED_CPUID`).
#[must_use]
pub fn vcpu_cpuid(
    supported: &[kvm_cpuid_entry2],
    features: &CpuFeatures,
    index: u32,
) -> Vec<kvm_cpuid_entry2> {
    let topology = Topology {
        cores: features.vcpus.max(1),
        id: index,
    };
    let mut leaves = Leaves(supported.to_vec());
    leaves.features(&topology);
    leaves.extended_topology(&topology);
    leaves.brand(&features.brand);
    if leaves.is_amd() {
        leaves.amd_topology(&topology);
    } else {
        leaves.caches(4, &topology);
    }
    if let Some(khz) = features.tsc_khz {
        leaves.timing(khz);
    }
    leaves.0
}

/// Returns the number of physical address bits in `cpuid` (leaf 0x8000_0008).
#[must_use]
pub fn physical_bits(cpuid: &[kvm_cpuid_entry2]) -> u8 {
    let leaf = cpuid.iter().find(|entry| entry.function == 0x8000_0008);
    let bits = leaf.map_or(0, |entry| entry.eax.to_le_bytes()[0]);
    if bits == 0 {
        DEFAULT_PHYSICAL_BITS
    } else {
        bits
    }
}

struct Topology {
    cores: u32,
    id: u32,
}

impl Topology {
    /// Number of APIC ID bits that number the cores.
    fn shift(&self) -> u32 {
        self.cores.next_power_of_two().trailing_zeros()
    }

    /// Number of APIC IDs that the package reserves, minus one.
    fn last_id(&self) -> u32 {
        self.cores.next_power_of_two() - 1
    }
}

struct Leaves(Vec<kvm_cpuid_entry2>);

impl Leaves {
    fn get(&self, function: u32) -> Option<&kvm_cpuid_entry2> {
        self.0.iter().find(|entry| entry.function == function)
    }

    fn edit(&mut self, function: u32, change: impl FnOnce(&mut kvm_cpuid_entry2)) {
        if let Some(entry) = self.0.iter_mut().find(|entry| entry.function == function) {
            change(entry);
        }
    }

    /// Replaces all entries of a function.
    fn replace(&mut self, function: u32, entries: impl IntoIterator<Item = kvm_cpuid_entry2>) {
        self.0.retain(|entry| entry.function != function);
        self.0.extend(
            entries
                .into_iter()
                .map(|entry| kvm_cpuid_entry2 { function, ..entry }),
        );
    }

    /// Returns the last leaf of the range that `base` starts.
    fn last(&self, base: u32) -> u32 {
        self.get(base).map_or(0, |entry| entry.eax)
    }

    fn is_amd(&self) -> bool {
        let words = self
            .get(0)
            .map(|entry| [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes));
        matches!(
            words.unwrap_or_default().as_flattened(),
            b"AuthenticAMD" | b"HygonGenuine"
        )
    }

    /// Leaves 1, 7 and 0x8000_0001: identity and feature bits.
    fn features(&mut self, topology: &Topology) {
        self.edit(1, |entry| {
            entry.ebx = entry.ebx & 0xffff | (topology.last_id() + 1) << 16 | topology.id << 24;
            entry.ecx = (entry.ecx | HYPERVISOR | X2APIC | TSC_DEADLINE) & !VMX;
            entry.edx = if topology.cores > 1 {
                entry.edx | HTT
            } else {
                entry.edx & !HTT
            };
        });
        self.edit(7, |entry| {
            entry.ebx &= !SGX;
            entry.ecx &= !SGX_LAUNCH;
        });
        self.edit(0x8000_0001, |entry| entry.ecx &= !SVM);
        self.replace(0x12, []);
    }

    /// Leaves 0xb and 0x1f, if the processor has them: threads, cores, end.
    fn extended_topology(&mut self, topology: &Topology) {
        const THREAD: u32 = 1;
        const CORE: u32 = 2;
        let level = |index, kind: u32, eax, ebx| kvm_cpuid_entry2 {
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax,
            ebx,
            ecx: index | kind << 8,
            edx: topology.id,
            ..Default::default()
        };
        let last = self.last(0);
        for function in [0xb, 0x1f] {
            let levels = [
                level(0, THREAD, 0, 1),
                level(1, CORE, topology.shift(), topology.cores),
                level(2, 0, 0, 0),
            ];
            self.replace(function, levels.into_iter().filter(|_| function <= last));
        }
    }

    /// Leaves 4 (Intel) and 0x8000_001d (AMD): inner caches belong to a core, the last level to the
    /// package.
    fn caches(&mut self, function: u32, topology: &Topology) {
        for entry in self
            .0
            .iter_mut()
            .filter(|entry| entry.function == function && entry.eax & 0x1f != 0)
        {
            let level = entry.eax >> 5 & 7;
            let sharers = if level >= LAST_LEVEL {
                topology.last_id()
            } else {
                0
            };
            // Leaf 4 also has the number of cores, in bits that AMD reserves.
            let cores = if function == 4 { topology.last_id() } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharers << 14 | cores << 26;
        }
    }

    fn brand(&mut self, brand: &[u8; BRAND]) {
        if self.last(0x8000_0000) < BRAND_LEAVES[2] {
            return;
        }
        for (function, bytes) in BRAND_LEAVES.into_iter().zip(brand.chunks_exact(16)) {
            let word = |at: usize| {
                bytes[at..]
                    .first_chunk()
                    .map_or(0, |word| u32::from_le_bytes(*word))
            };
            self.replace(
                function,
                [kvm_cpuid_entry2 {
                    eax: word(0),
                    ebx: word(4),
                    ecx: word(8),
                    edx: word(12),
                    ..Default::default()
                }],
            );
        }
    }

    fn amd_topology(&mut self, topology: &Topology) {
        let more = topology.cores > 1;
        let mut topoext = false;
        self.edit(0x8000_0001, |entry| {
            // Without this bit Linux reads leaf 1's cores as threads of one core.
            entry.ecx = if more {
                entry.ecx | CMP_LEGACY
            } else {
                entry.ecx & !CMP_LEGACY
            };
            topoext = entry.ecx & TOPOEXT != 0;
        });
        self.edit(0x8000_0008, |entry| {
            entry.ecx = entry.ecx & !0xf0ff | topology.shift() << 12 | (topology.cores - 1)
        });
        if topoext {
            let core = kvm_cpuid_entry2 {
                eax: topology.id,
                ebx: topology.id,
                ..Default::default()
            };
            self.replace(0x8000_001e, [core]);
        }
        self.caches(0x8000_001d, topology);
    }

    /// Frequencies: the hypervisor's leaf for all processors, leaves 0x15 and 0x16 for Intel
    /// processors that have them.
    fn timing(&mut self, tsc_khz: u32) {
        if self.last(HYPERVISOR_BASE) >= HYPERVISOR_BASE {
            self.edit(HYPERVISOR_BASE, |entry| {
                entry.eax = entry.eax.max(HYPERVISOR_TIMING)
            });
            self.replace(
                HYPERVISOR_TIMING,
                [kvm_cpuid_entry2 {
                    eax: tsc_khz,
                    ebx: APIC_BUS_KHZ,
                    ..Default::default()
                }],
            );
        }
        let last = self.last(0);
        if self.is_amd() || last < 0x16 || tsc_khz == 0 {
            return;
        }
        // TSC = crystal × ebx / eax, and the crystal also drives the local APIC's timer. Linux
        // multiplies in 32 bits: no leaf is better than one that overflows there.
        let divisor = gcd(tsc_khz, APIC_BUS_KHZ);
        let (numerator, denominator) = (tsc_khz / divisor, APIC_BUS_KHZ / divisor);
        if APIC_BUS_KHZ.checked_mul(numerator).is_some() {
            let ratio = kvm_cpuid_entry2 {
                eax: denominator,
                ebx: numerator,
                ecx: APIC_BUS_KHZ * 1000,
                ..Default::default()
            };
            self.replace(0x15, [ratio]);
        }
        let mhz = tsc_khz / 1000;
        self.replace(
            0x16,
            [kvm_cpuid_entry2 {
                eax: mhz,
                ebx: mhz,
                ecx: 100,
                ..Default::default()
            }],
        );
    }
}

fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests;
