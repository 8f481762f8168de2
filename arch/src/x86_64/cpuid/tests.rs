//! Processors as KVM reports them, and the CPUID that guests with several vCPUs get.

use super::*;

const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];
const AMD: [u32; 3] = [0x6874_7541, 0x444d_4163, 0x6974_6e65];

fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    let flags = if matches!(function, 4 | 0xb | 0x8000_001d) {
        KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    } else {
        0
    };
    kvm_cpuid_entry2 {
        function,
        index,
        flags,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

fn supported([ebx, ecx, edx]: [u32; 3]) -> Vec<kvm_cpuid_entry2> {
    vec![
        entry(0, 0, [0x1f, ebx, ecx, edx]),
        entry(1, 0, [0x0080_0f12, 0x0102_0800, VMX, 0x078b_fbff]),
        entry(4, 0, [0x0c00_4121, 0x01c0_003f, 0x3f, 0]),
        entry(4, 1, [0x0c03_c163, 0x03c0_003f, 0x3fff, 4]),
        entry(4, 2, [0, 0, 0, 0]),
        entry(7, 0, [0, SGX | 1 << 9, SGX_LAUNCH, 0]),
        entry(0xb, 0, [0, 0, 0, 0]),
        entry(0x12, 0, [1, 0, 0, 0]),
        entry(
            HYPERVISOR_BASE,
            0,
            [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
        ),
        entry(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        entry(0x8000_0000, 0, [0x8000_001f, 0, 0, 0]),
        entry(0x8000_0001, 0, [0, 0, SVM | TOPOEXT, 0]),
        entry(0x8000_0008, 0, [0x3028, 0, 0x1234_7007, 0]),
        entry(0x8000_001d, 0, [0x0000_c121, 0, 0, 0]),
        entry(0x8000_001d, 1, [0x0001_c163, 0, 0, 0]),
        entry(0x8000_001e, 0, [0, 0, 0, 0]),
    ]
}

fn features(vcpus: u32) -> CpuFeatures {
    CpuFeatures {
        vcpus,
        tsc_khz: Some(2_450_000),
        brand: *b"A processor of 48 bytes, the last of them a 0. \0",
    }
}

fn leaf(cpuid: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
    let mut found = cpuid
        .iter()
        .filter(|entry| entry.function == function && entry.index == index);
    let leaf = *found
        .next()
        .unwrap_or_else(|| panic!("leaf {function:#x} is missing"));
    assert!(found.next().is_none(), "leaf {function:#x} is there twice");
    leaf
}

#[test]
fn apic_ids_are_distinct_and_the_same_in_every_leaf() {
    for vendor in [INTEL, AMD] {
        for vcpus in 1..=MAX_VCPUS {
            for index in 0..vcpus {
                let cpuid = vcpu_cpuid(&supported(vendor), &features(vcpus), index);
                assert_eq!(leaf(&cpuid, 1, 0).ebx >> 24, index);
                for level in 0..3 {
                    assert_eq!(leaf(&cpuid, 0xb, level).edx, index);
                    assert_eq!(leaf(&cpuid, 0x1f, level).edx, index);
                }
                if vendor == AMD {
                    assert_eq!(leaf(&cpuid, 0x8000_001e, 0).eax, index);
                }
            }
        }
    }
}

#[test]
fn cores_of_one_package_agree_in_all_leaves() {
    for (vcpus, shift, reserved) in [
        (1, 0, 1),
        (2, 1, 2),
        (3, 2, 4),
        (4, 2, 4),
        (31, 5, 32),
        (32, 5, 32),
    ] {
        let intel = vcpu_cpuid(&supported(INTEL), &features(vcpus), 0);
        assert_eq!(leaf(&intel, 1, 0).ebx >> 16 & 0xff, reserved);
        assert_eq!(leaf(&intel, 1, 0).edx & HTT != 0, vcpus > 1);
        assert_eq!(
            (
                leaf(&intel, 0xb, 0).eax,
                leaf(&intel, 0xb, 0).ebx,
                leaf(&intel, 0xb, 0).ecx
            ),
            (0, 1, 0x100)
        );
        assert_eq!(
            (
                leaf(&intel, 0xb, 1).eax,
                leaf(&intel, 0xb, 1).ebx,
                leaf(&intel, 0xb, 1).ecx
            ),
            (shift, vcpus, 0x201)
        );
        assert_eq!(leaf(&intel, 0xb, 2).ebx, 0);
        let (inner, outer) = (leaf(&intel, 4, 0).eax, leaf(&intel, 4, 1).eax);
        assert_eq!((inner >> 26, inner >> 14 & 0xfff), (reserved - 1, 0));
        assert_eq!(
            (outer >> 26, outer >> 14 & 0xfff),
            (reserved - 1, reserved - 1)
        );
        assert_eq!(leaf(&intel, 4, 2).eax, 0, "the end mark stays");
        let amd = vcpu_cpuid(&supported(AMD), &features(vcpus), 0);
        assert_eq!(
            leaf(&amd, 0x8000_0008, 0).ecx,
            0x1234_0f00 & !0xf00 | shift << 12 | (vcpus - 1)
        );
        assert_eq!(leaf(&amd, 0x8000_001d, 1).eax >> 14 & 0xfff, reserved - 1);
        assert_eq!(leaf(&amd, 0x8000_0001, 0).ecx & CMP_LEGACY != 0, vcpus > 1);
    }
}

#[test]
fn feature_bits_are_added_and_hidden_whatever_kvm_offers() {
    let ecx = leaf(&vcpu_cpuid(&supported(INTEL), &features(2), 0), 1, 0).ecx;
    assert_eq!(
        ecx & (HYPERVISOR | X2APIC | TSC_DEADLINE | VMX),
        HYPERVISOR | X2APIC | TSC_DEADLINE
    );
    let cpuid = vcpu_cpuid(&supported(AMD), &features(2), 0);
    assert_eq!(leaf(&cpuid, 0x8000_0001, 0).ecx & SVM, 0);
    assert_eq!(
        (leaf(&cpuid, 7, 0).ebx, leaf(&cpuid, 7, 0).ecx),
        (1 << 9, 0)
    );
    assert!(cpuid.iter().all(|entry| entry.function != 0x12));
}

#[test]
fn a_known_frequency_is_reported_exactly_or_not_at_all() {
    let cpuid = vcpu_cpuid(&supported(INTEL), &features(1), 0);
    assert_eq!(leaf(&cpuid, HYPERVISOR_BASE, 0).eax, HYPERVISOR_TIMING);
    assert_eq!(
        (
            leaf(&cpuid, HYPERVISOR_TIMING, 0).eax,
            leaf(&cpuid, HYPERVISOR_TIMING, 0).ebx
        ),
        (2_450_000, 1_000_000)
    );
    let ratio = leaf(&cpuid, 0x15, 0);
    assert_eq!(
        u64::from(ratio.ecx) * u64::from(ratio.ebx) / u64::from(ratio.eax),
        2_450_000_000
    );
    assert_eq!(leaf(&cpuid, 0x16, 0).eax, 2450);
    let odd = CpuFeatures {
        tsc_khz: Some(2_449_999),
        ..features(1)
    };
    assert!(
        vcpu_cpuid(&supported(INTEL), &odd, 0)
            .iter()
            .all(|entry| entry.function != 0x15)
    );
    let amd = vcpu_cpuid(&supported(AMD), &features(1), 0);
    assert!(
        amd.iter()
            .all(|entry| !matches!(entry.function, 0x15 | 0x16))
    );
}

#[test]
fn leaves_that_the_processor_lacks_are_not_added() {
    let mut small = supported(INTEL);
    small.retain(|entry| entry.function < 4);
    small[0].eax = 0xa;
    let cpuid = vcpu_cpuid(&small, &features(4), 3);
    let mut functions: Vec<_> = cpuid.iter().map(|entry| entry.function).collect();
    functions.sort_unstable();
    assert_eq!(functions, [0, 1]);
    assert!(vcpu_cpuid(&[], &features(1), 0).is_empty());
}

#[test]
fn the_brand_string_is_in_three_leaves() {
    let features = features(1);
    let cpuid = vcpu_cpuid(&supported(AMD), &features, 0);
    let words = BRAND_LEAVES
        .map(|function| leaf(&cpuid, function, 0))
        .map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
    let bytes: Vec<u8> = words
        .as_flattened()
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    assert_eq!(bytes, features.brand);
}

#[test]
fn physical_bits_come_from_the_processor() {
    assert_eq!(physical_bits(&supported(AMD)), 40);
    assert_eq!(physical_bits(&[]), DEFAULT_PHYSICAL_BITS);
}
