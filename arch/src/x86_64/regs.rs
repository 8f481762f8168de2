//! Registers that the first vCPU starts with, and the GDT and page tables that they point to.
//!
//! There are two entries: PVH (32-bit protected mode, no paging; Xen PVH ABI) and Linux's 64-bit
//! entry (long mode, first 4 GiB identity-mapped; Linux `Documentation/arch/x86/boot.rst`, "64-bit
//! boot protocol"). The other vCPUs wait for INIT/SIPI in KVM's reset state.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};

use crate::kernel::EntryPoint;
use crate::layout::{GDT, GIB, PAGE, PAGE_TABLES, PVH_START_INFO, ZERO_PAGE};

/// Selectors of the flat segments: Linux's `__BOOT_CS` and `__BOOT_DS`, and a TSS, which VMX
/// requires.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TSS: u16 = 0x20;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_FIXED: u64 = 1 << 1;

const PTE_PRESENT: u64 = 1;
const PTE_WRITABLE: u64 = 1 << 1;
const PDE_LARGE: u64 = 1 << 7;
const LARGE_PAGE: u64 = 2 << 20;

/// Segment types (Intel SDM vol. 3, 3.4.5.1), with the accessed bit set, so that no CPU writes to
/// the GDT.
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_TSS_BUSY: u8 = 0xb;

/// Returns the general registers for `entry`.
#[must_use]
pub fn general(entry: EntryPoint) -> kvm_regs {
    let mut regs = kvm_regs {
        rflags: RFLAGS_FIXED,
        ..Default::default()
    };
    match entry {
        EntryPoint::Pvh(address) => {
            regs.rip = u64::from(address);
            regs.rbx = PVH_START_INFO;
        }
        EntryPoint::Linux64(address) => {
            regs.rip = address;
            regs.rsi = ZERO_PAGE;
        }
    }
    regs
}

/// Returns the special registers for `entry`, based on those of `KVM_GET_SREGS`. The APIC base is
/// not changed.
#[must_use]
pub fn special(mut sregs: kvm_sregs, entry: EntryPoint) -> kvm_sregs {
    let long = matches!(entry, EntryPoint::Linux64(_));
    let data = segment(DATA, TYPE_DATA, SegmentKind::Data);
    sregs.cs = segment(
        CODE,
        TYPE_CODE,
        if long {
            SegmentKind::Code64
        } else {
            SegmentKind::Code32
        },
    );
    sregs.ds = data;
    sregs.es = data;
    sregs.ss = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.tr = segment(TSS, TYPE_TSS_BUSY, SegmentKind::Tss);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = GDT_LIMIT;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr3 = 0;
    sregs.cr4 = 0;
    sregs.efer = 0;
    if long {
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = PAGE_TABLES;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    }
    sregs
}

/// Returns the FPU state after reset: all exceptions masked.
#[must_use]
pub fn fpu() -> kvm_fpu {
    kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    }
}

/// Returns the memory that the registers point to, as (guest address, bytes).
#[must_use]
pub fn tables(entry: EntryPoint) -> Vec<(u64, Vec<u8>)> {
    let code = if matches!(entry, EntryPoint::Linux64(_)) {
        SegmentKind::Code64
    } else {
        SegmentKind::Code32
    };
    let gdt = [
        0,
        0,
        descriptor(&segment(CODE, TYPE_CODE, code)),
        descriptor(&segment(DATA, TYPE_DATA, SegmentKind::Data)),
        descriptor(&segment(TSS, TYPE_TSS_BUSY, SegmentKind::Tss)),
        0,
    ];
    let mut tables = vec![(GDT, words(&gdt))];
    if matches!(entry, EntryPoint::Linux64(_)) {
        tables.push((PAGE_TABLES, page_tables()));
    }
    tables
}

/// Six descriptors; the TSS takes two in long mode.
const GDT_LIMIT: u16 = 6 * 8 - 1;

#[derive(Clone, Copy, PartialEq, Eq)]
enum SegmentKind {
    Code32,
    Code64,
    Data,
    Tss,
}

fn segment(selector: u16, type_: u8, kind: SegmentKind) -> kvm_segment {
    let system = kind == SegmentKind::Tss;
    kvm_segment {
        base: 0,
        limit: if system { 0x67 } else { u32::MAX },
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(matches!(kind, SegmentKind::Code32 | SegmentKind::Data)),
        s: u8::from(!system),
        l: u8::from(kind == SegmentKind::Code64),
        g: u8::from(!system),
        ..Default::default()
    }
}

/// Encodes a segment as a GDT descriptor of eight bytes (Intel SDM vol. 3, figure 3-8). All bases
/// are 0.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let access =
        u64::from(segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7);
    let flags = u64::from(segment.l << 1 | segment.db << 2 | segment.g << 3);
    limit & 0xffff | access << 40 | (limit >> 16 & 0xf) << 48 | flags << 52
}

/// Returns an identity map of the first 4 GiB with 2 MiB pages: PML4, PDPT and four page
/// directories, in this order.
fn page_tables() -> Vec<u8> {
    const ENTRIES: u64 = 512;
    const DIRECTORIES: u64 = 4 * GIB / (ENTRIES * LARGE_PAGE);
    let pointer = PTE_PRESENT | PTE_WRITABLE;
    let pdpt = PAGE_TABLES + PAGE;
    let mut entries = vec![0; 2 * 512];
    entries[0] = pdpt | pointer;
    for (slot, directory) in entries[512..].iter_mut().zip(1..=DIRECTORIES) {
        *slot = (pdpt + directory * PAGE) | pointer;
    }
    entries
        .extend((0..DIRECTORIES * ENTRIES).map(|page| (page * LARGE_PAGE) | pointer | PDE_LARGE));
    words(&entries)
}

fn words(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

#[cfg(test)]
mod tests;
