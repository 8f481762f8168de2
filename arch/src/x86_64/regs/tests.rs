use super::*;

const PVH: EntryPoint = EntryPoint::Pvh(0x100_0850);
const LONG: EntryPoint = EntryPoint::Linux64(0x100_0200);

fn word(tables: &[(u64, Vec<u8>)], address: u64) -> u64 {
    let (start, bytes) = tables
        .iter()
        .find(|(start, bytes)| (*start..*start + bytes.len() as u64).contains(&address))
        .unwrap();
    let at = usize::try_from(address - start).unwrap();
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Walks the page tables as the processor does.
fn translate(tables: &[(u64, Vec<u8>)], cr3: u64, address: u64) -> u64 {
    const FRAME: u64 = 0xf_ffff_ffff_f000;
    let pdpt = word(tables, cr3 + (address >> 39 & 511) * 8);
    let directory = word(tables, (pdpt & FRAME) + (address >> 30 & 511) * 8);
    let page = word(tables, (directory & FRAME) + (address >> 21 & 511) * 8);
    for entry in [pdpt, directory, page] {
        assert_eq!(entry & 3, 3, "present and writable");
    }
    assert_ne!(page & PDE_LARGE, 0);
    (page & FRAME) + address % LARGE_PAGE
}

#[test]
fn pvh_starts_in_flat_protected_mode_without_paging() {
    let regs = general(PVH);
    assert_eq!(
        (regs.rip, regs.rbx, regs.rflags),
        (0x100_0850, PVH_START_INFO, 2)
    );
    let sregs = special(
        kvm_sregs {
            apic_base: 0xfee0_0900,
            cr4: 0x20,
            efer: 0x500,
            ..Default::default()
        },
        PVH,
    );
    assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
    assert_eq!(
        (sregs.cs.base, sregs.cs.limit, sregs.cs.db, sregs.cs.l),
        (0, u32::MAX, 1, 0)
    );
    assert_eq!(sregs.apic_base, 0xfee0_0900, "stays as KVM has it");
}

#[test]
fn the_64_bit_entry_starts_in_long_mode_with_the_first_4_gib_mapped() {
    assert_eq!(
        (general(LONG).rip, general(LONG).rsi),
        (0x100_0200, ZERO_PAGE)
    );
    let sregs = special(kvm_sregs::default(), LONG);
    assert_eq!(
        (sregs.cr0, sregs.cr4, sregs.efer),
        (0x8000_0011, 0x20, 0x500)
    );
    assert_eq!((sregs.cs.l, sregs.cs.db), (1, 0));
    let tables = tables(LONG);
    for address in [
        0,
        0x7c00,
        0x100_0200,
        GIB - 1,
        GIB,
        3 * GIB + 12345,
        4 * GIB - 1,
    ] {
        assert_eq!(translate(&tables, sregs.cr3, address), address);
    }
}

#[test]
fn the_gdt_matches_the_segment_registers() {
    for (entry, code) in [(PVH, 0x00cf_9b00_0000_ffff), (LONG, 0x00af_9b00_0000_ffff)] {
        let sregs = special(kvm_sregs::default(), entry);
        let tables = tables(entry);
        for (segment, expected) in [
            (sregs.cs, code),
            (sregs.ds, 0x00cf_9300_0000_ffff),
            (sregs.tr, 0x0000_8b00_0000_0067),
        ] {
            assert_eq!(word(&tables, GDT + u64::from(segment.selector)), expected);
        }
        assert!(u64::from(sregs.gdt.limit) < GDT_BYTES);
    }
}

const GDT_BYTES: u64 = 48;
