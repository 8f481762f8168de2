//! One interrupt, which is counted, and a way to sleep until it arrives; for hosts whose KVM runs
//! ring 0 natively.
//!
//! The guest stays in ring 3 with interrupts disabled. The few instructions that need ring 0 are
//! behind gates in `entry.s`. Unless [`enable`] is called, the IDT is empty, and any exception ends
//! the machine.

#![expect(
    unsafe_code,
    reason = "gates and what they count are symbols of the assembly"
)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// The vector of the devices' interrupts.
const VECTOR: u8 = 0x40;
const WAIT: u8 = 0x80;
const APIC: u8 = 0x81;

/// MSI address for the processor with APIC ID 0 (Intel SDM volume 3, 11.11).
pub(crate) const MESSAGE_ADDRESS: u64 = 0xfee0_0000;
/// MSI data: the vector, fixed delivery mode, edge-triggered.
pub(crate) const MESSAGE_DATA: u32 = VECTOR as u32;

const KERNEL_CODE: u64 = 0x08;
const INTERRUPT_GATE: u64 = 0x8e;
const FROM_RING_3: u64 = 3 << 5;

unsafe extern "C" {
    static mut idt: [[u64; 2]; 256];
    static interrupt_count: AtomicU64;
    fn interrupt_entry();
    fn wait_entry();
    fn apic_entry();
}

/// Sets up the gates and enables the local APIC.
pub(crate) fn enable() {
    set_gate(VECTOR, interrupt_entry, 0);
    set_gate(WAIT, wait_entry, FROM_RING_3);
    set_gate(APIC, apic_entry, FROM_RING_3);
    // SAFETY: the gate is set. It changes these registers, and none of this program's memory.
    unsafe { asm!("int 0x81", out("rax") _, out("rcx") _, out("rdx") _) };
}

fn set_gate(vector: u8, handler: unsafe extern "C" fn(), access: u64) {
    let address = handler as usize as u64;
    let low = address & 0xffff
        | KERNEL_CODE << 16
        | (INTERRUPT_GATE | access) << 40
        | (address >> 16 & 0xffff) << 48;
    // SAFETY: there are 256 gates, and no other reference to them. The processor reads them at an
    // interrupt.
    unsafe {
        (&raw mut idt[usize::from(vector)]).write_volatile([low, address >> 32]);
    }
}

/// Returns the number of interrupts so far.
pub(crate) fn count() -> u64 {
    // SAFETY: an aligned word that lives as long as the program.
    unsafe { interrupt_count.load(Ordering::Relaxed) }
}

/// Sleeps until the number of interrupts differs from `seen`.
pub(crate) fn wait(seen: u64) {
    // SAFETY: the gate was set by `enable`. It changes only the count.
    unsafe { asm!("int 0x80", in("rdi") seen) };
}
