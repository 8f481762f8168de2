use super::*;

#[test]
fn one_gib_is_one_range_below_the_hole() {
    let layout = Layout::new(GIB, 40).unwrap();
    assert_eq!(layout.ram(), std::slice::from_ref(&(0..GIB)));
    assert_eq!(layout.mmio64(), 4 * GIB..68 * GIB);
    assert_eq!(
        layout
            .memory_map()
            .iter()
            .filter(|entry| entry.kind == MemoryKind::Ram)
            .count(),
        2
    );
}

#[test]
fn six_gib_are_split_by_the_hole_and_lose_nothing() {
    let layout = Layout::new(6 * GIB, 40).unwrap();
    assert_eq!(layout.ram(), [0..3 * GIB, 4 * GIB..7 * GIB]);
    assert_eq!(layout.memory(), 6 * GIB);
    assert_eq!(layout.mmio64().start, 7 * GIB);
}

#[test]
fn memory_map_is_sorted_disjoint_and_within_ram_or_reserved() {
    for memory in [
        MIN_MEMORY,
        256 * MIB,
        3 * GIB - PAGE,
        3 * GIB,
        3 * GIB + PAGE,
        6 * GIB,
        100 * GIB,
    ] {
        let layout = Layout::new(memory, 46).unwrap();
        let map = layout.memory_map();
        for pair in map.windows(2) {
            assert!(
                pair[0].range.end <= pair[1].range.start,
                "{memory:#x}: {pair:?}"
            );
        }
        for entry in map.iter().filter(|entry| entry.kind == MemoryKind::Ram) {
            assert!(!entry.range.is_empty());
            assert!(
                layout
                    .ram()
                    .iter()
                    .any(|ram| ram.start <= entry.range.start && entry.range.end <= ram.end)
            );
        }
        assert!(
            map.iter()
                .any(|entry| entry.kind == MemoryKind::Reserved && entry.range == ECAM)
        );
        assert!(layout.mmio64().start >= layout.ram().last().unwrap().end);
    }
}

#[test]
fn hostile_sizes_are_refused_with_the_limit() {
    for size in [1 << 46, !(PAGE - 1)] {
        let Err(LayoutError::TooLarge { max, .. }) = Layout::new(size, 46) else {
            panic!("{size:#x} was accepted")
        };
        assert!(Layout::new(max, 46).is_ok());
        assert!(Layout::new(max + PAGE, 46).is_err());
    }
}

#[test]
fn fixed_ranges_do_not_overlap() {
    let fixed = [
        MMIO32,
        ECAM,
        IOAPIC..IOAPIC + PAGE,
        LOCAL_APIC..LOCAL_APIC + MIB,
        KVM_IDENTITY_MAP..KVM_IDENTITY_MAP + PAGE,
        KVM_TSS..KVM_TSS + 3 * PAGE,
    ];
    for pair in fixed.windows(2) {
        assert!(pair[0].end <= pair[1].start);
    }
    let low = [
        GDT..GDT + 64,
        PVH_START_INFO..PVH_START_INFO + 56,
        PVH_MODULES..PVH_MODULES + 32,
        PVH_MEMMAP..ZERO_PAGE,
        ZERO_PAGE..ZERO_PAGE + PAGE,
        PAGE_TABLES..PAGE_TABLES + 6 * PAGE,
        CMDLINE..CMDLINE + 2048,
        LOW_RAM_END..ACPI.start,
        ACPI,
        RESET_VECTOR..HIGH_MEMORY,
    ];
    for pair in low.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{pair:x?}");
    }
}
