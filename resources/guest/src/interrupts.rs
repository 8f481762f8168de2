//! One interrupt, counted, and a way to sleep until it comes: for hosts whose KVM runs ring 0 natively.
//!
//! The guest stays in ring 3 with interrupts off. The few instructions that need ring 0 are gates in `entry.s`;
//! without a call of [`enable`] the table of gates is empty, and any exception ends the machine.

#![expect(
    unsafe_code,
    reason = "gates and what they count are symbols of the assembly"
)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// The vector devices raise.
const VECTOR: u8 = 0x40;
const WAIT: u8 = 0x80;
const APIC: u8 = 0x81;

/// Where a message goes that is meant for the processor with APIC id 0 (Intel SDM volume 3, 11.11).
pub(crate) const MESSAGE_ADDRESS: u64 = 0xfee0_0000;
/// What it says: the vector, fixed delivery, edge.
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

/// Puts the gates in place and switches the local APIC on.
pub(crate) fn enable() {
    set_gate(VECTOR, interrupt_entry, 0);
    set_gate(WAIT, wait_entry, FROM_RING_3);
    set_gate(APIC, apic_entry, FROM_RING_3);
    // SAFETY: the gate is there; it changes these registers and nothing of this program's.
    unsafe { asm!("int 0x81", out("rax") _, out("rcx") _, out("rdx") _) };
}

fn set_gate(vector: u8, handler: unsafe extern "C" fn(), access: u64) {
    let address = handler as usize as u64;
    let low = address & 0xffff
        | KERNEL_CODE << 16
        | (INTERRUPT_GATE | access) << 40
        | (address >> 16 & 0xffff) << 48;
    // SAFETY: 256 gates, and no other reference to them; the processor reads them when an interrupt comes.
    unsafe {
        (&raw mut idt[usize::from(vector)]).write_volatile([low, address >> 32]);
    }
}

/// Interrupts so far.
pub(crate) fn count() -> u64 {
    // SAFETY: an aligned word that lives as long as the program.
    unsafe { interrupt_count.load(Ordering::Relaxed) }
}

/// Sleeps until there have been others than those `seen`.
pub(crate) fn wait(seen: u64) {
    // SAFETY: the gate was set by `enable`; it changes nothing but the count.
    unsafe { asm!("int 0x80", in("rdi") seen) };
}
