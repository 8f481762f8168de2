//! x86_64 boot protocols, ACPI, CPUID, MSRs and registers, as plain data.
//!
//! Nothing in here issues an ioctl or knows a device's insides: `vmm` feeds addresses and interrupt numbers in and gets bytes, register
//! files and load plans out. That keeps everything a guest sees before its first instruction testable without `/dev/kvm`.

#![warn(missing_debug_implementations)]

pub mod x86_64;

pub use x86_64::{acpi, boot, cpuid, kernel, layout, msr, regs};
